"""The order of steps on one host, and what comes of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CommandFailed, CrossgapError, DiskFull, InvalidInput, SeveralFailures
from blocks.files import Transfer
from tasks.common.run_report import RunReport
from tasks.images import shipping
from tasks.images.archive import ArchiveFacts
from tasks.images.facts import ImageFacts
from tasks.images.plan import HostPlan, Keep, Parcel, Send, Shipment, Tag
from tasks.images.results import ShipResult
from tasks.images.ship_report import ship_report
from tasks.images.shipping import Terms, archives_for, bytes_by_image, images_text, ship_to
from tasks.transfer.rate import RateLimit
from tests.unit.images_doubles import AnsweringHost


def image(name: str, *layers: str, sizes: tuple[int, ...] = (), size: int = 0) -> ImageFacts:
    digest = f"sha256:{name}"
    return ImageFacts(name, digest, digest, layers, "amd64", size=size, layer_sizes=sizes)


APP = image("app:1", "base", "app", sizes=(30, 10), size=40)
DB = image("db:1", "base", "db", sizes=(30, 60), size=90)
WEB = image("web:1", "web", sizes=(50,), size=50)
ONE = ArchiveFacts(Path("/spool/one.tar"), 1000, "1" * 64, "none", (APP, DB))
TWO = ArchiveFacts(Path("/spool/two.tar"), 500, "2" * 64, "none", (WEB,))


class Steps:
    """Stands for the tasks of a run: notes the calls, and fails where told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.deliveries: list[tuple[Any, ...]] = []
        self.failing: dict[str, CrossgapError] = {}

    def _note(self, name: str, *about: str) -> None:
        self.calls.append(" ".join([name, *about]))
        if name in self.failing:
            raise self.failing[name]

    def send_file(self, host: str, delivery: Any, *rest: Any) -> Transfer:
        self.deliveries.append((host, delivery, *rest))
        self._note("send", delivery.local.name)
        sent = {"one.tar": 1000, "two.tar": 500}[delivery.local.name]
        return Transfer(sent, 0, delivery.sha256, 1)

    def load_archive(self, host: str, staged: str, sha256: str, size: int, title: str) -> None:
        assert staged == f"~/.crossgap/staging/{sha256[:32]}.tar"
        self._note("load", title)

    def clean_up(self, host: str, keep: Sequence[str] = (), **_: Any) -> None:
        self._note("clean", *[f"but {sha256[0]}" for sha256 in keep])

    def tag_image(self, host: str, tag: Tag) -> None:
        self._note("tag", tag.existing, tag.image.name)

    def verify_images(self, host: str, images: list[ImageFacts]) -> None:
        self._note("verify", *[one.name for one in images])

    def start_image(self, host: str, image: ImageFacts) -> str:
        self.together.wait()
        self._note("start", image.name)
        if image.name in self.failing:
            raise self.failing[image.name]
        return f"started {image.name}"

    together = threading.Barrier(1)

    def save_images(self, images: list[ImageFacts]) -> ArchiveFacts:
        self._note("save", *[one.name for one in images])
        return self.saved

    saved = ONE


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(shipping, "steps", steps)
    monkeypatch.setattr(shipping, "send_file", steps.send_file)
    return steps


HOST = AnsweringHost({})


def test_archives_are_sent_loaded_and_removed_one_after_the_other_and_then_proven(
    steps: Steps,
) -> None:
    plan = HostPlan("gpu1", (Send(APP), Send(WEB), Tag(DB, "old:1")))

    rows = ship_to(HOST, plan, [ONE, TWO], Terms())

    assert steps.calls == [
        "send one.tar",
        "load 2 images",
        "clean but 2",
        "send two.tar",
        "load web:1",
        "clean",
        "tag old:1 db:1",
        "verify app:1 web:1 db:1",
    ]
    assert [(row.image, row.action, row.layers_sent) for row in rows] == [
        ("app:1", "full", 2),
        ("web:1", "full", 1),
        ("db:1", "present", 0),
    ]
    assert {(row.host, row.verified) for row in rows} == {("gpu1", "content")}
    assert sum(row.bytes_sent for row in rows) == 1500
    assert rows[2].bytes_sent == 0


