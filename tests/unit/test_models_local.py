"""A revision on its way to this machine, from places that are no more than memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.disk import Disk
from blocks.errors import DiskFull
from tasks.models.arrivals import Arrivals
from tasks.models.fetching import SMALL, Terms
from tasks.models.files import OWN_FOLDER, ModelFile, Revision
from tasks.models.local import Brought, bring_here, bring_into_view, plan_here, read_here
from tasks.models.part_file import BLOCK, PartFile
from tasks.models.remote_facts import HostModel
from tasks.models.tally import Tally
from tests.unit.models_doubles import MemoryPlace, large_file, small_file

MODEL, COMMIT = "lab/tiny", "c" * 40
BIG = os.urandom(SMALL + 3 * BLOCK + 7)
BIG_FILE = large_file("big", BIG)


def bring(root: Path, place: MemoryPlace, *files: ModelFile) -> tuple[Brought, Tally]:
    revision = Revision(MODEL, "main", COMMIT, files)
    plan = plan_here(revision, read_here(root, MODEL))
    tally = Tally()
    brought = bring_here(plan, [place], Terms(), tally, Arrivals())
    bring_into_view(brought)
    return brought, tally


@pytest.mark.parametrize("make", [small_file, large_file])
@pytest.mark.parametrize("content", [b"{}", BIG], ids=["small", "large"])
def test_the_same_bytes_under_several_names_are_fetched_once(
    tmp_path: Path, content: bytes, make: Callable[[str, bytes], ModelFile]
) -> None:
    names = [f"{number}/same" for number in range(8)]
    place = MemoryPlace("mirror", dict.fromkeys(names, content))

    brought, tally = bring(tmp_path, place, *(make(name, content) for name in names))

    assert all((tmp_path / MODEL / COMMIT / name).read_bytes() == content for name in names)
    assert tally.fetched == len(content)
    assert (brought.fetched, brought.linked) == (1, 7)
    assert all(file.sha256 for file in brought.files)


def test_the_same_bytes_are_fetched_for_each_name_where_nothing_can_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("tasks.models.local.os.link", refuse)
    place = MemoryPlace("mirror", {"one": BIG, "two": BIG})

    brought, tally = bring(tmp_path, place, large_file("one", BIG), large_file("two", BIG))

    assert (tmp_path / MODEL / COMMIT / "two").read_bytes() == BIG
    assert (brought.fetched, brought.linked) == (2, 0)
    assert tally.fetched == 2 * len(BIG)


def test_what_has_arrived_of_a_file_needs_no_further_room(tmp_path: Path) -> None:
    revision = Revision(MODEL, "main", COMMIT, (BIG_FILE,))
    parts = tmp_path / MODEL / OWN_FOLDER / "parts"
    parts.mkdir(parents=True)
    with PartFile(parts / BIG_FILE.key, len(BIG)) as part:
        part.mark(0, 10 * BLOCK)

    def with_room_for(size: int) -> HostModel:
        return replace(read_here(tmp_path, MODEL), disk=Disk("tmpfs", "/", size))

    # The disk gives room in blocks of a few KB.
    assert plan_here(revision, with_room_for(len(BIG) - 9 * BLOCK)).sends
    with pytest.raises(DiskFull, match=r"needs .* another destination"):
        plan_here(revision, with_room_for(len(BIG) - 11 * BLOCK))
