"""Layers and configurations, handed out as they become available."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.cancellation import Cancellation, cancellation_scope, current_cancellation
from blocks.errors import Cancelled, CommandFailed, Damaged, NotFound
from tasks.images.blobs import Layer
from tasks.images.facts import ImageFacts
from tasks.images.layout import digest_of
from tasks.images.store import Store, StoredImage
from tasks.images.supply import Supply
from tests.unit.images_doubles import config_of, image_of, memory_layer, stored_layer

BASE, TOP, OTHER = b"base" * 300, b"top" * 300, b"other" * 300
APP, DB = image_of("app:1", BASE, TOP), image_of("db:1", BASE, OTHER)


def stored_image(image: ImageFacts, *layers: bytes) -> StoredImage:
    return StoredImage(config_of(*layers), image.config_digest, image.diff_ids, (image.name,))


APP_STORED, DB_STORED = stored_image(APP, BASE, TOP), stored_image(DB, BASE, OTHER)


class Source:
    """Gives what it has when it is asked, and notes the asking.

    Attributes:
        asked: Names of the images of each fetch, and what was lacking.
        gate: Is waited for in each fetch.
        holds: Unpacked layers that it hands in.
        failure: Is raised at the end of a fetch.
    """

    def __init__(self, *holds: bytes) -> None:
        self.asked: list[tuple[list[str], set[str]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.holds = list(holds)
        self.images: list[StoredImage] = [APP_STORED, DB_STORED]
        self.failure: Exception | None = None
        self.stores = False

    def __call__(
        self, images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply
    ) -> None:
        self.asked.append(([image.name for image in images], set(lacking)))
        assert self.gate.wait(20)
        for data in self.holds:
            if digest_of(data) in lacking:
                give = stored_layer(supply.store, data) if self.stores else memory_layer(data)
                supply.give_layer(give)
        for image in self.images:
            if image.config_digest in {one.config_digest for one in images}:
                supply.give_image(image)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 10**9)


@pytest.fixture
def beside() -> Iterator[Callable[..., Future[Layer]]]:
    """Ask for something in another thread, which knows the run it belongs to."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda work, *given: pool.submit(copy_context().run, work, *given)


def waiting(supply: Supply) -> bool:
    """Whether somebody waits by now."""
    with supply._changed:
        return bool(supply._changed._waiters)  # type: ignore[attr-defined]


def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    pause = threading.Event()
    for _ in range(4000):
        if true():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come to pass")


def test_who_asks_waits_until_it_is_handed_in(
    store: Store, beside: Callable[..., Future[Layer]]
) -> None:
    source = Source()
    source.gate.clear()
    with Supply(store, source) as supply:
        supply.start([[APP]], APP.diff_ids)
        asked = [beside(supply.layer, APP, diff_id) for diff_id in APP.diff_ids]
        until(lambda: waiting(supply))
        supply.give_layer(memory_layer(BASE))
        assert asked[0].result(20) == memory_layer(BASE)
        assert not asked[1].done()
        supply.give_layer(memory_layer(TOP))
        assert asked[1].result(20) == memory_layer(TOP)
        source.gate.set()


def test_the_first_layer_is_there_before_the_last_was_fetched(store: Store) -> None:
    """Sending begins while fetching goes on."""
    taken = threading.Event()

    def fetch(images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply) -> None:
        supply.give_layer(memory_layer(BASE))
        assert taken.wait(20)
        supply.give_layer(memory_layer(TOP))

    with Supply(store, fetch) as supply:
        supply.start([[APP]], APP.diff_ids)
        assert supply.layer(APP, APP.diff_ids[0]) == memory_layer(BASE)
        taken.set()
        assert supply.layer(APP, APP.diff_ids[1]) == memory_layer(TOP)


def test_what_the_store_has_is_not_fetched(store: Store) -> None:
    source = Source()
    kept = stored_layer(store, BASE)
    store.record_image(APP.image_id, APP_STORED.config, APP.diff_ids, ("app:1",))
    with Supply(store, source) as supply:
        assert supply.layer(APP, kept.diff_id) == kept
        assert supply.image(APP) == APP_STORED
        assert supply.has(APP, [kept.diff_id])
        assert not supply.has(APP, APP.diff_ids)
        assert supply.has(APP, [digest_of(OTHER)])
        assert not supply.has(DB, [])
    assert source.asked == []


