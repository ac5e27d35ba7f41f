"""Bytes to be sent, wherever they lie: in ranges of files, or in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CHUNK = 1 << 18


@dataclass(frozen=True)
class FileRange:
    """Bytes in a file here.

    Args:
        path: The file.
        offset: Where they begin in it.
        size: How many they are.
    """

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Content:
    """A sequence of bytes that need not lie in one piece.

    Args:
        pieces: Ranges of files, and short bytes between them, in order.
    """

    pieces: tuple[FileRange | bytes, ...]

    @classmethod
    def of_file(cls, path: Path) -> Content:
        """Return the whole of a file as it is now.

        Raises:
            OSError: There is no such file.
        """
        return cls((FileRange(path, 0, path.stat().st_size),))

    @cached_property
    def size(self) -> int:
        """How many bytes it is."""
        return sum(_size(piece) for piece in self.pieces)

    def behind(self, start: int) -> Iterator[FileRange | bytes]:
        """Yield the pieces, or the rest of one, from an offset on."""
        for piece in self.pieces:
            size = _size(piece)
            if start < size:
                yield _cut(piece, start, size)
            start = max(0, start - size)

    def cut(self, start: int, stop: int) -> Content:
        """Return the bytes from one offset up to another, or up to the end."""
        pieces = []
        left = stop - start
        for piece in self.behind(start):
            if left <= 0:
                break
            pieces.append(_cut(piece, 0, left))
            left -= _size(piece)
        return Content(tuple(pieces))

    def identity(self) -> str:
        """Return what tells these bytes from others without reading files, in hexadecimal.

        Files are known by their size, inode and time of change, which a program that
        sets the time back can deceive.

        Raises:
            OSError: A file is gone.
        """
        digest = hashlib.sha256()
        for piece in self.pieces:
            if isinstance(piece, bytes):
                digest.update(b"bytes %d " % len(piece) + piece)
            else:
                stat = piece.path.stat()
                facts = (stat.st_size, stat.st_mtime_ns, stat.st_ino, piece.offset, piece.size)
                digest.update(repr(facts).encode())
        return digest.hexdigest()

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes from an offset on, in chunks of at most `CHUNK`.

        Raises:
            OSError: A file cannot be read.
            EOFError: A file is shorter than it was.
        """
        for piece in self.behind(start):
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from _read(piece)

    def sha256(self, stopped: Callable[[], bool] = lambda: False) -> str:
        """Return the SHA-256 of all of it, in hexadecimal.

        Args:
            stopped: Whether to give up, which makes the result worthless.

        Raises:
            OSError: A file cannot be read.
            EOFError: A file is shorter than it was.
        """
        digest = hashlib.sha256()
        for chunk in self.chunks():
            if stopped():
                break
            digest.update(chunk)
        return digest.hexdigest()


def _size(piece: FileRange | bytes) -> int:
    return piece.size if isinstance(piece, FileRange) else len(piece)


def _cut(piece: FileRange | bytes, start: int, stop: int) -> FileRange | bytes:
    if isinstance(piece, bytes):
        return piece[start:stop]
    return FileRange(piece.path, piece.offset + start, min(stop, piece.size) - start)


def _read(piece: FileRange) -> Iterator[bytes]:
    left = piece.size
    with piece.path.open("rb", buffering=0) as file:
        file.seek(piece.offset)
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise EOFError(f"{piece.path} is shorter than it was")
            left -= len(chunk)
            yield chunk
