"""Whose turn it is among places that may give the same thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import Cancelled, CrossgapError, Damaged, DiskFull, NotFound, Unreachable
from tasks.transfer import turns
from tasks.transfer.turns import Turns, together
from tasks.transfer.web import Throttled


class Asked:
    """A place that only has a name."""

    def __init__(self, name: str) -> None:
        self.name = name


def turns_of(*names: str, failed: Counter[str] | None = None) -> Turns[Asked]:
    return Turns([Asked(name) for name in names], Counter() if failed is None else failed)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(Cancellation, "pause", lambda _, seconds, where: taken.append(seconds))
    return taken


def answering(**answers: CrossgapError | str) -> tuple[list[str], Callable[[Asked], str]]:
    asked: list[str] = []

    def work(place: Asked) -> str:
        asked.append(place.name)
        answer = answers[place.name]
        if isinstance(answer, CrossgapError):
            raise answer
        return answer

    return asked, work


def test_the_first_place_that_gives_it_is_the_last_one_asked() -> None:
    asked, work = answering(a=Unreachable("down", "x"), b="here", c="there")
    assert turns_of("a", "b", "c").ask(work) == "here"
    assert asked == ["a", "b"]


def test_a_place_that_has_failed_comes_last_for_all_that_a_run_wants() -> None:
    failed: Counter[str] = Counter()
    asked, work = answering(a=Unreachable("down", "x"), b="here")
    turns_of("a", "b", failed=failed).ask(work)
    turns_of("a", "b", failed=failed).ask(work)
    assert asked == ["a", "b", "b"]


def test_a_place_that_only_lacks_one_thing_is_asked_first_for_others() -> None:
    failed: Counter[str] = Counter()
    asked, work = answering(a=NotFound("absent", "x"), b="here")
    turns = turns_of("a", "b", failed=failed)
    turns.ask(work)
    turns.ask(work)
    turns_of("a", "b", failed=failed).ask(work)
    assert asked == ["a", "b", "b", "a", "b"]


def test_what_cannot_pass_is_not_tried_again(pauses: list[float]) -> None:
    asked, work = answering(a=NotFound("absent", "x"), b=NotFound("absent", "x"))
    with pytest.raises(NotFound):
        turns_of("a", "b").ask(work)
    assert asked == ["a", "b"]
    assert not pauses


def test_what_may_pass_is_tried_in_three_rounds_with_growing_pauses(pauses: list[float]) -> None:
    asked, work = answering(a=Unreachable("down", "x"))
    with pytest.raises(Unreachable):
        turns_of("a").ask(work)
    assert (asked, pauses) == (["a"] * 3, [1.0, 2.0])


def test_as_long_as_bytes_come_nobody_gives_up(pauses: list[float]) -> None:
    come = 0

    def work(_: Asked) -> str:
        nonlocal come
        come += 1
        if come < 50:
            raise Unreachable("cut", "x")
        return "whole"

    assert turns_of("a").ask(work, moved=lambda: come) == "whole"
    assert not pauses


def test_whoever_asks_for_a_pause_gets_it_unless_it_is_too_long(pauses: list[float]) -> None:
    busy = Throttled("busy", "x")
    busy.seconds = 30
    with pytest.raises(Throttled):
        turns_of("a").ask(answering(a=busy)[1])
    assert pauses == [30, 30]
    busy.seconds = 3600
    with pytest.raises(Throttled):
        turns_of("a").ask(answering(a=busy)[1])
    assert pauses == [30, 30]


def test_a_place_that_is_throttled_does_not_hold_up_the_others(pauses: list[float]) -> None:
    busy = Throttled("busy", "x")
    busy.seconds = 3600
    with pytest.raises(CrossgapError):
        turns_of("a", "b").ask(answering(a=busy, b=Unreachable("down", "x"))[1])
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize("error", [Cancelled("stopped", "x"), DiskFull("full", "x")])
def test_what_no_other_place_can_mend_ends_it(error: CrossgapError) -> None:
    asked, work = answering(a=error, b="here")
    with pytest.raises(type(error)):
        turns_of("a", "b").ask(work)
    assert asked == ["a"]


def test_places_may_be_left_out() -> None:
    asked, work = answering(b="here")
    assert turns_of("a", "b").ask(work, without={"a"}) == "here"
    assert asked == ["b"]


def test_a_cancelled_run_does_not_wait_for_another_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(turns, "_FIRST_WAIT", 100)
    cancellation = Cancellation()
    cancellation.cancel()
    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        turns_of("a").ask(answering(a=Unreachable("down", "x"))[1])


def test_several_failures_become_one_that_names_each_place() -> None:
    failures = [
        Unreachable("it is down", "image 'a:1' from m1"),
        Damaged("it is broken", "image 'a:1' from m2", "Push it."),
    ]
    error = together(failures)
    assert str(error) == (
        "image 'a:1': no place gives it (m1: it is down; m2: it is broken). Push it."
    )
    assert type(error) is Damaged
    assert error.retryable
    assert together(failures[:1]) is failures[0]
