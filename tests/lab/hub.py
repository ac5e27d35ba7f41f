"""A stand-in for the public Hugging Face hub and for ModelScope: real HTTP, made-up models.

It answers what a download asks for and nothing else, and fails on demand.

python -m tests.lab.hub --folder F --port P    # F/<organisation>/<name>/ are the models
"""

from __future__ import annotations

import argparse
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

from tests.lab.hub_faults import Fault, Kind, Seen
from tests.lab.hub_files import Commit, HubFile, HubModel, make_commit
from tests.lab.hub_server import HubServer

if TYPE_CHECKING:
    from tests.lab.registry import LabAuthority


class LabHub:
    """A hub that runs while the context does.

    Args:
        faults: What goes wrong; the first that fits a request.
        port: Where it listens on 127.0.0.1; any free one when left out.
        rate: Bytes per second that each connection gets of files, or None for all there is.
        page_size: Most entries of a page of a file list.
        lfs_above: Files of more bytes are large files, with a SHA-256, from a signed link.
        cdn: Whether signed links lead to a host of their own, `localhost` with another port.
        link_seconds: How long a signed link is good.
        link_uses: For how many GETs it is good; None for any number.
        resolve_cache: Whether small public files are redirected within the hub first, as the real
            one does; the redirect carries neither their size nor their ETag.
        authority: Signs its certificate; it speaks http when left out.

    Attributes:
        url: Scheme, host and port.
        cdn_url: The same of the host that signed links lead to.
        faults: Can be changed at any time, as `rate`, `tokens` and the links' limits can.
        tokens: What each token lets in to, of the gated and private models.
        rewrite: Changes a document of the interfaces before it is sent: given the path that was
            asked for and the document, it returns another.
        seen: The requests, in the order in which they came.
        sent: Bytes of files that were sent.
        sent_by_file: The same for each file, as `organisation/name/path`.
        connections: How many are open now.
        most_connections: How many were open at once at most.
    """

    def __init__(
        self,
        *faults: Fault,
        port: int = 0,
        rate: float | None = None,
        page_size: int = 1000,
        lfs_above: int = 1 << 20,
        cdn: bool = False,
        link_seconds: float = 3600,
        link_uses: int | None = None,
        resolve_cache: bool = True,
        authority: LabAuthority | None = None,
    ) -> None:
        self.faults = list(faults)
        self.rate = rate
        self.page_size = page_size
        self.lfs_above = lfs_above
        self.link_seconds = link_seconds
        self.link_uses = link_uses
        self.resolve_cache = resolve_cache
        self.models: dict[str, HubModel] = {}
        self.tokens: dict[str, set[str]] = {}
        self.rewrite: Callable[[str, Any], Any] = lambda _path, document: document
        self.seen: list[Seen] = []
        self.sent = 0
        self.sent_by_file: Counter[str] = Counter()
        self.connections = 0
        self.most_connections = 0
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._port = port
        self._cdn = cdn
        self._authority = authority
        self._links: dict[str, SignedLink] = {}

    def __enter__(self) -> Self:
        self._store = tempfile.TemporaryDirectory(prefix="crossgap-hub-")
        scheme = "https" if self._authority else "http"
        self._servers = [HubServer(self, "hub", self._port, self._authority)]
        self.url = f"{scheme}://127.0.0.1:{self._servers[0].server_port}"
        self.cdn_url = self.url
        if self._cdn:
            self._servers.append(HubServer(self, "cdn", 0, self._authority))
            self.cdn_url = f"{scheme}://localhost:{self._servers[1].server_port}"
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
            server.end_connections()
        self._store.cleanup()

    def add(
        self,
        model: str,
        folder: Path,
        *,
        branch: str = "main",
        gated: bool = False,
        private: bool = False,
        hashes: Mapping[str, str] | None = None,
        in_place: bool = False,
    ) -> str:
        """Make a commit of a folder's files and return its id; the commits before it stay.

        Args:
            model: `organisation/name`.
            folder: The files.
            branch: What stands at the commit from now on.
            gated: Whether its files are for tokens that let in to it.
            private: Whether others do not even see it.
            hashes: SHA-256 of files by their paths, where they are known already.
            in_place: Whether the files will stay as they are, so that no copies are needed.
        """
        commit = make_commit(
            folder,
            lfs_above=self.lfs_above,
            hashes=hashes or {},
            store=None if in_place else Path(self._store.name),
        )
        kept = self.models.setdefault(model, HubModel(model))
        kept.gated, kept.private = gated, private
        kept.commits[commit.id] = commit
        kept.branches[branch] = commit
        return commit.id

    def asked(self, path: str) -> list[Seen]:
        """Return the requests whose path has this in it, as a regular expression."""
        return [seen for seen in self.seen if re.search(path, seen.path)]

    def counters(self) -> dict[str, Any]:
        """Return what was counted, as `/_lab/counters` tells it."""
        with self._lock:
            return {
                "requests": len(self.seen),
                "sent": self.sent,
                "sent_by_file": dict(self.sent_by_file),
                "connections": self.connections,
                "most_connections": self.most_connections,
            }

    def take_fault(
        self,
        kinds: Collection[Kind],
        method: str,
        path: str,
        part: tuple[int, int] | None = None,
    ) -> Fault | None:
        """Return what goes wrong with a request at some point, and count that it has."""
        with self._lock:
            for fault in self.faults:
                if fault.fits(kinds, method, path, part):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def sign_link(self, model: str, commit: Commit, file: HubFile) -> str:
        """Return a link to a large file that is good for a while."""
        signature = secrets.token_hex(16)
        expires = time.time() + self.link_seconds
        with self._lock:
            self._links[signature] = SignedLink(model, commit, file, expires, self.link_uses)
        signed = urlencode({"Expires": int(expires), "Signature": signature, "Key-Pair-Id": "LAB"})
        return f"{self.cdn_url}/cdn/{quote(model)}/{commit.id}/{file.quoted}?{signed}"

    def use_link(self, signature: str, method: str) -> SignedLink | None:
        """Return what a link leads to, and count its use; None when it is no longer good."""
        with self._lock:
            link = self._links.get(signature)
            if not link or time.time() >= link.expires or link.uses_left == 0:
                return None
            if method == "GET" and link.uses_left is not None:
                link.uses_left -= 1
            return link

    def note_request(self, seen: Seen) -> None:
        """Count a request."""
        with self._lock:
            self.seen.append(seen)

    def note_sent(self, name: str, size: int) -> None:
        """Count bytes of a file."""
        with self._lock:
            self.sent += size
            self.sent_by_file[name] += size

    def note_connections(self, change: int) -> None:
        """Count connections that open or end."""
        with self._lock:
            self.connections += change
            self.most_connections = max(self.most_connections, self.connections)


