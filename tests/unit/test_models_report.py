"""What an operator reads after a model was fetched."""

from __future__ import annotations

import pytest

from blocks.disk import Disk
from tasks.common.run_report import RunReport
from tasks.models import report as reports
from tasks.models.delivery import Delivered
from tasks.models.files import Revision
from tasks.models.local import Brought
from tasks.models.remote_facts import HostModel
from tasks.models.remote_plan import Removal, plan_delivery
from tasks.models.results import Movement
from tasks.models.tally import Tally
from tests.unit.models_doubles import large_file

COMMIT = "a" * 40
FILES = (large_file("a.safetensors", b"a" * 1000), large_file("b.safetensors", b"b" * 500))


@pytest.fixture
def report() -> RunReport[Movement]:
    return reports.fetch_report("Qwen/Qwen3-8B", ["gpu1"], planned=False)


@pytest.fixture
def brought() -> Brought:
    nothing = HostModel("here", "/models", "Qwen/Qwen3-8B", Disk("/dev/a", "/", 10**9))
    plan = plan_delivery(Revision("Qwen/Qwen3-8B", "main", COMMIT, FILES), nothing)
    return Brought(plan, FILES, fetched=2, linked=0)


@pytest.mark.parametrize(
    ("model", "hosts", "said"),
    [
        ("Qwen/Qwen3-8B", [], "Fetch Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B", ["a", "b"], "Fetch Qwen/Qwen3-8B for a, b"),
        ("/data/models/qwen3/", ["a", "b", "c", "d"], "Fetch qwen3 for 4 hosts"),
    ],
)
def test_a_run_is_named_by_what_it_fetches_for_whom(
    model: str, hosts: list[str], said: str
) -> None:
    assert reports.subject(model, hosts) == said


def test_it_says_which_mirror_gave_what_and_what_was_asked_again(
    report: RunReport[Movement], brought: Brought
) -> None:
    tally = Tally(1500, 2)
    tally.came("mirror", 1200)
    tally.came("modelscope", 300)
    tally.done({"mirror"})
    tally.done({"mirror", "modelscope"})
    for _ in range(3):
        tally.retried("a.safetensors", "mirror", "the connection broke")
    tally.retried("b.safetensors", "mirror", "it sent nothing for 30 s")
    reports.note_fetch(report, brought, tally, 2.0)
    assert report.done == ["2 of 2 files were fetched: mirror gave 1.20 kB, modelscope gave 300 B."]
    assert report.left == [
        "mirror had to be asked again 3 times: the connection broke.",
        "mirror had to be asked again once: it sent nothing for 30 s.",
    ]
    assert [(row.source, row.files, row.size) for row in report.results] == [
        ("mirror", 2, 1200),
        ("modelscope", 1, 300),
    ]


def test_it_says_where_nothing_had_to_travel(report: RunReport[Movement]) -> None:
    delivered = {"gpu1": Delivered(0, 0, 0, 0, 0.0), "gpu2": Delivered(1500, 0, 2, 0, 3.0)}
    reports.note_delivery(report, delivered, {"gpu3": "gpu2", "gpu4": ""})
    assert report.done == [
        "gpu1: all files are there, and proven.",
        "gpu2: 2 files with 1.50 kB sent in 3.0 s, and proven there.",
        "gpu3: sees the folder of gpu2, so nothing was sent to it.",
        "gpu4: sees this machine's folder, so nothing was sent to it.",
    ]


def test_old_revisions_are_listed_or_gone(report: RunReport[Movement]) -> None:
    removal = Removal(("b" * 40,), 5_000_000, {"c" * 40: "it has files of others"})
    reports.note_removal(report, "gpu1", removal, done=False)
    assert "'prune_revisions' removes them, which frees 5.00 MB" in report.left[0]
    assert report.left[1] == "gpu1: the old revision cccccccccccc stays: it has files of others."
    reports.note_removal(report, "gpu1", removal, done=True)
    assert report.done == ["gpu1: old revisions were removed (bbbbbbbbbbbb), 5.00 MB freed."]
