"""What a real engine saves, taken apart into the store while it is being saved."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.errors import Conflict, DiskFull, NotFound
from tasks.images.blobs import Blob, Layer
from tasks.images.engine import read_images
from tasks.images.facts import ImageFacts
from tasks.images.split import save_into
from tasks.images.store import Store, StoredImage
from tests.lab import ImageSpec, LayerSpec, MadeImage, make_images, remove_images

pytestmark = pytest.mark.integration

BASE = LayerSpec({"opt/base": 3_000_000}, seed=51)
TWICE = LayerSpec({"opt/twice": 1000}, seed=52)
SPECS = [
    ImageSpec("crossgap-split/app:1", [BASE, LayerSpec({"opt/app": 1_000_000}, seed=53)]),
    # The base is the uppermost layer here: old archives have it a second time, as a link.
    ImageSpec("crossgap-split/base:1", [BASE], labels={"说明": '<b> & "c"'}),
    ImageSpec("crossgap-split/odd:1", [TWICE, LayerSpec({}), BASE, TWICE, LayerSpec({})]),
    ImageSpec("crossgap-split/many:1", [LayerSpec({f"opt/{n}": 2000}, seed=n) for n in range(60)]),
]
NAMES = [spec.name for spec in SPECS]


@pytest.fixture(scope="module")
def made(engine: str) -> Iterator[list[MadeImage]]:
    """Images with a shared base, an empty layer, a layer twice, and many layers."""
    yield make_images(engine, SPECS)
    remove_images(engine, NAMES)


@pytest.fixture
def wanted(
    engine: str, made: list[MadeImage], monkeypatch: pytest.MonkeyPatch
) -> tuple[ImageFacts, ...]:
    """The images in the source engine, which `DOCKER_HOST` names."""
    monkeypatch.setenv("DOCKER_HOST", engine)
    return read_images(NAMES)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 10**12)


class Given:
    """Saves images and notes what was handed over."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.layers: list[Layer] = []
        self.images: list[StoredImage] = []

    def save(self, images: tuple[ImageFacts, ...], lacking: set[str] | None = None) -> list[str]:
        self.layers.clear()
        self.images.clear()
        save_into(
            self.store,
            images,
            on_layer=self.layers.append,
            on_image=self.images.append,
            wanted=lacking,
        )
        return [layer.diff_id for layer in self.layers]


@pytest.fixture
def given(store: Store) -> Given:
    return Given(store)


def blobs(store: Store) -> set[str]:
    return {f"sha256:{path.name}" for path in (store.folder / "blobs/sha256").iterdir()}


def test_every_layer_and_configuration_arrives_whole(
    wanted: tuple[ImageFacts, ...], made: list[MadeImage], given: Given
) -> None:
    announced = given.save(wanted)
    diff_ids = {diff_id for image in made for diff_id in image.diff_ids}
    assert set(announced) == diff_ids == blobs(given.store)
    assert len(announced) == len(diff_ids)
    for layer in given.layers:
        assert isinstance(layer.blob, Blob)
        for _ in given.store.read(layer.blob):
            pass  # proves it
    for facts, image in zip(wanted, made, strict=True):
        stored = given.store.image(facts.image_id)
        assert stored is not None
        assert (stored.config_digest, stored.diff_ids) == (image.config_digest, image.diff_ids)
        assert facts.name in stored.names


def test_only_what_is_wanted_is_written(
    wanted: tuple[ImageFacts, ...], made: list[MadeImage], given: Given
) -> None:
    app, base, _, many = made
    lacking = {app.diff_ids[-1], many.diff_ids[7]}
    assert set(given.save(wanted, lacking)) == lacking
    assert blobs(given.store) == lacking
    # The base is the uppermost layer of one image and below another.
    assert set(given.save(wanted[:2], {base.diff_ids[-1]})) == {base.diff_ids[-1]}


def test_what_is_there_is_announced_and_not_written_again(
    wanted: tuple[ImageFacts, ...], given: Given
) -> None:
    first = given.save(wanted)
    folder = given.store.folder / "blobs/sha256"
    inodes = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert set(given.save(wanted)) == set(first)
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == inodes


def test_a_layer_that_was_damaged_here_is_saved_again(
    wanted: tuple[ImageFacts, ...], made: list[MadeImage], given: Given
) -> None:
    given.save(wanted[:1])
    damaged = made[0].diff_ids[1]
    given.store.discard(damaged)
    assert damaged in given.save(wanted[:1])
    assert given.store.layer(damaged) is not None


def test_an_image_that_was_built_anew_meanwhile_is_told(
    engine: str, wanted: tuple[ImageFacts, ...], given: Given
) -> None:
    with pytest.raises(Conflict, match="another image"):
        given.save((replace(wanted[0], config_digest="sha256:" + "0" * 64),))


def test_an_image_removed_between_plan_and_save_is_reported(
    wanted: tuple[ImageFacts, ...], given: Given
) -> None:
    gone = replace(wanted[0], name="crossgap-split/gone:1")
    with pytest.raises(NotFound, match="removed meanwhile"):
        given.save((wanted[1], gone))
    assert blobs(given.store) == set()


def test_a_disk_that_fills_while_saving_is_told_and_left_empty(
    wanted: tuple[ImageFacts, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", small], check=True)
    try:
        given = Given(Store(small, 10**12))
        with pytest.raises(DiskFull, match="are needed") as failed:
            given.save(wanted[1:2])
        assert "CROSSGAP_STORE" in failed.value.remedy
        monkeypatch.setattr(Store, "make_room", lambda *_: None)
        with pytest.raises(DiskFull, match="became full while writing"):
            given.save(wanted[1:2])
        assert list((small / "partial").iterdir()) == []
    finally:
        # Lazily: the store keeps its lock file open.
        subprocess.run(["umount", "--lazy", small], check=True)
