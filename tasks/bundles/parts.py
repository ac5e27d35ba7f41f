"""Files of a bundle, in parts that any file system takes.

FAT32 holds no file of 4 GiB, no links, and names without a colon only, in which upper
and lower case are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from blocks.errors import Damaged, InvalidInput

SMALLEST_PART = 1 << 20
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
_LONGEST_PATH = 1024


@dataclass(frozen=True)
class Part:
    """One file on the disk.

    Args:
        path: Where it lies in the bundle, with `/` between folders.
        offset: Where its bytes begin in the whole.
        size: How many they are.
        sha256: Their hash in hex; empty before they are written.
    """

    path: str
    offset: int
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle, which may lie there in several parts.

    Args:
        path: Its name in the bundle; that of its only part, or what its parts have
            in front of their numbers.
        size: Its bytes.
        sha256: Their hash in hex.
        parts: What is on the disk, in order.
    """

    path: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


def split(path: str, size: int, largest: int) -> tuple[Part, ...]:
    """Divide a file into parts.

    Args:
        path: Its name in the bundle.
        size: Its bytes.
        largest: Bytes that a part may have.

    Returns:
        The file itself where it is small enough; otherwise `path.001` and so on.
    """
    if size <= largest:
        return (Part(path, 0, size),)
    offsets = range(0, size, largest)
    return tuple(
        Part(f"{path}.{number:03d}", offset, min(largest, size - offset))
        for number, offset in enumerate(offsets, 1)
    )


def part_paths(largest: int) -> Callable[[str, int], list[str]]:
    """Return a function that gives the paths of the parts of a file, by path and size.

    Args:
        largest: Bytes that a part may have.
    """
    return lambda path, size: [part.path for part in split(path, size, largest)]


def parse_part_size(text: str) -> int:
    """Read the size that an operator gives for parts.

    Args:
        text: Such as `3.9GB`, `700 MB`, `2GiB` or `1000000000`.

    Returns:
        Bytes.

    Raises:
        InvalidInput: It is no size, or too small a one.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a size", "max_part_size", "Write it like 3.9GB or 700MB."
        )
    base = 1024 if match[3] else 1000
    size = int(float(match[1]) * base ** _POWERS[match[2].lower()])
    if size < SMALLEST_PART:
        raise InvalidInput(
            f"parts of {text} would be too many files",
            "max_part_size",
            "Give at least 1MiB; 3.9GB suits every disk, 100GB a disk with exFAT, NTFS or ext4.",
        )
    return size


def checked_path(path: object, where: str) -> str:
    """Return a path of a bundle that is certain to stay inside of it.

    Args:
        path: As the manifest has it.
        where: The bundle.

    Raises:
        Damaged: It is absolute, leads upwards, or has a name that no bundle has.
    """
    names = path.split("/") if isinstance(path, str) else []
    if (
        not isinstance(path, str)
        or len(path) > _LONGEST_PATH
        or not all(_NAME.fullmatch(n) for n in names)
    ):
        raise Damaged(
            f"its manifest names the path {str(path)[:100]!r}, which no bundle has",
            where,
            "Do not use this bundle: it was not made by crossgap, or was altered. "
            "Nothing of it was read.",
        )
    return path
