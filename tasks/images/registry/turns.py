"""Whose turn it is among several places that may give the same thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from blocks.cancellation import current_cancellation
from blocks.errors import Cancelled, CrossgapError, DiskFull, NotFound
from blocks.logs import logger
from tasks.images.registry.answers import Throttled
from tasks.images.registry.web import Session

T = TypeVar("T")

_FRUITLESS_ROUNDS = 3
_FIRST_WAIT = 1.0
# Whoever wants to be left alone for longer had better be told to a person.
_LONGEST_WAIT = 120.0


class Turns:
    """Asks places in order, those that have failed behind the others.

    Args:
        sessions: One per place, in the order of preference; at least one.
        failed: How often each host has failed, shared by all images of a run.
    """

    def __init__(self, sessions: Sequence[Session], failed: Counter[str]) -> None:
        self.sessions = tuple(sessions)
        self._failed = failed
        self._lacking: Counter[str] = Counter()

    def ask(
        self,
        work: Callable[[Session], T],
        moved: Callable[[], int] = lambda: 0,
        without: Collection[str] = (),
    ) -> T:
        """Do something with the first place where it succeeds.

        Args:
            work: What to do with a place.
            moved: Returns how far the work has come; as long as that grows,
                the places are asked again and again.
            without: Hosts that are not to be asked.

        Raises:
            Cancelled: The run was cancelled.
            DiskFull: There is no room here.
            CrossgapError: All places failed; the error is that of the last one,
                with what the others said.
        """
        fruitless = 0
        while True:
            before = moved()
            failures: list[CrossgapError] = []
            for session in self._in_turn(without):
                try:
                    return work(session)
                except (Cancelled, DiskFull):
                    raise
                except CrossgapError as error:
                    failures.append(error)
                    self._remember(session, error)
            fruitless = 0 if moved() > before else fruitless + 1
            self._wait(fruitless, failures)

    def _in_turn(self, without: Collection[str]) -> list[Session]:
        allowed = [session for session in self.sessions if session.place.host not in without]
        return sorted(allowed, key=lambda session: self._demerits(session.place.host))

    def _demerits(self, host: str) -> int:
        return self._failed[host] + self._lacking[host]

    def _remember(self, session: Session, error: CrossgapError) -> None:
        counter = self._lacking if isinstance(error, NotFound) else self._failed
        counter[session.place.host] += 1
        if len(self.sessions) > 1:
            logger().info("%s: %s. The next place is asked.", error.where, error.what)

    def _wait(self, fruitless: int, failures: Sequence[CrossgapError]) -> None:
        """Wait before the next round, unless another one is of no use."""
        hopeful = [error for error in failures if error.retryable]
        waits = [e.seconds if isinstance(e, Throttled) else 0.0 for e in hopeful]
        if (
            not hopeful
            or fruitless >= _FRUITLESS_ROUNDS
            or (fruitless and min(waits) > _LONGEST_WAIT)
        ):
            raise together(failures)
        if fruitless:
            pause = max(_FIRST_WAIT * 2 ** (fruitless - 1), min(waits))
            current_cancellation().pause(pause, failures[-1].where)


def together(failures: Sequence[CrossgapError]) -> CrossgapError:
    """Make one error of what several places said of the same thing.

    Args:
        failures: One per place, at least one.

    Returns:
        The last one, with what the others said; worth a retry if any is.
    """
    last = failures[-1]
    if len(failures) == 1:
        return last
    others = "; ".join(f"{error.where.rpartition(' from ')[2]}: {error.what}" for error in failures)
    return type(last)(
        f"no place gives it ({others})",
        last.where.rpartition(" from ")[0] or last.where,
        last.remedy,
        any(error.retryable for error in failures),
    )
