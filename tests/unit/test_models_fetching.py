"""Files from places that fail in every way, and what is there afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import (
    AuthenticationRefused,
    ConnectionLost,
    Damaged,
    DiskFull,
    SeveralFailures,
    Unreachable,
)
from tasks.models import connections
from tasks.models.fetching import SMALL, Terms, Wanted, fetch_files
from tasks.models.files import ModelFile
from tasks.models.part_file import BLOCK, PartFile
from tasks.models.tally import Tally
from tests.unit.models_doubles import MemoryPlace, large_file, small_file

BIG = os.urandom(SMALL + 3 * BLOCK + 7)
TEXT = '{"名": 1}'.encode()
LOST = ConnectionLost("the connection broke", "m from mirror")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call for help at once, and wait for nothing."""
    monkeypatch.setattr(connections, "_WARM_UP", 0.0)
    monkeypatch.setattr(connections, "_FAST", float("inf"))
    monkeypatch.setattr("tasks.transfer.turns._FIRST_WAIT", 0.0)


class Run:
    """One run of fetching in a folder."""

    def __init__(self, folder: Path, *places: MemoryPlace) -> None:
        self.folder = folder
        self.places = places
        self.found: dict[str, ModelFile] = {}
        self.tally = Tally(0, 0)

    def fetch(self, *files: ModelFile, terms: Terms | None = None) -> None:
        self.tally = Tally(sum(file.size for file in files), len(files))
        wanted = [
            Wanted(file, self.folder / file.path, self.folder / "parts" / file.key)
            for file in files
        ]
        fetch_files(wanted, self.places, terms or Terms(), self.tally, self._on_file)

    def _on_file(self, file: ModelFile, path: Path) -> None:
        assert path.stat().st_size == file.size
        self.found[file.path] = file

    def content(self, file: ModelFile) -> bytes:
        return (self.folder / file.path).read_bytes()

    def failures(self, *files: ModelFile) -> tuple[Any, ...]:
        with pytest.raises(SeveralFailures) as raised:
            self.fetch(*files)
        return raised.value.failures


def mirror(**options: Any) -> MemoryPlace:
    return MemoryPlace("mirror", {"big": BIG, "sub/text": TEXT, "空": b""}, **options)


BIG_FILE = large_file("big", BIG)
TEXT_FILE = small_file("sub/text", TEXT)


def test_files_arrive_whole_with_all_their_hashes(tmp_path: Path) -> None:
    run = Run(tmp_path, mirror())
    empty = small_file("空", b"")
    run.fetch(BIG_FILE, TEXT_FILE, empty)
    assert run.content(BIG_FILE) == BIG
    assert run.content(TEXT_FILE) == TEXT
    assert run.content(empty) == b""
    assert run.found["sub/text"].sha256 == hashlib.sha256(TEXT).hexdigest()
    assert run.found["big"] == BIG_FILE
    assert run.tally.fetched == len(BIG) + len(TEXT)
    assert run.tally.files_done == 3
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_large_file_comes_in_ranges_none_of_them_twice(tmp_path: Path) -> None:
    place = mirror()
    Run(tmp_path, place).fetch(BIG_FILE)
    ranges = sorted((start, stop) for _, start, stop in place.asked)
    assert len(ranges) > 1
    assert [start for start, _ in ranges[1:]] == [stop for _, stop in ranges[:-1]]


