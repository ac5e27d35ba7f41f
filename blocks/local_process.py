"""A process on this machine, with the three streams that `Host` works with."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, cast

# Seconds between SIGTERM and SIGKILL.
GRACE = 5.0

# Seconds that a write waits for a process that takes nothing.
BUSY = 1.0

# Bytes that a pipe holds, where the system allows it: fewer turns for both its ends.
PIPE = 1 << 20


class LocalProcess:
    """A subprocess that leads a session of its own.

    Args:
        argv: The program and its arguments.
        preamble: Bytes for its standard input ahead of all others.
        environment: Its environment; by default that of this process.
    """

    def __init__(
        self,
        argv: Sequence[str],
        preamble: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
            env=environment,
        )
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, out, err = cast("tuple[IO[bytes], IO[bytes], IO[bytes]]", streams)
        self._open = {out.fileno(): out, err.fileno(): err}
        self._stdout = out.fileno()
        os.set_blocking(self._stdin.fileno(), False)
        for stream in (self._stdin, out):
            _enlarge(stream)
        if preamble:
            self.write(preamble)

    def write(self, data: bytes) -> int:
        """Write some of the data; raise `TimeoutError` when none is taken for a second."""
        return os.write(self._ready_input(), data)

    def write_file(self, descriptor: int, offset: int, size: int) -> int:
        """Write some bytes of an open file, without a copy where the system can."""
        count = _move(descriptor, self._ready_input(), size, offset)
        if not count:
            raise EOFError
        return count

    def _ready_input(self) -> int:
        try:
            descriptor = self._stdin.fileno()
        except ValueError as error:  # closed by the thread that reads
            raise BrokenPipeError(errno.EPIPE, "the command has ended") from error
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not poll.poll(BUSY * 1000):
            raise TimeoutError
        return descriptor

    def close_input(self) -> None:
        """End standard input."""
        with suppress(BrokenPipeError):
            self._stdin.close()

    def read(self, timeout: float) -> tuple[bytes, bytes] | None:
        """Return what came on both streams, or None when both have ended."""
        if not self._open:
            if self._process.poll() is not None:
                return None
            time.sleep(min(timeout, 0.05))  # it has closed its streams and lives on
            return b"", b""
        poll = select.poll()
        for descriptor in self._open:
            poll.register(descriptor, select.POLLIN)
        out, err = b"", b""
        for descriptor, _ in poll.poll(timeout * 1000):
            data = os.read(descriptor, PIPE)
            if not data:
                self._open.pop(descriptor).close()
            elif descriptor == self._stdout:
                out = data
            else:
                err = data
        return out, err

    def exit_code(self) -> int:
        """Return the exit code in the shell's way, 128 + n for signal n."""
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def close(self) -> None:
        """End what still runs and close the streams."""
        self.close_input()
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
        for stream in self._open.values():
            stream.close()
        self._open.clear()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _move(source: int, pipe: int, size: int, offset: int) -> int:
    if hasattr(os, "splice"):
        try:
            return os.splice(source, pipe, size, offset_src=offset)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot
                raise
    return os.write(pipe, os.pread(source, min(size, PIPE), offset))


def _enlarge(stream: IO[bytes]) -> None:
    # Users who have many pipes may be refused; then it is as large as ever.
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE)
