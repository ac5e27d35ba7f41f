"""The report of a run in the making: filled while it works, published however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from blocks.errors import CrossgapError, SeveralFailures
from blocks.logs import leave_out_tracebacks
from tasks.common.failures import Collected, defect, each_failure
from tasks.common.report import Summary, publish_summary, publish_table, table_of

if TYPE_CHECKING:
    from tasks.common.report import Row

R = TypeVar("R")


class RunReport(Generic[R]):
    """Gathers results and failures, and ends the run as failed when there are any.

    Used around the work of a flow. Whatever happens in the body, the table and
    the summary are published; only a cancelled run leaves none.

    Args:
        flow: The flow's name.
        subject: What the run is to do, as in `Ship 3 images to 2 hosts`.
        columns: The field behind each column of the table, and its title.
        shown: How to show the values of a field in the summary.
        planned: Whether this is a dry run.
    """

    def __init__(
        self,
        flow: str,
        subject: str,
        columns: Mapping[str, str],
        *,
        shown: Mapping[str, Callable[[Any], str]] | None = None,
        planned: bool = False,
    ) -> None:
        self.results: list[R] = []
        self.rows: Sequence[Row] | None = None
        self.done: list[str] = []
        self.left: list[str] = []
        self._failures: list[CrossgapError] = []
        self._flow = flow
        self._subject = subject
        self._columns = columns
        self._shown = shown
        self._planned = planned
        self._begin = time.monotonic()

    @property
    def failed(self) -> bool:
        """Whether anything has failed so far."""
        return bool(self._failures)

    def fail(self, failures: Sequence[CrossgapError]) -> None:
        """Note failures; the run goes on with what is left."""
        self._failures += failures

    def taken(self, collected: Collected[Any]) -> tuple[Any, ...]:
        """Note the failures of some hosts, and return the results of the others."""
        self.fail(collected.failures)
        return collected.results

    def __enter__(self) -> Self:
        leave_out_tracebacks()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            return
        cause = None
        if isinstance(error, CrossgapError):
            self._failures.append(error)
        elif error is not None:
            cause = error
            self._failures.append(defect(error, self._flow))
        self._publish()
        if self._failures:
            # Our own errors say all; only a defect needs its traceback in the log.
            raise SeveralFailures(each_failure(self._failures), self._subject) from cause

    def _publish(self) -> None:
        rows: Any = self.results if self.rows is None else self.rows
        publish_table(self._flow, table_of(rows, self._columns))
        summary = Summary(
            subject=self._subject,
            seconds=time.monotonic() - self._begin,
            done=tuple(self.done),
            failures=tuple(self._failures),
            left=tuple(self.left),
            table=table_of(rows, self._columns, self._shown),
            planned=self._planned,
        )
        publish_summary(self._flow, summary)
