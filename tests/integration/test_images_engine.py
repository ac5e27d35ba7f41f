"""A real source engine: images read, pulled in vain, and what it saves read back."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.errors import Damaged, NotFound, SeveralFailures, Unreachable
from tasks.images.archive import read_archive
from tasks.images.engine import read_images
from tasks.images.facts import same_content
from tasks.images.pull import ensure_images
from tests.lab import ImageSpec, LayerSpec, MadeImage, make_images, remove_images

pytestmark = pytest.mark.integration

BASE = LayerSpec({"opt/base": 3_000_000}, seed=41)
SPECS = [
    ImageSpec("crossgap-source/app:1", [BASE, LayerSpec({"opt/app": 1_000_000}, seed=42)]),
    ImageSpec("crossgap-source/other:1", [BASE, LayerSpec({"opt/other": 500_000}, seed=43)]),
]
NAMES = [spec.name for spec in SPECS]


@pytest.fixture
def made(engine: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[MadeImage]]:
    """Two images with a shared base in the source engine, which `DOCKER_HOST` names."""
    monkeypatch.setenv("DOCKER_HOST", engine)
    yield make_images(engine, SPECS)
    remove_images(engine, NAMES)


def test_the_engine_tells_digests_layers_and_architecture(made: list[MadeImage]) -> None:
    for image, expected in zip(read_images(NAMES), made, strict=True):
        assert image.name == expected.name
        assert image.config_digest == expected.config_digest
        assert image.diff_ids == expected.diff_ids
        assert image.architecture
        assert len(image.layer_sizes) == len(image.diff_ids)
        assert image.size == sum(image.layer_sizes)


def test_a_missing_image_is_reported_with_the_tags_that_exist(made: list[MadeImage]) -> None:
    with pytest.raises(NotFound, match=r"It has crossgap-source/app:1"):
        read_images([*NAMES, "crossgap-source/app:2"])


def test_every_missing_image_is_reported(made: list[MadeImage]) -> None:
    with pytest.raises(SeveralFailures) as failed:
        read_images(["crossgap-source/app:2", NAMES[0], "crossgap-source/nothing:1"])
    assert "app:2" in str(failed.value)
    assert "nothing:1" in str(failed.value)


def test_an_image_that_is_there_is_not_pulled(made: list[MadeImage]) -> None:
    assert [image.name for image in ensure_images(NAMES, pull="missing")] == NAMES
    with pytest.raises(NotFound):
        ensure_images(["crossgap-source/app:2"], pull="never")


def test_a_pull_without_a_registry_says_that_the_image_is_missing_and_why_it_stays_so(
    made: list[MadeImage],
) -> None:
    name = "127.0.0.1:1/crossgap-source/app:2"
    with pytest.raises(Unreachable, match="no such image, and pulling it failed") as failed:
        ensure_images([name])
    assert "connection refused" in str(failed.value)
    with pytest.raises(Unreachable) as failed:
        ensure_images(["127.0.0.1:1/crossgap-source/app:1"], pull="always")
    assert "no such image" not in str(failed.value)


@pytest.fixture
def saved(made: list[MadeImage], engine: str, tmp_path: Path) -> Path:
    """Both images as `docker save` writes them."""
    path = tmp_path / "images.tar"
    command = ["docker", "--host", engine, "save", "--output", str(path), *NAMES]
    subprocess.run(command, check=True)
    return path


def test_what_the_engine_saved_is_read_back_as_what_it_has(
    made: list[MadeImage], saved: Path
) -> None:
    read = read_archive(saved)
    by_name = {image.name: image for image in read.images}
    assert all(same_content(by_name[image.name], image) for image in read_images(NAMES))
    # The shared base is in the archive once.
    assert read.size == saved.stat().st_size < 8_000_000


def test_a_saved_archive_that_was_gzipped_holds_the_same_images(saved: Path) -> None:
    zipped = saved.with_suffix(".gz")
    with saved.open("rb") as source, gzip.open(zipped, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target)
    assert read_archive(zipped).images == read_archive(saved).images


def test_one_flipped_byte_in_a_saved_archive_is_found(saved: Path) -> None:
    with saved.open("r+b") as file:
        file.seek(saved.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(Damaged):
        read_archive(saved)
