"""Folders with a model that something else fetched."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from blocks.errors import Conflict, InvalidInput, NotFound, SeveralFailures
from tasks.models.files import MANIFEST
from tasks.models.folders import hash_folder, list_folder
from tasks.models.tally import Tally


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "qwen 模型"
    for name, content in {
        "config.json": b"{}",
        "子/weights.safetensors": b"weights",
        ".git/HEAD": b"ref",
        ".cache/x": b"x",
        MANIFEST: b"an older one",
    }.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    return model


def test_hidden_files_and_the_manifest_are_left_out(folder: Path) -> None:
    assert [file.path for file in list_folder(folder)] == ["config.json", "子/weights.safetensors"]


def test_files_are_chosen_by_patterns(folder: Path) -> None:
    assert [file.path for file in list_folder(folder, ["*.json"])] == ["config.json"]
    assert [file.path for file in list_folder(folder, [], ["子/"])] == ["config.json"]


def test_a_folder_that_is_not_there_and_an_empty_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        list_folder(tmp_path / "nothing")
    with pytest.raises(NotFound, match="no file in it"):
        list_folder(tmp_path)


def test_a_download_that_has_not_ended_is_refused(folder: Path) -> None:
    (folder / "b.safetensors.incomplete").touch()
    with pytest.raises(Conflict, match="has not ended"):
        list_folder(folder)


def test_a_name_that_no_manifest_takes_is_refused(folder: Path) -> None:
    (folder / "a\nb").touch()
    with pytest.raises(InvalidInput, match="control characters"):
        list_folder(folder)


def test_the_manifest_is_what_sha256sum_reads_and_the_commit_is_that_of_the_bytes(
    folder: Path,
) -> None:
    files = list_folder(folder)
    tally = Tally(sum(file.size for file in files), len(files))
    record = hash_folder(folder, files, tally)
    lines = (folder / MANIFEST).read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256(b'{}').hexdigest()}  config.json",
        f"{hashlib.sha256(b'weights').hexdigest()}  子/weights.safetensors",
    ]
    assert record.revision.model == "local/qwen 模型"
    assert not record.compared
    assert tally.files_done == 2
    assert hash_folder(folder, files, tally).revision.commit == record.revision.commit
    (folder / "config.json").write_bytes(b"{ }")
    changed = hash_folder(folder, list_folder(folder), tally)
    assert changed.revision.commit != record.revision.commit


def test_a_dry_run_writes_no_manifest(folder: Path) -> None:
    hash_folder(folder, list_folder(folder), Tally(), manifest=False)
    assert (folder / MANIFEST).read_bytes() == b"an older one"


def test_a_file_that_vanishes_is_said(folder: Path) -> None:
    files = list_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SeveralFailures, match=r"config\.json"):
        hash_folder(folder, files, Tally())
