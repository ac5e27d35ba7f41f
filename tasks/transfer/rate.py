"""Limits on the rate of transfers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from blocks.cancellation import current_cancellation
from blocks.errors import InvalidInput
from blocks.files import Pace


class RateLimit:
    """Spreads bytes over time; one limit may be shared by any number of transfers.

    Args:
        mbit: The limit in Mbit/s, counting the files' bytes and not the wire's.
        clock: Seconds that never run backwards.
        pause: Sleeps for some seconds; by default until then or a cancellation.

    Attributes:
        bytes_per_second: The same limit in bytes.

    Raises:
        InvalidInput: The limit is not above zero.
    """

    def __init__(
        self,
        mbit: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        if not mbit > 0:
            raise InvalidInput(
                f"{mbit} Mbit/s is no rate", "rate limit", "Leave it empty for no limit."
            )
        self.bytes_per_second = mbit * 1e6 / 8
        self._clock = clock
        self._pause = pause or _pause
        self._lock = threading.Lock()
        self._free_at = 0.0

    def __call__(self, count: int) -> None:
        """Wait until this many further bytes may be sent."""
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)
            self._free_at = begin + count / self.bytes_per_second
        if begin > now:
            self._pause(begin - now)


def _pause(seconds: float) -> None:
    current_cancellation().pause(seconds, "transfer")


def pace_of(*limits: RateLimit | None) -> Pace | None:
    """Combine limits into the `pace` of a transfer.

    Args:
        limits: All of them are kept; None stands for no limit.

    Returns:
        The callback for `Host.put` and `Host.get`, or None for full speed.
    """
    kept = [limit for limit in limits if limit is not None]

    def pace(count: int) -> None:
        for limit in kept:
            limit(count)

    return pace if kept else None
