"""Finding and removing what a lab leaves on this machine, its own or a killed run's."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.lab.commands import execute
from tests.lab.errors import LabError
from tests.lab.network import Subnet, remove_network
from tests.lab.processes import Process, kill, pid_inside, processes_in_network
from tests.lab.state import LabFolders


def remove_lab(folders: LabFolders) -> None:
    """Remove everything that a lab of this name has on this machine; nothing there is fine.

    Raises:
        LabError: Something could not be removed, and what.
    """
    record = folders.read() or {}
    kill(Process(**host["init"]) for host in record.get("hosts", []) if host.get("init"))
    found = [p for namespace in folders.namespaces() for p in processes_in_network(namespace)]
    # The first process of a host ends all others; killed later, its parent reaps it.
    kill(process for process in found if pid_inside(process.pid) == 1)
    kill(found)
    remove_mounts(folders.state)
    _await_loops(folders.state)
    remove_network(folders, Subnet(record["subnet"]) if "subnet" in record else None)
    remove_cgroups(folders.cgroup)
    shutil.rmtree(folders.state, ignore_errors=True)
    if folders.state.exists():
        raise LabError(f"{folders.state} cannot be removed")


def mounts_below(folder: Path) -> list[str]:
    """List the mount points at or below a folder, innermost first (proc(5), mountinfo)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [p for p in reversed(points) if p == str(folder) or p.startswith(f"{folder}/")]


def remove_mounts(folder: Path) -> None:
    """Unmount everything at or below a folder."""
    for point in mounts_below(folder):
        execute("umount", "--lazy", point)


def loops_of(folder: Path) -> list[str]:
    """List the loop devices whose image lies below a folder."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if backing.read_text().startswith(f"{folder}/"):
                found.append(f"/dev/{backing.parts[3]}")
    return found


def _await_loops(folder: Path) -> None:
    # The kernel takes the last mounts of a killed namespace away a moment after its end.
    deadline = time.monotonic() + 15
    while loops := loops_of(folder):
        if time.monotonic() > deadline:
            raise LabError(f"still in use: {', '.join(loops)}")
        if time.monotonic() > deadline - 10:
            execute("losetup", "--detach", *loops, check=False)
        time.sleep(0.05)


def cgroups_of(group: str) -> Iterator[Path]:
    """Yield the folders of a cgroup, one per hierarchy that has it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, filesystem = line.partition(" - ")
        if filesystem.split()[0] in ("cgroup", "cgroup2"):
            folder = Path(fields.split()[4] + group)
            if folder.is_dir():
                yield folder


def remove_cgroups(group: str) -> None:
    """Remove a cgroup with all below it, and the parent that all labs share when it is empty."""
    for folder in cgroups_of(group):
        for parent, _, _ in os.walk(folder, topdown=False):
            _remove_cgroup(Path(parent))
        with suppress(OSError):
            folder.parent.rmdir()


def _remove_cgroup(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while folder.exists():
        try:
            folder.rmdir()
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"{folder} cannot be removed: {error}") from error
            time.sleep(0.05)