def test_a_host_gets_only_the_archives_that_hold_what_it_lacks(steps: Steps) -> None:
    ship_to(HOST, HostPlan("gpu1", (Keep(APP), Keep(DB), Send(WEB))), [ONE, TWO], Terms())

    assert [call for call in steps.calls if call.startswith("send")] == ["send two.tar"]


def test_a_host_that_has_everything_is_cleared_of_leftovers_and_proven_all_the_same(
    steps: Steps,
) -> None:
    (row,) = ship_to(HOST, HostPlan("gpu1", (Keep(APP),)), [ONE], Terms("start"))

    assert steps.calls == ["clean", "verify app:1", "start app:1"]
    assert (row.action, row.bytes_sent, row.verified) == ("present", 0, "started app:1")


def test_images_are_started_side_by_side_and_each_has_its_own_proof(steps: Steps) -> None:
    steps.together = threading.Barrier(3, timeout=20)  # passed by three at once only

    rows = ship_to(HOST, HostPlan("gpu1", (Keep(APP), Keep(DB), Keep(WEB))), [], Terms("start"))

    assert [row.verified for row in rows] == [f"started {row.image}" for row in rows]
    assert len({row.image for row in rows}) == 3


def test_no_more_than_four_images_are_started_at_once(steps: Steps) -> None:
    steps.together = threading.Barrier(4, timeout=20)
    images = [image(f"{number}:1", "l") for number in range(8)]
    running: list[str] = []
    most: list[int] = []

    def start(host: str, image: ImageFacts) -> str:
        running.append(image.name)
        most.append(len(running))
        steps.together.wait()
        running.remove(image.name)
        return "started"

    steps.start_image = start  # type: ignore[method-assign]
    ship_to(HOST, HostPlan("gpu1", tuple(Keep(one) for one in images)), [], Terms("start"))

    assert max(most) == 4


def test_every_image_that_does_not_start_is_named_and_the_others_are_tried(steps: Steps) -> None:
    for name in ("app:1", "web:1"):
        steps.failing[name] = CommandFailed(f"{name} does not start", "gpu1")

    with pytest.raises(SeveralFailures) as failed:
        ship_to(HOST, HostPlan("gpu1", (Keep(APP), Keep(DB), Keep(WEB))), [], Terms("start"))

    assert [one.what for one in failed.value.failures] == [
        "app:1 does not start",
        "web:1 does not start",
    ]
    assert "start db:1" in steps.calls


def test_a_host_with_a_problem_is_left_alone(steps: Steps) -> None:
    problem = DiskFull("full", "gpu1")

    with pytest.raises(SeveralFailures) as refused:
        ship_to(HOST, HostPlan("gpu1", (Send(APP),), problems=(problem,)), [ONE], Terms())

    assert refused.value.failures == (problem,)
    assert steps.calls == []


@pytest.mark.parametrize(
    ("step", "cleaned"), [("send", False), ("load", True), ("verify", True), ("tag", True)]
)
def test_a_step_that_fails_ends_the_host_and_leaves_only_what_helps_the_next_run(
    steps: Steps, step: str, cleaned: bool
) -> None:
    steps.failing[step] = CommandFailed("broken", "gpu1")

    with pytest.raises(CommandFailed) as failed:
        ship_to(HOST, HostPlan("gpu1", (Send(APP), Tag(DB, "old:1"))), [ONE], Terms())

    assert failed.value is steps.failing[step]
    assert any(call.startswith("clean") for call in steps.calls) is cleaned
    steps_after = steps.calls[[call.split()[0] for call in steps.calls].index(step) + 1 :]
    assert all(call.startswith("clean") for call in steps_after)


def test_the_limits_go_with_every_file(steps: Steps) -> None:
    terms = Terms.of("content", 10, 20)

    ship_to(HOST, HostPlan("gpu1", (Send(APP), Send(WEB))), [ONE, TWO], terms)

    for host, delivery, flow, own, total in steps.deliveries:
        assert (host, flow, own) == ("gpu1", "ship-images", 10)
        assert total is terms.total_limit
        assert delivery.sha256 in (ONE.sha256, TWO.sha256)
    assert isinstance(terms.total_limit, RateLimit)


