"""What a run leaves for its reader: a table of what was done and a summary.

The reader was asleep when it ran: the outcome comes first, then what failed
and what to do about it, then what was done.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from blocks.errors import CrossgapError
from blocks.logs import logger
from tasks.common import markdown
from tasks.common.artifact_keys import artifact_key
from tasks.common.failures import each_failure
from tasks.common.units import duration_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Row: TypeAlias = DataclassInstance | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under titles.

    Args:
        titles: The head of each column.
        rows: The cells of each row: text, whole numbers and the like.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What there is to say about one run.

    Args:
        subject: What the run was to do, as in `Ship 3 images to 2 hosts`.
        seconds: How long it took.
        done: What was done, one sentence each.
        failures: What failed.
        left: What was left alone or is still to do, one sentence each.
        table: What was done, in detail.
        planned: Whether this was a dry run, which changed nothing.
    """

    subject: str
    seconds: float
    done: tuple[str, ...] = ()
    failures: tuple[CrossgapError, ...] = ()
    left: tuple[str, ...] = ()
    table: Table | None = None
    planned: bool = False


def table_of(
    rows: Sequence[Row],
    columns: Mapping[str, str],
    shown: Mapping[str, Callable[[Any], str]] | None = None,
) -> Table:
    """Arrange results for the reader.

    Args:
        rows: Dataclass instances or mappings, one per row.
        columns: The field behind each column and the column's title, in order.
        shown: How to show the values of a field; others are shown as they are.

    Returns:
        The table; what is neither text nor a finite number becomes text, and
        None an empty cell.
    """
    formats = shown or {}

    def cell(row: Row, field: str) -> Any:
        value = row[field] if isinstance(row, Mapping) else getattr(row, field)
        if field in formats:
            return formats[field](value)
        if value is None:
            return ""
        plain = isinstance(value, (str, bool, int)) or (
            isinstance(value, float) and math.isfinite(value)
        )
        return value if plain else str(value)

    cells = tuple(tuple(cell(row, field) for field in columns) for row in rows)
    return Table(tuple(columns.values()), cells)


def compose(summary: Summary) -> str:
    """Write the summary.

    Args:
        summary: What there is to say.

    Returns:
        Markdown whose first line is the outcome.
    """
    parts = [f"**{_outcome(summary)}**\n", f"It took {duration_text(summary.seconds)}.\n"]
    failures = each_failure(summary.failures)
    if failures:
        titles = ("where", "what failed", "what to do")
        rows = [(error.where, error.what, error.remedy) for error in failures]
        parts.append(f"## What failed\n\n{markdown.table(titles, rows)}")
    if summary.done:
        title = "What would be done" if summary.planned else "What was done"
        parts.append(f"## {title}\n\n{markdown.items(summary.done)}")
    if summary.left:
        parts.append(f"## What was left\n\n{markdown.items(summary.left)}")
    if summary.table and summary.table.rows:
        details = markdown.table(summary.table.titles, summary.table.rows)
        parts.append(f"## In detail\n\n{details}")
    return "\n".join(parts)


def _outcome(summary: Summary) -> str:
    subject = markdown.inline(summary.subject).rstrip(".")
    count = len(each_failure(summary.failures))
    if count:
        noun = "failure" if count == 1 else "failures"
        rest = "what else there was is done" if summary.done else "nothing was done"
        if summary.planned:
            rest = "nothing was changed"
        return f"Failed: {subject}: {count} {noun}, {rest}."
    if summary.planned:
        return f"Planned only: {subject}. Nothing was changed."
    return f"Done: {subject}."


def publish_table(flow: str, table: Table) -> None:
    """Show a table with the run, as the artifact `<flow>-table`.

    Args:
        flow: The flow's name.
        table: What to show.
    """

    def create() -> None:
        from prefect.artifacts import create_table_artifact

        rows = [dict(zip(table.titles, row, strict=True)) for row in table.rows]
        create_table_artifact(table=rows, key=artifact_key(flow, "table"))

    _publish("table", create)


def publish_summary(flow: str, summary: Summary) -> None:
    """Show the summary with the run, as the artifact `<flow>-summary`.

    Args:
        flow: The flow's name.
        summary: What there is to say.
    """
    text = compose(summary)
    logger().info("%s", _outcome(summary))

    def create() -> None:
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(markdown=text, key=artifact_key(flow, "summary"))

    _publish("summary", create)


def _publish(kind: str, create: Callable[[], None]) -> None:
    from prefect.runtime import flow_run

    if not flow_run.id:
        return
    try:
        create()
    except Exception as error:  # noqa: BLE001
        # The work is done or has failed already: its report must not change that.
        logger().warning("The %s of this run could not be saved: %s", kind, error)
