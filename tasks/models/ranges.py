"""Which part of a file is asked for next, and by whom."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.models.part_file import BLOCK

# A request costs a round trip or two: pieces last some seconds, so that this does not show,
LONGEST = 64 << 20
SECONDS = 4.0
# and are smaller at the end, so that all connections end together.
SHORTEST = 1 << 20


@dataclass
class Piece:
    """A range that one connection is fetching.

    Attributes:
        at: The next byte that it lacks.
        stop: Its end.
    """

    at: int
    stop: int


class Ranges:
    """Hands out what a file lacks, lowest first; safe to use from several threads.

    In this order the hash, which can only be computed from the beginning, follows closely.

    Args:
        missing: What it lacks, as pairs of first byte and end; starts are at blocks.
    """

    def __init__(self, missing: Sequence[tuple[int, int]]) -> None:
        self._lock = threading.Lock()
        self._missing = sorted(missing)

    @property
    def remaining(self) -> int:
        """Bytes that nobody fetches yet."""
        with self._lock:
            return sum(stop - start for start, stop in self._missing)

    def take(self, connections: int, rate: float) -> Piece | None:
        """Return the next piece, or None when all are taken.

        Args:
            connections: How many share the work, or may come to.
            rate: Bytes per second of one connection so far; 0 where that is not known yet.
        """
        with self._lock:
            if not self._missing:
                return None
            left = sum(stop - start for start, stop in self._missing)
            start, stop = self._missing.pop(0)
            end = min(stop, start + piece_size(left, connections, rate))
            if end < stop:
                self._missing.insert(0, (end, stop))
            return Piece(start, end)

    def give_back(self, start: int, stop: int) -> None:
        """Take back what somebody could not fetch.

        Args:
            start: The first byte, at a block.
            stop: The end.
        """
        if start < stop:
            with self._lock:
                self._missing = sorted([*self._missing, (start, stop)])


def piece_size(left: int, connections: int, rate: float) -> int:
    """Return how many bytes one connection should fetch at once, in whole blocks.

    Args:
        left: Bytes that nobody fetches yet.
        connections: How many share the work, or may come to.
        rate: Bytes per second of one connection so far; 0 where that is not known yet.
    """
    wanted = min(LONGEST, int(rate * SECONDS)) if rate else 2 * SHORTEST
    fair = left // (2 * connections) if connections > 1 else LONGEST
    size = max(SHORTEST, min(wanted, fair))
    return -(-size // BLOCK) * BLOCK
