"""Room on a disk, as `df` tells it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from blocks.errors import CommandFailed


@dataclass(frozen=True)
class Disk:
    """The filesystem that holds a path.

    Args:
        device: As `df` names it.
        mount: Where it is mounted.
        free: Bytes that are available to an ordinary user.
    """

    device: str
    mount: str
    free: int

    def shares_room_with(self, other: Disk) -> bool:
        """Whether bytes written to one are lost to the other; bind mounts are seen through."""
        if self.mount == other.mount:
            return True
        return self.device == other.device and "/" in self.device


def parse_disk(df_output: str, where: str) -> Disk:
    """Read the last line of `df -Pk PATH`.

    Args:
        df_output: What it printed; device and mount point may hold spaces.
        where: The host that it ran on.

    Raises:
        CommandFailed: It is not df's output in POSIX format.
    """
    line = df_output.strip().rpartition("\n")[2].strip()
    match = re.fullmatch(r"(.+?)\s+\d+\s+-?\d+\s+(-?\d+)\s+(?:-|\d+%)\s+(/.*)", line)
    if match is None:
        raise CommandFailed(
            f"the answer of df is not understood ({line[:200]!r})",
            where,
            "See whether something on that host stands in for the real command.",
        )
    return Disk(match[1], match[3], max(0, int(match[2])) * 1024)
