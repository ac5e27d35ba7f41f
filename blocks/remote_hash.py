"""The SHA-256 of a file on a host."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from blocks.errors import CommandFailed
from blocks.file_scripts import HASH, sh

if TYPE_CHECKING:
    from blocks.host import Host

# Bytes from which on a file is hashed by a job: a minute or so of an old disk.
HASH_BY_JOB = 1 << 30


def seconds_to_hash(size: int) -> float:
    """Return how long hashing may take: the slowest disks that we have met read 10 MB/s."""
    return 120 + size / 10e6


def remote_sha256(host: Host, path: str, size: int) -> str:
    """Hash a file on a host with the tool it has.

    Args:
        host: Where the file is.
        path: Its absolute path.
        size: Its size in bytes. Large files are hashed by a job, which outlives
            a connection that drops meanwhile.

    Returns:
        The SHA-256 in hexadecimal.

    Raises:
        TimedOut: The disk reads less than 10 MB/s.
        CrossgapError: As for `Host.run`.
    """
    timeout = seconds_to_hash(size)
    if size < HASH_BY_JOB:
        return host.run(sh(HASH, path), timeout=timeout).stdout.split()[0]
    name = f"hash-{size}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
    job = host.find_job(name)
    if job is None or job.look().state != "running":
        job = host.start_job(sh(HASH, path), name=name)
    result = job.wait(timeout=timeout)
    job.forget()
    if result.exit_code != 0:
        raise unreadable(path, host, result.log_tail)
    return result.log_tail.split()[-1]


def unreadable(path: str, host: Host, said: str) -> CommandFailed:
    """Make the error for a file on a host that could not be hashed."""
    return CommandFailed(
        f"{path} could not be read to its end ({said.strip()[-200:] or 'no message'})",
        host.label,
        "Look at the host's disk (dmesg, smartctl).",
    )
