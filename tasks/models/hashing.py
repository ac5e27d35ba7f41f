"""The hashes of a file, computed while it arrives or from the disk."""

from __future__ import annotations

import contextvars
import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from blocks.cancellation import current_cancellation
from blocks.pouring import local_errors
from tasks.models.files import ModelFile
from tasks.models.part_file import PartFile

_CHUNK = 1 << 20
_LOOK_EVERY = 0.5
# Seconds; what the disk has already does not have to be waited for at the end.
_SETTLE_EVERY = 1.0


class Digest:
    """The SHA-256 of bytes, and their hash as a git blob where that is what is known.

    Args:
        file: What the bytes should be.
    """

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        self._with_git = bool(file.git_sha1)

    def update(self, data: bytes) -> None:
        """Take further bytes."""
        self._sha256.update(data)
        if self._with_git:
            self._git.update(data)

    def result(self) -> ModelFile:
        """Return the file as it turned out to be."""
        git = self._git.hexdigest() if self._with_git else ""
        return replace(self._file, sha256=self._sha256.hexdigest(), git_sha1=git)


def is_as_promised(found: ModelFile, promised: ModelFile) -> bool:
    """Whether a file has the hash that the hub promised."""
    if promised.sha256:
        return found.sha256 == promised.sha256
    return found.git_sha1 == promised.git_sha1


def hash_file(path: Path, file: ModelFile) -> ModelFile:
    """Return a file on this disk as it is.

    Args:
        path: Where it lies.
        file: What it should be; tells which hashes are wanted.

    Raises:
        PermissionRefused: It cannot be read.
        Cancelled: The run was cancelled.
    """
    cancellation = current_cancellation()
    digest = Digest(file)
    count = 0
    with local_errors(path), path.open("rb", buffering=0) as content:
        while data := content.read(_CHUNK):
            cancellation.check(str(path))
            digest.update(data)
            count += len(data)
    return replace(digest.result(), size=count)


class Follower:
    """Hashes a file while it arrives, as far as it is there without a gap.

    Args:
        part: What has arrived.
        file: What it should be.
    """

    def __init__(self, part: PartFile, file: ModelFile) -> None:
        self._part = part
        self._digest = Digest(file)
        self._offset = 0
        self._stopped = False
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._follow,), name="hash", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped = True
        self._part.wake()
        self._thread.join()

    def result(self) -> ModelFile:
        """Return the file as it turned out to be, once all of it is there.

        Raises:
            DiskFull: The disk here filled up.
            PermissionRefused: The file cannot be read again.
            Cancelled: The run was cancelled.
        """
        cancellation = current_cancellation()
        while self._thread.is_alive():
            cancellation.check(str(self._part.path))
            self._thread.join(_LOOK_EVERY)
        if self._error is not None:
            raise self._error
        return self._digest.result()

    def _follow(self) -> None:
        try:
            with local_errors(self._part.path):
                self._hash()
                if not self._stopped:
                    self._part.settle()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error

    def _hash(self) -> None:
        size = self._part.size
        settled = time.monotonic()
        while self._offset < size and not self._stopped:
            end = self._part.wait_beyond(self._offset, _LOOK_EVERY)
            while self._offset < end and not self._stopped:
                data = self._part.read(self._offset, min(_CHUNK, end - self._offset))
                if not data:
                    raise EOFError
                self._digest.update(data)
                self._offset += len(data)
            if time.monotonic() - settled > _SETTLE_EVERY:
                self._part.settle()
                settled = time.monotonic()
