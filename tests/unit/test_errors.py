"""What an operator reads when something fails."""

from __future__ import annotations

import pickle

import pytest

from blocks import errors
from blocks.errors import (
    ConnectionLost,
    CrossgapError,
    DiskFull,
    NotFound,
    SeveralFailures,
    SudoRefused,
    TimedOut,
    Unreachable,
)

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CrossgapError) and kind is not SeveralFailures
]
PASSING = {
    errors.Unreachable,
    errors.ConnectionRefused,
    errors.TooManyConnections,
    errors.ConnectionLost,
    errors.TimedOut,
}


@pytest.mark.parametrize("what", ["it is full", "it is full.", "it is full. "])
def test_a_message_is_a_sentence_with_place_and_remedy(what: str) -> None:
    error = DiskFull(what, "gpu1 (10.0.0.1)", " Make room. ")

    assert str(error) == "gpu1 (10.0.0.1): it is full. Make room."
    assert repr(error) == "DiskFull: gpu1 (10.0.0.1): it is full. Make room."
    assert str(DiskFull(what, "gpu1")) == "gpu1: it is full."


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_passes_by_itself_is_tried_again_unless_said_otherwise(
    kind: type[CrossgapError],
) -> None:
    assert kind("x", "y").retryable is (kind in PASSING)
    assert kind("x", "y", retryable=True).retryable
    assert not kind("x", "y", retryable=False).retryable


@pytest.mark.parametrize("kind", KINDS)
def test_errors_come_through_between_processes(kind: type[CrossgapError]) -> None:
    error = kind("坏了.", "gpu1", "Look.", retryable=True)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert (str(copy), copy.what, copy.where, copy.remedy, copy.retryable) == (
        "gpu1: 坏了. Look.",
        "坏了",
        "gpu1",
        "Look.",
        True,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_error_says_what_it_is_for(kind: type[CrossgapError]) -> None:
    assert (kind.__doc__ or "").strip()


def test_kinds_of_one_family_can_be_caught_together() -> None:
    assert issubclass(ConnectionLost, Unreachable)
    assert issubclass(SudoRefused, errors.PermissionRefused)
    assert issubclass(errors.PassphraseNeeded, errors.AuthenticationRefused)


SEVERAL = SeveralFailures([DiskFull("full", "gpu1", "Make room."), NotFound("gone", "x")], "ship")


def test_several_failures_are_all_in_the_message() -> None:
    assert str(SEVERAL) == "ship: 2 failures:\n- gpu1: full. Make room.\n- x: gone."


def test_one_failure_of_several_speaks_for_itself() -> None:
    assert str(SeveralFailures([NotFound("gone", "x", "Look.")], "ship")) == "x: gone. Look."


def test_several_failures_may_pass_when_one_of_them_may() -> None:
    assert not SEVERAL.retryable
    assert SeveralFailures([*SEVERAL.failures, TimedOut("late", "gpu2")], "ship").retryable


def test_several_failures_come_through_between_processes() -> None:
    nested = SeveralFailures([SEVERAL, ConnectionLost("cut", "gpu3")], "all")

    copy = pickle.loads(pickle.dumps(nested))

    assert str(copy) == str(nested)
    assert [type(one) for one in copy.failures] == [SeveralFailures, ConnectionLost]
    assert copy.retryable
