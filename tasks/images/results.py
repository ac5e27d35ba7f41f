"""What shipping one image to one host came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ShipResult:
    """One row of the table that an operator reads after a run.

    Args:
        image: The image's name, as `docker images` shows it.
        host: The name of the host's block.
        action: `present` when nothing was sent, `delta` when only missing
            layers were, `full` when the whole image was.
        layers_sent: How many layers of this image went over the wire.
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
