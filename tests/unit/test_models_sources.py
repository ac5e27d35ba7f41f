"""What an operator asks for, and what is known of small files."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.errors import Unreachable
from tasks.models.files import Revision, chosen_files
from tasks.models.records import Record
from tasks.models.sources import Asked, Source, check_way, with_known_hashes
from tests.unit.models_doubles import large_file, small_file

COMMIT = "a" * 40


@pytest.mark.parametrize("model", ["/data/qwen", "~/qwen", "./qwen", "../qwen"])
def test_a_path_is_a_folder(model: str) -> None:
    assert Asked(model).is_folder
    assert Asked(model).folder.is_absolute()


def test_a_name_is_none() -> None:
    assert not Asked("Qwen/Qwen3-8B").is_folder


def test_the_destination_may_be_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/operator")
    assert Asked("a/b").root == Path("/home/operator/models")


def test_small_files_get_the_hash_that_they_had_in_another_revision() -> None:
    known = small_file("config.json", b"{}")
    complete = large_file("config.json", b"{}")
    before = type(known)(known.path, known.size, complete.sha256, known.git_sha1)
    records = {COMMIT: Record(Revision("a/b", "main", COMMIT, (before,)))}
    fresh = small_file("other.json", b"[]")
    assert with_known_hashes((known, fresh), records) == (before, fresh)


def test_what_is_not_here_cannot_come_from_nowhere() -> None:
    files = (large_file("a.safetensors", b"weights"),)
    revision = Revision("a/b", "main", COMMIT, files)
    with pytest.raises(Unreachable, match="1 files with 7 B of this revision are not here"):
        check_way(Source(revision, Record(revision)), files)


def test_patterns_choose_as_those_of_the_hubs_own_command_do() -> None:
    files = tuple(
        large_file(path, b"x") for path in ("a.safetensors", "original/a.bin", "config.json")
    )

    def chosen(include: list[str], exclude: list[str]) -> list[str]:
        return [file.path for file in chosen_files(files, include, exclude, "a/b")]

    assert chosen([], []) == ["a.safetensors", "original/a.bin", "config.json"]
    assert chosen(["*.bin"], []) == ["original/a.bin"]
    assert chosen([], ["original/"]) == ["a.safetensors", "config.json"]
    assert chosen(["*.json", "*.safetensors"], ["a*"]) == ["config.json"]
