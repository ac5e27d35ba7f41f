"""A file that arrives in pieces, in any order, over any number of runs.

The bytes lie at their final offsets in PATH. Beside it, PATH.map says which blocks of it
are there, a byte per block. A block is marked after it was written, so a run that is
killed loses no more than the blocks that were on their way. What was marked before the
machine went down without warning counts only as far as it was known to be on the disk.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

BLOCK = 1 << 18
"""Bytes of a block."""

_ABSENT, _WRITTEN, _SETTLED = 0, 1, 2
_HEAD = 128
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class PartFile:
    """The file and its map, open for one run; safe to use from several threads.

    Args:
        path: Where the bytes lie; made when missing.
        size: Bytes of the whole file.

    Raises:
        OSError: It cannot be made, read or written.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._changed = threading.Condition()
        self._blocks = -(-size // BLOCK)
        self._prefix = 0
        self._fresh: list[tuple[int, int]] = []
        self._over = False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._map_file = os.open(map_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except BaseException:
            os.close(self._file)
            raise
        self._map = self._read_map()
        if not any(self._map):
            self.clear()

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
        """Close both files, once."""
        with self._changed:
            if self._file >= 0:
                os.close(self._file)
                os.close(self._map_file)
                self._file = self._map_file = -1

    def clear(self) -> None:
        """Forget all that has arrived."""
        with self._changed:
            self._map = bytearray(self._blocks)
            self._prefix = 0
            self._fresh = []
            os.ftruncate(self._map_file, 0)
            os.pwrite(self._map_file, _head(self.size), 0)
            os.pwrite(self._map_file, self._map, _HEAD)
            os.ftruncate(self._file, 0)
            os.ftruncate(self._file, self.size)

    def missing(self) -> list[tuple[int, int]]:
        """Return what is not there yet, as pairs of first byte and end."""
        with self._changed:
            blocks = bytes(self._map)
        ranges: list[tuple[int, int]] = []
        at = blocks.find(_ABSENT)
        while at >= 0:
            there = (blocks.find(_WRITTEN, at), blocks.find(_SETTLED, at))
            stop = min((found for found in there if found >= 0), default=self._blocks)
            ranges.append((at * BLOCK, min(stop * BLOCK, self.size)))
            at = blocks.find(_ABSENT, stop)
        return ranges

    @property
    def count(self) -> int:
        """Bytes that are there."""
        return self.size - sum(stop - start for start, stop in self.missing())

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes that have arrived; they count once they are marked.

        Raises:
            OSError: The disk is full or broken.
        """
        view = memoryview(data)
        while view:
            count = os.pwrite(self._file, view, offset)
            offset += count
            view = view[count:]

    def mark(self, start: int, stop: int) -> int:
        """Note that bytes were written.

        Args:
            start: The first, at the beginning of a block.
            stop: The end of what was written.

        Returns:
            The beginning of the first block that is not complete.
        """
        first = start // BLOCK
        last = self._blocks if stop >= self.size else stop // BLOCK
        if last <= first:
            return start
        with self._changed:
            fresh = bytes([_WRITTEN]) * (last - first)
            self._map[first:last] = fresh
            os.pwrite(self._map_file, fresh, _HEAD + first)
            self._fresh.append((first, last))
            if first <= self._prefix:
                end = self._map.find(_ABSENT, self._prefix)
                self._prefix = self._blocks if end < 0 else end
                self._changed.notify_all()
        return min(last * BLOCK, self.size)

    def wait_beyond(self, offset: int, seconds: float) -> int:
        """Wait until more of the file is there from its beginning on without a gap.

        Args:
            offset: How much was there before.
            seconds: How long to wait at most.

        Returns:
            The end of what is there without a gap.
        """
        with self._changed:
            if self._end_of_prefix() <= offset and not self._over:
                self._changed.wait(seconds)
            return self._end_of_prefix()

    def wake(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def read(self, offset: int, most: int) -> bytes:
        """Return bytes that are there.

        Raises:
            OSError: The disk is broken.
        """
        return os.pread(self._file, most, offset)

    def settle(self) -> None:
        """Wait until the disk has what is there, so that it outlives a power cut.

        Raises:
            OSError: The disk is full or broken.
        """
        with self._changed:
            fresh, self._fresh = self._fresh, []
        os.fdatasync(self._file)
        with self._changed:
            for first, last in fresh:
                settled = bytes([_SETTLED]) * (last - first)
                self._map[first:last] = settled
                os.pwrite(self._map_file, settled, _HEAD + first)

    def become(self, target: Path) -> None:
        """Give the whole file its final name and forget the map.

        Args:
            target: The name, on the same disk.

        Raises:
            OSError: It cannot be renamed.
        """
        self.close()
        self.path.replace(target)
        map_path(self.path).unlink(missing_ok=True)

    def _end_of_prefix(self) -> int:
        return min(self._prefix * BLOCK, self.size)

    def _read_map(self) -> bytearray:
        """Return what an earlier run marked, as far as it can be trusted."""
        head = os.pread(self._map_file, _HEAD, 0)
        blocks = os.pread(self._map_file, self._blocks + 1, _HEAD)
        title = _title(self.size)
        whole = len(blocks) == self._blocks and os.fstat(self._file).st_size == self.size
        if not head.startswith(title) or not whole or blocks.strip(b"\0\1\2"):
            return bytearray(self._blocks)
        if head != _head(self.size):
            blocks = blocks.replace(bytes([_WRITTEN]), bytes([_ABSENT]))
            os.pwrite(self._map_file, blocks, _HEAD)
            os.pwrite(self._map_file, _head(self.size), 0)
        end = blocks.find(_ABSENT)
        self._prefix = self._blocks if end < 0 else end
        return bytearray(blocks)


def map_path(path: Path) -> Path:
    """Return where the map of a part lies."""
    return path.with_name(f"{path.name}.map")


def bytes_there(path: Path, size: int) -> int:
    """Return how much of a file has arrived in an earlier run, changing nothing.

    Args:
        path: Where the bytes lie, if any.
        size: Bytes of the whole file.
    """
    try:
        content = map_path(path).read_bytes()
        length = path.stat().st_size
    except OSError:
        return 0
    if length != size or not content.startswith(_title(size)):
        return 0
    counted = (_SETTLED,) if content[:_HEAD] != _head(size) else (_WRITTEN, _SETTLED)
    return min(size, BLOCK * sum(content.count(kind, _HEAD) for kind in counted))


def _title(size: int) -> bytes:
    return b"crossgap part 1, %d bytes in blocks of %d; " % (size, BLOCK)


def _head(size: int) -> bytes:
    """Return the head of a map: what it is of, and since when the machine runs."""
    try:
        boot = _BOOT_ID.read_bytes().strip()
    except OSError:
        boot = b"unknown"
    return (_title(size) + boot).ljust(_HEAD - 1)[: _HEAD - 1] + b"\n"
