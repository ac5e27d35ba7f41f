"""Reports that are published however a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from blocks.errors import Cancelled, CrossgapError, DiskFull, SeveralFailures, Unreachable
from tasks.common import run_report as module
from tasks.common.failures import Collected
from tasks.common.report import Summary, Table
from tasks.common.run_report import RunReport

FULL = DiskFull("full", "gpu1", "Make room.")
DOWN = Unreachable("no answer", "gpu2", "Look.")


@dataclass(frozen=True)
class Row:
    host: str
    size: int


class Published:
    """What a report published."""

    def __init__(self) -> None:
        self.tables: list[tuple[str, Table]] = []
        self.summaries: list[tuple[str, Summary]] = []

    @property
    def summary(self) -> Summary:
        ((flow, summary),) = self.summaries
        assert flow == "ship-images"
        return summary

    @property
    def table(self) -> Table:
        ((flow, table),) = self.tables
        assert flow == "ship-images"
        return table


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    published = Published()
    monkeypatch.setattr(module, "publish_table", lambda *pair: published.tables.append(pair))
    monkeypatch.setattr(module, "publish_summary", lambda *pair: published.summaries.append(pair))
    return published


def report(**more: Any) -> RunReport[Row]:
    return RunReport("ship-images", "Ship 3 images", {"host": "host", "size": "bytes"}, **more)


def ended(report: RunReport[Row], error: BaseException) -> None:
    with report:
        report.done.append("Sent a to gpu3.")
        raise error


def test_a_good_run_publishes_what_was_done(published: Published) -> None:
    with report(shown={"size": lambda size: f"{size} B"}) as run:
        run.results.append(Row("gpu1", 5))
        run.done.append("Sent a to gpu1.")
        assert not run.failed

    assert published.table == Table(("host", "bytes"), (("gpu1", 5),))
    assert published.summary.table == Table(("host", "bytes"), (("gpu1", "5 B"),))
    assert published.summary.subject == "Ship 3 images"
    assert published.summary.done == ("Sent a to gpu1.",)
    assert (published.summary.failures, published.summary.planned) == ((), False)
    assert published.summary.seconds >= 0


def test_rows_of_a_plan_stand_in_for_results(published: Published) -> None:
    with report(planned=True) as run:
        run.rows = [{"host": "gpu1", "size": 7}]

    assert published.table.rows == (("gpu1", 7),)
    assert published.summary.planned


def test_failures_are_gathered_and_end_the_run_after_its_work(published: Published) -> None:
    run = report()

    def work() -> None:
        with run:
            assert run.taken(Collected((1, 2), (FULL,))) == (1, 2)
            assert run.failed
            run.results.append(Row("gpu3", 5))
            run.fail([DOWN])
            run.left.append("Parts stay.")

    with pytest.raises(SeveralFailures) as failed:
        work()

    assert failed.value.failures == (FULL, DOWN)
    assert str(failed.value).splitlines() == [
        "Ship 3 images: 2 failures:",
        f"- {FULL}",
        f"- {DOWN}",
    ]
    assert failed.value.__cause__ is None
    assert published.summary.failures == (FULL, DOWN)
    assert published.summary.left == ("Parts stay.",)
    assert published.table.rows == (("gpu3", 5),)


def test_an_error_that_ends_the_work_comes_after_those_before_it(published: Published) -> None:
    run = report()
    run.fail([FULL])

    with pytest.raises(SeveralFailures) as failed:
        ended(run, DOWN)

    assert failed.value.failures == (FULL, DOWN)
    assert published.summary.done == ("Sent a to gpu3.",)


def test_one_failure_is_the_whole_message(published: Published) -> None:
    with pytest.raises(SeveralFailures, match=r"^gpu1: full\. Make room\.$"):
        ended(report(), FULL)


def test_failures_in_failures_are_listed_once_each(published: Published) -> None:
    inner = SeveralFailures([FULL, DOWN], "gpu1")
    outer = SeveralFailures([inner, CrossgapError("odd", "gpu3")], "all")

    with pytest.raises(SeveralFailures) as failed:
        ended(report(), outer)

    assert [str(one) for one in failed.value.failures] == [str(FULL), str(DOWN), "gpu3: odd."]


def test_a_defect_is_reported_as_one_with_its_cause(published: Published) -> None:
    defect = KeyError("layer")

    with pytest.raises(SeveralFailures, match=r"unexpected KeyError.*defect") as failed:
        ended(report(), defect)

    assert failed.value.__cause__ is defect
    assert len(published.summary.failures) == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(143)])
def test_a_cancelled_run_leaves_no_report(
    published: Published, interruption: BaseException
) -> None:
    run = report()
    run.fail([FULL])

    with pytest.raises(type(interruption)):
        ended(run, interruption)

    assert (published.tables, published.summaries) == ([], [])


def test_a_step_that_was_cancelled_is_a_failure_like_others(published: Published) -> None:
    with pytest.raises(SeveralFailures, match="cancelled"):
        ended(report(), Cancelled("the run was cancelled", "gpu1"))

    assert published.summary.failures


def test_whether_a_run_may_be_tried_again_is_told_by_its_failures(published: Published) -> None:
    with pytest.raises(SeveralFailures) as hopeless:
        ended(report(), FULL)
    with pytest.raises(SeveralFailures) as passing:
        ended(report(), DOWN)

    assert (hopeless.value.retryable, passing.value.retryable) == (False, True)
