"""The summary and the table that a run leaves."""

from dataclasses import dataclass
from typing import Any

import pytest

from blocks.errors import Conflict, CrossgapError, SeveralFailures, Unreachable
from tasks.common.report import Summary, Table, compose, publish_summary, publish_table, table_of
from tasks.common.units import bytes_text


@dataclass(frozen=True)
class Row:
    image: str
    size: int
    note: object = None


def test_a_table_takes_dataclasses_and_mappings_in_the_order_of_its_columns() -> None:
    rows: list[Any] = [Row("a:1", 2_000_000), {"size": 5, "image": "b:2", "other": "not shown"}]
    table = table_of(rows, {"size": "sent", "image": "image"}, {"size": bytes_text})
    assert table == Table(("sent", "image"), (("2.00 MB", "a:1"), ("5 B", "b:2")))


def test_what_json_cannot_hold_becomes_text() -> None:
    rows = [Row("a", 1, note) for note in (None, float("nan"), {1}, True, 1.5)]
    table = table_of(rows, {"note": "note"})
    assert [row[0] for row in table.rows] == ["", "nan", "{1}", True, 1.5]


def test_the_outcome_is_the_first_line() -> None:
    done = compose(Summary("Ship 3 images to 2 hosts", 200, done=("Sent a to gpu1.",)))
    assert done.splitlines()[0] == "**Done: Ship 3 images to 2 hosts.**"
    assert "3 min 20 s" in done
    failed = compose(Summary("Ship", 1, failures=(Unreachable("no answer", "gpu1"),)))
    assert failed.splitlines()[0] == "**Failed: Ship: 1 failure, nothing was done.**"
    planned = compose(Summary("Ship", 1, done=("Send a to gpu1.",), planned=True))
    assert planned.splitlines()[0] == "**Planned only: Ship. Nothing was changed.**"
    assert "What would be done" in planned


def test_what_failed_comes_before_what_was_done_and_names_the_remedy() -> None:
    text = compose(
        Summary(
            "Ship",
            1,
            done=("Sent a to gpu2.",),
            failures=(Unreachable("no answer", "gpu1", "Check the cable."),),
            left=("gpu3 was not asked.",),
        )
    )
    places = [text.index(part) for part in ("Check the cable.", "Sent a", "gpu3 was not")]
    assert places == sorted(places)


def test_failures_inside_failures_are_listed_one_by_one() -> None:
    inner = SeveralFailures([Unreachable("a", "gpu1"), Conflict("b", "gpu2")], "ship")
    text = compose(Summary("Ship", 1, failures=(inner, CrossgapError("c", "gpu3"))))
    assert text.splitlines()[0].startswith("**Failed: Ship: 3 failures")
    assert all(f"| gpu{n} |" in text for n in (1, 2, 3))


def test_a_long_stderr_with_pipes_breaks_no_table() -> None:
    stderr = "\n".join(f"| line {n} | `x`" for n in range(5000))
    text = compose(Summary("Ship", 1, failures=(CrossgapError(stderr, "gpu1", "Look | there"),)))
    rows = [line for line in text.splitlines() if line.startswith("| gpu1")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 4
    assert len(text) < 2000


def test_outside_of_a_run_publishing_only_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "crossgap"):
        publish_table("ship-images", Table(("a",), (("b",),)))
        publish_summary("ship-images", Summary("Ship 1 image", 1))
    assert [record.getMessage() for record in caplog.records] == ["Done: Ship 1 image."]
