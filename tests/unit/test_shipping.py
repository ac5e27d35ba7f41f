"""The order of steps on one host, and what comes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.errors import (
    Cancelled,
    CommandFailed,
    CrossgapError,
    Damaged,
    DiskFull,
    EngineUnavailable,
    InvalidInput,
    NotFound,
    SeveralFailures,
    Unreachable,
)
from tasks.images import shipping
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.layout import chain_ids
from tasks.images.plan import HostPlan, Keep, Send, Tag, TransferChoice, plan_shipment
from tasks.images.prune import Removal, Superseded
from tasks.images.results import Shipped
from tasks.images.sending import Sending, Speed
from tasks.images.shipping import Terms, ship_to
from tasks.images.store import Store
from tasks.images.supply import Supply
from tasks.transfer.rate import RateLimit
from tests.unit.images_doubles import AnsweringHost, host_facts


def image(name: str, *layers: str) -> ImageFacts:
    digest = f"sha256:{name}"
    return ImageFacts(
        name,
        digest,
        digest,
        layers,
        "amd64",
        size=10 * len(layers),
        layer_sizes=(10,) * len(layers),
    )


APP = image("app:1", "base", "app")
DB = image("db:1", "base", "db", "data")
WEB = image("web:1", "web")
HOST = AnsweringHost({})
NO_BASE = NotFound("its engine lacks a layer that it had before", "gpu1")
CUT = Unreachable("the link was cut", "gpu1")


class Steps:
    """Stands for the tasks of a run: notes the calls, and fails where told to.

    Attributes:
        failing: Per call, as it is noted, what it raises, one after the other.
        faults: What each look at the images there finds, one after the other.
        hooks: Per call what happens meanwhile.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, list[CrossgapError]] = {}
        self.faults: list[dict[str, str]] = []
        self.hooks: dict[str, Callable[[], object]] = {}
        self.superseded: tuple[Superseded, ...] = ()
        self.stays = ""
        self.kept: list[list[str]] = []

    def _note(self, *words: str) -> None:
        call = " ".join(words)
        self.calls.append(call)
        if call in self.hooks:
            self.hooks[call]()
        if self.failing.get(call):
            raise self.failing[call].pop(0)

    def send_layers(self, host: str, send: Send, sending: Sending) -> None:
        for diff_id in send.missing:
            sending._sent[diff_id] = sending._sent.get(diff_id, 0) + 10
        self._note("send", send.image.name, *send.missing)

    def load_image(self, host: str, send: Send, sending: Sending) -> None:
        self._note("load", send.image.name)

    def stream_image(self, host: str, send: Send, sending: Sending) -> None:
        self._note("stream", send.image.name, *send.missing)

    def clean_up(self, host: str, keep: Sequence[str] = ()) -> None:
        self.kept.append(list(keep))
        self._note("clean")

    def tag_image(self, host: str, tag: Tag) -> None:
        self._note("tag", tag.existing, tag.image.name)

    def verify_images(self, host: str, images: Sequence[ImageFacts]) -> dict[str, str]:
        self._note("verify", *[one.name for one in images])
        return self.faults.pop(0) if self.faults else {}

    def start_image(self, host: str, image: ImageFacts) -> str:
        self._note("start", image.name)
        return f"started {image.name}"

    def find_superseded(
        self, host: str, wanted: Sequence[ImageFacts], before: Mapping[str, ImageFacts]
    ) -> tuple[Superseded, ...]:
        self._note("look for older than", *[one.name for one in wanted])
        return self.superseded

    def remove_superseded(self, host: str, image: Superseded) -> Removal:
        self._note("remove", image.label)
        return Removal(image, not self.stays, self.stays)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(shipping, "steps", steps)
    return steps


@pytest.fixture
def supply(tmp_path: Path) -> Supply:
    return Supply(Store(tmp_path, 10**9))


