"""Bytes from here into the standard input of a running command."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.content import CHUNK, Content, FileRange
from blocks.errors import DiskFull, PermissionRefused, SourceDamaged
from blocks.transfer import Pace

if TYPE_CHECKING:
    from blocks.host import RunningCommand

# Bytes of a file that are handed over at once where nothing limits the rate.
STEP = 1 << 20


def pour(command: RunningCommand, content: Content, pace: Pace | None = None) -> Iterator[int]:
    """Write bytes to a command, in steps between which the caller can listen to it.

    Args:
        command: It was started with `has_input`.
        content: What it reads; files go to it without a detour where the system can.
        pace: Limits the rate.

    Yields:
        How many bytes the command took in this step; none when it was busy.

    Raises:
        BrokenPipeError: The command has ended, or closed its input.
        SourceDamaged: A file here is shorter than it was.
        PermissionRefused: A file here cannot be read.
        CrossgapError: As for `RunningCommand.write`.
    """
    for piece in content.pieces:
        if isinstance(piece, bytes):
            yield from _pour_bytes(command, piece, pace)
        else:
            yield from _pour_file(command, piece, pace)


def _pour_bytes(command: RunningCommand, data: bytes, pace: Pace | None) -> Iterator[int]:
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        if pace:
            pace(len(chunk))
        command.write(chunk)
        yield len(chunk)


def _pour_file(command: RunningCommand, piece: FileRange, pace: Pace | None) -> Iterator[int]:
    step = CHUNK if pace else STEP
    with local_errors(piece.path), piece.path.open("rb", buffering=0) as file:
        offset, end = piece.offset, piece.offset + piece.size
        while offset < end:
            stop = min(offset + step, end)
            if pace:
                pace(stop - offset)
            while offset < stop:
                count = command.write_file(file.fileno(), offset, stop - offset)
                offset += count
                yield count


@contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Turn what this machine's file system says into errors that an operator understands.

    Args:
        path: The file that is read or written.

    Raises:
        DiskFull: There is no room here.
        SourceDamaged: The file is shorter than it was.
        PermissionRefused: Anything else.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # that was the other side
    except EOFError as error:
        raise SourceDamaged(
            "the file here is shorter than it was",
            str(path),
            "Let whatever writes to it finish, then start again.",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                "the disk here filled up", str(path.parent), "Free space, then start again."
            ) from error
        raise PermissionRefused(
            f"the file here cannot be used ({error.strerror})",
            str(path),
            "Check the rights of the user who runs the worker, and the disk.",
        ) from error
