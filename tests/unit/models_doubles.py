"""Places that are no more than memory, and that fail on demand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from blocks.errors import CrossgapError
from tasks.models.files import ModelFile


def git_blob_sha1(content: bytes) -> str:
    """Return what git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def large_file(path: str, content: bytes) -> ModelFile:
    """Describe a file as hubs describe large ones."""
    return ModelFile(path, len(content), sha256=hashlib.sha256(content).hexdigest())


def small_file(path: str, content: bytes) -> ModelFile:
    """Describe a file as hubs describe small ones."""
    return ModelFile(path, len(content), git_sha1=git_blob_sha1(content))


class MemoryBody:
    """An answer, which ends or breaks where it is told to.

    Args:
        data: What comes.
        first: At which byte of the file it begins.
        whole: Whether all comes though a part was asked for.
        breaks: After how many bytes, and with which error; None for never.
    """

    def __init__(
        self, data: bytes, first: int, whole: bool, breaks: tuple[int, CrossgapError] | None
    ) -> None:
        self.first = first
        self.whole = whole
        self.host = "memory"
        self._data = memoryview(data)
        self._at = 0
        self._breaks = breaks

    def read(self, most: int) -> bytes:
        """Return what comes next."""
        if self._breaks and self._at >= self._breaks[0]:
            raise self._breaks[1]
        stop = self._at + most
        if self._breaks:
            stop = min(stop, self._breaks[0])
        chunk = bytes(self._data[self._at : stop])
        self._at += len(chunk)
        return chunk


@dataclass
class MemoryPlace:
    """A place with some files.

    Attributes:
        name: Its name.
        files: The content by path.
        fail: Is asked before each answer; raises what goes wrong.
        breaks: After how many bytes an answer breaks, and with which error, by the number
            of the request; None for never.
        ignores_ranges: Whether it always sends all.
        asked: The ranges that were asked for.
        before: Called before each answer.
    """

    name: str
    files: dict[str, bytes]
    fail: Callable[[ModelFile, int, int], None] = lambda *_: None
    breaks: Callable[[int], tuple[int, CrossgapError] | None] = lambda _: None
    ignores_ranges: bool = False
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def open(self, file: ModelFile, start: int, stop: int) -> Iterator[MemoryBody]:
        """Answer."""
        with self.lock:
            self.asked.append((file.path, start, stop))
            number = len(self.asked)
        self.fail(file, start, stop)
        content = self.files[file.path]
        if self.ignores_ranges and (start, stop) != (0, file.size):
            yield MemoryBody(content, 0, True, self.breaks(number))
        else:
            yield MemoryBody(content[start:stop], start, False, self.breaks(number))