def facts_of(
    *wanted: ImageFacts, base: bool = False, present: Sequence[ImageFacts] = ()
) -> HostFacts:
    """An empty host, or one that has the base, or some of the images."""
    stacks = [one.diff_ids for one in present] + ([("base",)] if base else [])
    return host_facts(
        *wanted,
        images={one.name: one for one in present},
        layers=dict.fromkeys((chain for stack in stacks for chain in chain_ids(stack)), 0),
    )


def ship(
    facts: HostFacts,
    supply: Supply,
    terms: Terms | None = None,
    *,
    transfer: TransferChoice = "auto",
) -> Shipped:
    (plan,) = plan_shipment([facts], {}, transfer).hosts
    return ship_to(HOST, plan, facts, supply, terms or Terms())


def staged(*diff_ids: str) -> list[str]:
    return [
        f"{diff_id}{suffix}" for diff_id in diff_ids for suffix in (".tar", ".tar.gz", ".tar.zst")
    ]


# When all goes well


def test_layers_are_sent_and_loaded_image_by_image_and_then_proven(
    steps: Steps, supply: Supply
) -> None:
    facts = facts_of(APP, WEB, DB)
    shipped = ship(facts, supply)

    assert sorted(steps.calls[:6]) == [
        "load app:1",
        "load db:1",
        "load web:1",
        "send app:1 base app",
        "send db:1 db data",
        "send web:1 web",
    ]
    assert [call for call in steps.calls if call.startswith("send")] == [
        "send app:1 base app",
        "send web:1 web",
        "send db:1 db data",
    ]
    assert steps.calls[6:] == [
        "verify app:1 web:1 db:1",
        "clean",
        "look for older than app:1 web:1 db:1",
    ]
    rows = [(row.image, row.action, row.layers_sent, row.bytes_sent) for row in shipped.results]
    assert rows == [("app:1", "full", 2, 20), ("web:1", "full", 1, 10), ("db:1", "delta", 2, 20)]
    assert {(row.host, row.verified) for row in shipped.results} == {("gpu1", "content")}
    assert (shipped.failures, shipped.notes) == ((), ())


def test_of_an_update_only_the_new_layers_travel(steps: Steps, supply: Supply) -> None:
    (row,) = ship(facts_of(APP, base=True), supply).results

    assert steps.calls[:2] == ["send app:1 app", "load app:1"]
    assert (row.action, row.layers_sent, row.bytes_sent) == ("delta", 1, 10)


def test_where_there_is_no_room_to_stage_images_are_streamed_one_by_one(
    steps: Steps, supply: Supply
) -> None:
    shipped = ship(replace(facts_of(APP, DB), cpus=8), supply, transfer="stream")

    assert steps.calls[:3] == ["stream app:1 base app", "stream db:1 db data", "verify app:1 db:1"]
    assert len(shipped.results) == 2


def test_a_host_that_has_everything_is_proven_all_the_same_and_nothing_else_is_done(
    steps: Steps, supply: Supply
) -> None:
    (row,) = ship(facts_of(APP, present=[APP]), supply).results

    assert steps.calls == ["verify app:1"]
    assert (row.action, row.layers_sent, row.bytes_sent) == ("present", 0, 0)


def test_content_under_another_name_is_tagged_after_the_loads(steps: Steps, supply: Supply) -> None:
    facts = replace(facts_of(APP, WEB), twins={"app:1": "old:1"})
    shipped = ship(facts, supply)

    assert steps.calls[:4] == [
        "send web:1 web",
        "load web:1",
        "tag old:1 app:1",
        "verify app:1 web:1",
    ]
    assert [row.action for row in shipped.results] == ["present", "full"]


def test_what_an_earlier_run_staged_is_cleared_but_for_what_is_needed(
    steps: Steps, supply: Supply
) -> None:
    facts = replace(facts_of(APP, base=True), staged={"app": 5, "old": 7})
    ship(facts, supply)

    assert steps.calls[:2] == ["clean", "send app:1 app"]
    assert steps.kept == [staged("app"), []]


