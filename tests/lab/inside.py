"""The inside of a host, reached through its namespaces and not through its network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.lab.commands import execute
from tests.lab.errors import LabError
from tests.lab.processes import Process


class Inside:
    """Files and processes of a host.

    Args:
        name: The host's name, for messages.
        init: Its first process; None while it is not up.
    """

    def __init__(self, name: str, init: Process | None) -> None:
        self._name = name
        self.init = init

    @property
    def first(self) -> Process:
        """Its first process.

        Raises:
            LabError: The host is not up.
        """
        if self.init is None:
            raise LabError(f"{self._name} is not up")
        return self.init

    def path(self, inside: str) -> Path:
        """Return where a path of the host is found from here.

        An absolute symbolic link on the way would lead back to this machine: use `run` for
        paths that may hold one.
        """
        return Path(f"/proc/{self.first.pid}/root") / inside.lstrip("/")

    def run(
        self,
        argv: Sequence[str],
        input: bytes | str | None = None,  # noqa: A002  (as subprocess.run calls it)
        check: bool = True,
        timeout: float = 120,
    ) -> str:
        """Run a command on the host as root, without SSH, and return its stdout.

        Raises:
            LabError: It failed (unless `check` is false) or took too long.
        """
        stdin = input.encode() if isinstance(input, str) else input
        target = ("-t", str(self.first.pid), "-m", "-u", "-i", "-n", "-p", "--wd=/")
        return execute("nsenter", *target, "--", *argv, input=stdin, check=check, timeout=timeout)

    def read_file(self, path: str) -> bytes:
        """Return the content of a file of the host."""
        return self.path(path).read_bytes()

    def processes(self) -> list[tuple[int, str]]:
        """Return (pid, command line) of what runs on the host, containers included."""
        found = []
        for pid, name in self.names():
            with suppress(OSError):
                words = self.path(f"proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                line = b" ".join(words).decode(errors="replace")
                found.append((pid, line or f"[{name}]"))
        return found

    def names(self) -> list[tuple[int, str]]:
        """Return (pid, program name) of what runs on the host, zombies left out."""
        found = []
        for entry in self.path("proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit():
                    stat = (entry / "stat").read_text(errors="replace")
                    name, _, rest = stat.partition("(")[2].rpartition(") ")
                    if rest[0] not in "ZX":
                        found.append((int(entry.name), name))
        return found

    def kill(self, pids: Iterable[int]) -> None:
        """End processes of the host with SIGKILL, and wait until they are gone."""
        doomed = set(pids) - {0, 1}
        if not doomed:
            return
        self.run(["sh", "-c", 'kill -9 "$@" 2>/dev/null', "sh", *map(str, doomed)], check=False)
        self.wait_for(lambda: not doomed & {pid for pid, _ in self.names()}, "a process stays")

    def wait_for(self, condition: Callable[[], bool], problem: str, log: str = "") -> None:
        """Wait until a condition holds.

        Raises:
            LabError: It did not within a minute; with `problem` and the end of the host's `log`.
        """
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                said = self.run(["tail", "-n", "20", f"/{log}"], check=False) if log else ""
                raise LabError(f"{self._name}: {problem}\n{said}")
            time.sleep(0.03)