def test_a_run_goes_on_where_another_was_killed(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    with PartFile(parts / BIG_FILE.key, len(BIG)) as part:
        part.write(0, BIG[: 10 * BLOCK])
        part.mark(0, 10 * BLOCK)
    run = Run(tmp_path, mirror())
    run.fetch(BIG_FILE)
    assert run.content(BIG_FILE) == BIG
    assert run.tally.fetched == len(BIG) - 10 * BLOCK


def test_what_an_earlier_run_left_is_hashed_too(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    with PartFile(parts / BIG_FILE.key, len(BIG)) as part:
        part.write(0, b"?" * 10 * BLOCK)
        part.mark(0, 10 * BLOCK)
    run = Run(tmp_path, mirror())
    run.fetch(BIG_FILE)
    assert run.content(BIG_FILE) == BIG
    assert [retry.place for retry in run.tally.retries] == ["mirror"]


def test_a_connection_that_breaks_now_and_then_costs_nothing(tmp_path: Path) -> None:
    def breaks(number: int) -> tuple[int, Any] | None:
        return (BLOCK + 5, LOST) if number % 2 else None

    run = Run(tmp_path, mirror(breaks=breaks))
    run.fetch(BIG_FILE)
    assert run.content(BIG_FILE) == BIG
    assert run.tally.retries
    assert run.tally.fetched < len(BIG) + 8 * BLOCK


def test_another_place_goes_on_where_the_first_one_died(tmp_path: Path) -> None:
    def breaks(number: int) -> tuple[int, Any]:
        return (BLOCK, LOST) if number == 1 else (0, LOST)

    dying = mirror(breaks=breaks)
    other = MemoryPlace("other", {"big": BIG})
    run = Run(tmp_path, dying, other)
    run.fetch(BIG_FILE)
    assert run.content(BIG_FILE) == BIG
    assert run.tally.by_place["mirror"] == BLOCK
    assert run.tally.by_place["other"] == len(BIG) - BLOCK


def test_wrong_bytes_are_fetched_again_from_another_place(tmp_path: Path) -> None:
    wrong = MemoryPlace("mirror", {"big": BIG[:-1] + b"?", "sub/text": TEXT[:-1] + b"]"})
    right = MemoryPlace("other", {"big": BIG, "sub/text": TEXT})
    run = Run(tmp_path, wrong, right)
    run.fetch(BIG_FILE, TEXT_FILE)
    assert run.content(BIG_FILE) == BIG
    assert run.content(TEXT_FILE) == TEXT
    assert {retry.path for retry in run.tally.retries} == {"big", "sub/text"}


@pytest.mark.parametrize("file", [BIG_FILE, TEXT_FILE])
def test_wrong_bytes_everywhere_are_an_error_and_leave_no_file(
    tmp_path: Path, file: ModelFile
) -> None:
    wrong = {"big": b"?" + BIG[1:], "sub/text": b"?" + TEXT[1:]}
    places = MemoryPlace("mirror", wrong), MemoryPlace("other", wrong)
    run = Run(tmp_path, *places)
    (error,) = run.failures(file)
    assert isinstance(error, Damaged)
    assert "hash" in error.what
    assert not (tmp_path / file.path).exists()
    assert not run.found


def test_a_file_that_fails_does_not_keep_the_others_from_arriving(tmp_path: Path) -> None:
    def fail(file: ModelFile, *_: int) -> None:
        if file.path == "big":
            raise AuthenticationRefused("it is not for everybody", "big from mirror")

    run = Run(tmp_path, mirror(fail=fail))
    (error,) = run.failures(BIG_FILE, TEXT_FILE)
    assert isinstance(error, AuthenticationRefused)
    assert run.content(TEXT_FILE) == TEXT


def test_a_place_that_knows_no_ranges_sends_all_over_one_connection(tmp_path: Path) -> None:
    place = mirror(ignores_ranges=True)
    run = Run(tmp_path, place)
    run.fetch(BIG_FILE)
    assert run.content(BIG_FILE) == BIG
    assert run.tally.fetched == len(BIG)


def test_a_place_that_knows_no_ranges_completes_what_another_began(tmp_path: Path) -> None:
    dying = mirror(breaks=lambda number: (2 * BLOCK, LOST) if number == 1 else (0, LOST))
    other = MemoryPlace("other", {"big": BIG}, ignores_ranges=True)
    run = Run(tmp_path, dying, other)
    run.fetch(BIG_FILE)
    assert run.content(BIG_FILE) == BIG


def test_places_that_want_fewer_connections_get_fewer(tmp_path: Path) -> None:
    open_now = 0

    def fail(*_: object) -> None:
        nonlocal open_now
        open_now += 1
        if open_now in (2, 3, 4):
            raise Unreachable("it wants no more requests", "big from mirror")

    run = Run(tmp_path, mirror(fail=fail))
    run.fetch(BIG_FILE)
    assert run.content(BIG_FILE) == BIG


def test_a_place_that_is_away_is_asked_last_for_the_next_files(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise Unreachable("it does not answer", "m from away")

    away = MemoryPlace("away", {}, fail=fail)
    files = [large_file(f"f{number}", BIG) for number in range(4)]
    there = MemoryPlace("there", {file.path: BIG for file in files})
    run = Run(tmp_path, away, there)
    run.fetch(*files, terms=Terms(files_at_once=1))
    assert len(away.asked) == 1


def test_a_full_disk_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartFile, "write", write)
    run = Run(tmp_path, mirror())
    (error,) = run.failures(BIG_FILE)
    assert isinstance(error, DiskFull)


def test_a_disk_that_a_helping_connection_finds_full_is_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PartFile.write
    full = threading.Event()

    def write(self: PartFile, offset: int, data: bytes) -> None:
        if threading.current_thread().name.startswith("range-"):
            full.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        if offset:
            full.wait(10)
        original(self, offset, data)

    monkeypatch.setattr(PartFile, "write", write)
    run = Run(tmp_path, mirror())
    (error,) = run.failures(BIG_FILE)
    assert isinstance(error, DiskFull)


def test_progress_counts_what_was_there_and_never_more_than_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    parts = tmp_path / "parts"
    parts.mkdir()
    with PartFile(parts / BIG_FILE.key, len(BIG)) as part:
        part.write(0, BIG[: 4 * BLOCK])
        part.mark(0, 4 * BLOCK)
    tally = Tally(len(BIG), 1, lambda arrived, total: told.append((arrived, total)))
    wanted = Wanted(BIG_FILE, tmp_path / "big", parts / BIG_FILE.key)
    fetch_files([wanted], [mirror()], Terms(), tally, lambda *_: None)
    assert told[0] == (4 * BLOCK, len(BIG))
    assert max(told) == (len(BIG), len(BIG))


def test_the_rate_is_limited_everywhere(tmp_path: Path) -> None:
    paced: list[int] = []
    run = Run(tmp_path, mirror())
    run.fetch(BIG_FILE, TEXT_FILE, terms=Terms(pace=paced.append))
    assert sum(paced) == len(BIG) + len(TEXT)


def test_a_defect_of_a_connection_that_helps_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., None] = connections.Connections._help

    def broken(self: connections.Connections) -> None:
        monkeypatch.setattr(self, "_fetch", lambda *_: 1 / 0)
        original(self)

    monkeypatch.setattr(connections.Connections, "_help", broken)
    run = Run(tmp_path, mirror())
    failures = run.failures(BIG_FILE)
    assert failures