def test_a_host_with_a_problem_is_left_alone(steps: Steps, supply: Supply) -> None:
    problem = DiskFull("full", "gpu1")
    plan = HostPlan("gpu1", (Send(APP, ("app",)),), problems=(problem,))

    with pytest.raises(SeveralFailures) as refused:
        ship_to(HOST, plan, facts_of(APP), supply, Terms())

    assert refused.value.failures == (problem,)
    assert steps.calls == []


# Loads side by side


def test_the_next_image_travels_while_the_one_before_is_loaded(
    steps: Steps, supply: Supply
) -> None:
    sent = threading.Event()
    steps.hooks["load app:1"] = lambda: sent.wait(20) or pytest.fail("nothing travels meanwhile")
    steps.hooks["send web:1 web"] = sent.set

    assert len(ship(facts_of(APP, WEB), supply).results) == 2


def test_a_load_waits_for_the_image_that_brings_its_base(steps: Steps, supply: Supply) -> None:
    order: list[str] = []
    all_sent = threading.Event()

    def slow() -> None:
        assert all_sent.wait(20)
        order.append("app:1 done")

    steps.hooks["load app:1"] = slow
    steps.hooks["load db:1"] = lambda: order.append("db:1 begins")
    steps.hooks["load web:1"] = lambda: order.append("web:1 begins")
    steps.hooks["send web:1 web"] = all_sent.set
    ship(replace(facts_of(APP, DB, WEB), cpus=3), supply)

    assert order.index("app:1 done") < order.index("db:1 begins")


def test_as_many_loads_go_on_at_once_as_the_plan_says(steps: Steps, supply: Supply) -> None:
    together = threading.Barrier(2, timeout=20)  # passed by two at once only
    images = [image(f"app:{number}", f"l{number}") for number in range(4)]
    running: list[str] = []
    most: list[int] = []
    lock = threading.Lock()

    def load(name: str) -> None:
        with lock:
            running.append(name)
            most.append(len(running))
        together.wait()
        with lock:
            running.remove(name)

    for one in images:
        steps.hooks[f"load {one.name}"] = lambda name=one.name: load(name)  # type: ignore[misc]
    assert len(ship(replace(facts_of(*images), cpus=2), supply).results) == 4
    assert max(most) == 2


# A host that cannot complete an image gets all of it


def test_a_base_that_is_gone_makes_the_whole_image_travel_and_is_told(
    steps: Steps, supply: Supply
) -> None:
    steps.failing["load app:1"] = [NO_BASE]
    shipped = ship(facts_of(APP, base=True), supply)

    assert steps.calls[:5] == [
        "send app:1 app",
        "load app:1",
        "send app:1 base app",
        "load app:1",
        "verify app:1",
    ]
    (row,) = shipped.results
    assert (row.action, row.layers_sent, row.bytes_sent) == ("full", 2, 30)
    assert shipped.notes == (
        "gpu1: all of app:1 was sent, because its engine lacks a layer that it had before.",
    )
    assert shipped.failures == ()


@pytest.mark.parametrize("transfer", ["staged", "stream"])
def test_a_proof_that_fails_makes_the_whole_image_travel(
    steps: Steps, supply: Supply, transfer: TransferChoice
) -> None:
    steps.faults = [{"app:1": "app:1 has other layers than its source"}]
    shipped = ship(facts_of(APP, WEB, base=True), supply, transfer=transfer)

    word = "send" if transfer == "staged" else "stream"
    assert [call for call in steps.calls if call.startswith((word, "verify"))] == [
        f"{word} app:1 app",
        f"{word} web:1 web",
        "verify app:1 web:1",
        f"{word} app:1 base app",
        "verify app:1 web:1",
    ]
    assert [row.action for row in shipped.results] == ["full", "full"]
    assert shipped.notes == (
        "gpu1: all of app:1 was sent, because app:1 has other layers than its source.",
    )


