"""Rates that are kept, alone and together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import Cancelled, InvalidInput
from tasks.transfer.rate import RateLimit, pace_of

MBIT = 125_000


class Clock:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 50.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def limit(mbit: float, clock: Clock) -> RateLimit:
    return RateLimit(mbit, clock, clock.pause)


def test_the_first_bytes_go_at_once_and_the_next_wait_for_them() -> None:
    clock = Clock()
    pace = limit(8, clock)

    pace(8 * MBIT)
    assert clock.pauses == []
    pace(4 * MBIT)
    pace(4 * MBIT)

    assert clock.pauses == [1.0, 0.5]


@pytest.mark.parametrize("mbit", [0.1, 1, 100, 10_000])
@pytest.mark.parametrize("chunk", [1000, 262_144])
def test_over_time_the_rate_is_the_limit(mbit: float, chunk: int) -> None:
    clock = Clock()
    pace = limit(mbit, clock)

    for _ in range(200):
        pace(chunk)
    pace(0)

    assert clock.now - 50 == pytest.approx(200 * chunk / (mbit * MBIT))


def test_time_that_passed_unused_is_not_made_up_for() -> None:
    clock = Clock()
    pace = limit(1, clock)
    pace(MBIT)
    clock.now += 3600

    pace(MBIT)
    pace(MBIT)

    assert clock.pauses == [1.0]


def test_a_transfer_slower_than_the_limit_never_waits() -> None:
    clock = Clock()
    pace = limit(10, clock)

    for _ in range(50):
        pace(9 * MBIT)
        clock.now += 1

    assert clock.pauses == []


def test_transfers_that_share_a_limit_share_the_rate() -> None:
    lock = threading.Lock()
    waits: list[float] = []

    def pause(seconds: float) -> None:
        with lock:
            waits.append(seconds)

    shared = RateLimit(8, lambda: 0.0, pause)
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: shared(MBIT), range(80)):
            pass

    # The clock stands still: every piece but the first waits for all those before it.
    assert sorted(waits) == pytest.approx([n / 8 for n in range(1, 80)])


@pytest.mark.parametrize("mbit", [0, -1, float("nan")])
def test_what_is_no_rate_is_refused(mbit: float) -> None:
    with pytest.raises(InvalidInput, match="is no rate") as refused:
        RateLimit(mbit)

    assert "empty" in refused.value.remedy


def test_a_cancelled_run_does_not_wait_for_its_turn() -> None:
    cancellation = Cancellation()
    pace = RateLimit(0.000001)
    pace(MBIT)
    cancellation.cancel()

    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        pace(MBIT)


def test_several_limits_are_all_kept() -> None:
    own, total = Clock(), Clock()
    pace = pace_of(limit(8, own), None, limit(2, total))
    assert pace

    for _ in range(3):
        pace(2 * MBIT)

    assert own.pauses == [0.25, 0.25]
    assert total.pauses == [1.0, 1.0]


def test_no_limit_at_all_is_no_pace() -> None:
    assert pace_of() is None
    assert pace_of(None, None) is None
