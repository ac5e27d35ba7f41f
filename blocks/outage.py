"""Waiting out the times when a host cannot be reached.

An outage in the middle of a transfer or a job is not a failure of the step: the
line drops at night and comes back. It is waited out up to the host's patience,
without spending the step's retries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError, TimedOut, Unreachable
from blocks.logs import logger

if TYPE_CHECKING:
    from blocks.host import Host

LONGEST_PAUSE = 15.0

T = TypeVar("T")


class Outage:
    """The time since a host was last heard of.

    Args:
        host: The host in question.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._cancellation = current_cancellation()
        self._since: float | None = None
        self._tries = 0

    def over(self) -> None:
        """Note that the work has gone on: bytes came, or a job was heard of.

        A connection alone proves nothing. On some lines small packets pass and
        large ones do not.
        """
        if self._since is not None:
            seconds = time.monotonic() - self._since
            logger().info("%s is back after %.0f s; going on.", self._host.label, seconds)
        self._since, self._tries = None, 0

    def wait(self, error: CrossgapError) -> None:
        """Sleep before the next try.

        Args:
            error: Why a next try is needed.

        Raises:
            CrossgapError: The same error, when the patience has run out.
            Cancelled: The run was cancelled.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            minutes = self._host.patience / 60
            logger().warning("%s Waiting for it up to %.0f min; nothing is lost.", error, minutes)
        if now - self._since > self._host.patience:
            raise error
        self._tries += 1
        pause = min(LONGEST_PAUSE, 0.5 * 2 ** min(self._tries, 10))
        self._cancellation.pause(pause, self._host.label)


def waited_out(
    host: Host,
    attempt: Callable[[Outage], T],
    outages: tuple[type[CrossgapError], ...] = (Unreachable, TimedOut),
) -> T:
    """Call until it succeeds, waiting out the times when the host is away.

    Args:
        host: The host, whose `patience` bounds a single outage, in seconds.
        attempt: What to do; it calls `Outage.over` whenever something arrived.
        outages: The errors that are waited out, as long as they say that they may pass.

    Returns:
        What the attempt returns.

    Raises:
        Unreachable: An outage lasted longer than the host's patience.
        CrossgapError: Any other error of the attempt, at once.
    """
    outage = Outage(host)
    while True:
        try:
            return attempt(outage)
        except outages as error:
            if not error.retryable:
                raise
            outage.wait(error)
