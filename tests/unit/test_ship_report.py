"""What is said of shipped images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from blocks.errors import DiskFull
from tasks.images import ship_report as module
from tasks.images.facts import ImageFacts
from tasks.images.plan import HostPlan, Keep, Send, Shipment
from tasks.images.results import Shipped, ShipResult
from tasks.images.ship_report import note_plan, note_results, run_name, ship_report, subject

APP = ImageFacts("app:1", "sha256:a", "sha256:a", ("l1",), "amd64", size=2_000_000)
BASE = ImageFacts("base:1", "sha256:b", "sha256:b", ("l2",), "amd64", size=1_000_000)
FULL = DiskFull("too little room", "gpu2", "Make room.")


@pytest.mark.parametrize(
    ("images", "hosts", "text"),
    [
        (["app:1"], ["gpu1"], "Ship app:1 to gpu1"),
        (["a", "b"], ["gpu1", "gpu2", "gpu3"], "Ship 2 images to gpu1, gpu2, gpu3"),
        ([], ["a", "b", "c", "d"], "Ship all images to 4 hosts"),
        (["app:1"], ["site:gpu"], "Ship app:1 to site:gpu"),
    ],
)
def test_a_run_is_named_by_what_goes_where(images: list[str], hosts: list[str], text: str) -> None:
    assert subject(images, hosts) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"images": ["app:1"], "hosts": ["gpu1"], "dry_run": False}, "Ship app:1 to gpu1"),
        ({"images": ["app:1"], "hosts": ["gpu1"], "dry_run": True}, "plan: Ship app:1 to gpu1"),
        ({"images": None, "hosts": ["gpu1"]}, "Ship all images to gpu1"),
    ],
)
def test_a_flow_run_takes_its_name_from_its_parameters(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], text: str
) -> None:
    monkeypatch.setattr(module, "flow_run", SimpleNamespace(parameters=given))

    assert run_name() == text


def result(host: str, image: str, layers: int, sent: int, seconds: float = 20.0) -> ShipResult:
    action: Any = ("delta" if sent else "full") if layers else "present"
    return ShipResult(image, host, action, layers, sent, seconds, "content")


def test_what_was_done_is_summed_up_per_host() -> None:
    report = ship_report("ship-images", [], ["gpu1", "gpu2"], planned=False)

    note_results(
        report,
        [
            Shipped((result("gpu2", "a", 0, 0), result("gpu2", "b", 0, 0))),
            Shipped(
                (
                    result("gpu1", "a", 2, 5_000_000),
                    result("gpu1", "b", 0, 0, 40.0),
                    result("gpu1", "c", 1, 0),
                ),
                notes=("gpu1: all of a was sent, because it lacked its base.",),
            ),
        ],
    )

    assert report.done == [
        "gpu2: 0 of 2 images sent, 2 were there already; 0 layers, 0 B in 20 s.",
        "gpu1: 2 of 3 images sent, 1 were there already; 3 layers, 5.00 MB in 40 s.",
        "gpu1: all of a was sent, because it lacked its base.",
    ]
    assert [row.host for row in report.results] == ["gpu2", "gpu2", "gpu1", "gpu1", "gpu1"]
    assert report.left == []
    assert not report.failed


def test_what_failed_is_reported_with_what_succeeded_and_the_layers_that_stay() -> None:
    report = ship_report("ship-images", [], ["gpu1", "gpu2"], planned=False)

    note_results(report, [Shipped((result("gpu1", "a", 1, 5),), failures=(FULL,))])

    assert report.failed
    assert [row.image for row in report.results] == ["a"]
    assert "next run goes on" in " ".join(report.left)


def test_a_host_without_any_result_has_no_sum() -> None:
    report = ship_report("ship-images", [], ["gpu1"], planned=False)

    note_results(report, [Shipped((), failures=(FULL,))])

    assert report.done == []


def test_a_plan_shows_its_rows_what_would_be_sent_and_what_hinders() -> None:
    sends = (Send(APP, ("l1",)),)
    shipment = Shipment(
        (
            HostPlan("gpu1", (*sends, Keep(BASE)), sends),
            HostPlan("gpu2", sends, sends, problems=(FULL,)),
            HostPlan("gpu3", (Keep(APP),)),
            HostPlan("gpu4", sends, sends, way="stream"),
        )
    )
    report = ship_report("ship-images", ["app:1"], ["site:gpu"], planned=True)

    note_plan(report, shipment)

    what = "1 layers with 2.00 MB unpacked would be sent, packed where that pays"
    assert report.done == [
        f"gpu1: {what}, staged there, then loaded.",
        "gpu3: nothing would be sent.",
        f"gpu4: {what}, streamed into its engine.",
    ]
    assert report.rows == shipment.as_rows()
    assert report.failed


@pytest.mark.parametrize("planned", [True, False])
def test_every_column_of_the_table_is_a_field_of_its_rows(planned: bool) -> None:
    columns = module._PLAN_COLUMNS if planned else module._COLUMNS
    plan = Shipment((HostPlan("gpu1", (Keep(APP),)),))

    known = set(plan.as_rows()[0]) if planned else set(ShipResult.__dataclass_fields__)

    assert set(columns) <= known
