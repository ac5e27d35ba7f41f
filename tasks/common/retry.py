"""The one retry policy of all tasks: again only when again can help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from prefect.tasks import exponential_backoff

from blocks.errors import CrossgapError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun


class RetryPolicy(TypedDict):
    """The arguments of `prefect.task` that make up the policy."""

    retries: int
    retry_delay_seconds: Callable[[int], list[float]]
    retry_jitter_factor: float
    retry_condition_fn: Callable[[Task[..., Any], TaskRun, State[Any]], bool]


def can_pass(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Tell Prefect whether a failed task is worth another try.

    Prefect calls this with a Failed state whose data is the exception itself
    (`SyncTaskRunEngine.can_retry`), so nothing is loaded and nothing raised.
    It has to be a plain function: Prefect takes any other callable for a no.

    Args:
        _task: The task that failed.
        _task_run: Its run.
        state: The failed state.

    Returns:
        True for a `CrossgapError` that says that it may pass.
    """
    error = state.data
    return isinstance(error, CrossgapError) and error.retryable


def retrying(retries: int = 4, first_delay: float = 2.0, jitter: float = 0.3) -> RetryPolicy:
    """Return the retry arguments for a task, as in `@task(**retrying())`.

    Args:
        retries: How many more times at most.
        first_delay: Seconds before the first retry; doubled before each further one.
        jitter: The share of the delay by which it varies, so that many hosts
            do not all come back at once.

    Returns:
        Keyword arguments for `prefect.task`.
    """
    return RetryPolicy(
        retries=retries,
        retry_delay_seconds=exponential_backoff(first_delay),
        retry_jitter_factor=jitter,
        retry_condition_fn=can_pass,
    )
