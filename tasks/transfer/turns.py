"""Whose turn it is among several places that may give the same thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from blocks.cancellation import current_cancellation
from blocks.errors import Cancelled, CrossgapError, DiskFull, NotFound
from blocks.logs import logger
from tasks.transfer.web import Throttled

_FRUITLESS_ROUNDS = 3
_FIRST_WAIT = 1.0
# Whoever wants to be left alone for longer had better be told to a person.
_LONGEST_WAIT = 120.0


class Named(Protocol):
    """A place: all that is known of it here is its name."""

    @property
    def name(self) -> str:
        """The host, as operators know it; two places of one name fail together."""


P = TypeVar("P", bound=Named)
T = TypeVar("T")


class Turns(Generic[P]):
    """Asks places in order, those that have failed behind the others.

    Args:
        places: In the order of preference; at least one.
        failed: How often each of the names has failed, shared by all that a run wants of them.
    """

    def __init__(self, places: Sequence[P], failed: Counter[str]) -> None:
        self.places = tuple(places)
        self._failed = failed
        self._lacking: Counter[str] = Counter()

    def ask(
        self,
        work: Callable[[P], T],
        moved: Callable[[], int] = lambda: 0,
        without: Collection[str] = (),
    ) -> T:
        """Do something with the first place where it succeeds.

        Args:
            work: What to do with a place.
            moved: Returns how far the work has come; as long as that grows,
                the places are asked again and again.
            without: Names of places that are not to be asked.

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
            for place in self._in_turn(without):
                try:
                    return work(place)
                except (Cancelled, DiskFull):
                    raise
                except CrossgapError as error:
                    failures.append(error)
                    self._remember(place, error)
            fruitless = 0 if moved() > before else fruitless + 1
            self._wait(fruitless, failures)

    def _in_turn(self, without: Collection[str]) -> list[P]:
        allowed = [place for place in self.places if place.name not in without]
        return sorted(allowed, key=lambda place: self._demerits(place.name))

    def _demerits(self, name: str) -> int:
        return self._failed[name] + self._lacking[name]

    def _remember(self, place: P, error: CrossgapError) -> None:
        counter = self._lacking if isinstance(error, NotFound) else self._failed
        counter[place.name] += 1
        if len(self.places) > 1:
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
