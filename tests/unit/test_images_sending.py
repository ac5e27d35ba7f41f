"""Layers on their way to one host: in which form, how far, and again when damaged."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from blocks.content import Content
from blocks.errors import Damaged, NotFound, SeveralFailures, SourceDamaged, Unreachable
from tasks.images import sending as module
from tasks.images.blobs import Blob, Compression, Descriptor, Layer
from tasks.images.facts import ImageFacts
from tasks.images.layout import chain_ids, digest_of
from tasks.images.plan import HostPlan, Send, TransferChoice, plan_shipment
from tasks.images.sending import Sending, Speed, name_there
from tasks.images.staging import staged_name, staged_path
from tasks.images.store import Store, StoredImage
from tasks.images.supply import Supply
from tasks.transfer.rate import RateLimit
from tests.unit.images_doubles import (
    KeepingHost,
    config_of,
    host_facts,
    image_of,
    memory_layer,
    stored_layer,
)

# What packs to a fraction, and what does not pack.
WORDS, NOISE = b"words and words " * 3000, random.Random(1).randbytes(40_000)
TOP = b"top of it " * 1000
APP = image_of("app:1", WORDS, NOISE)
NEW = image_of("new:1", WORDS, TOP)


class Source:
    """Fetches into the store, as often as it is asked."""

    def __init__(self, *layers: bytes) -> None:
        self.layers = {digest_of(data): data for data in layers}
        self.fetches = 0

    def __call__(
        self, images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply
    ) -> None:
        self.fetches += 1
        for diff_id in lacking:
            if diff_id in self.layers:
                supply.give_layer(stored_layer(supply.store, self.layers[diff_id]))


class Numbers:
    """Takes progress, as an operator would see it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, arrived: int, total: int) -> None:
        self.seen.append((arrived, total))


class Bench:
    """A host, a source, and what goes between them for some images."""

    def __init__(self, folder: Path, *images: ImageFacts) -> None:
        self.host = KeepingHost(folder / "host")
        self.source = Source(WORDS, NOISE, TOP)
        self.store = Store(folder / "store", 10**9)
        self.facts = host_facts(*images)
        self.transfer: TransferChoice = "auto"
        self.numbers = Numbers()

    @property
    def plan(self) -> HostPlan:
        (plan,) = plan_shipment([self.facts], transfer=self.transfer).hosts
        return plan

    def sending(self, supply: Supply, speed: Speed | None = None) -> Sending:
        for image, layers in ((APP, (WORDS, NOISE)), (NEW, (WORDS, TOP))):
            config = config_of(*layers)
            supply.give_image(
                StoredImage(config, image.config_digest, image.diff_ids, (image.name,))
            )
        return Sending(self.host, self.plan, self.facts, supply, speed or Speed())

    def blob(self, layer: Layer) -> Path:
        return self.store.folder / "blobs/sha256" / layer.blob.hex


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, APP)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# Forms


def test_each_layer_arrives_in_the_form_that_pays(bench: Bench) -> None:
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        sending.stage(APP, APP.diff_ids, bench.numbers)
    words, noise = (digest_of(data).removeprefix("sha256:") for data in (WORDS, NOISE))
    files = bench.host.files()
    assert set(files) == {f"{words}.tar.gz", f"{noise}.tar"}
    assert gzip.decompress(files[f"{words}.tar.gz"]) == WORDS
    assert files[f"{noise}.tar"] == NOISE
    assert sending.sent == {
        digest_of(WORDS): len(files[f"{words}.tar.gz"]),
        digest_of(NOISE): 40_000,
    }


@pytest.mark.parametrize(("new_engine", "suffix"), [(True, ".tar.zst"), (False, ".tar.gz")])
def test_a_zstd_layer_is_repacked_for_engines_that_do_not_take_it(
    bench: Bench, new_engine: bool, suffix: str
) -> None:
    packed = zstandard.compress(WORDS)
    bench.facts = replace(bench.facts, unpacks_zstd=new_engine)
    blob = Blob(digest_of(packed), len(packed), Content((packed,)))
    with Supply(bench.store) as supply:
        supply.give_layer(Layer(digest_of(WORDS), "zstd", blob))
        sending = bench.sending(supply)
        sending.stage(APP, [digest_of(WORDS)], bench.numbers)
    ((name, data),) = bench.host.files().items()
    assert name.endswith(suffix)
    assert data == packed if new_engine else gzip.decompress(data) == WORDS