def test_all_of_an_image_is_sent_once_only(steps: Steps, supply: Supply) -> None:
    fault = {"app:1": "app:1 is not there after loading"}
    steps.failing["load app:1"] = [NO_BASE]
    steps.faults = [fault, fault, fault]
    shipped = ship(facts_of(APP, base=True), supply)

    assert [call for call in steps.calls if call.startswith("send")] == [
        "send app:1 app",
        "send app:1 base app",
    ]
    (failure,) = shipped.failures
    assert isinstance(failure, Damaged)
    assert failure.what == "app:1 is not there after loading"
    assert shipped.results == ()


def test_nothing_is_sent_after_the_last_proof(steps: Steps, supply: Supply) -> None:
    steps.faults = [{"app:1": "app:1 is not there"}, {"db:1": "db:1 has other layers"}]
    shipped = ship(facts_of(APP, DB, base=True), supply)

    assert "send db:1 base db data" not in steps.calls
    assert [failure.what for failure in shipped.failures] == ["db:1 has other layers"]
    assert [row.image for row in shipped.results] == ["app:1"]


def test_an_image_that_was_sent_whole_and_is_wrong_is_a_failure_at_once(
    steps: Steps, supply: Supply
) -> None:
    steps.faults = [{"app:1": "app:1 is not there after loading"}]
    shipped = ship(facts_of(APP, WEB), supply)

    assert len([call for call in steps.calls if call.startswith("send")]) == 2
    assert [failure.what for failure in shipped.failures] == ["app:1 is not there after loading"]
    assert [row.image for row in shipped.results] == ["web:1"]


def test_an_image_that_was_there_and_is_wrong_now_is_a_failure(
    steps: Steps, supply: Supply
) -> None:
    steps.faults = [{"app:1": "app:1 is not there after loading"}]
    shipped = ship(facts_of(APP, present=[APP]), supply)

    assert steps.calls == ["verify app:1"]
    assert len(shipped.failures) == 1


def test_a_load_that_fails_of_a_whole_image_is_told_as_it_was(steps: Steps, supply: Supply) -> None:
    refused = CommandFailed("Docker refused it", "gpu1", "Look at its log.")
    steps.failing["load web:1"] = [refused]
    shipped = ship(facts_of(WEB), supply)

    assert shipped.failures == (refused,)
    assert steps.calls[:2] == ["send web:1 web", "load web:1"]
    assert "load web:1" not in steps.calls[2:]


def test_when_all_of_it_cannot_be_sent_either_that_is_the_failure_and_no_note_claims_it(
    steps: Steps, supply: Supply
) -> None:
    steps.failing["load app:1"] = [NO_BASE]
    steps.failing["send app:1 base app"] = [Damaged("its source did not give it", "image 'app:1'")]
    shipped = ship(facts_of(APP, base=True), supply)

    assert [failure.what for failure in shipped.failures] == ["its source did not give it"]
    assert shipped.notes == ()


def test_an_image_whose_base_came_to_nothing_is_sent_whole(steps: Steps, supply: Supply) -> None:
    steps.failing["load app:1"] = [CommandFailed("Docker refused it", "gpu1")]
    steps.failing["load db:1"] = [NO_BASE]
    shipped = ship(facts_of(APP, DB), supply)

    assert "send db:1 base db data" in steps.calls
    assert [row.image for row in shipped.results] == ["db:1"]
    assert [failure.what for failure in shipped.failures] == ["Docker refused it"]


# Failures


@pytest.mark.parametrize(
    "error",
    [
        DiskFull("the engine's disk became full", "gpu1"),
        EngineUnavailable("Docker does not run", "gpu1"),
    ],
)
def test_where_more_bytes_do_not_help_none_are_sent(
    steps: Steps, supply: Supply, error: CrossgapError
) -> None:
    steps.failing["load app:1"] = [error]
    shipped = ship(facts_of(APP, base=True), supply)

    assert "send app:1 base app" not in steps.calls
    assert shipped.failures == (error,)


def test_an_image_that_cannot_be_sent_does_not_keep_the_others_from_arriving(
    steps: Steps, supply: Supply
) -> None:
    lost = Damaged("its source did not give the layer", "image 'app:1'")
    steps.failing["send app:1 base app"] = [lost]
    shipped = ship(facts_of(APP, WEB), supply)

    assert "load app:1" not in steps.calls
    assert shipped.failures == (lost,)
    assert [row.image for row in shipped.results] == ["web:1"]
    assert "verify web:1" in steps.calls


