"""How a cancelled run wakes what waits, and ends what it started elsewhere."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from blocks.cancellation import (
    Cancellation,
    cancellation_scope,
    current_cancellation,
    ends_remote_work,
)
from blocks.errors import Cancelled, Unreachable


def test_nothing_happens_before_a_run_is_cancelled() -> None:
    cancellation = Cancellation()

    cancellation.check("gpu1")
    cancellation.pause(0, "gpu1")

    assert not cancellation.requested


def test_a_cancelled_run_is_told_where_it_stopped() -> None:
    cancellation = Cancellation()

    cancellation.cancel()

    assert cancellation.requested
    for stop in (cancellation.check, lambda where: cancellation.pause(0, where)):
        with pytest.raises(Cancelled, match=r"^gpu1: .*cancelled") as stopped:
            stop("gpu1")
        assert not stopped.value.retryable


def test_a_pause_in_any_thread_ends_at_once() -> None:
    cancellation = Cancellation()
    begun = threading.Barrier(9)

    def sleep() -> str:
        begun.wait(10)
        with pytest.raises(Cancelled):
            cancellation.pause(3600, "gpu1")
        return "woken"

    with ThreadPoolExecutor(8) as pool:
        sleeping = [pool.submit(sleep) for _ in range(8)]
        begun.wait(10)
        cancellation.cancel()

        assert [one.result(timeout=10) for one in sleeping] == ["woken"] * 8


def test_endings_run_side_by_side() -> None:
    cancellation = Cancellation()
    together = threading.Barrier(5, timeout=10)
    passed: list[int] = []

    def end() -> None:
        passed.append(together.wait())

    for key in range(5):
        cancellation.on_cancel(key, end)

    cancellation.cancel()

    assert sorted(passed) == [0, 1, 2, 3, 4]


def test_an_ending_that_fails_is_logged_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cancellation = Cancellation()
    ended: list[int] = []

    def fail(error: Exception) -> None:
        raise error

    for key in range(4):
        cancellation.on_cancel(key, lambda key=key: ended.append(key))  # type: ignore[misc]
    cancellation.on_cancel("down", lambda: fail(Unreachable("no answer", "gpu1")))
    cancellation.on_cancel("defect", lambda: fail(ValueError("a defect")))

    with caplog.at_level("WARNING", "crossgap"):
        cancellation.cancel()

    assert sorted(ended) == [0, 1, 2, 3]
    said = sorted(record.getMessage() for record in caplog.records)
    assert len(said) == 2
    assert "a defect" in said[0]
    assert "gpu1: no answer" in said[1]


def test_endings_may_use_hosts_although_the_run_is_cancelled() -> None:
    cancellation = Cancellation()
    ended: list[str] = []

    def end() -> None:
        current_cancellation().check("gpu1")
        ended.append("job")

    cancellation.on_cancel("job", end)
    with cancellation_scope(cancellation):
        cancellation.cancel()
    cancellation.on_cancel("late job", end)

    assert ended == ["job", "job"]


def test_what_has_ended_by_itself_is_not_ended_again() -> None:
    cancellation = Cancellation()
    ended: list[str] = []
    cancellation.on_cancel("over", lambda: ended.append("over"))
    cancellation.on_cancel("job", lambda: ended.append("old"))
    cancellation.on_cancel("job", lambda: ended.append("new"))
    cancellation.ended("over")
    cancellation.ended("never heard of")

    cancellation.cancel()
    cancellation.cancel()

    assert ended == ["new"]


def test_what_is_started_while_the_run_is_being_cancelled_is_ended_too() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    ended = threading.Event()

    # A job that was on its way to a host when the signal came.
    cancellation.on_cancel("late job", ended.set)

    assert ended.wait(10)


def test_outside_of_a_run_nothing_is_ever_cancelled() -> None:
    current_cancellation().cancel()

    assert not current_cancellation().requested


def test_the_innermost_scope_counts_and_ends_with_its_body() -> None:
    outer, inner = Cancellation(), Cancellation()

    with cancellation_scope(outer) as first:
        with cancellation_scope(inner) as second:
            assert (first, second) == (outer, inner)
            assert current_cancellation() is inner
        assert current_cancellation() is outer
        with pytest.raises(KeyError), cancellation_scope(inner):
            raise KeyError
        assert current_cancellation() is outer
        inner.cancel()
        current_cancellation().check("gpu1")
    assert current_cancellation() not in (outer, inner)


def test_a_thread_with_a_copy_of_the_context_belongs_to_the_run() -> None:
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as pool, cancellation_scope(cancellation):
        copied = pool.submit(contextvars.copy_context().run, current_cancellation).result(10)
        bare = pool.submit(current_cancellation).result(10)

    assert copied is cancellation
    assert bare is not cancellation


def raised_in_body(error: BaseException, ended: list[str]) -> None:
    with ends_remote_work() as cancellation:
        assert current_cancellation() is cancellation
        cancellation.on_cancel("job", lambda: ended.append("job"))
        raise error


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_an_interruption_ends_what_the_body_started(interruption: BaseException) -> None:
    ended: list[str] = []

    with pytest.raises(type(interruption)):
        raised_in_body(interruption, ended)

    assert ended == ["job"]


def test_an_ordinary_error_leaves_jobs_to_the_next_run() -> None:
    ended: list[str] = []

    with pytest.raises(Unreachable):
        raised_in_body(Unreachable("no answer", "gpu1"), ended)

    assert ended == []


def test_a_good_end_leaves_jobs_alone() -> None:
    ended: list[str] = []

    with ends_remote_work() as cancellation:
        cancellation.on_cancel("job", lambda: ended.append("job"))

    assert ended == []
