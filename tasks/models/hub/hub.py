"""A hub of models: what a revision consists of, and the places that give its bytes.

huggingface_hub 2.4 was weighed: it reads its settings at import, so that two mirrors cannot be
asked by one process, compares sizes but no hashes, and asks for whole files only.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from blocks.errors import CrossgapError, Damaged, InvalidInput, NotFound
from tasks.models.files import Revision, check_commit, check_files
from tasks.models.hub.endpoint import Endpoint
from tasks.models.hub.names import check_model, check_revision
from tasks.models.hub.places import Place
from tasks.models.hub.tree import read_tree
from tasks.transfer.turns import Turns
from tasks.transfer.web import Transport

if TYPE_CHECKING:
    from blocks.model_hub import HubEndpoint, ModelHub

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHOWN_REVISIONS = 12


class Hub:
    """The endpoints of a run; safe to use from several threads.

    Args:
        endpoints: In the order in which they are asked.
        token: For gated and private models.
        use_proxy: Whether the proxy that the environment names is used.
        ca_bundle: Certificates to trust beside the system's.
        connections: How many to one host are of use side by side.
        stall_seconds: How long an endpoint may send nothing.

    Raises:
        InvalidInput: No endpoint says what a model consists of, the CA bundle cannot be
            read, the token can be none, or the proxy is of a kind that is not known here.
    """

    def __init__(
        self,
        endpoints: Sequence[HubEndpoint],
        token: str = "",
        use_proxy: bool = False,
        ca_bundle: Path | None = None,
        connections: int = 8,
        stall_seconds: float = 30.0,
    ) -> None:
        if not re.fullmatch(r"[\x21-\x7e]*", token):
            raise InvalidInput(
                "its token has characters that no token has",
                "the model hub",
                "Copy it anew into the hub's block: it looks like hf_ and letters behind that.",
            )
        self._transport = Transport(ca_bundle, use_proxy, stall_seconds, connections)
        for one in endpoints:
            self._transport.proxy_of(one.url)  # says at once what no endpoint can mend
        self._endpoints = [Endpoint(one.url, one.kind, self._transport, token) for one in endpoints]
        listing = [one for one in self._endpoints if one.kind == "huggingface"]
        if not listing:
            raise InvalidInput(
                "none of its endpoints is of the kind huggingface, which alone says what a "
                "model consists of",
                "the model hub",
                "Add one to its block, such as https://hf-mirror.com.",
            )
        self._turns = Turns(listing, Counter())

    @classmethod
    def of(cls, block: ModelHub, stall_seconds: float = 30.0) -> Hub:
        """Make a hub from what a block says.

        Args:
            block: The block.
            stall_seconds: How long an endpoint may send nothing.

        Raises:
            InvalidInput: As for the class.
        """
        return cls(
            block.endpoints,
            block.token.get_secret_value().strip(),
            block.use_proxy,
            Path(block.ca_bundle) if block.ca_bundle else None,
            block.connections_per_file * block.files_at_once,
            stall_seconds,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def resolve(self, model: str, revision: str = "main") -> Revision:
        """Pin a revision to its commit, and list all files of that.

        Args:
            model: `organisation/name`, or an old name without an organisation.
            revision: A branch, a tag or a commit.

        Raises:
            InvalidInput: One of the names can be none.
            NotFound: There is no such model or revision; the revisions that it has are named.
            AuthenticationRefused: The model is gated or private, or the token is refused.
            Damaged: What the hub lists cannot be fetched, proven and kept in a folder.
            CrossgapError: No endpoint answers.
        """
        model = check_model(model.strip())
        revision = check_revision(revision.strip())
        return self._turns.ask(lambda endpoint: _resolve(endpoint, model, revision))

    def places(self, revision: Revision) -> list[Place]:
        """Return the places that may give a revision's bytes, in their order.

        Args:
            revision: The model, pinned.
        """
        return [Place(endpoint, revision) for endpoint in self._endpoints]


def _resolve(endpoint: Endpoint, model: str, revision: str) -> Revision:
    what = f"model {model!r}"
    where = f"{what} from {endpoint.name}"
    try:
        said = endpoint.document(
            f"/api/models/{quote(model)}/revision/{quote(revision, safe='')}", what
        ).value
    except NotFound as error:
        raise _absent(endpoint, model, revision) or error from None
    commit = check_commit(_sha(said), where)
    if _COMMIT.fullmatch(revision) and revision != commit:
        raise Damaged(f"it gives commit {commit} where {revision} was asked for", where)
    files = check_files(read_tree(endpoint, model, commit, what), where)
    _check_complete(said, {file.path for file in files}, where)
    return Revision(model, revision, commit, files, endpoint.name)


def _sha(said: Any) -> str:
    return str(said.get("sha", "")) if isinstance(said, dict) else ""


def _check_complete(said: dict[str, Any], listed: set[str], where: str) -> None:
    """Compare the file list with the names that came with the commit.

    A mirror that loses the address of the next page would otherwise go unnoticed.
    """
    siblings = said.get("siblings")
    named = siblings if isinstance(siblings, list) else []
    names = {one.get("rfilename") for one in named if isinstance(one, dict)}
    if missing := sorted(name for name in names if isinstance(name, str) and name not in listed):
        raise Damaged(
            f"its file list lacks {len(missing)} of the files that the model has, "
            f"{missing[0][:200]!r} among them",
            where,
            "The mirror may lose pages of long lists: put another endpoint first.",
            retryable=True,
        )


def _absent(endpoint: Endpoint, model: str, revision: str) -> NotFound | None:
    """Tell a revision that does not exist from a model that does not."""
    what = f"model {model!r}"
    try:
        refs = endpoint.document(f"/api/models/{quote(model)}/refs", what).value
    except CrossgapError:
        return None
    known = _ref_names(refs)
    close = difflib.get_close_matches(revision, known, n=_SHOWN_REVISIONS, cutoff=0.5)
    shown = list(dict.fromkeys([*close, *known]))[:_SHOWN_REVISIONS]
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    return NotFound(
        f"the model exists, but has no revision {revision!r}",
        f"{what} from {endpoint.name}",
        f"It has {', '.join(shown)}{more}." if shown else "It has no branches at all.",
    )


def _ref_names(refs: Any) -> list[str]:
    groups = [refs.get(kind) for kind in ("branches", "tags")] if isinstance(refs, dict) else []
    refs_of = [one for group in groups if isinstance(group, list) for one in group]
    names = [one.get("name") for one in refs_of if isinstance(one, dict)]
    return [name for name in names if isinstance(name, str) and name.isprintable()]
