"""What can be done with a host, however it is reached.

`Host` is everything that `SSHHost` and `LocalHost` share: commands, files and
jobs, all made of one primitive, a running process with three streams.
"""

from __future__ import annotations

import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from blocks import files, remote_job
from blocks.cancellation import Cancellation, cancellation_scope, current_cancellation
from blocks.commands import CommandLine, MarkedOutput, SudoMode, command_line, sudo_refusal
from blocks.content import Content
from blocks.errors import (
    CommandFailed,
    ConnectionLost,
    CrossgapError,
    PermissionRefused,
    SudoRefused,
    TimedOut,
)
from blocks.remote_job import RemoteJob
from blocks.transfer import Pace, Progress, Transfer


class Process(Protocol):
    """A running command, as a kind of host presents it."""

    def write(self, data: bytes) -> int:
        """Write to standard input and return how many bytes were taken.

        Raises:
            TimeoutError: None were taken for a few seconds.
            BrokenPipeError: The command has ended, or closed its input.
        """

    def write_file(self, descriptor: int, offset: int, size: int) -> int:
        """Write bytes of an open file to standard input and return how many were taken.

        Raises:
            TimeoutError: None were taken for a few seconds.
            BrokenPipeError: The command has ended, or closed its input.
            EOFError: The file has none at that offset.
        """

    def close_input(self) -> None:
        """End standard input."""

    def read(self, timeout: float) -> tuple[bytes, bytes] | None:
        """Return what came on both streams, empty at the timeout, or None at the end."""

    def exit_code(self) -> int:
        """Return the exit code, after `read` returned None."""

    def close(self) -> None:
        """Let go of the process and its streams; safe to call twice."""


@dataclass(frozen=True)
class CommandResult:
    """How a command ended.

    Args:
        exit_code: As the host reports it; 128 + n for signal n.
        stdout: Decoded as UTF-8, with replacement characters where it is none.
        stderr: The same for standard error.
        seconds: How long it ran, seen from here.
    """

    exit_code: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True)
class RawResult:
    """A `CommandResult` whose output has not been decoded."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    seconds: float

    def decoded(self) -> CommandResult:
        """Return the same result with text for output."""
        return CommandResult(
            self.exit_code,
            self.stdout.decode("utf-8", "replace"),
            self.stderr.decode("utf-8", "replace"),
            self.seconds,
        )


class RunningCommand:
    """A started command whose noise is taken off, with a deadline and a way to end it.

    Args:
        host: Where it runs.
        process: The primitive under it.
        line: How it was started.
        shown: The command as an error names it.
        timeout: Seconds until `TimedOut`.
    """

    def __init__(
        self, host: Host, process: Process, line: CommandLine, shown: str, timeout: float
    ) -> None:
        self._host = host
        self._process = process
        self._line = line
        self._shown = shown
        self._timeout = timeout
        self._cancellation = current_cancellation()
        self._deadline = time.monotonic() + timeout
        self._out = MarkedOutput(line.mark)
        self._err = MarkedOutput(line.mark)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        # Where the connection is gone, the way to end the command is gone too.
        to_end = kind is not None and not issubclass(kind, ConnectionLost)
        if to_end and self._out.pid is None:
            self._learn_pid()
        self._process.close()
        if to_end:
            self._end_on_host()

    def _learn_pid(self) -> None:
        """Take what has come but was not read, as the command's number may be in it."""
        with suppress(CrossgapError, OSError):
            if pair := self._process.read(0):
                self._out.feed(pair[0])

    def write(self, data: bytes) -> None:
        """Write to the command's standard input, however long it takes to accept it."""
        rest = memoryview(data)
        while rest:
            self._check()
            with suppress(TimeoutError):
                rest = rest[self._process.write(bytes(rest[: 1 << 17])) :]

    def write_file(self, descriptor: int, offset: int, size: int) -> int:
        """Write bytes of an open file to the command's standard input.

        Args:
            descriptor: The file.
            offset: Where in it to begin.
            size: How many bytes to write at most.

        Returns:
            How many the command took; none when it was busy for a while.

        Raises:
            BrokenPipeError: The command has ended, or closed its input.
            EOFError: The file has no bytes at that offset.
        """
        self._check()
        try:
            return self._process.write_file(descriptor, offset, size)
        except TimeoutError:
            return 0

    def feed(self, data: bytes) -> threading.Thread:
        """Write and close the input beside the caller, who reads the output meanwhile."""

        def write() -> None:
            # A command may end without reading its input; what else can go wrong
            # (lost connection, deadline, cancellation) meets the reader as well.
            with suppress(OSError, CrossgapError):
                self.write(data)
            self.close_input()

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        return thread

    def extend(self, seconds: float) -> None:
        """Move the deadline to this many seconds from now, after a sign of life."""
        self._deadline = time.monotonic() + seconds

    def close_input(self) -> None:
        """End the command's standard input."""
        self._process.close_input()

    def read(self, timeout: float = 0.5) -> tuple[bytes, bytes] | None:
        """Return what the command printed since the last call, or None at its end."""
        self._check()
        pair = self._process.read(timeout)
        return None if pair is None else (self._out.feed(pair[0]), self._err.feed(pair[1]))

    def finish(self) -> int:
        """Return the exit code of a command whose `read` returned None.

        Raises:
            SudoRefused: sudo did not start it.
            CrossgapError: The login shell did not start it.
        """
        code = self._process.exit_code()
        if self._err.began:
            return code
        noise = self._err.noise
        if self._line.through_sudo:
            raise self._host.sudo_refused(sudo_refusal(noise), self._shown)
        raise PermissionRefused(
            f"the login shell did not run {self._shown} (exit {code}: {noise[-200:] or 'silent'})",
            self._host.label,
            "Log in by hand with the same user and see what it says; the account may be "
            "expired, or have no shell (nologin).",
        )

    def _check(self) -> None:
        self._cancellation.check(self._host.label)
        if time.monotonic() > self._deadline:
            raise TimedOut(
                f"{self._shown} did not end within {self._timeout:.0f} s",
                self._host.label,
                "The host may be overloaded or its disk may hang; look at it, then start again.",
            )

    def _end_on_host(self) -> None:
        """End a command that was not read to its end, as well as can be done."""
        pid = self._out.pid
        if pid is None:
            return
        # A command without a terminal outlives its connection. It leads its own
        # process group unless sudo stands between.
        script = "kill -TERM -$1 2>/dev/null || kill -TERM $1 2>/dev/null"
        with suppress(CrossgapError), cancellation_scope(Cancellation()):
            self._host.run(
                ["sh", "-c", script, "sh", str(pid)],
                timeout=10,
                check=False,
                sudo=self._line.through_sudo,
            )


