"""Layers read where a real engine keeps them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from blocks.errors import DiskFull
from tasks.images.blobs import Layer
from tasks.images.engine import read_images
from tasks.images.engine_files import SWITCH, EngineFiles, take
from tasks.images.facts import ImageFacts
from tasks.images.layout import chain_ids
from tasks.images.store import Store, StoredImage
from tests.lab import (
    OPAQUE,
    File,
    HardLink,
    ImageSpec,
    LayerSpec,
    MadeImage,
    Symlink,
    make_images,
    remove_images,
    whiteout,
)

pytestmark = pytest.mark.integration

BASE = LayerSpec({"opt/base": 3_000_000, "opt/数据/模型 一": 5000}, seed=81)
SPECS = [
    ImageSpec(
        "crossgap-files/app:1",
        [
            BASE,
            LayerSpec(
                {
                    "opt/app": 1_200_000,
                    "opt/again": HardLink("opt/app"),
                    "opt/lib": Symlink("/etc"),
                    "srv/set": File(b"x", 0o4755, {"user.说明": b"y"}),
                    "srv/gone": 10,
                    "var/hidden/one": 10,
                },
                seed=82,
            ),
            LayerSpec(
                {"opt/last": 1, whiteout("srv/gone"): b"", f"var/hidden/{OPAQUE}": b""}, seed=83
            ),
        ],
    ),
    ImageSpec("crossgap-files/odd:1", [LayerSpec({}), BASE, LayerSpec({})]),
    ImageSpec("crossgap-files/many:1", [LayerSpec({f"opt/{n}": 2000}, seed=n) for n in range(60)]),
]
NAMES = [spec.name for spec in SPECS]


@pytest.fixture(scope="module")
def made(engine: str) -> Iterator[list[MadeImage]]:
    yield make_images(engine, SPECS)
    remove_images(engine, NAMES)


@pytest.fixture
def wanted(
    engine: str, made: list[MadeImage], monkeypatch: pytest.MonkeyPatch
) -> tuple[ImageFacts, ...]:
    monkeypatch.setenv("DOCKER_HOST", engine)
    return read_images(NAMES)


@pytest.fixture
def files(wanted: tuple[ImageFacts, ...]) -> EngineFiles:
    found = EngineFiles.of_source_engine()
    assert found is not None
    return found


@dataclass
class Given:
    """A store, and what was handed over."""

    store: Store
    layers: list[Layer] = field(default_factory=list)
    images: list[StoredImage] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)

    def take(self, files: EngineFiles, images: tuple[ImageFacts, ...], wanted: set[str]) -> bool:
        return take(
            files,
            self.store,
            images,
            wanted=wanted,
            on_layer=self.layers.append,
            on_image=self.images.append,
            progress=lambda done, total: self.progress.append((done, total)),
        )


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(Store(tmp_path / "store", 10**12))


def all_of(images: tuple[ImageFacts, ...]) -> set[str]:
    return {diff_id for image in images for diff_id in image.diff_ids}


def copied(files: EngineFiles, image: ImageFacts, folder: Path) -> tuple[EngineFiles, Path]:
    """Copy an engine's files of an image to where they may be damaged."""
    root = files._contents.parent
    config = Path("image/overlay2/imagedb/content/sha256") / image.image_id.removeprefix("sha256:")
    (folder / config).parent.mkdir(parents=True)
    shutil.copy(root / config, folder / config)
    contents = folder
    for chain in chain_ids(image.diff_ids):
        place = Path("image/overlay2/layerdb/sha256") / chain.removeprefix("sha256:")
        shutil.copytree(root / place, folder / place)
        contents = folder / "overlay2" / (folder / place / "cache-id").read_text()
        subprocess.run(
            ["cp", "-a", "--parents", f"overlay2/{contents.name}/diff", folder],
            cwd=root,
            check=True,
        )
    return EngineFiles(folder), contents / "diff"


def test_every_layer_is_the_same_to_the_byte(
    files: EngineFiles, wanted: tuple[ImageFacts, ...], made: list[MadeImage], given: Given
) -> None:
    assert given.take(files, wanted, all_of(wanted))

    assert {layer.diff_id for layer in given.layers} == all_of(wanted)
    assert len(given.layers) == len(all_of(wanted))
    for layer in given.layers:
        assert layer.compression == "none"
        content = b"".join(given.store.read(layer.here))
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer.diff_id
    assert [image.config_digest for image in given.images] == [one.config_digest for one in made]
    assert [image.names for image in given.images] == [(name,) for name in NAMES]
    dones = [done for done, _ in given.progress]
    assert dones == sorted(dones)
    assert dones[-1] == given.progress[-1][1]


def test_only_what_is_wanted_is_read_and_what_is_here_is_announced(
    files: EngineFiles, wanted: tuple[ImageFacts, ...], given: Given
) -> None:
    top = wanted[0].diff_ids[-1]
    assert given.take(files, wanted[:1], {top})
    assert given.progress[-1][0] < 20_000
    given.progress.clear()

    assert given.take(files, wanted[:1], {top})

    assert [layer.diff_id for layer in given.layers] == [top, top]
    assert given.progress == []


def test_an_image_that_is_gone_is_left_to_the_engine(
    files: EngineFiles, wanted: tuple[ImageFacts, ...], given: Given
) -> None:
    gone = replace(wanted[0], image_id="sha256:" + "0" * 64)
    assert not given.take(files, (gone,), all_of(wanted[:1]))
    assert given.layers == []


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "pipe", "link", "record", "config"])
def test_files_that_are_not_what_they_were_are_never_taken(
    files: EngineFiles,
    wanted: tuple[ImageFacts, ...],
    given: Given,
    tmp_path: Path,
    damage: str,
) -> None:
    one, content = copied(files, wanted[0], tmp_path / "root")
    last = content / "opt/last"
    secret = tmp_path / "opt"
    secret.mkdir()
    shutil.copy(last, secret / "last")
    if damage == "changed":
        last.write_bytes(bytes([last.read_bytes()[0] ^ 1]))
    elif damage == "cut":
        last.write_bytes(b"")
    elif damage == "record":
        record = next((tmp_path / "root").rglob("tar-split.json.gz"))
        record.write_bytes(record.read_bytes()[:40])
    elif damage == "config":
        config = next((tmp_path / "root").rglob("imagedb/content/sha256/*"))
        config.write_bytes(config.read_bytes() + b" ")
    elif damage == "link":  # Out of the layer, to a file with just the right bytes.
        shutil.rmtree(content / "opt")
        (content / "opt").symlink_to(secret)
    else:
        last.unlink()
        if damage == "pipe":
            os.mkfifo(last)

    taken = given.take(one, wanted[:1], all_of(wanted[:1]))

    assert not taken
    assert len(given.layers) < len(wanted[0].diff_ids)
    assert not list((given.store.folder / "partial").iterdir())


def test_a_full_disk_here_is_not_mended_by_asking_the_engine(
    files: EngineFiles, wanted: tuple[ImageFacts, ...], given: Given
) -> None:
    huge = replace(wanted[0], layer_sizes=(1 << 60,) * len(wanted[0].diff_ids))
    with pytest.raises(DiskFull, match="CROSSGAP_STORE"):
        given.take(files, (huge,), all_of(wanted[:1]))


def test_they_are_left_alone_when_that_is_wished(
    wanted: tuple[ImageFacts, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "no")
    assert EngineFiles.of_source_engine() is None