def test_a_layer_that_comes_packed_with_gzip_stays_so(bench: Bench) -> None:
    packed = gzip.compress(NOISE)
    blob = Blob(digest_of(packed), len(packed), Content((packed,)))
    with Supply(bench.store) as supply:
        supply.give_layer(Layer(digest_of(NOISE), "gzip", blob))
        bench.sending(supply).stage(APP, [digest_of(NOISE)], bench.numbers)
    assert list(bench.host.files().values()) == [packed]


class Link:
    """A line whose rate is measured, and where that was done."""

    def __init__(self) -> None:
        self.rates = [1e9]
        self.measured: list[str] = []

    def __call__(
        self, host: KeepingHost, content: Content, remote: str, *_: str, **__: int
    ) -> float:
        self.measured.append(remote)
        return self.rates.pop(0) if len(self.rates) > 1 else self.rates[0]


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    """The line to the host; every layer is large enough to measure it with."""
    link = Link()
    monkeypatch.setattr(module, "SMALL", 10)
    monkeypatch.setattr(module, "link_rate", link)
    return link


def test_the_link_is_measured_with_one_layer_that_is_sent_anyway(bench: Bench, link: Link) -> None:
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        sending.stage(APP, APP.diff_ids, bench.numbers)
        sending.stage(NEW, NEW.diff_ids, bench.numbers)
    (place,) = set(link.measured)
    assert place in {staged_path(bench.host, memory_layer(data)) for data in (WORDS, NOISE)}
    # On a line of a gigabyte per second packing does not pay.
    assert all(name.endswith(".tar") for name in bench.host.files())


def test_over_a_slow_link_layers_travel_packed(bench: Bench, link: Link) -> None:
    link.rates = [1e6]
    with Supply(bench.store, bench.source) as supply:
        bench.sending(supply).stage(APP, [digest_of(WORDS)], bench.numbers)
    assert [name.endswith(".tar.gz") for name in bench.host.files()] == [True]
    assert len(link.measured) == 1


def test_a_busy_moment_does_not_make_a_fast_link_slow(bench: Bench, link: Link) -> None:
    link.rates = [30e6, 1e9]
    with Supply(bench.store, bench.source) as supply:
        bench.sending(supply).stage(APP, [digest_of(WORDS)], bench.numbers)
    assert [name.endswith(".tar") for name in bench.host.files()] == [True]


def test_a_layer_of_which_a_part_is_there_goes_on_in_the_same_form(
    bench: Bench, link: Link
) -> None:
    bench.facts = replace(bench.facts, staged_forms={digest_of(WORDS): "gzip"})
    with Supply(bench.store, bench.source) as supply:
        bench.sending(supply).stage(APP, [digest_of(WORDS)], bench.numbers)
    assert link.measured == []
    assert [name.endswith(".tar.gz") for name in bench.host.files()] == [True]


@pytest.mark.parametrize(
    "speed",
    [Speed(8.0), Speed(None, RateLimit(8.0)), Speed(400.0)],
    ids=["own", "total", "fast"],
)
def test_where_there_is_a_limit_no_measurement_exceeds_it(
    bench: Bench, link: Link, speed: Speed
) -> None:
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply, speed)
        sending.stage(APP, [digest_of(WORDS)], bench.numbers)
    assert link.measured == []
    assert all(bench.host.paced)
    assert [name.endswith(".tar.gz") for name in bench.host.files()] == [True]


def test_a_layer_keeps_its_form_when_it_is_sent_again(bench: Bench, link: Link) -> None:
    """A part of it that is there can only be gone on with in the same form."""
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        bench.host.refusals = [Unreachable("the link was cut", "gpu1")]
        with pytest.raises(Unreachable):
            sending.stage(APP, [digest_of(WORDS)], bench.numbers)
        sending._rate = 1000.0
        sending.stage(APP, [digest_of(WORDS)], bench.numbers)
    assert [name.endswith(".tar") for name in bench.host.files()] == [True]


def test_without_limits_nothing_is_paced(bench: Bench) -> None:
    with Supply(bench.store, bench.source) as supply:
        bench.sending(supply).stage(APP, APP.diff_ids, bench.numbers)
    assert bench.host.paced == [False, False]


# Progress


