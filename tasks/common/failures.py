"""Doing the same on several hosts, so that one failure does not stop the others."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError, SeveralFailures
from blocks.logs import logger

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Collected(Generic[R]):
    """What came of the work on several hosts.

    Args:
        results: What succeeded, in the order of the hosts.
        failures: What failed, in the order of the hosts.
    """

    results: tuple[R, ...]
    failures: tuple[CrossgapError, ...]


def collect(
    work: Callable[[T], R], subjects: Iterable[T], *, name: Callable[[T], str], at_once: int = 8
) -> Collected[R]:
    """Work on every subject, a few side by side, and gather all failures.

    The work on one host is a sequence of tasks, so it runs as a plain function
    in a thread that carries a copy of the run's context: tasks called there
    belong to the run, and how many hosts are worked on at once is a parameter
    of the run. (Submitted tasks would take their number from the flow's task
    runner, fixed in the code.)

    When the run is cancelled, what has not begun never begins, and what is
    under way is told so by the run's `Cancellation`.

    Args:
        work: What to do with one subject, as a rule calls of tasks.
        subjects: The hosts or other things to work on.
        name: The name of a subject, for messages about it.
        at_once: How many to work on side by side.

    Returns:
        Results and failures. An exception that is no `CrossgapError` is a
        defect of ours: it is logged with its traceback and reported as such.
    """

    def attempt(subject: T) -> R:
        try:
            return work(subject)
        except CrossgapError:
            raise
        except Exception as error:
            logger().exception("Unexpected error while working on %s", name(subject))
            raise defect(error, name(subject)) from error

    pool = ThreadPoolExecutor(max_workers=max(1, at_once), thread_name_prefix="side-by-side")
    futures: list[Future[R]] = []
    try:
        for subject in subjects:
            # One by one, so that an interruption in between finds those that began.
            futures.append(pool.submit(contextvars.copy_context().run, attempt, subject))  # noqa: PERF401
        # In slices: a signal that comes just before a wait is seen only after it.
        while wait(futures, timeout=1).not_done:
            pass
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        current_cancellation().cancel()
        # Locks are given back after this: no thread should still be at work then.
        wait([future for future in futures if not future.cancelled()], timeout=5)
        raise
    pool.shutdown()
    return _gathered(futures)


def _gathered(futures: Sequence[Future[R]]) -> Collected[R]:
    results: list[R] = []
    failures: list[CrossgapError] = []
    for future in futures:
        error = future.exception()
        if error is None:
            results.append(future.result())
        elif isinstance(error, CrossgapError):
            failures += each_failure([error])
        else:
            # KeyboardInterrupt, SystemExit and Prefect's abort are for the whole run.
            raise error
    return Collected(tuple(results), tuple(failures))


def each_failure(failures: Iterable[CrossgapError]) -> list[CrossgapError]:
    """Take failures that are several apart, so that each is listed once.

    Args:
        failures: Failures, some of them `SeveralFailures`, in any depth.
    """
    each: list[CrossgapError] = []
    for failure in failures:
        if isinstance(failure, SeveralFailures):
            each += each_failure(failure.failures)
        else:
            each.append(failure)
    return each


def defect(error: Exception, where: str) -> CrossgapError:
    """Make the error for an exception that nobody foresaw.

    Args:
        error: The exception; its traceback belongs into the log.
        where: What was worked on.
    """
    return CrossgapError(
        f"unexpected {type(error).__name__}: {error}",
        where,
        "This is a defect; the log has the traceback.",
    )
