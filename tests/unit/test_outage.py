"""Waiting out the times when a host is away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace

import pytest

from blocks import outage as module
from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import (
    Cancelled,
    ConnectionLost,
    CrossgapError,
    DiskFull,
    TimedOut,
    Unreachable,
)
from blocks.outage import LONGEST_PAUSE, Outage, waited_out
from tests.unit.images_doubles import AnsweringHost

DOWN = Unreachable("it cannot be reached (no answer)", "gpu1", "Check the cable.")


class Clock(Cancellation):
    """A stop signal whose pauses pass at once, and the clock that they move."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pauses: list[float] = []

    def pause(self, seconds: float, where: str) -> None:
        assert where == "gpu1 (10.0.0.1:22)"
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with cancellation_scope(clock):
        yield clock


def host(patience: int = 100) -> AnsweringHost:
    host = AnsweringHost({})
    host.patience = patience
    return host


def failing(times: int, error: Exception = DOWN) -> Callable[[Outage], str]:
    """Make work that fails some times and then succeeds."""
    tries = count(1)

    def attempt(outage: Outage) -> str:
        if next(tries) <= times:
            raise error
        outage.over()
        return "done"

    return attempt


def test_what_succeeds_at_once_never_waits(clock: Clock) -> None:
    assert waited_out(host(), failing(0)) == "done"
    assert clock.pauses == []


def test_pauses_grow_to_a_longest_one(clock: Clock) -> None:
    assert waited_out(host(), failing(7)) == "done"
    assert clock.pauses == [1, 2, 4, 8, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_an_outage_of_a_whole_night_is_waited_out(clock: Clock) -> None:
    tries = 8 * 3600 // int(LONGEST_PAUSE)

    assert waited_out(host(patience=28_800), failing(tries)) == "done"


@pytest.mark.parametrize("patience", [0, 1, 60, 28_800])
def test_patience_ends_with_the_reason_itself(clock: Clock, patience: int) -> None:
    begin = clock.now

    with pytest.raises(Unreachable) as ended:
        waited_out(host(patience), failing(10**9))

    assert ended.value is DOWN
    assert patience <= clock.now - begin <= patience + LONGEST_PAUSE


def test_each_outage_has_the_whole_patience(clock: Clock) -> None:
    outage = Outage(host(patience=40))

    for _ in range(20):
        for _ in range(4):
            outage.wait(DOWN)
        outage.over()

    assert clock.pauses == [1, 2, 4, 8] * 20


def test_an_outage_is_told_once_and_so_is_its_end(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage(host(patience=3600))

    with caplog.at_level(logging.INFO, "crossgap"):
        outage.over()
        for _ in range(5):
            outage.wait(DOWN)
        outage.over()
        outage.over()

    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("WARNING", f"{DOWN} Waiting for it up to 60 min; nothing is lost."),
        ("INFO", "gpu1 (10.0.0.1:22) is back after 30 s; going on."),
    ]


@pytest.mark.parametrize(
    "error", [ConnectionLost("cut", "gpu1"), TimedOut("no end", "gpu1"), DOWN], ids=repr
)
def test_what_may_pass_is_waited_out(clock: Clock, error: CrossgapError) -> None:
    assert waited_out(host(), failing(2, error)) == "done"


@pytest.mark.parametrize(
    "error",
    [
        DiskFull("full", "gpu1"),
        DiskFull("full", "gpu1", retryable=True),
        TimedOut("over its deadline", "gpu1", retryable=False),
        Cancelled("cancelled", "gpu1"),
        ValueError("a defect"),
    ],
    ids=repr,
)
def test_anything_else_is_raised_at_once(clock: Clock, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        waited_out(host(), failing(1, error))

    assert raised.value is error
    assert clock.pauses == []


def test_a_cancelled_run_stops_waiting() -> None:
    cancellation = Cancellation()
    waiting = threading.Event()
    raised: list[BaseException] = []

    def attempt(_: Outage) -> None:
        waiting.set()
        raise DOWN

    def work() -> None:
        with cancellation_scope(cancellation):
            try:
                waited_out(host(patience=3600), attempt)
            except CrossgapError as error:
                raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert waiting.wait(10)
    cancellation.cancel()
    thread.join(10)

    assert not thread.is_alive()
    assert isinstance(raised[0], Cancelled)