def test_what_was_not_planned_is_fetched_when_it_is_asked_for_and_once(
    store: Store, beside: Callable[..., Future[Layer]]
) -> None:
    """As the base that a host has lost meanwhile."""
    source = Source(BASE, TOP)
    source.gate.clear()
    with Supply(store, source) as supply:
        asked = [beside(supply.layer, APP, diff_id) for diff_id in APP.diff_ids * 3]
        until(lambda: len(source.asked) == 1)
        source.gate.set()
        assert {one.result(20).diff_id for one in asked} == set(APP.diff_ids)
        assert supply.image(APP) == APP_STORED
    assert source.asked == [(["app:1"], set(APP.diff_ids))]


def test_a_layer_of_several_groups_is_fetched_with_the_first(store: Store) -> None:
    source = Source(BASE, TOP, OTHER)
    with Supply(store, source) as supply:
        supply.start([[APP], [DB]], [*APP.diff_ids, *DB.diff_ids])
        supply.layer(APP, digest_of(TOP))
        supply.layer(DB, digest_of(OTHER))
    assert {names[0]: digest_of(BASE) in lacking for names, lacking in source.asked} == {
        "app:1": True,
        "db:1": False,
    }


def test_what_was_not_among_the_lacking_is_fetched_in_a_second_round(store: Store) -> None:
    source = Source(BASE, TOP)
    with Supply(store, source) as supply:
        supply.start([[APP, DB]], [digest_of(TOP)])
        assert supply.layer(APP, digest_of(TOP)) == memory_layer(TOP)
        assert supply.layer(APP, digest_of(BASE)) == memory_layer(BASE)
    assert source.asked == [
        (["app:1", "db:1"], {digest_of(TOP)}),
        (["app:1"], set(APP.diff_ids)),
    ]


def test_a_failure_reaches_everybody_who_waits_for_that_image_and_nobody_else(
    store: Store, beside: Callable[..., Future[Layer]]
) -> None:
    failing, gate = CommandFailed("the engine broke down", "engine"), threading.Event()

    def fetch(images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply) -> None:
        assert gate.wait(20)
        if images == [APP]:
            raise failing
        supply.give_layer(memory_layer(OTHER))

    with Supply(store, fetch) as supply:
        supply.start([[APP], [DB]], [*APP.diff_ids, *DB.diff_ids])
        asked = [beside(supply.layer, APP, diff_id) for diff_id in APP.diff_ids]
        other = beside(supply.layer, DB, digest_of(OTHER))
        gate.set()
        assert [one.exception(20) for one in asked] == [failing, failing]
        assert other.result(20) == memory_layer(OTHER)


def test_what_was_handed_in_before_a_failure_stays(store: Store) -> None:
    source = Source(BASE)
    source.failure = CommandFailed("the engine broke down", "engine")
    with Supply(store, source) as supply:
        supply.start([[APP]], APP.diff_ids)
        assert supply.layer(APP, digest_of(BASE)) == memory_layer(BASE)
        with pytest.raises(CommandFailed):
            supply.layer(APP, digest_of(TOP))


def test_a_source_that_does_not_give_what_it_should_is_no_endless_wait(store: Store) -> None:
    source = Source(BASE)
    with Supply(store, source) as supply:
        with pytest.raises(Damaged, match="did not give the layer") as failed:
            supply.layer(APP, digest_of(TOP))
        assert failed.value.where == "image 'app:1'"
        source.images = []
        with pytest.raises(Damaged, match="did not give its configuration"):
            supply.image(DB)
    assert len(source.asked) <= 4


def test_a_source_that_hands_in_all_at_the_beginning_has_no_more(store: Store) -> None:
    with Supply(store) as supply:
        supply.give_layer(memory_layer(BASE))
        supply.give_image(APP_STORED)
        assert supply.layer(APP, digest_of(BASE)) == memory_layer(BASE)
        with pytest.raises(NotFound, match="does not hold all of it"):
            supply.layer(APP, digest_of(TOP))