@pytest.mark.parametrize(("own", "total"), [(0, None), (None, 0), (-1, 5), (5, float("nan"))])
def test_a_limit_that_cannot_be_meant_is_refused_at_once(
    own: float | None, total: float | None
) -> None:
    with pytest.raises(InvalidInput):
        Terms.of("content", own, total)


def test_without_limits_there_are_none() -> None:
    assert Terms.of("start", None, None) == Terms("start")


# Archives


@pytest.fixture
def spooled(steps: Steps, tmp_path: Path) -> ArchiveFacts:
    """The archive that the source engine saves."""
    (tmp_path / "images-x.tar").write_bytes(b"archive")
    steps.saved = replace(ONE, path=tmp_path / "images-x.tar")
    return steps.saved


SHIPMENT = Shipment((HostPlan("gpu1", (Send(APP),), (Parcel((APP, DB), 1000),)),))


def report() -> RunReport[ShipResult]:
    return ship_report("ship-images", ["app:1"], ["gpu1"], planned=False)


def test_what_was_saved_for_a_run_is_removed_when_it_went_well(
    steps: Steps, spooled: ArchiveFacts
) -> None:
    with archives_for(SHIPMENT, (), report()) as archives:
        assert archives == [spooled]
        assert spooled.path.exists()

    assert steps.calls == ["save app:1 db:1"]
    assert not spooled.path.exists()


def test_what_was_saved_is_kept_for_the_next_run_when_a_host_failed(
    steps: Steps, spooled: ArchiveFacts
) -> None:
    run = report()
    with archives_for(SHIPMENT, (), run):
        run.fail([CommandFailed("x", "gpu1")])

    assert spooled.path.exists()


@pytest.mark.parametrize("error", [CommandFailed("x", "gpu1"), KeyboardInterrupt()])
def test_what_was_saved_is_kept_for_the_next_run_when_it_went_wrong(
    steps: Steps, spooled: ArchiveFacts, error: BaseException
) -> None:
    def fail() -> None:
        with archives_for(SHIPMENT, (), report()):
            raise error

    with pytest.raises(type(error)):
        fail()

    assert spooled.path.exists()


def test_what_another_run_is_sending_is_not_removed(steps: Steps, spooled: ArchiveFacts) -> None:
    with archives_for(SHIPMENT, (), report()):
        with archives_for(SHIPMENT, (), report()):
            pass
        assert spooled.path.exists()

    assert not spooled.path.exists()


def test_archives_of_the_operator_are_used_and_never_touched(
    steps: Steps, spooled: ArchiveFacts
) -> None:
    with archives_for(SHIPMENT, (spooled,), report()) as archives:
        assert archives == (spooled,)

    assert steps.calls == []
    assert spooled.path.exists()


def test_nothing_is_saved_when_every_host_has_everything(steps: Steps) -> None:
    with archives_for(Shipment((HostPlan("gpu1", (Keep(APP),)),)), (), report()) as archives:
        assert list(archives) == []

    assert steps.calls == []


# Shares


def test_bytes_are_shared_out_by_the_layers_that_an_image_is_the_first_to_need() -> None:
    assert bytes_by_image([APP, DB], 1000) == {"app:1": 400, "db:1": 600}
    assert bytes_by_image([DB, APP], 1000) == {"db:1": 900, "app:1": 100}


@pytest.mark.parametrize("total", [0, 1, 7, 999_999_999_999])
@pytest.mark.parametrize(
    "images",
    [
        [APP, DB, WEB],
        [APP],
        [image("x", "l"), image("y", "m")],
        [image("x", "l", size=3), DB],
        [replace(APP, name="same:1"), replace(APP, name="same:2")],
    ],
    ids=lambda images: "+".join(one.name for one in images),
)
def test_shares_always_add_up(images: list[ImageFacts], total: int) -> None:
    shares = bytes_by_image(images, total)

    assert list(shares) == [one.name for one in images]
    assert sum(shares.values()) == total
    assert min(shares.values()) >= 0


def test_nothing_sent_is_nobodys_share() -> None:
    assert bytes_by_image([], 0) == {}


@pytest.mark.parametrize(
    ("images", "text"), [([APP], "app:1"), ([APP, DB], "2 images"), ([], "0 images")]
)
def test_images_are_named_in_a_few_words(images: list[ImageFacts], text: str) -> None:
    assert images_text(images) == text
