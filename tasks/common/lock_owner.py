"""Who holds a host, and whether that owner is dead.

A lock outlives a run that was killed. It may be taken over only from an owner
that is provably dead, because taking it from a living one lets two runs work
on one host.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

UNFINISHED_AFTER = 60
"""Seconds, by the host's clock, after which a half-written lock is left for good."""


@dataclass(frozen=True)
class Machine:
    """Where a process number means something.

    Args:
        host: The name of the machine, for people.
        boot_id: `/proc/sys/kernel/random/boot_id`: new at every start of the kernel.
        pid_namespace: As `/proc/self/ns/pid` names it: two containers on one
            machine share the boot id, but not the process numbers.
    """

    host: str
    boot_id: str
    pid_namespace: str

    def shares_processes_with(self, other: Machine) -> bool:
        """Return whether a process number of the other can be looked up here."""
        return (
            bool(self.boot_id and self.pid_namespace)
            and self.boot_id == other.boot_id
            and self.pid_namespace == other.pid_namespace
        )


@dataclass(frozen=True)
class LockOwner:
    """The record that a run leaves in the lock of a host.

    Args:
        run_id: The flow run's id.
        flow: The flow's name.
        user: Who ran it, on the worker.
        machine: The worker's machine.
        pid: The process there.
        started: When that process began, in clock ticks since boot (field 22
            of `/proc/PID/stat`), since process numbers are used again.
        since: When the lock was taken, by the host's clock.
    """

    run_id: str
    flow: str
    user: str
    machine: Machine
    pid: int
    started: int
    since: str = ""

    def to_json(self) -> str:
        """Return the record on one line of ASCII, without `since`, which the host adds."""
        record = asdict(self)
        del record["since"]
        return json.dumps(record)

    def __str__(self) -> str:
        return (
            f"run {self.run_id} of {self.flow} (user {self.user}, process {self.pid} on "
            f"{self.machine.host}, since {self.since or 'just now'})"
        )


def parse_owner(text: str) -> LockOwner | None:
    """Read a record back.

    Args:
        text: What the lock's file holds; anybody on the host can have written it.

    Returns:
        The owner, or None when the text is no such record.
    """
    try:
        record = json.loads(text)
        machine = record["machine"]
        return LockOwner(
            run_id=str(record["run_id"]),
            flow=str(record["flow"]),
            user=str(record["user"]),
            machine=Machine(
                str(machine["host"]), str(machine["boot_id"]), str(machine["pid_namespace"])
            ),
            pid=int(record["pid"]),
            started=int(record["started"]),
            since=str(record.get("since", "")),
        )
    except (ValueError, KeyError, TypeError):
        return None


def this_process(run_id: str, flow: str) -> LockOwner:
    """Return the record of a run in this process.

    Args:
        run_id: The flow run's id.
        flow: The flow's name.
    """
    pid = os.getpid()
    return LockOwner(run_id, flow, _user(), this_machine(), pid, process_start(pid) or 0)


@cache
def this_machine() -> Machine:
    """Return this machine; the ids are empty where the system has none (not Linux)."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot_id = namespace = ""
    return Machine(socket.gethostname(), boot_id, namespace)


def process_start(pid: int) -> int | None:
    """Return when a process of this machine began, in clock ticks since boot.

    Args:
        pid: Its number.

    Returns:
        Field 22 of `/proc/PID/stat` (proc(5)); None when there is no such
        process, or only its remains (state Z or X).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may hold anything.
    fields = stat[stat.rindex(b")") + 1 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def death_of(
    owner: LockOwner,
    *,
    reader: LockOwner,
    process_start: Callable[[int], int | None],
    final_state: Callable[[str], str | None],
) -> str | None:
    """Say why an owner is dead, if it provably is.

    A living process counts more than the API: a run that lost its server is
    marked Crashed there while it still works.

    Args:
        owner: Who holds the lock; not one of the locks that this process
            knows that it holds.
        reader: The run that wants it.
        process_start: When a process of this machine began, None without one.
        final_state: The name of the final state of a run, None when it has
            none or nobody knows.

    Returns:
        The reason in words, or None when it may be alive.
    """
    if reader.machine.shares_processes_with(owner.machine):
        if process_start(owner.pid) != owner.started:
            return f"its process {owner.pid} on {owner.machine.host} is gone"
        if (owner.pid, owner.started) != (reader.pid, reader.started):
            return None
        return "this very process left it behind"
    if owner.run_id == reader.run_id:
        return "an earlier attempt of this same run left it behind"
    state = final_state(owner.run_id)
    return f"Prefect says that the run is {state}" if state else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in passwd
        return str(os.getuid())