class Host(ABC):
    """A machine that crossgap works on.

    `SSHHost` and `LocalHost` are saved as blocks. All paths may begin with `~`.
    """

    if TYPE_CHECKING:
        # Fields of the blocks; declared here they would come first in their forms.
        work_dir: str
        models_dir: str
        patience: int

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the host's block."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The host as messages name it: block name and address."""

    @property
    @abstractmethod
    def lock_name(self) -> str:
        """What two blocks for one machine have in common, as `address-port`."""

    @property
    @abstractmethod
    def sudo_mode(self) -> SudoMode:
        """How commands become root; `no` where the user is root."""

    @abstractmethod
    def open_process(self, line: CommandLine) -> Process:
        """Start one line of shell and write its preamble.

        Raises:
            Unreachable: No connection could be made, or it died.
            AuthenticationRefused: The host did not accept the user.
        """

    def open_bulk(self, line: CommandLine) -> Process:
        """Start one line of shell whose input or output is large, as fast as the host can.

        Raises:
            CrossgapError: As for `open_process`.
        """
        return self.open_process(line)

    @abstractmethod
    def forward(self, host: str, port: int) -> AbstractContextManager[int]:
        """Make a port that this host reaches available on this machine.

        Args:
            host: A name or address as this host knows it.
            port: The port there.

        Returns:
            A context manager that gives the local port, on 127.0.0.1.
        """

    def sudo_refused(self, meaning: str, shown: str) -> SudoRefused:
        """Make the error for a sudo that did not start a command."""
        return SudoRefused(
            f"{meaning}, so {shown} could not run as root",
            self.label,
            "Correct 'sudo' and 'sudo_password' in the host's block, or ask the host's "
            "administrator for the right to use sudo.",
        )

    def start(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        sudo: bool = False,
        has_input: bool = False,
        bulk: bool = False,
    ) -> RunningCommand:
        """Start a command and return while it runs.

        Args:
            argv: The command and its arguments, unquoted.
            timeout: Seconds that it may run in all.
            sudo: Whether it needs root; without effect where the block has no sudo.
            has_input: Whether it will be written to.
            bulk: Whether so much is written or read that speed matters more than a
                quick start.

        Returns:
            The running command, as a context manager that ends it on the host when
            the body raises.
        """
        line = command_line(
            argv,
            mark=f"crossgap{secrets.token_hex(12)}",
            sudo=self.sudo_mode if sudo else "no",
            sudo_password=self._sudo_password(),
            has_input=has_input,
        )
        process = self.open_bulk(line) if bulk else self.open_process(line)
        return RunningCommand(self, process, line, _shown(argv), timeout)

    def _sudo_password(self) -> str:
        return ""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        input: bytes | None = None,
        check: bool = True,
        sudo: bool = False,
    ) -> CommandResult:
        """Run a command to its end.

        Args:
            argv: The command and its arguments, unquoted.
            timeout: Seconds that it may run.
            input: Bytes for its standard input, which is empty otherwise.
            check: Whether an exit code other than zero is an error.
            sudo: Whether it needs root; without effect where the block has no sudo.

        Returns:
            Its exit code and what it printed.

        Raises:
            CommandFailed: The exit code was not zero and `check` is set.
            SudoRefused: sudo did not run it.
            TimedOut: The deadline passed; the command has been ended.
            Unreachable: The host cannot be reached, or the connection died.
            Cancelled: The run was cancelled.
        """
        raw = self.capture(argv, timeout=timeout, input=input, check=check, sudo=sudo)
        return raw.decoded()

    def capture(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        input: bytes | None = None,
        check: bool = True,
        sudo: bool = False,
    ) -> RawResult:
        """Run a command to its end, as `run` does, and return its output as bytes."""
        begin = time.monotonic()
        out, err = bytearray(), bytearray()
        with self.start(argv, timeout=timeout, sudo=sudo, has_input=bool(input)) as command:
            feeding = command.feed(input or b"")
            while (pair := command.read()) is not None:
                out += pair[0]
                err += pair[1]
            code = command.finish()
        feeding.join()
        result = RawResult(code, bytes(out), bytes(err), time.monotonic() - begin)
        if check and code != 0:
            raise self.command_failed(argv, result.decoded())
        return result

    def command_failed(self, argv: Sequence[str], result: CommandResult) -> CommandFailed:
        """Make the error for a command that ended with an exit code other than zero."""
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()[-3:]
        said = "; ".join(line.strip() for line in lines) or "no message"
        return CommandFailed(
            f"{_shown(argv)} ended with exit code {result.exit_code} ({said})", self.label
        )

    def stream(self, argv: Sequence[str], *, timeout: float, sudo: bool = False) -> Iterator[str]:
        """Run a command and yield its output line by line as it comes.

        Args:
            argv: The command and its arguments, unquoted.
            timeout: Seconds that it may run.
            sudo: Whether it needs root.

        Yields:
            Lines of standard output without their line breaks.

        Raises:
            CommandFailed: The exit code was not zero, after the last line.
            CrossgapError: As for `run`.
        """
        begin = time.monotonic()
        rest, err = b"", b""
        with self.start(argv, timeout=timeout, sudo=sudo) as command:
            command.close_input()
            while (pair := command.read()) is not None:
                err = (err + pair[1])[-4096:]
                *lines, rest = (rest + pair[0]).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", "replace").rstrip("\r")
            if rest:
                yield rest.decode("utf-8", "replace")
            code = command.finish()
        if code != 0:
            seconds = time.monotonic() - begin
            result = CommandResult(code, "", err.decode("utf-8", "replace"), seconds)
            raise self.command_failed(argv, result)

    def expand(self, path: str) -> str:
        """Return a path on the host with a leading `~` replaced by the user's home.

        Args:
            path: An absolute path, or one that begins with `~/`.

        Raises:
            CrossgapError: As for `run`.
        """
        if path != "~" and not path.startswith("~/"):
            return path
        return self._home().rstrip("/") + path[1:]

    def _home(self) -> str:
        return self.run(["sh", "-c", 'printf %s "$HOME"'], timeout=30).stdout

    def put(
        self,
        local: Path | str | Content,
        remote: str,
        *,
        progress: Progress | None = None,
        pace: Pace | None = None,
        sha256: str = "",
    ) -> Transfer:
        """Send a file, or other content, to the host; see `blocks.files.put`."""
        return files.put(self, local, remote, progress=progress, pace=pace, sha256=sha256)

    def get(
        self,
        remote: str,
        local: Path | str,
        *,
        progress: Progress | None = None,
        pace: Pace | None = None,
    ) -> Transfer:
        """Fetch a file from the host; see `blocks.files.get`."""
        return files.get(self, remote, Path(local), progress=progress, pace=pace)

    def start_job(self, argv: Sequence[str], *, name: str, sudo: bool = False) -> RemoteJob:
        """Start a command that outlives the connection; see `blocks.remote_job.start_job`."""
        return remote_job.start_job(self, argv, name=name, sudo=sudo)

    def find_job(self, name: str, *, sudo: bool = False) -> RemoteJob | None:
        """Find a job that this or an earlier run started; see `blocks.remote_job.find_job`."""
        return remote_job.find_job(self, name, sudo=sudo)


def _shown(argv: Sequence[str]) -> str:
    """Name a command in a message: short, and a script only by its interpreter."""
    if list(argv[:2]) == ["sh", "-c"]:
        return f"a script ({' '.join(argv[2].split())[:40]}…)"
    shown = " ".join(argv)
    return f"'{shown[:120]}…'" if len(shown) > 120 else f"'{shown}'"
