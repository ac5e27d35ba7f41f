"""What is kept of a hub's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.errors import NotFound
from tasks.models.files import OWN_FOLDER, Revision
from tasks.models.records import Record, forget, read_record, recall, records, save_record
from tests.unit.models_doubles import large_file, small_file

COMMIT = "a" * 40
FILES = (small_file("config.json", b"{}"), large_file("中文/权重.safetensors", b"weights"))
REVISION = Revision("org/name", "main", COMMIT, FILES, "hf.example")


def test_what_was_said_is_recalled_by_branch_and_by_commit(tmp_path: Path) -> None:
    save_record(tmp_path, Record(REVISION))
    assert recall(tmp_path, "main") == Record(REVISION)
    assert recall(tmp_path, COMMIT).revision.files == FILES
    assert records(tmp_path).keys() == {COMMIT}


def test_a_branch_moves_and_the_older_commit_stays(tmp_path: Path) -> None:
    newer = Revision("org/name", "main", "b" * 40, FILES[:1], "hf.example")
    save_record(tmp_path, Record(REVISION))
    save_record(tmp_path, Record(newer, compared=False))
    assert recall(tmp_path, "main") == Record(newer, compared=False)
    assert recall(tmp_path, COMMIT).revision.commit == COMMIT


def test_names_of_branches_stay_inside_the_folder(tmp_path: Path) -> None:
    odd = Revision("org/name", "../../refs/pr/1", COMMIT, FILES)
    save_record(tmp_path / "model", Record(odd))
    assert recall(tmp_path / "model", "../../refs/pr/1").revision.commit == COMMIT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_what_nobody_said_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing was fetched of its revision 'main'"):
        recall(tmp_path, "main")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 1}'])
def test_a_damaged_record_is_as_none(tmp_path: Path, content: str) -> None:
    save_record(tmp_path, Record(REVISION))
    path = tmp_path / OWN_FOLDER / "revisions" / f"{COMMIT}.json"
    path.write_text(content)
    assert read_record(tmp_path, COMMIT) is None


def test_a_record_with_names_that_lead_out_is_as_none(tmp_path: Path) -> None:
    save_record(tmp_path, Record(REVISION))
    path = tmp_path / OWN_FOLDER / "revisions" / f"{COMMIT}.json"
    path.write_text(path.read_text().replace("config.json", "../config.json"))
    assert read_record(tmp_path, COMMIT) is None


def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    save_record(tmp_path, Record(REVISION))
    forget(tmp_path, COMMIT)
    forget(tmp_path, COMMIT)
    assert records(tmp_path) == {}
