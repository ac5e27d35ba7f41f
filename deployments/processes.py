"""A process in the background that is ended for sure.

A private server must not outlive the command that started it, and what a
killed command left behind must be found by the next one. Two marks make that
possible: a file with the process id *and its start time* (an id alone may have
been given to a stranger since), and a variable in the environment, which every
descendant inherits even when it opens a session of its own, as Prefect's flow
runs do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "CROSSGAP_BACKGROUND"
_PROC = Path("/proc")


class Background:
    """One long-running program with a log file, in a session of its own.

    Args:
        name: What it is, e.g. `server`; names its log and pid file.
        folder: Where these two files lie. One program of that name runs per
            folder: starting it ends an earlier one.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"
        self._mark = f"{folder.resolve()}/{name}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        """Start the program, after ending what an earlier run of it left.

        Args:
            argv: The command.
            env: Its whole environment.
            cwd: The folder it runs in.
        """
        self.stop()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            # Not `command &` in a shell: such a job ignores SIGINT, and the
            # worker turns SIGTERM into SIGINT, so it would never end.
            self._process = subprocess.Popen(
                list(argv),
                env={**env, MARK: self._mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        pid = self._process.pid
        self._pid_file.write_text(f"{pid} {_start_time(pid)}\n")

    @property
    def exit_code(self) -> int | None:
        """The exit code of a program that has ended; None while it runs."""
        return self._process.poll() if self._process else None

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log, for an error message."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, grace: float = 15.0) -> None:
        """End the program and all its descendants.

        Also ends what a killed run of this program left behind. Does nothing
        when there is nothing.

        Args:
            grace: Seconds between SIGTERM and SIGKILL.
        """
        try:
            self._signal_all(signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self._running() and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            # Also after a second Ctrl-C during the wait.
            while self._running():
                self._signal_all(signal.SIGKILL)
                time.sleep(0.05)
            self._pid_file.unlink(missing_ok=True)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._running():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _running(self) -> set[int]:
        if self._process:
            self._process.poll()  # reaps it, else it would count as running
        pids = _marked(self._mark)
        recorded = self._recorded()
        return pids | {recorded} if recorded else pids

    def _recorded(self) -> int | None:
        try:
            pid_text, start_time = self._pid_file.read_text().strip().split(" ", 1)
        except (FileNotFoundError, ValueError):
            return None
        pid = int(pid_text)
        return pid if _start_time(pid) == start_time else None


def _start_time(pid: int) -> str:
    """Return when a process started, in the system's own words; empty if it has ended."""
    if _PROC.joinpath("self").exists():
        try:
            stat = _PROC.joinpath(str(pid), "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        # proc(5): fields after the command name, which may contain blanks and
        # parentheses; state is the 3rd field of all, start time the 22nd.
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()


def _marked(mark: str) -> set[int]:
    """Return the processes whose environment carries the mark (Linux only)."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for folder in _PROC.glob("[0-9]*"):
        try:
            variables = folder.joinpath("environ").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile, or another user's
            continue
        if wanted in variables and _start_time(int(folder.name)):
            found.add(int(folder.name))
    return found - {os.getpid()}
