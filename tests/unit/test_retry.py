"""Only errors that can pass are tried again."""

from typing import Any, cast

import pytest
from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed

from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    ConnectionLost,
    CrossgapError,
    SeveralFailures,
    TimedOut,
)
from tasks.common.retry import can_pass, retrying


def asked(state: State[Any]) -> bool:
    return can_pass(cast("Task[..., Any]", None), cast("TaskRun", None), state)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionLost("the link was cut", "gpu1"), True),
        (TimedOut("no answer", "gpu1"), True),
        (AuthenticationRefused("wrong password", "gpu1"), False),
        (CommandFailed("exit 1", "gpu1", retryable=True), True),
        (CrossgapError("x", "gpu1"), False),
        (SeveralFailures([TimedOut("a", "b"), CrossgapError("c", "d")], "e"), True),
        (ConnectionError("a defect, not an outage that we know"), False),
        (TimeoutError(), False),
    ],
)
def test_the_error_decides(error: Exception, again: bool) -> None:
    assert asked(Failed(data=error)) is again


def test_a_state_without_an_error_is_not_tried_again() -> None:
    assert asked(Failed(message="stopped")) is False
    assert asked(Completed(data=None)) is False


def test_prefect_takes_the_policy_as_it_is() -> None:
    @task(**retrying(retries=3, first_delay=2))
    def step() -> None: ...

    assert step.retries == 3
    assert step.retry_delay_seconds == [2, 4, 8]
    assert step.retry_jitter_factor == 0.3
    assert step.retry_condition_fn is can_pass
