"""The memory of flow runs, seen from the side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MemoryWatch:
    """The largest resident memory of flow processes, sampled from the side.

    Attributes:
        peak: In bytes, of the run that was watched last.
    """

    def __init__(self) -> None:
        self.peak = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample while the block runs."""
        self.peak = 0
        done = threading.Event()
        thread = threading.Thread(target=self._sample, args=(done,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _sample(self, done: threading.Event) -> None:
        while not done.wait(0.1):
            for process in flow_processes():
                self.peak = max(self.peak, _resident(process))


def flow_processes() -> Iterator[Path]:
    """Yield the folders in /proc of the flow runs of this machine."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _is_flow_run(process):
            yield process


def _is_flow_run(process: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes().split(b"\0")
        return any(part.startswith(b"prefect") and b"engine" in part for part in command)
    except OSError:
        return False


def _resident(process: Path) -> int:
    try:
        for line in (process / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
