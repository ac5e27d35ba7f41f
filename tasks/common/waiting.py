"""Sentences about a wait, often enough to be seen, seldom enough to be read."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from blocks.logs import logger
from tasks.common.units import duration_text

SAY_EVERY = 30.0
"""Seconds between two sentences about one wait."""


def jittered(seconds: float) -> float:
    """Vary a pause by a third, so that two that wait do not always meet."""
    return seconds * random.uniform(0.67, 1.33)  # noqa: S311 - not a secret


class Waiting:
    """Says now and then what is waited for.

    Args:
        what: What is waited for.
        clock: Seconds that never run backwards.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._began = clock()
        self._said: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has been waited."""
        return self._clock() - self._began

    def say(self, more: str = "") -> None:
        """Log the sentence, the first time and then every half minute.

        Args:
            more: What is known at this moment, as a sentence.
        """
        now = self._clock()
        if self._said is None or now - self._said >= SAY_EVERY:
            self._said = now
            waited = duration_text(self.seconds)
            logger().info("Waiting for %s; %s so far. %s", self._what, waited, more)
