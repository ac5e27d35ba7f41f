"""Where a run's layers come from: what is fetched, and what is only handed on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CommandFailed, CrossgapError
from tasks.images import sources as module
from tasks.images.archive import read_archive
from tasks.images.blobs import Descriptor, Layer
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.layout import chain_ids, digest_of
from tasks.images.names import Reference
from tasks.images.plan import Shipment, plan_shipment
from tasks.images.registry.documents import ResolvedImage
from tasks.images.registry.registries import Registry, RegistryAccess
from tasks.images.sources import (
    ArchiveSource,
    EngineSource,
    RegistrySource,
    known_forms,
    save_groups,
)
from tasks.images.split import split_archive
from tasks.images.store import Store, StoredImage
from tasks.images.supply import Supply
from tests.lab.archives import ImageSpec, write_archive
from tests.lab.layers import LayerSpec
from tests.unit.images_doubles import config_of, host_facts, image_of, stored_layer

BASE, TOP, OTHER = b"base" * 300, b"top" * 300, b"other" * 300
DATA = {digest_of(data): data for data in (BASE, TOP, OTHER)}
APP, DB = image_of("app:1", BASE, TOP), image_of("db:1", BASE, OTHER)
CONFIGS = {APP.config_digest: config_of(BASE, TOP), DB.config_digest: config_of(BASE, OTHER)}


class Steps:
    """Stands for the tasks that get layers."""

    def __init__(self) -> None:
        self.saved: list[tuple[list[str], set[str]]] = []
        self.fetched: list[tuple[list[str], set[str]]] = []
        self.resolved: list[str] = []
        self.unpacked: list[str] = []
        self.failure: CrossgapError | None = None

    def save_images(
        self, images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply
    ) -> None:
        self.saved.append(([image.name for image in images], set(lacking)))
        if self.failure:
            raise self.failure
        for image in images:
            for diff_id in image.diff_ids:
                if diff_id in lacking:
                    supply.give_layer(stored_layer(supply.store, DATA[diff_id]))
            stored = StoredImage(
                CONFIGS[image.config_digest], image.config_digest, image.diff_ids, (image.name,)
            )
            supply.give_image(stored)

    def resolve_images(
        self, registry: Registry, references: Sequence[Reference], architecture: str
    ) -> tuple[ResolvedImage, ...]:
        self.resolved.append(architecture)
        return tuple(resolved(reference, architecture) for reference in references)

    def fetch_images(
        self,
        images: Sequence[ResolvedImage],
        lacking: Collection[str],
        registry: Registry,
        supply: Supply,
    ) -> None:
        self.fetched.append(([image.name for image in images], set(lacking)))
        for image in images:
            supply.give_image(StoredImage(image.config, image.config_digest, image.diff_ids))
            for diff_id in image.diff_ids:
                supply.give_layer(stored_layer(supply.store, DATA[diff_id]))

    def unpack_archive(self, archive: Any, supply: Supply) -> None:
        self.unpacked.append(archive.path.name)
        split_archive(
            supply.store, archive.path, on_layer=supply.give_layer, on_image=supply.give_image
        )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(module, "steps", steps)
    return steps


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 10**9)


def shipment(*hosts: HostFacts, forms: Mapping[str, Sequence[Layer]] | None = None) -> Shipment:
    return plan_shipment(hosts, forms)


# The source engine


def test_only_what_some_host_lacks_is_saved(steps: Steps, store: Store) -> None:
    has_base = dict.fromkeys(chain_ids([digest_of(BASE)]), 0)
    plan = shipment(host_facts(APP, DB, images={"db:1": DB}, layers=has_base))
    with EngineSource([APP, DB], store).supply(plan) as supply:
        assert b"".join(supply.layer(APP, digest_of(TOP)).here.content.chunks()) == TOP
        assert supply.image(APP).config == CONFIGS[APP.config_digest]
    assert steps.saved == [(["app:1"], {digest_of(TOP)})]


def test_what_is_in_the_store_is_not_saved_again(steps: Steps, store: Store) -> None:
    stored_layer(store, TOP)
    store.record_image(APP.image_id, CONFIGS[APP.config_digest], APP.diff_ids, ("app:1",))
    has_base = dict.fromkeys(chain_ids([digest_of(BASE)]), 0)
    with EngineSource([APP], store).supply(shipment(host_facts(APP, layers=has_base))) as supply:
        assert supply.layer(APP, digest_of(TOP)).diff_id == digest_of(TOP)
        assert steps.saved == []
        # A host that has lost its base meanwhile needs the rest after all.
        assert supply.layer(APP, digest_of(BASE)).diff_id == digest_of(BASE)
    assert steps.saved == [(["app:1"], set(APP.diff_ids))]


def test_nothing_is_saved_when_every_host_has_everything(steps: Steps, store: Store) -> None:
    plan = shipment(host_facts(APP, images={"app:1": APP}))
    with EngineSource([APP], store).supply(plan):
        pass
    assert steps.saved == []


def test_an_engine_that_cannot_save_is_told_to_whoever_asks(steps: Steps, store: Store) -> None:
    steps.failure = CommandFailed("Docker could not save the images", "engine")
    with (
        EngineSource([APP], store).supply(shipment(host_facts(APP))) as supply,
        pytest.raises(CommandFailed, match="could not save"),
    ):
        supply.layer(APP, digest_of(TOP))


def named(name: str, *layers: str, size: int) -> ImageFacts:
    return ImageFacts(name, f"sha256:{name}", "", layers, "amd64", size=size)


def test_the_image_that_brings_the_shared_base_is_saved_beside_the_rest() -> None:
    large, small = named("large:1", "base", "l", size=90), named("small:1", "base", size=10)
    other = named("other:1", "o", size=1)
    assert save_groups([large, other, small]) == [[small], [large, other]]
    assert save_groups([large, small]) == [[small, large]]
    assert save_groups([large]) == [[large]]
    assert save_groups([]) == []


def test_every_form_that_the_store_has_is_known(store: Store) -> None:
    layer = stored_layer(store, BASE)
    packed = store.compressed(layer, "gzip")
    assert known_forms(store, [APP]) == {layer.diff_id: [layer, packed], digest_of(TOP): []}
    assert EngineSource([APP], store).forms() == known_forms(store, [APP])


# Archives


def archive_at(folder: Path, *, compressed: bool = False) -> Any:
    specs = [
        ImageSpec("app:1", [LayerSpec({"a": 5000}, seed=1), LayerSpec({"b": 700})], busybox=False),
        ImageSpec("db:1", [LayerSpec({"c": 900}, seed=2)], busybox=False),
    ]
    path = folder / ("images.tar.gz" if compressed else "images.tar")
    write_archive(path, specs, compress="gzip" if compressed else None)
    return read_archive(path)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_layers_of_an_archive_are_handed_on(
    steps: Steps, store: Store, tmp_path: Path, compressed: bool
) -> None:
    archive = archive_at(tmp_path, compressed=compressed)
    app, _ = archive.images
    source = ArchiveSource([app], [archive], store)
    with source.supply(shipment(host_facts(*source.wanted_on("amd64")))) as supply:
        for diff_id in app.diff_ids:
            layer = supply.layer(app, diff_id)
            assert digest_of(b"".join(layer.here.content.chunks())) == diff_id
        assert supply.image(app).config_digest == app.config_digest
    # A plain archive needs no copy.
    assert bool(list((store.folder / "blobs/sha256").iterdir())) is compressed
    assert steps.unpacked == (["images.tar.gz"] if compressed else [])


def test_an_archive_of_which_nothing_is_lacking_is_not_unpacked(
    steps: Steps, store: Store, tmp_path: Path
) -> None:
    archive = archive_at(tmp_path, compressed=True)
    there = {image.name: image for image in archive.images}
    source = ArchiveSource(archive.images, [archive], store)
    with source.supply(shipment(host_facts(*archive.images, images=there))):
        pass
    assert steps.unpacked == []


# Registries


def packed(diff_id: str, architecture: str) -> str:
    """Return the digest that a layer has there: who builds for two packs it twice."""
    return digest_of(f"{architecture} {diff_id}".encode())


def resolved(reference: Reference, architecture: str) -> ResolvedImage:
    """What a registry says of one of the two images; its layers are packed there."""
    image = APP if reference.familiar == "app:1" else DB
    layers = tuple(
        Layer(diff_id, "gzip", Descriptor(packed(diff_id, architecture), len(DATA[diff_id]) // 2))
        for diff_id in image.diff_ids
    )
    return ResolvedImage(
        reference,
        config=CONFIGS[image.config_digest],
        layers=layers,
        digest=digest_of(architecture.encode()),
    )


@pytest.fixture
def registry() -> Registry:
    return Registry(RegistryAccess())


def test_images_are_looked_up_once_per_architecture(
    steps: Steps, store: Store, registry: Registry
) -> None:
    with RegistrySource(["app:1", "db:1"], registry, store) as source:
        first = source.wanted_on("amd64")
        assert [image.name for image in first] == ["app:1", "db:1"]
        assert [image.diff_ids for image in first] == [APP.diff_ids, DB.diff_ids]
        assert source.wanted_on("amd64") == first
        source.wanted_on("arm64")
        source.wanted_on("amd64")
    assert steps.resolved == ["amd64", "arm64"]


def test_a_containerd_store_is_asked_for_the_blobs_as_the_registry_has_them(
    steps: Steps, store: Store, registry: Registry
) -> None:
    with RegistrySource(["app:1"], registry, store) as source:
        wanted = source.wanted_on("amd64")
        source.wanted_on("arm64")
        blobs = {packed(digest_of(BASE), "amd64"): 600}
        facts = replace(host_facts(*wanted), store="containerd", layers=blobs)
        plan = shipment(facts, forms=source.forms())
    assert plan.missing == {digest_of(TOP)}


def test_only_what_is_lacking_is_fetched_and_in_one_go(
    steps: Steps, store: Store, registry: Registry
) -> None:
    with RegistrySource(["app:1", "db:1"], registry, store) as source:
        wanted = source.wanted_on("amd64")
        has_base = dict.fromkeys(chain_ids([digest_of(BASE)]), 0)
        with source.supply(shipment(host_facts(*wanted, layers=has_base))) as supply:
            assert supply.layer(wanted[1], digest_of(OTHER)).diff_id == digest_of(OTHER)
            assert supply.image(wanted[0]).config == CONFIGS[APP.config_digest]
    assert steps.fetched == [(["app:1", "db:1"], {digest_of(TOP), digest_of(OTHER)})]


def test_nothing_is_fetched_when_every_host_has_everything(
    steps: Steps, store: Store, registry: Registry
) -> None:
    with RegistrySource(["app:1"], registry, store) as source:
        (app,) = source.wanted_on("amd64")
        with source.supply(shipment(host_facts(app, images={"app:1": app}))):
            pass
    assert steps.fetched == []
