"""A real source engine: images read, pulled in vain, saved, and read back from the file."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.errors import Damaged, DiskFull, NotFound, SeveralFailures, Unreachable
from tasks.images.archive import read_archive
from tasks.images.engine import read_images
from tasks.images.facts import same_content
from tasks.images.pull import ensure_images
from tasks.images.source import save_images
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


def test_what_the_engine_saved_is_read_back_as_what_it_has(
    made: list[MadeImage], tmp_path: Path
) -> None:
    wanted = read_images(NAMES)
    saved = save_images(wanted, tmp_path)
    read = read_archive(saved.path)
    assert (read.size, read.sha256) == (saved.size, saved.sha256)
    by_name = {image.name: image for image in read.images}
    assert all(same_content(by_name[image.name], image) for image in wanted)
    # The shared base is in the archive once.
    assert saved.size < 8_000_000


def test_a_saved_archive_that_was_gzipped_holds_the_same_images(
    made: list[MadeImage], tmp_path: Path
) -> None:
    saved = save_images(read_images(NAMES), tmp_path)
    zipped = tmp_path / "images.tar.gz"
    with saved.path.open("rb") as source, gzip.open(zipped, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target)
    assert read_archive(zipped).images == read_archive(saved.path).images


def test_one_flipped_byte_in_a_saved_archive_is_found(
    made: list[MadeImage], tmp_path: Path
) -> None:
    saved = save_images(read_images(NAMES[:1]), tmp_path)
    with saved.path.open("r+b") as file:
        file.seek(saved.size // 2)
        byte = file.read(1)
        file.seek(saved.size // 2)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Damaged):
        read_archive(saved.path)


def test_an_image_that_was_built_anew_is_saved_anew(
    engine: str, made: list[MadeImage], tmp_path: Path
) -> None:
    first = save_images(read_images(NAMES[:1]), tmp_path)
    make_images(engine, [ImageSpec(NAMES[0], [BASE])])
    second = save_images(read_images(NAMES[:1]), tmp_path)
    assert first.path != second.path
    assert first.sha256 != second.sha256


def test_an_image_removed_between_plan_and_save_is_reported(
    engine: str, made: list[MadeImage], tmp_path: Path
) -> None:
    wanted = read_images(NAMES)
    remove_images(engine, NAMES[:1])
    with pytest.raises(NotFound, match="removed meanwhile"):
        save_images(wanted, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_saving_is_told_and_left_empty(
    made: list[MadeImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = read_images(NAMES)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", tmp_path], check=True)
    try:
        with pytest.raises(DiskFull, match="are needed"):
            save_images(wanted, tmp_path)
        monkeypatch.setattr("tasks.images.source._check_room", lambda *_: None)
        with pytest.raises(DiskFull, match="became full while writing"):
            save_images(wanted, tmp_path)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
