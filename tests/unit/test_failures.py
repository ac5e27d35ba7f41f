"""One host's failure does not stop the others."""

import signal
import threading
from collections.abc import Iterator

import pytest

from blocks.cancellation import Cancellation, cancellation_scope, current_cancellation
from blocks.errors import Cancelled, Conflict, SeveralFailures, Unreachable
from tasks.common.failures import Collected, collect, each_failure


def test_all_are_tried_and_all_failures_kept_in_order() -> None:
    def work(host: str) -> str:
        if host in ("b", "d"):
            raise Unreachable("no answer", host)
        return host.upper()

    collected = collect(work, ["a", "b", "c", "d"], name=str)
    assert collected.results == ("A", "C")
    assert [failure.where for failure in collected.failures] == ["b", "d"]


def test_nothing_to_work_on_is_no_failure() -> None:
    assert collect(str, [], name=str) == Collected((), ())


def test_failures_in_failures_are_listed_once_each_and_in_their_order() -> None:
    a, b, c, d = (Conflict(name, "gpu1") for name in "abcd")
    nested = SeveralFailures([b, SeveralFailures([c], "deeper")], "outer")
    assert each_failure([a, nested, d]) == [a, b, c, d]
    assert each_failure([]) == []


def test_several_failures_of_one_host_are_not_nested() -> None:
    def work(host: str) -> None:
        raise SeveralFailures([Conflict("a", host), Conflict("b", host)], host)

    assert len(collect(work, ["x"], name=str).failures) == 2


def test_a_defect_is_reported_with_its_place_and_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def work(host: str) -> None:
        raise KeyError("layers")

    [failure] = collect(work, ["gpu1"], name=str).failures
    assert str(failure) == (
        "gpu1: unexpected KeyError: 'layers'. This is a defect; the log has the traceback."
    )
    assert not failure.retryable
    assert caplog.records[0].exc_info is not None


def test_no_more_are_worked_on_at_once_than_asked() -> None:
    lock = threading.Lock()
    both = threading.Barrier(2, timeout=20)
    now, most = 0, 0

    def work(_: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        both.wait()  # proves that there are two, too
        with lock:
            now -= 1

    collected = collect(work, range(6), name=str, at_once=2)
    assert not collected.failures
    assert most == 2


def test_the_threads_carry_the_context_of_the_run() -> None:
    with cancellation_scope(Cancellation()) as cancellation:
        collected = collect(lambda _: current_cancellation() is cancellation, [1], name=str)
    assert collected.results == (True,)


def test_an_interrupted_run_begins_nothing_new_and_stops_what_is_under_way() -> None:
    main = threading.get_ident()
    began: list[int] = []
    submitted, stopped = threading.Event(), threading.Event()

    def work(number: int) -> None:
        began.append(number)
        assert number == 0 or submitted.wait(20)
        try:
            # Python drops a signal that comes while it collects garbage: it is sent again then.
            for _ in range(5):
                if number == 1:
                    signal.pthread_kill(main, signal.SIGINT)
                current_cancellation().pause(10, "gpu1")
        except Cancelled:
            stopped.set()
            raise

    def hosts() -> Iterator[int]:
        yield from range(5)
        submitted.set()

    with cancellation_scope(Cancellation()), pytest.raises(KeyboardInterrupt):
        collect(work, hosts(), name=str, at_once=2)
    assert sorted(began) == [0, 1]
    assert stopped.is_set()
