"""Marks by which threads and processes tell each other what they are using.

One lock file serves any number of things: each has a byte of it, by its hash. The
locks belong to open files (`man fcntl`, open file description locks), so that the
kernel lets go of them when a process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from blocks.cancellation import current_cancellation

# struct flock: type, whence, start, length, and a pid that has to be 0.
_FLOCK = "hhqqi0q"
_LOOK_EVERY = 0.1


class Holds:
    """What one user of a folder is using.

    Everything is let go of when this object goes away.

    Args:
        path: The lock file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._descriptor = -1

    def add(self, key: str) -> None:
        """Hold a thing once more; waits for the moment in which another removes it.

        Raises:
            OSError: The lock file cannot be used.
        """
        with self._mutex:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                weakref.finalize(self, os.close, self._descriptor)
            if not self._counts[key]:
                _lock(self._descriptor, fcntl.F_RDLCK, key, wait=True)
            self._counts[key] += 1

    def drop(self, key: str) -> None:
        """Hold a thing once less."""
        with self._mutex:
            self._counts[key] -= 1
            if self._counts[key] <= 0:
                del self._counts[key]
                _lock(self._descriptor, fcntl.F_UNLCK, key, wait=False)


@contextmanager
def claims(path: Path) -> Iterator[Claims]:
    """Open a lock file to claim things that nobody holds.

    Args:
        path: The lock file; made when missing.
    """
    with path.open("a+b") as file:
        yield Claims(file)


class Claims:
    """Things that one has for oneself, one after the other; from `claims`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @contextmanager
    def attempt(self, key: str) -> Iterator[bool]:
        """Claim a thing for the body.

        Yields:
            Whether it is claimed; not so when anybody holds or has claimed it.
        """
        claimed = _lock(self._file.fileno(), fcntl.F_WRLCK, key, wait=False)
        try:
            yield claimed
        finally:
            if claimed:
                _lock(self._file.fileno(), fcntl.F_UNLCK, key, wait=False)


@contextmanager
def alone(path: Path, key: str) -> Iterator[None]:
    """Have a thing to oneself for the body; waits until it is free.

    Args:
        path: The lock file; made when missing.
        key: The thing.

    Raises:
        Cancelled: The run was cancelled meanwhile.
    """
    cancellation = current_cancellation()
    with claims(path) as claimed:
        while True:
            with claimed.attempt(key) as ours:
                if ours:
                    yield
                    return
            cancellation.pause(_LOOK_EVERY, str(path.parent))


def _lock(descriptor: int, kind: int, key: str, *, wait: bool) -> bool:
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(descriptor, command, struct.pack(_FLOCK, kind, os.SEEK_SET, place, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