@dataclass
class SignedLink:
    """What a link leads to, and for how long."""

    model: str
    commit: Commit
    file: HubFile
    expires: float
    uses_left: int | None


def read_sums(path: Path) -> dict[str, str]:
    """Return the hashes of a list such as `sha256sum` writes, by path."""
    rows = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {name.removeprefix("*"): sha256 for sha256, name in rows}


def main(arguments: list[str] | None = None) -> int:
    """Serve a folder's models until SIGTERM or SIGINT; the first line says where."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.hub", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="<organisation>/<name>/ in it")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mb-per-second-per-connection", type=float, metavar="N")
    parser.add_argument(
        "--sums", type=Path, help="known SHA-256s, as sha256sum prints them within the folder"
    )
    given = parser.parse_args(arguments)
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    sums = read_sums(given.sums) if given.sums else {}
    rate = given.mb_per_second_per_connection
    with LabHub(port=given.port, rate=rate * 1e6 if rate else None) as hub:
        for folder in sorted(path for path in given.folder.glob("*/*") if path.is_dir()):
            model = folder.relative_to(given.folder).as_posix()
            known = {
                k.removeprefix(f"{model}/"): v for k, v in sums.items() if k.startswith(f"{model}/")
            }
            hub.add(model, folder, hashes=known, in_place=True)
        print(hub.url, flush=True)
        signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    sys.exit(main())
