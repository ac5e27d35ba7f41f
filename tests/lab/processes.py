"""Processes by identity: a pid alone may have been given to somebody else since."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.errors import LabError


@dataclass(frozen=True)
class Process:
    """One process of this machine.

    Attributes:
        pid: Its process id here, outside every lab host.
        started: Its start in clock ticks since boot (`/proc/PID/stat`, field 22).
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has this pid now; a zombie counts as none."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return Process.of(self.pid) == self


def every_process() -> Iterator[int]:
    """Yield the pids of this machine."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def processes_in_network(namespace: Path) -> list[Process]:
    """Find whoever lives in a named network namespace: all of a lab host, and nothing else."""
    try:
        wanted = namespace.stat()
    except FileNotFoundError:
        return []
    found = []
    for pid in every_process():
        try:
            its = Path(f"/proc/{pid}/ns/net").stat()
        except OSError:
            continue
        process = Process.of(pid)
        if (its.st_dev, its.st_ino) == (wanted.st_dev, wanted.st_ino) and process:
            found.append(process)
    return found


def pid_inside(pid: int) -> int:
    """Return the pid that a process has in its innermost PID namespace, 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])


def kill(processes: Iterable[Process], patience: float = 20) -> None:
    """End processes with SIGKILL and wait until they are gone.

    Raises:
        LabError: One of them was still there after `patience` seconds.
    """
    remaining = [process for process in processes if process.alive]
    for process in remaining:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + patience
    while remaining := [process for process in remaining if process.alive]:
        if time.monotonic() > deadline:
            raise LabError(f"process {remaining[0].pid} does not end")
        time.sleep(0.02)
