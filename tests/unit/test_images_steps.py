"""What the steps show of themselves in a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.content import Content
from blocks.errors import ConnectionLost, CrossgapError, TimedOut, Unreachable
from tasks.common import progress as progress_module
from tasks.common.artifact_keys import artifact_key
from tasks.common.progress import HostProgress
from tasks.images import steps
from tasks.images.archive import ArchiveFacts
from tasks.images.assembly import assemble
from tasks.images.engine_files import SWITCH
from tasks.images.facts import ImageFacts
from tasks.images.layout import compose
from tasks.images.plan import Send, plan_shipment
from tasks.images.sending import Sending, Speed
from tasks.images.store import Store, StoredImage
from tasks.images.supply import Supply
from tests.unit.images_doubles import (
    KeepingHost,
    config_of,
    host_facts,
    image_of,
    memory_layer,
)

APP = ImageFacts("app:1", "sha256:a", "sha256:a", ("l1",), "amd64")
ARCHIVE = ArchiveFacts(Path("a.tar"), 100, "ab" * 32, "none", (APP,))


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The progress artifacts of a run, by key."""
    shown: dict[str, float] = {}

    def write(progress: HostProgress, percent: float, text: str) -> None:
        shown[progress._key] = percent

    monkeypatch.setattr(HostProgress, "_write_artifact", write)
    monkeypatch.setattr(progress_module, "_current_run_id", lambda: "run-1")
    monkeypatch.setattr(progress_module, "_shown", {})
    return shown


@pytest.fixture
def supply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supply:
    # What an engine on this machine has is no part of these tests.
    monkeypatch.setenv(SWITCH, "no")
    return Supply(Store(tmp_path / "store", 10**9))


def read_source(monkeypatch: pytest.MonkeyPatch, pulled: bool) -> Any:
    def ensure(names: Any, *, progress: Callable[[int, int], None], **_: Any) -> Any:
        if pulled:
            progress(50, 100)
        return (APP,)

    monkeypatch.setattr("tasks.images.pull.ensure_images", ensure)
    return steps.read_source.fn(["app:1"], "missing", [])