def test_progress_never_goes_back_and_ends_at_the_total(bench: Bench) -> None:
    bench.facts = host_facts(APP, NEW)
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        for send in bench.plan.sends:
            assert not sending.is_done
            sending.stage(send.image, send.missing, bench.numbers)
        assert sending.is_done
    arrived = [number for number, _ in bench.numbers.seen]
    assert arrived == sorted(arrived)
    assert bench.numbers.seen[-1][0] == bench.numbers.seen[-1][1] == sum(sending.sent.values())


def test_what_an_earlier_run_has_staged_counts_as_arrived_and_not_as_sent(bench: Bench) -> None:
    with Supply(bench.store, bench.source) as supply:
        bench.sending(supply).stage(APP, APP.diff_ids, bench.numbers)
        again, numbers = bench.sending(supply), Numbers()
        again.stage(APP, APP.diff_ids, numbers)
    assert set(again.sent.values()) == {0}
    assert again.is_done
    assert numbers.seen[-1][0] == numbers.seen[-1][1]


# Damage here


def test_a_layer_that_is_damaged_here_is_fetched_and_sent_again(bench: Bench) -> None:
    noise = stored_layer(bench.store, NOISE)
    flip(bench.blob(noise))
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        sending.stage(APP, [noise.diff_id], bench.numbers)
    assert bench.host.files() == {staged_name(noise): NOISE}
    assert bench.source.fetches == 1
    arrived = [number for number, _ in bench.numbers.seen]
    assert arrived == sorted(arrived)


def test_progress_does_not_go_back_when_a_layer_has_to_be_sent_again(bench: Bench) -> None:
    bench.host.late_refusals = [SourceDamaged("it changed meanwhile", "disk")]
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        sending.stage(APP, APP.diff_ids, bench.numbers)
        assert sending.is_done
    arrived = [number for number, _ in bench.numbers.seen]
    assert arrived == sorted(arrived)
    assert len(bench.host.sent) == 3


def test_a_layer_found_damaged_while_it_is_packed_is_fetched_again(bench: Bench) -> None:
    words = stored_layer(bench.store, WORDS)
    flip(bench.blob(words))
    with Supply(bench.store, bench.source) as supply:
        supply.give_layer(words)
        bench.sending(supply).stage(APP, [words.diff_id], bench.numbers)
    (data,) = bench.host.files().values()
    assert gzip.decompress(data) == WORDS
    assert bench.source.fetches == 1


def test_a_layer_whose_file_is_gone_or_cut_off_is_fetched_again(bench: Bench) -> None:
    words, noise = stored_layer(bench.store, WORDS), stored_layer(bench.store, NOISE)
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        for layer in (words, noise):
            supply.give_layer(layer)
        bench.blob(words).unlink()
        bench.blob(noise).write_bytes(NOISE[:100])
        sending.stage(APP, APP.diff_ids, bench.numbers)
    assert {len(data) for data in bench.host.files().values()} >= {len(NOISE)}
    assert len(bench.host.files()) == 2


def test_of_a_packed_form_that_is_damaged_only_that_is_made_again(bench: Bench) -> None:
    words = stored_layer(bench.store, WORDS)
    flip(bench.blob(bench.store.compressed(words, "gzip")))
    with Supply(bench.store) as supply:
        supply.give_layer(words)
        bench.sending(supply).stage(APP, [words.diff_id], bench.numbers)
    (data,) = bench.host.files().values()
    assert gzip.decompress(data) == WORDS


def test_a_layer_that_is_damaged_twice_is_a_failure(bench: Bench) -> None:
    bench.host.refusals = [SourceDamaged("is damaged", "disk") for _ in range(2)]
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        with pytest.raises(SourceDamaged):
            sending.stage(APP, [digest_of(NOISE)], bench.numbers)
        assert not sending.is_done
    assert bench.source.fetches == 2


def test_all_layers_that_fail_are_named(bench: Bench) -> None:
    bench.host.refusals = [Damaged("wrong there", "gpu1"), Damaged("wrong there, too", "gpu1")]
    with Supply(bench.store, bench.source) as supply, pytest.raises(SeveralFailures) as failed:
        bench.sending(supply).stage(APP, APP.diff_ids, bench.numbers)
    assert len(failed.value.failures) == 2


# What is put together there


def test_the_layout_names_what_was_sent_and_what_is_there(bench: Bench) -> None:
    top = image_of("new:1", WORDS, TOP)
    bench.facts = host_facts(top, layers=dict.fromkeys(chain_ids([digest_of(WORDS)]), 0))
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        (send,) = bench.plan.sends
        sending.stage(top, send.missing, bench.numbers)
        layout = sending.layout(send)
        there, sent = layout.layers
        assert (layout.name, layout.config) == ("new:1", config_of(WORDS, TOP))
        assert there == Layer(digest_of(WORDS), "none", Descriptor(digest_of(WORDS), len(WORDS)))
        assert sent.compression == "gzip"
        path = sending.staged_path(sent.here)
    assert path == f"/root/.crossgap/staging/{staged_name(sent)}"
    assert bench.host.file(path).exists()


