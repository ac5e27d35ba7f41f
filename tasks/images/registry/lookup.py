"""Single documents out of a registry: manifests, indexes, configurations, tags."""

from __future__ import annotations

import difflib
import json

from blocks.errors import CrossgapError, Damaged, NotFound
from tasks.images.blobs import Descriptor
from tasks.images.layout import digest_of
from tasks.images.names import Reference
from tasks.images.registry.documents import (
    ACCEPTED,
    LARGEST_MANIFEST,
    has_digest,
    parse_document,
)
from tasks.images.registry.web import Session

_LARGEST_LIST = 1 << 20


def read_named(session: Session, reference: Reference) -> tuple[bytes, str]:
    """Ask a place what a tag or a digest stands for.

    Args:
        session: The place.
        reference: The image.

    Returns:
        A manifest or an index, and its digest.

    Raises:
        NotFound: There is no such repository or tag; tags like it are named.
        Damaged: It is neither, or does not have the digest that the place says.
        CrossgapError: As for `Session.get`.
    """
    try:
        with session.get(f"manifests/{reference.digest or reference.tag}", ACCEPTED) as response:
            content = session.body(response, LARGEST_MANIFEST)
            told = response.headers.get("Docker-Content-Digest", "")
    except NotFound as error:
        raise _absent(session, reference) or error from None
    parse_document(content, session.where)
    digest = reference.digest or (told if told.startswith("sha256:") else digest_of(content))
    if not has_digest(content, digest):
        raise _other_bytes("manifest", session.where)
    return content, digest


def read_checked(session: Session, kind: str, wanted: Descriptor, most: int) -> bytes:
    """Ask a place for a document of known digest.

    Args:
        session: The place.
        kind: `manifests` or `blobs`.
        wanted: What it has to be.
        most: Bytes that are sensible.

    Raises:
        Damaged: It gives something else.
        CrossgapError: As for `Session.get`.
    """
    path = f"{kind}/{wanted.digest}"
    content = session.read(path, most, ACCEPTED if kind == "manifests" else "")
    if not has_digest(content, wanted.digest):
        raise _other_bytes("manifest" if kind == "manifests" else "configuration", session.where)
    return content


def _other_bytes(what: str, where: str) -> Damaged:
    return Damaged(
        f"the {what} that it gives does not have the digest it should",
        where,
        "See whether a proxy on the way changes answers, or name another mirror.",
        retryable=True,
    )


def _absent(session: Session, reference: Reference) -> NotFound | None:
    """Tell a tag that does not exist from a repository that does not."""
    try:
        tags = json.loads(session.read("tags/list?n=1000", _LARGEST_LIST))["tags"] or []
    except NotFound:
        return NotFound(
            f"the registry has no repository {session.place.repository}",
            session.where,
            "Check how the name is spelt.",
        )
    except (CrossgapError, ValueError, LookupError, TypeError):
        return None
    known = [tag for tag in tags if isinstance(tag, str)]
    if reference.digest:
        return NotFound(
            "the repository exists, but has nothing of this digest",
            session.where,
            "Check the digest; the image may have been removed from the registry.",
        )
    close = difflib.get_close_matches(reference.tag, known, n=3, cutoff=0.5) or known[-5:]
    hint = f"It has {', '.join(close)}." if close else "It has no tags at all."
    return NotFound(f"the repository exists, but has no tag {reference.tag}", session.where, hint)
