"""This machine, as a host: what `SSHHost` does, without SSH."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, cast

from prefect.blocks.core import Block
from prefect.client.schemas.objects import BlockType
from pydantic import Field, HttpUrl

from blocks.commands import CommandLine, SudoMode
from blocks.errors import InvalidInput
from blocks.host import Host
from blocks.logo import logo, with_served_logo

# Seconds between SIGTERM and SIGKILL.
GRACE = 5.0


class LocalHost(Host, Block):
    """The machine that the worker runs on.

    Examples:
        Run a command here:
        ```python
        from blocks.local_host import LocalHost

        host = LocalHost.load("BLOCK_NAME")
        print(host.run(["uname", "-m"], timeout=10).stdout)
        ```
    """

    _block_type_name = "Local Host"
    _block_type_slug = "local-host"
    _logo_url = logo("host")
    _documentation_url = HttpUrl("https://github.com/crossgap/crossgap")
    _description = "The machine that the worker runs on, used like any other host."

    work_dir: str = Field(
        default="~/.crossgap",
        title="Work folder",
        description="Where files are staged and jobs keep their logs.",
    )
    models_dir: str = Field(
        default="~/models", title="Models folder", description="Where models are kept."
    )
    patience: int = Field(
        default=28800,
        ge=0,
        title="Patience (seconds)",
        description="For uniformity with SSH hosts; this machine is always within reach.",
    )

    @classmethod
    def _to_block_type(cls) -> BlockType:
        return with_served_logo(super()._to_block_type(), "host")

    @property
    def name(self) -> str:
        """The block's name."""
        return self._block_document_name or "this machine"

    @property
    def label(self) -> str:
        """The host as messages name it."""
        return f"{self.name} (local)"

    @property
    def lock_name(self) -> str:
        """What all blocks for this machine have in common, told apart from other workers'."""
        return f"{socket.gethostname()}-local"

    @property
    def sudo_mode(self) -> SudoMode:
        """Commands run as the worker's own user."""
        return "no"

    def open_process(self, line: CommandLine) -> LocalProcess:
        """Start one line of shell here."""
        return LocalProcess(line)

    @contextmanager
    def forward(self, host: str, port: int) -> Iterator[int]:
        """Give a local port as it is; other machines are reached directly.

        Args:
            host: `localhost` or an address of this machine.
            port: The port.

        Yields:
            The same port.

        Raises:
            InvalidInput: The address is not this machine's loopback.
        """
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise InvalidInput(
                f"{host}:{port} is not on this machine",
                self.label,
                "Connect to it directly, or name the SSH host that reaches it.",
            )
        yield port


class LocalProcess:
    """A subprocess with the three streams that `Host` works with."""

    def __init__(self, line: CommandLine) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", line.line],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, out, err = cast("tuple[IO[bytes], IO[bytes], IO[bytes]]", streams)
        self._open = {out.fileno(): out, err.fileno(): err}
        self._stdout = out.fileno()
        if line.preamble:
            self.write(line.preamble)

    def write(self, data: bytes) -> int:
        """Write some of the data; raise `TimeoutError` when none is taken for 5 s."""
        try:
            if not select.select([], [self._stdin], [], 5)[1]:
                raise TimeoutError
            # A pipe that is ready takes at least PIPE_BUF bytes without blocking.
            return os.write(self._stdin.fileno(), data[: select.PIPE_BUF])
        except ValueError as error:  # closed by the thread that reads
            raise BrokenPipeError(errno.EPIPE, "the command has ended") from error

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
        out, err = b"", b""
        for descriptor in select.select(list(self._open), [], [], timeout)[0]:
            data = os.read(descriptor, 1 << 18)
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