def test_a_base_that_another_image_brought_is_named_in_the_form_that_travelled(
    bench: Bench,
) -> None:
    bench.facts = host_facts(APP, NEW)
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        first, second = bench.plan.sends
        sending.stage(first.image, first.missing, bench.numbers)
        sending.stage(second.image, second.missing, bench.numbers)
        base, _ = sending.layout(second).layers
        assert base.blob == Descriptor(sending.layout(first).layers[0].blob.digest, base.blob.size)
        assert base.compression == "gzip"


def test_a_base_that_did_not_come_is_an_error_and_not_a_defect(bench: Bench) -> None:
    bench.facts = host_facts(APP, NEW)
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        _, second = bench.plan.sends
        sending.stage(second.image, second.missing, bench.numbers)
        with pytest.raises(NotFound, match="should have come with another image"):
            sending.layout(second)


def test_paths_are_told_while_other_layers_are_being_sent(bench: Bench) -> None:
    layers = [b"%d" % number * 50 for number in range(30)]
    image = image_of("deep:1", *layers)
    bench.source.layers |= {digest_of(data): data for data in layers}
    bench.facts = host_facts(image)
    failures: list[Exception] = []
    done = threading.Event()
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        sending.stage(image, image.diff_ids[:1], bench.numbers)
        blob = next(iter(sending._forms.values())).here

        def ask() -> None:
            while not done.is_set():
                try:
                    sending.staged_path(blob)
                except RuntimeError as error:
                    failures.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        sending.stage(image, image.diff_ids, bench.numbers)
        done.set()
        thread.join()
    assert failures == []


# Streams


def test_a_streamed_image_has_its_layers_packed_and_counts_every_byte(bench: Bench) -> None:
    (send,) = bench.plan.sends
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        layout = sending.layout(send, pack=True)
        forms: list[Compression] = [layer.compression for layer in layout.layers]
        assert forms == ["gzip", "none"]
        report = sending.progress_of(send, bench.numbers)
        for count in (10, 30_000, 20_000, 100_000):
            report(count, 100_000)
        assert sending.is_done
        sending.note_streamed(send, 100_000)
    arrived = [number for number, _ in bench.numbers.seen]
    assert arrived == sorted(arrived)
    assert bench.numbers.seen[-1][0] == bench.numbers.seen[-1][1]
    assert sum(sending.sent.values()) == 100_000
    assert bench.host.files() == {}


def test_over_a_fast_link_layers_are_streamed_as_they_are(bench: Bench, link: Link) -> None:
    bench.transfer = "stream"
    (send,) = bench.plan.sends
    with Supply(bench.store, bench.source) as supply:
        layout = bench.sending(supply).layout(send, pack=True)
    assert {layer.compression for layer in layout.layers} == {"none"}
    assert set(link.measured) == {""}, "nothing is left on the host"


@pytest.mark.parametrize("data", [WORDS, NOISE], ids=["packed", "plain"])
def test_what_is_streamed_is_proven_before_as_nobody_hashes_it_there(
    bench: Bench, data: bytes
) -> None:
    layer = stored_layer(bench.store, data)
    form = bench.store.compressed(layer, "gzip") if data == WORDS else layer
    flip(bench.blob(form))
    send = Send(APP, (layer.diff_id,))
    with Supply(bench.store, bench.source) as supply:
        sending = bench.sending(supply)
        sending._there = {one: memory_layer(b"") for one in APP.diff_ids}
        layout = sending.layout(send, pack=True)
        (sent,) = [one for one in layout.layers if isinstance(one.blob, Blob)]
        assert digest_of(b"".join(sent.here.content.chunks())) == sent.blob.digest


# Names


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("app:1", "app:1"),
        ("reg.lan:5000/a/b:2", "reg.lan:5000/a/b:2"),
        ("app@sha256:" + "ab" * 32, "app:sha256-abababababab"),
        (APP.config_digest, ""),
    ],
)
def test_images_get_names_that_docker_load_takes(name: str, there: str) -> None:
    assert name_there(replace(APP, name=name)) == there