def test_layers_of_what_failed_stay_for_the_next_run(steps: Steps, supply: Supply) -> None:
    steps.failing["load web:1"] = [CommandFailed("Docker refused it", "gpu1")]
    ship(facts_of(APP, WEB), supply)

    assert steps.kept == [staged("web")]


@pytest.mark.parametrize("several", [False, True], ids=["one stream", "several streams"])
def test_a_full_disk_ends_the_sending_and_is_told_once(
    steps: Steps, supply: Supply, several: bool
) -> None:
    full = DiskFull("no room", "gpu1")
    error = SeveralFailures([full, DiskFull("no room", "gpu1")], "gpu1") if several else full
    steps.failing["send app:1 base app"] = [error]
    shipped = ship(facts_of(APP, WEB, DB), supply)

    assert [call for call in steps.calls if call.startswith(("send", "load"))] == [
        "send app:1 base app"
    ]
    assert shipped.failures == (error,)
    assert shipped.results == ()


def test_what_was_loaded_before_the_disk_became_full_is_proven(
    steps: Steps, supply: Supply
) -> None:
    full = DiskFull("no room", "gpu1")
    steps.failing["send web:1 web"] = [full]
    shipped = ship(facts_of(APP, WEB, DB), supply)

    assert [row.image for row in shipped.results] == ["app:1"]
    assert shipped.failures == (full,)


@pytest.mark.parametrize(
    "error",
    [CUT, Cancelled("cancelled", "gpu1"), SeveralFailures([CUT, CUT], "gpu1")],
    ids=["away", "cancelled", "all streams"],
)
def test_a_host_that_is_away_is_not_asked_any_more(
    steps: Steps, supply: Supply, error: CrossgapError
) -> None:
    steps.failing["send app:1 base app"] = [error]
    with pytest.raises(SeveralFailures) as failed:
        ship(facts_of(APP, WEB), supply)

    assert steps.calls == ["send app:1 base app"]
    assert failed.value.failures == (error,)


@pytest.mark.parametrize("step", ["tag old:1 web:1", "verify app:1 web:1", "clean"])
def test_a_step_for_the_whole_host_that_fails_is_the_hosts_failure(
    steps: Steps, supply: Supply, step: str
) -> None:
    steps.failing[step] = [CommandFailed("broken", "gpu1")]
    with pytest.raises(CommandFailed, match="broken"):
        ship(replace(facts_of(APP, WEB), twins={"web:1": "old:1"}), supply)


# Proof by starting


def test_images_are_started_side_by_side_and_each_has_its_own_proof(
    steps: Steps, supply: Supply
) -> None:
    together = threading.Barrier(3, timeout=20)  # passed by three at once only
    for one in (APP, DB, WEB):
        steps.hooks[f"start {one.name}"] = together.wait
    facts = facts_of(APP, DB, WEB, present=[APP, DB, WEB])
    shipped = ship(facts, supply, Terms("start"))

    assert [row.verified for row in shipped.results] == [
        "started app:1",
        "started db:1",
        "started web:1",
    ]


def test_no_more_than_four_images_are_started_at_once(steps: Steps, supply: Supply) -> None:
    together = threading.Barrier(4, timeout=20)
    images = [image(f"{number}:1", "l") for number in range(8)]
    running: list[str] = []
    most: list[int] = []

    def start(name: str) -> None:
        running.append(name)
        most.append(len(running))
        together.wait()
        running.remove(name)

    for one in images:
        steps.hooks[f"start {one.name}"] = lambda name=one.name: start(name)  # type: ignore[misc]
    ship(facts_of(*images, present=images), supply, Terms("start"))

    assert max(most) == 4


