"""What a lab writes down, so that any later run finds it, from whatever checkout.

Everything is kept per machine, not per checkout: a run that was killed leaves its
record behind, and the next `up` of that name removes what the record names.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.errors import LabBusy, LabError

STATE_ROOT = Path("/var/lib/crossgap-lab")
RUN_ROOT = Path("/run/crossgap-lab")
NETNS_ROOT = Path("/run/netns")


@dataclass(frozen=True)
class LabFolders:
    """Where one lab keeps its things.

    Args:
        name: The lab's name: lower-case letters, digits and dashes, at most 32.

    Raises:
        LabError: The name is not one.
    """

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", self.name):
            raise LabError(
                f"{self.name!r} is no name for a lab: use lower-case letters, digits and dashes"
            )

    @property
    def state(self) -> Path:
        """Disks, keys and the record; survives a reboot."""
        return STATE_ROOT / self.name

    @property
    def record(self) -> Path:
        """The lab's record, readable by root only: it holds the password."""
        return self.state / "lab.json"

    def host(self, host: str) -> Path:
        """The folder of one host."""
        return self.state / host

    def netns(self, host: str) -> str:
        """The name of a host's network namespace; a dot cannot occur in either name."""
        return f"crossgap.{self.name}.{host}"

    def namespaces(self) -> list[Path]:
        """Return the network namespaces that exist under this lab's name."""
        return sorted(NETNS_ROOT.glob(f"crossgap.{self.name}.*"))

    @property
    def cgroup(self) -> str:
        """The cgroup below which the containers of this lab's engines live."""
        return f"/crossgap-lab/{self.name}"

    def read(self) -> dict[str, Any] | None:
        """Return the record, or nothing when there is none that can be read."""
        try:
            record: dict[str, Any] = json.loads(self.record.read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record in one step."""
        write_private(self.record, json.dumps(record, indent=1))


def lab_names() -> list[str]:
    """Return the names of the labs this machine knows of, up or left behind."""
    if not STATE_ROOT.is_dir():
        return []
    return sorted(entry.name for entry in STATE_ROOT.iterdir() if re.match("[a-z0-9]", entry.name))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f"{path.name}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    beside.replace(path)


class UseLock:
    """Says that this process is using a lab; ends with the process, however that ends."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock, or keep it when it is ours already.

        Raises:
            LabBusy: Another process has it.
        """
        if self._file is not None:
            return
        RUN_ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(RUN_ROOT / f"{self._name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 64).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise LabBusy(
                f"lab {self._name} is being used by process {owner};"
                " wait for it, or set CROSSGAP_LAB to another name"
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


@contextmanager
def machine_lock(purpose: str) -> Iterator[None]:
    """Hold a lock of the whole machine for a moment, waiting for it."""
    RUN_ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = os.open(RUN_ROOT / f".{purpose}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
