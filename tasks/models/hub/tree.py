"""The file list of a revision, as the tree API of a hub gives it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from blocks.errors import Damaged
from tasks.models.files import ModelFile
from tasks.models.hub.endpoint import Document, Endpoint

_MOST_PAGES = 1000
_NEXT = re.compile(r"<([^>]*)>[^,]*;\s*rel\s*=\s*\"?next\b", re.IGNORECASE)


def read_tree(endpoint: Endpoint, model: str, commit: str, what: str) -> list[ModelFile]:
    """Ask for all files of a commit.

    Args:
        endpoint: One of the kind huggingface.
        model: The model's name.
        commit: The commit.
        what: The model as messages name it.

    Raises:
        Damaged: The answer is no file list, or has no end.
        CrossgapError: As for `Endpoint.document`.
    """
    where = f"{what} from {endpoint.name}"
    return [
        parse_entry(entry, where)
        for page in _pages(endpoint, model, commit, what)
        for entry in _entries(page, where)
        if entry.get("type") != "directory"
    ]


def _pages(endpoint: Endpoint, model: str, commit: str, what: str) -> Iterator[Document]:
    path = f"/api/models/{quote(model)}/tree/{commit}"
    query = "recursive=true&expand=false"
    asked: set[str] = set()
    while query:
        if query in asked or len(asked) >= _MOST_PAGES:
            raise Damaged("its file list has no end", f"{what} from {endpoint.name}")
        asked.add(query)
        page = endpoint.document(f"{path}?{query}", what)
        yield page
        query = next_query(page.headers.get("Link", ""))


def next_query(link: str) -> str:
    """Return the query of the next page; empty behind the last one.

    A mirror passes on the hub's own address of it. Only the query is taken from there,
    so that the list comes from one endpoint and goes through a prefix in its address.

    Args:
        link: The header of that name.
    """
    found = _NEXT.search(link)
    return urlsplit(found[1]).query if found else ""


def _entries(page: Document, where: str) -> list[dict[str, Any]]:
    if not isinstance(page.value, list) or not all(isinstance(one, dict) for one in page.value):
        raise Damaged(
            "its file list is none",
            where,
            "Open its address in a browser on the worker's machine, or put another endpoint "
            "into the hub's block.",
            retryable=True,
        )
    return page.value


def parse_entry(entry: dict[str, Any], where: str) -> ModelFile:
    """Read one file of the list; whether it is sound is not looked at.

    Args:
        entry: As the hub gives it: large files with `lfs`, whose `oid` is the SHA-256,
            small ones with the `oid` that git gives them.
        where: The model and the hub.

    Raises:
        Damaged: It says two things about the size.
    """
    path, size = _text(entry.get("path")), _count(entry.get("size"))
    large = entry.get("lfs")
    if not isinstance(large, dict):
        return ModelFile(path, size, git_sha1=_text(entry.get("oid")))
    stored = _count(large.get("size", size))
    if stored != size:
        raise Damaged(
            f"it lists {path[:200]!r} with two sizes, {size} and {stored}",
            where,
            "Take another mirror.",
        )
    sha256 = _text(large.get("oid") or large.get("sha256")).removeprefix("sha256:")
    return ModelFile(path, size, sha256=sha256)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
