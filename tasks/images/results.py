"""What shipping one image to one host came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blocks.errors import CrossgapError


@dataclass(frozen=True)
class ShipResult:
    """One row of the table that an operator reads after a run.

    Args:
        image: The image's name, as `docker images` shows it.
        host: The name of the host's block.
        action: `present` when nothing was sent; `full` when every layer travelled for
            it; `delta` when the host had some, or another image of the run brought them.
        layers_sent: How many layers went over the wire for it; one that several
            images share counts for the first.
        bytes_sent: Bytes sent for it.
        seconds: How long it took, from the plan to the proof.
        verified: How it was proven, in words.
    """

    image: str
    host: str
    action: Literal["present", "delta", "full"]
    layers_sent: int
    bytes_sent: int
    seconds: float
    verified: str


@dataclass(frozen=True)
class Shipped:
    """What came of the work on one host.

    Args:
        results: One per wanted image that is there now.
        failures: What kept the others from it.
        notes: What an operator should know about it, as sentences.
    """

    results: tuple[ShipResult, ...]
    failures: tuple[CrossgapError, ...] = ()
    notes: tuple[str, ...] = ()