def test_waiting_ends_when_the_run_is_cancelled(
    store: Store, beside: Callable[..., Future[Layer]]
) -> None:
    cancellation = Cancellation()

    def fetch(images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply) -> None:
        current_cancellation().pause(20, "engine")

    with cancellation_scope(cancellation), Supply(store, fetch) as supply:
        asked = beside(supply.layer, APP, digest_of(BASE))
        until(lambda: waiting(supply))
        cancellation.cancel()
        assert isinstance(asked.exception(20), Cancelled)


def test_a_run_that_fails_does_not_wait_for_what_is_still_being_fetched(store: Store) -> None:
    stopped = threading.Event()

    def fetch(images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply) -> None:
        try:
            current_cancellation().pause(60, "engine")
        finally:
            stopped.set()

    def run() -> None:
        with cancellation_scope(Cancellation()), Supply(store, fetch) as supply:
            supply.start([[APP]], APP.diff_ids)
            raise KeyError("defect")

    with pytest.raises(KeyError):
        run()
    assert stopped.is_set()


def test_no_more_than_two_fetches_are_at_work(store: Store) -> None:
    running: list[str] = []
    most: list[int] = []
    lock = threading.Lock()
    two = threading.Barrier(2, timeout=20)  # passed by two at once only

    def fetch(images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply) -> None:
        with lock:
            running.append(images[0].name)
            most.append(len(running))
        two.wait()
        with lock:
            running.remove(images[0].name)

    images = [replace(APP, name=f"app:{n}", image_id=f"sha256:{n}") for n in range(6)]
    with Supply(store, fetch) as supply:
        supply.start([[image] for image in images], APP.diff_ids)
        until(lambda: len(most) == 6)
    assert max(most) == 2


def test_a_damaged_layer_is_discarded_and_fetched_again(store: Store) -> None:
    source = Source(BASE, TOP)
    source.stores = True
    with Supply(store, source) as supply:
        supply.start([[APP]], APP.diff_ids)
        layer = supply.layer(APP, digest_of(BASE))
        path = store.folder / "blobs/sha256" / layer.blob.hex
        path.write_bytes(b"x" + BASE[1:])
        supply.damaged(layer)
        assert not path.exists()
        again = supply.layer(APP, digest_of(BASE))
        assert b"".join(again.here.content.chunks()) == BASE
    assert len(source.asked) == 2


def test_of_a_layer_whose_packed_form_is_damaged_the_other_one_serves(store: Store) -> None:
    source = Source()
    layer = stored_layer(store, BASE)
    packed = store.compressed(layer, "gzip")
    with Supply(store, source) as supply:
        supply.damaged(packed)
        assert supply.layer(APP, layer.diff_id) == layer
        assert store.layer(layer.diff_id, "gzip") is None
    assert source.asked == []


def test_what_is_handed_out_is_not_evicted_before_the_run_ends(tmp_path: Path) -> None:
    kept = Store(tmp_path / "store", 10**9)
    digest = stored_layer(kept, BASE).blob.digest
    del kept
    path = tmp_path / "store/blobs/sha256" / digest.removeprefix("sha256:")
    other = Store(tmp_path / "store", 10**9)
    other.limit = 1
    with Supply(Store(tmp_path / "store", 10**9)) as supply:
        supply.layer(APP, digest)
        other.trim()
        assert path.exists()
    del supply
    other.trim()
    assert not path.exists()


def test_the_same_layer_handed_in_twice_is_the_first_one(store: Store) -> None:
    with Supply(store) as supply:
        first = memory_layer(BASE)
        supply.give_layer(first)
        supply.give_layer(replace(first, compression="gzip"))
        assert supply.layer(APP, first.diff_id) is first


def test_of_an_image_whose_engine_names_no_configuration_name_and_layers_decide(
    store: Store,
) -> None:
    """An engine with a containerd store calls images by their manifests."""
    nameless = replace(APP, config_digest="", image_id="sha256:" + "e" * 64)
    twin = replace(nameless, name="app:2", image_id="sha256:" + "f" * 64)
    second = replace(APP_STORED, config=b"{}", config_digest="sha256:other", names=("app:2",))
    with Supply(store) as supply:
        supply.give_image(second)
        supply.give_image(APP_STORED)
        assert supply.image(nameless) is APP_STORED
        assert supply.image(twin) is second
