"""The retry policy in real task runs."""

from __future__ import annotations

import pytest
from prefect import flow, task

from blocks.errors import AuthenticationRefused, ConnectionLost, CrossgapError
from tasks.common.retry import retrying


def tries_of(errors: list[Exception]) -> tuple[int, Exception | None]:
    """Run a task that raises these errors, one per try; return its tries and its last error."""
    tries = 0
    last: list[Exception] = []

    @task(**retrying(retries=3, first_delay=0.01))
    def step() -> None:
        nonlocal tries
        tries += 1
        if len(errors) >= tries:
            raise errors[tries - 1]

    @flow
    def run() -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            last.append(error)

    run()
    return tries, last[0] if last else None


def test_an_error_that_can_pass_is_tried_again(prefect_api: None) -> None:
    assert tries_of([ConnectionLost("cut", "gpu1")] * 2) == (3, None)


def test_an_error_that_stays_is_not_tried_again(prefect_api: None) -> None:
    tries, error = tries_of([AuthenticationRefused("wrong password", "gpu1")])
    assert tries == 1
    assert isinstance(error, AuthenticationRefused)


@pytest.mark.parametrize("defect", [KeyError("layers"), TimeoutError(), OSError("no")])
def test_a_defect_is_not_tried_again(prefect_api: None, defect: Exception) -> None:
    assert tries_of([defect])[0] == 1


def test_retries_come_to_an_end_with_the_last_error(prefect_api: None) -> None:
    errors: list[Exception] = [ConnectionLost(str(n), "gpu1") for n in range(9)]
    tries, error = tries_of(errors)
    assert tries == 4
    assert isinstance(error, CrossgapError)
    assert error.what == "3"
