"""What a bundle says of itself: `bundle.json`, and `SHA256SUMS` for tools of the far side.

The manifest lists every other file with its size and hash, and what the files hold, by
kind of content. What a kind's items look like is that kind's own business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from blocks.errors import CrossgapError, Damaged, InvalidInput
from tasks.bundles.parts import BundleFile, Part, checked_path

T = TypeVar("T")

FORMAT = 1
MANIFEST_NAME = "bundle.json"
SUMS_NAME = "SHA256SUMS"
SIGNATURE_NAME = "SHA256SUMS.sig"
# A manifest has about 300 bytes per file; anything larger is no manifest.
LARGEST_DOCUMENT = 64 << 20

_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ID = re.compile(r"[0-9A-Za-z._-]{1,100}", re.ASCII)

Items = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Base:
    """What a bundle builds on: what the far side has to have already.

    Args:
        bundle: Id of the bundle.
        label: What a person calls it: a folder or a site, and when it was made.
    """

    bundle: str
    label: str


@dataclass(frozen=True)
class Manifest:
    """A bundle's table of everything.

    Args:
        id: Names the bundle for people and for later bundles.
        created: When, in RFC 3339.
        files: Every file but the manifest, the sums and the signature.
        contents: What is in it, by kind, such as `images`.
        base: What it builds on; None where it is whole by itself.
    """

    id: str
    created: str
    files: tuple[BundleFile, ...]
    contents: Mapping[str, Items] = field(default_factory=dict)
    base: Base | None = None

    @property
    def size(self) -> int:
        """Bytes of all files that it lists."""
        return sum(file.size for file in self.files)

    @property
    def parts(self) -> int:
        """How many files on the disk these are."""
        return sum(len(file.parts) for file in self.files)

    def encode(self) -> bytes:
        """Return it as the content of `bundle.json`."""
        document = {
            "format": FORMAT,
            "id": self.id,
            "created": self.created,
            "base": self.base and {"bundle": self.base.bundle, "label": self.base.label},
            "contents": {kind: list(items) for kind, items in self.contents.items()},
            "files": [_file_document(file) for file in self.files],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Read `bundle.json`.

    Args:
        content: The file.
        where: The bundle, for errors.

    Raises:
        InvalidInput: It is of a newer format than this version knows.
        Damaged: It is not a manifest, or names paths that no bundle has.
    """
    document = parse_document(content, where, MANIFEST_NAME)
    refuse_newer_format(document, where)

    def read() -> Manifest:
        base = document["base"]
        return Manifest(
            id=matched(_ID, document["id"]),
            created=text_of(document["created"]),
            files=tuple(_parse_file(file, where) for file in document["files"]),
            contents=parse_contents(document["contents"]),
            base=base and Base(matched(_ID, base["bundle"]), text_of(base["label"])),
        )

    manifest = understood(read, where, MANIFEST_NAME)
    _refuse_twins(manifest, where)
    return manifest


def parse_document(content: bytes, where: str, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        Damaged: It is none.
    """

    def read() -> dict[str, Any]:
        document = json.loads(content)
        if not isinstance(document, dict):
            raise TypeError
        return document

    return understood(read, where, name)


def refuse_newer_format(document: Mapping[str, Any], where: str) -> None:
    """Refuse what a later version wrote, whose meaning can only be guessed.

    Raises:
        InvalidInput: It is of a newer format.
    """
    found = document.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise InvalidInput(
            f"it is of format {found}, and this version of crossgap reads up to {FORMAT}",
            where,
            "Update crossgap here, or load it with load.sh.",
        )


def understood(read: Callable[[], T], where: str, name: str) -> T:
    """Return what a reader makes of a document; whatever is missing in it is damage.

    Raises:
        Damaged: The reader did not find what it needs.
    """
    try:
        return read()
    except CrossgapError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"its {name} cannot be read",
            where,
            f"Copy {name} again from where the bundle was made.",
        ) from error


def parse_contents(document: Any) -> dict[str, Items]:
    """Read what is in a bundle or at a site, by kind; a `TypeError` says that it is nothing."""
    contents = {}
    for kind, items in document.items():
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise TypeError
        contents[text_of(kind)] = tuple(items)
    return contents


def matched(pattern: re.Pattern[str], value: object) -> str:
    """Return a text that has to look like this; a `ValueError` says that it does not."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(value)
    return value


def text_of(value: object) -> str:
    """Return a text; a `TypeError` says that it is none."""
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def sums(hashes: Iterable[tuple[str, str]]) -> bytes:
    """Return `SHA256SUMS` as `sha256sum -c` reads it.

    Args:
        hashes: Path and hash of each file.
    """
    return "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(hashes)).encode()


def parse_sums(content: bytes, where: str) -> dict[str, str]:
    """Read `SHA256SUMS`.

    Returns:
        The hash of each path.

    Raises:
        Damaged: A line is not what this module writes.
    """

    def read() -> dict[str, str]:
        found = {}
        for line in content.decode().splitlines():
            sha256, _, path = line.partition("  ")
            found[checked_path(path, where)] = matched(_HASH, sha256)
        return found

    return understood(read, where, SUMS_NAME)


def part_hashes(files: Sequence[BundleFile]) -> dict[str, str]:
    """Return the hash of every part of some files, by path."""
    return {part.path: part.sha256 for file in files for part in file.parts}


def _file_document(file: BundleFile) -> dict[str, Any]:
    document: dict[str, Any] = {"path": file.path, "size": file.size, "sha256": file.sha256}
    if len(file.parts) > 1:
        document["parts"] = [
            {"path": part.path, "size": part.size, "sha256": part.sha256} for part in file.parts
        ]
    return document


def _parse_file(document: Mapping[str, Any], where: str) -> BundleFile:
    path = checked_path(document["path"], where)
    size, sha256 = _count(document["size"]), matched(_HASH, document["sha256"])
    parts: list[Part] = []
    offset = 0
    for part in document.get("parts") or [document]:
        own = Part(
            checked_path(part["path"], where),
            offset,
            _count(part["size"]),
            matched(_HASH, part["sha256"]),
        )
        parts.append(own)
        offset += own.size
    if offset != size:
        raise ValueError(path)
    return BundleFile(path, size, sha256, tuple(parts))


def _refuse_twins(manifest: Manifest, where: str) -> None:
    """Refuse two files of one name, also where upper and lower case are the same."""
    own = [MANIFEST_NAME, SUMS_NAME, SIGNATURE_NAME]
    paths = own + [part.path for file in manifest.files for part in file.parts]
    seen: set[str] = set()
    for path in paths:
        if path.lower() in seen:
            raise Damaged(
                f"its manifest names {path} twice",
                where,
                "Do not use this bundle: it was not made by crossgap, or was altered.",
            )
        seen.add(path.lower())


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value