def test_images_that_are_there_show_no_bar(
    bars: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_source(monkeypatch, pulled=False) == (APP,)
    assert bars == {}


def test_the_bar_of_a_pull_ends_at_100(
    bars: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_source(monkeypatch, pulled=True)
    assert list(bars.values()) == [100]


def test_no_host_has_the_bar_of_a_step_on_this_side(
    bars: dict[str, float], monkeypatch: pytest.MonkeyPatch, supply: Supply
) -> None:
    def read(_: Path, progress: Callable[[int, int], None]) -> Any:
        progress(50, 100)
        return (ARCHIVE,)

    def save(*_: Any, progress: Callable[[int, int], None], **__: Any) -> None:
        progress(50, 100)

    monkeypatch.setattr("tasks.images.archive.read_archives", read)
    monkeypatch.setattr("tasks.images.split.save_into", save)
    read_source(monkeypatch, pulled=True)
    steps.check_archives.fn("a.tar")
    steps.save_images.fn([APP], [], supply)

    assert len(bars) == 3
    words = {word for key in bars for word in key.split("-")}
    assert bars.keys().isdisjoint(artifact_key("ship-images", "progress", word) for word in words)


def test_what_is_saved_goes_into_the_supply_and_its_store(
    bars: dict[str, float], monkeypatch: pytest.MonkeyPatch, supply: Supply
) -> None:
    asked: list[Any] = []

    def save(
        store: Store, images: Any, *, wanted: Any, on_layer: Any, on_image: Any, **_: Any
    ) -> None:
        asked.append((store, images, wanted))
        on_layer(memory_layer(DATA))
        on_image(StoredImage(config_of(DATA), IMAGE.config_digest, IMAGE.diff_ids))

    monkeypatch.setattr("tasks.images.split.save_into", save)
    steps.save_images.fn([IMAGE], IMAGE.diff_ids, supply)

    assert asked == [(supply.store, [IMAGE], IMAGE.diff_ids)]
    assert supply.layer(IMAGE, IMAGE.diff_ids[0]) == memory_layer(DATA)
    assert supply.image(IMAGE).config == config_of(DATA)


# Sending and loading


DATA = b"layer " * 500
IMAGE = image_of("app:1", DATA)
SEND = Send(IMAGE, IMAGE.diff_ids)
STAGING = "/root/.crossgap/staging"


class Loads:
    """What the engine of a host is given, and what it answers."""

    def __init__(self, host: KeepingHost) -> None:
        self.host = host
        self.jobs: list[tuple[list[str], str, float]] = []
        self.streams: list[bytes] = []
        self.failures: list[CrossgapError] = []

    def load(self, host: Any, argv: list[str], name: str, *, timeout: float, **_: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.jobs.append((argv, name, timeout))

    def load_stream(self, host: Any, archive: Content, *, progress: Any, pace: Any) -> str:
        data = b"".join(archive.chunks())
        if self.failures:
            progress(len(data) // 2, len(data))
            raise self.failures.pop(0)
        progress(len(data), len(data))
        self.streams.append(data)
        return "Loaded image: app:1\n"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bars: dict[str, float]) -> Loads:
    loads = Loads(KeepingHost(tmp_path / "host"))
    monkeypatch.setattr(steps, "load_host", lambda _: loads.host)
    monkeypatch.setattr("tasks.images.act.load", loads.load)
    monkeypatch.setattr("tasks.images.act.load_stream", loads.load_stream)
    monkeypatch.setattr("blocks.cancellation.Cancellation.pause", lambda *_: None)
    return loads


@pytest.fixture
def sending(loads: Loads, supply: Supply) -> Sending:
    facts = host_facts(IMAGE)
    (plan,) = plan_shipment([facts]).hosts
    supply.give_layer(memory_layer(DATA))
    supply.give_image(StoredImage(config_of(DATA), IMAGE.config_digest, IMAGE.diff_ids))
    return Sending(loads.host, plan, facts, supply, Speed())


def test_staged_layers_are_loaded_by_a_job_that_is_named_by_what_it_loads(
    loads: Loads, sending: Sending, bars: dict[str, float]
) -> None:
    steps.send_layers.fn("gpu1", SEND, sending)
    assert list(bars.values()) == [100]
    steps.load_image.fn("gpu1", SEND, sending)

    assembly = assemble([sending.layout(SEND)], sending.staged_path)
    glue = f"{STAGING}/{assembly.key}.glue"
    assert loads.host.file(glue).read_bytes() == assembly.glue
    ((argv, name, timeout),) = loads.jobs
    assert (argv, name) == (assembly.load_argv(glue), f"load-images-{assembly.key}")
    assert timeout >= 900
    assert f"{STAGING}/" in argv[2]


def test_a_second_try_of_a_load_sends_nothing_again_and_finds_the_same_job(
    loads: Loads, sending: Sending
) -> None:
    steps.send_layers.fn("gpu1", SEND, sending)
    loads.failures = [ConnectionLost("it died", "gpu1")]
    steps.load_image.fn("gpu1", SEND, sending)
    steps.load_image.fn("gpu1", SEND, sending)

    assert len({name for _, name, _ in loads.jobs}) == 1
    assert len(loads.jobs) == 2
    assert sending.sent == {IMAGE.diff_ids[0]: len(loads.host.file(staged(sending)).read_bytes())}


def staged(sending: Sending) -> str:
    (layer,) = sending.layout(SEND).layers
    return sending.staged_path(layer.here)


def test_the_bar_is_full_only_when_the_layers_of_all_images_are_there(
    loads: Loads, supply: Supply, bars: dict[str, float]
) -> None:
    other = image_of("other:1", DATA, b"more" * 900)
    facts = host_facts(IMAGE, other)
    (plan,) = plan_shipment([facts]).hosts
    for data in (DATA, b"more" * 900):
        supply.give_layer(memory_layer(data))
    sending = Sending(loads.host, plan, facts, supply, Speed())
    seen = []
    for send in plan.sends:
        steps.send_layers.fn("gpu1", send, sending)
        seen.append(next(iter(bars.values())) == 100)
    assert seen == [False, True]


def test_a_streamed_image_is_one_archive_and_leaves_nothing_staged(
    loads: Loads, sending: Sending, bars: dict[str, float]
) -> None:
    steps.stream_image.fn("gpu1", SEND, sending)

    (archive,) = loads.streams
    assert archive == b"".join(compose([sending.layout(SEND)]).chunks())
    assert sending.sent == {IMAGE.diff_ids[0]: len(archive)}
    assert loads.host.files() == {}
    assert list(bars.values()) == [100]


def test_a_stream_that_is_cut_begins_again_and_the_bar_does_not_go_back(
    loads: Loads, sending: Sending, bars: dict[str, float]
) -> None:
    loads.failures = [ConnectionLost("it died", "gpu1")]
    steps.stream_image.fn("gpu1", SEND, sending)

    assert len(loads.streams) == 1
    assert list(bars.values()) == [100]


class Away:
    """A host that cannot be reached for a while."""

    label = "gpu1"
    patience = 60

    def __init__(self, errors: list[CrossgapError]) -> None:
        self.errors = errors

    def work(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def patiently(host: Away, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(steps, "load_host", lambda _: host)
    monkeypatch.setattr("blocks.cancellation.Cancellation.pause", lambda *_: None)
    return steps._patiently("gpu1", lambda there: there.work())  # type: ignore[attr-defined]


def test_a_step_after_the_transfer_waits_out_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Away([ConnectionLost("it died", "gpu1"), Unreachable("no answer", "gpu1")])
    assert patiently(host, monkeypatch) == "done"


def test_an_engine_that_hangs_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimedOut):
        patiently(Away([TimedOut("docker info did not end", "gpu1")]), monkeypatch)
