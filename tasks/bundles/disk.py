"""What a disk's complaints mean: one that is full, pulled out, worn out or write-protected."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blocks.errors import (
    CommandFailed,
    CrossgapError,
    Damaged,
    DiskFull,
    InvalidInput,
    NotFound,
    PermissionRefused,
)
from tasks.bundles.manifest import LARGEST_DOCUMENT

_FULL = (errno.ENOSPC, errno.EDQUOT)
_AWAY = (errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOENT, errno.ENOTCONN)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_IMPOSSIBLE_NAME = (errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ, errno.ENOTDIR)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the complaints of a file system into errors that an operator understands.

    Args:
        path: The folder that is worked in.
    """
    try:
        yield
    except OSError as error:
        raise _explained(error, path) from error


def read_document(path: Path, remedy: str) -> bytes:
    """Read a small file whole.

    Args:
        path: The file.
        remedy: What to do when it is not there.

    Raises:
        NotFound: There is no such file.
        Damaged: It is far too large.
        CrossgapError: The disk cannot be read.
    """
    if not path.is_file():
        raise NotFound("there is no such file", str(path), remedy)
    with disk_errors(path), path.open("rb") as file:
        content = file.read(LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        raise Damaged("it is far too large for what it should be", str(path), remedy)
    return content


def _explained(error: OSError, path: Path) -> CrossgapError:
    said = error.strerror or str(error)
    if error.errno in _FULL:
        return DiskFull(
            "the disk became full",
            str(path),
            "Make room there, or take a larger disk; what is written already is kept.",
        )
    if error.errno == errno.EFBIG:
        return InvalidInput(
            "the disk takes no file as large as the parts",
            str(path),
            "Set max_part_size to 3.9GB (what FAT32 takes) or less.",
        )
    if error.errno == errno.EROFS:
        return PermissionRefused(
            "the disk can only be read",
            str(path),
            "See whether it has a switch against writing. Linux also stops writing to a disk "
            "that was pulled out or has errors: check it (dmesg, fsck), plug it in again, and "
            "start again.",
        )
    if error.errno in _FORBIDDEN:
        return PermissionRefused(
            f"the folder may not be used ({said})",
            str(path),
            "Give the user who runs the worker the right to it, or mount the disk for that user.",
        )
    if error.errno in _IMPOSSIBLE_NAME:
        return InvalidInput(
            f"the disk does not take a file of that name ({said})",
            error.filename or str(path),
            'Choose another folder name, without : * ? " < > | and not too long.',
        )
    if error.errno in _AWAY:
        return CommandFailed(
            f"the disk went away, or is failing ({said})",
            str(path),
            "Plug it in and mount it at the same place, look at dmesg, and start again: what is "
            "written already is kept.",
        )
    return CommandFailed(f"the disk reported an error ({said})", str(path), "Look at dmesg.")
