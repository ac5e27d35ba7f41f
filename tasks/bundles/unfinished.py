"""A bundle in the making: a folder beside the finished one, with a journal of what is done.

A pack that was killed, or whose disk was pulled out, goes on with it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blocks.errors import Conflict
from tasks.bundles.disk import disk_errors
from tasks.bundles.parts import Part

_SUFFIX = ".unfinished"
_LOCK = "crossgap.lock"
_JOURNAL = "crossgap.journal"


class Unfinished:
    """The folder that a bundle is written into.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal = folder / _JOURNAL
        self._parts: dict[tuple[str, int, int, str], str] = {}
        self._read()

    def kept(self, part: Part, whole: str) -> str:
        """Return the hash of a part that was written before, or nothing.

        Args:
            part: The part.
            whole: What tells that it is of the same file: that file's hash.
        """
        sha256 = self._parts.get(_key(part, whole), "") if whole else ""
        path = self.folder / part.path
        return sha256 if sha256 and _size_of(path) == part.size else ""

    def record(self, part: Part, whole: str, sha256: str) -> None:
        """Note that a part is on the disk, after it was synced."""
        line = json.dumps([*_key(part, whole), sha256]).encode() + b"\n"
        with self._journal.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._parts[_key(part, whole)] = sha256

    def forget(self, path: str) -> None:
        """Remove a file that turned out wrong, so that it is written anew."""
        (self.folder / path).unlink(missing_ok=True)

    def clear_foreign(self, expected: set[str]) -> None:
        """Remove what an earlier pack of something else left here."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif name not in expected | {_LOCK, _JOURNAL}:
                path.unlink()

    def finish(self, target: Path) -> None:
        """Give the bundle its name; the journal goes."""
        for folder in {path.parent for path in self.folder.rglob("*")}:
            _sync_folder(folder)
        self._journal.unlink(missing_ok=True)
        (self.folder / _LOCK).unlink(missing_ok=True)
        if target.is_dir():
            target.rmdir()  # an empty one, as was made sure at the beginning
        self.folder.rename(target)
        _sync_folder(target.parent)

    def _read(self) -> None:
        if not self._journal.is_file():
            return
        for line in self._journal.read_bytes().splitlines():
            try:
                path, offset, size, whole, sha256 = json.loads(line)
                self._parts[(str(path), int(offset), int(size), str(whole))] = str(sha256)
            except (ValueError, TypeError):
                continue  # the last line of a killed run


@contextmanager
def unfinished(target: Path) -> Iterator[Unfinished]:
    """Hold the folder in which a bundle is made.

    Args:
        target: The bundle's name when it is finished.

    Raises:
        Conflict: Another pack writes the same bundle just now.
        CrossgapError: The disk cannot be written to.
    """
    folder = target.with_name(target.name + _SUFFIX)
    with disk_errors(target.parent):
        folder.mkdir(exist_ok=True)
        if not (folder / _LOCK).exists() and any(folder.iterdir()):
            raise Conflict(
                "there is a folder of this name that no pack left",
                str(folder),
                "Rename or remove it, or give the bundle another name.",
            )
        file = (folder / _LOCK).open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held(target) from error
        # Another pack may have finished between the opening and the locking.
        if _identity(folder / _LOCK) != _identity_of(os.fstat(file.fileno())):
            raise _held(target)
        with disk_errors(folder):
            held = Unfinished(folder)
        try:
            yield held
        finally:
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    """Leave nothing behind where nothing was written."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [_LOCK]:
            (folder / _LOCK).unlink()
            folder.rmdir()


def _held(target: Path) -> Conflict:
    return Conflict(
        "another pack writes this bundle just now",
        str(target),
        "Wait for it, cancel it, or give another path.",
    )


def _key(part: Part, whole: str) -> tuple[str, int, int, str]:
    return (part.path, part.offset, part.size, whole)


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return -1


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        return _identity_of(path.stat())
    except FileNotFoundError:
        return None


def _identity_of(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some drivers for foreign file systems cannot, and write folders at once.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
