"""What it took to bring bytes over, and what a transfer tells and asks meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]
"""Is told the bytes that have arrived, and the bytes in all."""

Pace = Callable[[int], None]
"""Is told the bytes about to be sent, and may sleep to limit the rate."""

# Seconds without a byte after which a connection that still answers is given up.
STALL = 300.0

# Bytes from which on a bulk connection is worth the time that it takes to open.
BULK = 32 << 20


def is_bulk(size: int) -> bool:
    """Whether so many bytes should travel over a connection of their own."""
    return size >= BULK


@dataclass(frozen=True)
class Transfer:
    """What it took to bring one file over.

    Args:
        bytes_sent: Bytes that travelled in this call, those sent twice included.
        bytes_resumed: Bytes that were there from an earlier try.
        sha256: The proven SHA-256 of the file, in hexadecimal.
        seconds: Duration of the call.
        seconds_sending: The part of it in which bytes travelled.
    """

    bytes_sent: int
    bytes_resumed: int
    sha256: str
    seconds: float
    seconds_sending: float = 0.0