def test_every_image_that_does_not_start_is_named_and_the_others_count(
    steps: Steps, supply: Supply
) -> None:
    for name in ("app:1", "web:1"):
        steps.failing[f"start {name}"] = [CommandFailed(f"{name} does not start", "gpu1")]
    facts = facts_of(APP, DB, WEB, present=[APP, DB, WEB])
    shipped = ship(facts, supply, Terms("start"))

    assert [one.what for one in shipped.failures] == [
        "app:1 does not start",
        "web:1 does not start",
    ]
    assert [row.image for row in shipped.results] == ["db:1"]


def test_what_is_not_there_is_not_started(steps: Steps, supply: Supply) -> None:
    steps.failing["load web:1"] = [CommandFailed("Docker refused it", "gpu1")]
    ship(facts_of(APP, WEB), supply, Terms("start"))

    assert "start app:1" in steps.calls
    assert "start web:1" not in steps.calls


# What newer images have superseded


OLD = Superseded("app:0", "sha256:0", 5_000_000, "app:1 is newer")


def test_superseded_images_are_named_and_left_alone_unless_told_otherwise(
    steps: Steps, supply: Supply
) -> None:
    steps.superseded = (OLD,)
    shipped = ship(facts_of(APP), supply)

    assert shipped.notes == (
        "gpu1: app:0 (5.00 MB, app:1 is newer) is superseded; prune removes it.",
    )
    assert not any(call.startswith("remove") for call in steps.calls)


@pytest.mark.parametrize(
    ("stays", "end"), [("", "was removed."), ("it is in use", "stays: it is in use.")]
)
def test_prune_removes_what_is_superseded_and_says_what_came_of_it(
    steps: Steps, supply: Supply, stays: str, end: str
) -> None:
    steps.superseded, steps.stays = (OLD,), stays
    shipped = ship(facts_of(APP, present=[APP]), supply, Terms(prune=True))

    assert "remove app:0" in steps.calls
    (note,) = shipped.notes
    assert note.endswith(f"is superseded and {end}")


def test_what_a_container_uses_stays_and_the_container_is_named(
    steps: Steps, supply: Supply
) -> None:
    steps.superseded = (replace(OLD, used_by=("web (running)", "job (exited)")),)
    shipped = ship(facts_of(APP), supply, Terms(prune=True))

    assert not any(call.startswith("remove") for call in steps.calls)
    assert shipped.notes[0].endswith("but stays: web (running), job (exited) uses it.")


def test_only_what_arrived_supersedes_anything(steps: Steps, supply: Supply) -> None:
    steps.failing["load web:1"] = [CommandFailed("Docker refused it", "gpu1")]
    ship(facts_of(APP, WEB), supply, Terms(prune=True))

    assert "look for older than app:1" in steps.calls


def test_an_image_asked_for_by_digest_is_noted_with_the_name_that_it_got(
    steps: Steps, supply: Supply
) -> None:
    pinned = replace(APP, name="app@sha256:" + "ab" * 32)
    (note,) = ship(facts_of(pinned), supply).notes

    assert "app:sha256-abababababab" in note


# Terms


@pytest.mark.parametrize(("own", "total"), [(0, None), (None, 0), (-1, 5), (5, float("nan"))])
def test_a_limit_that_cannot_be_meant_is_refused_at_once(
    own: float | None, total: float | None
) -> None:
    with pytest.raises(InvalidInput):
        Terms.of("content", own, total)


def test_without_limits_there_are_none() -> None:
    assert Terms.of("start", None, None) == Terms("start", Speed(None, None))


def test_the_limit_of_each_host_is_its_own_and_that_of_all_is_shared() -> None:
    terms = Terms.of("content", 10, 20, prune=True)
    assert isinstance(terms.speed.total, RateLimit)
    assert terms == Terms("content", Speed(10, terms.speed.total), prune=True)


def test_nothing_is_planned_where_nothing_is_wanted(steps: Steps, supply: Supply) -> None:
    shipped = ship_to(HOST, HostPlan("gpu1", (Keep(APP),)), facts_of(), supply, Terms())
    assert [row.action for row in shipped.results] == ["present"]
