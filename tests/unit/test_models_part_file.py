"""What a part remembers over runs, kills and power cuts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.models import part_file
from tasks.models.part_file import BLOCK, PartFile, bytes_there, map_path

SIZE = 5 * BLOCK + 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "part"


def fill(part: PartFile, start: int, stop: int, letter: bytes = b"x") -> None:
    part.write(start, letter * (stop - start))
    part.mark(start, stop)


def boot_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    monkeypatch.setattr(part_file, "_BOOT_ID", other)


def test_a_new_part_lacks_everything(path: Path) -> None:
    with PartFile(path, SIZE) as part:
        assert part.missing() == [(0, SIZE)]
        assert part.count == 0


def test_what_was_marked_is_there_in_the_next_run(path: Path) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, BLOCK, 3 * BLOCK)
        fill(part, 5 * BLOCK, SIZE)
    with PartFile(path, SIZE) as part:
        assert part.missing() == [(0, BLOCK), (3 * BLOCK, 5 * BLOCK)]
        assert part.read(BLOCK, 4) == b"xxxx"
    assert bytes_there(path, SIZE) == 2 * BLOCK + BLOCK  # the last block counts as a whole one


def test_a_block_counts_only_when_all_of_it_was_written(path: Path) -> None:
    with PartFile(path, SIZE) as part:
        part.write(0, b"y" * (BLOCK + 10))
        assert part.mark(0, BLOCK + 10) == BLOCK
        assert part.mark(BLOCK, BLOCK + 10) == BLOCK
        assert part.missing() == [(BLOCK, SIZE)]


def test_a_part_of_another_size_is_forgotten(path: Path) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, 0, BLOCK)
    assert bytes_there(path, SIZE + 1) == 0
    with PartFile(path, SIZE + 1) as part:
        assert part.missing() == [(0, SIZE + 1)]


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\xff" * 300])
def test_a_damaged_map_is_forgotten(path: Path, damage: bytes) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, 0, BLOCK)
    map_path(path).write_bytes(damage)
    with PartFile(path, SIZE) as part:
        assert part.missing() == [(0, SIZE)]


def test_a_file_that_was_cut_is_forgotten(path: Path) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, 0, BLOCK)
    with path.open("r+b") as file:
        file.truncate(10)
    assert bytes_there(path, SIZE) == 0
    with PartFile(path, SIZE) as part:
        assert part.count == 0


def test_after_a_power_cut_only_what_was_on_the_disk_counts(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, 0, 2 * BLOCK)
        part.settle()
        fill(part, 2 * BLOCK, 4 * BLOCK)
    boot_again(monkeypatch, tmp_path)
    assert bytes_there(path, SIZE) == 2 * BLOCK
    with PartFile(path, SIZE) as part:
        assert part.missing() == [(2 * BLOCK, SIZE)]


def test_the_end_without_a_gap_grows_when_a_gap_closes(path: Path) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, BLOCK, 2 * BLOCK)
        assert part.wait_beyond(0, 0) == 0
        fill(part, 0, BLOCK)
        assert part.wait_beyond(0, 0) == 2 * BLOCK
        fill(part, 2 * BLOCK, SIZE)
        assert part.wait_beyond(0, 0) == SIZE


def test_the_end_without_a_gap_is_known_in_the_next_run(path: Path) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, 0, 2 * BLOCK)
    with PartFile(path, SIZE) as part:
        assert part.wait_beyond(0, 0) == 2 * BLOCK


def test_a_whole_file_gets_its_name_and_its_map_goes(path: Path, tmp_path: Path) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, 0, SIZE)
        part.become(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == b"x" * SIZE
    assert sorted(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]


def test_cleared_is_as_new(path: Path) -> None:
    with PartFile(path, SIZE) as part:
        fill(part, 0, SIZE)
        part.clear()
        assert part.missing() == [(0, SIZE)]
        assert part.wait_beyond(0, 0) == 0
    assert bytes_there(path, SIZE) == 0
