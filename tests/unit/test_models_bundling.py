"""Which files of models go into a bundle, what it says of them, and how they are found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.content import Content
from blocks.disk import Disk
from blocks.errors import Damaged, InvalidInput, NotFound
from tasks.models.bundling import (
    BundledModel,
    FoundModel,
    PackedModel,
    check_name,
    content_path,
    describe_files,
    files_of,
    items_of,
    lacking_base,
    lines_of,
    open_models,
    parse_items,
    plan_packing,
    rows_of,
)
from tasks.models.files import ModelFile, Revision
from tasks.models.records import Record
from tasks.models.remote_facts import HeldFile, HostModel
from tasks.models.remote_plan import plan_delivery

OLD, NEW = "a" * 40, "b" * 40
QWEN, LOCAL = "Qwen/Qwen3-8B", "local/我的 模型"
SHARD, CONFIG, CHANGED, TOKENS = b"weights" * 100, b"{}", b'{"new": 1}', "分词".encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def found(name: str, commit: str, files: Mapping[str, bytes]) -> FoundModel:
    listed = tuple(
        ModelFile(path, len(content), sha256(content)) for path, content in sorted(files.items())
    )
    return FoundModel(
        Record(Revision(name, "main", commit, listed, "https://hub")), Path("/m") / name / commit
    )


OF_MAY = found(QWEN, OLD, {"config.json": CONFIG, "分词 器/t.json": TOKENS, "w.safetensors": SHARD})
OF_JUNE = found(
    QWEN, NEW, {"config.json": CHANGED, "分词 器/t.json": TOKENS, "w.safetensors": SHARD}
)
OWN = found(LOCAL, OLD, {"t.json": TOKENS, "w.safetensors": SHARD})


def known(*models: FoundModel) -> tuple[BundledModel, ...]:
    return parse_items(items_of(plan_packing(models, ())), "since")


def carried(plan: tuple[PackedModel, ...]) -> list[list[str]]:
    return [[f.path for f in one.revision.files if f.sha256 in one.carried] for one in plan]


def test_without_anything_known_each_file_goes_in_once() -> None:
    plan = plan_packing([OF_MAY, OWN], ())
    assert carried(plan) == [
        ["config.json", "w.safetensors", "分词 器/t.json"],
        ["t.json", "w.safetensors"],
    ]
    files = files_of(plan)
    assert {path for path in files if path.startswith("models/")} == {
        content_path(sha256(content)) for content in (CONFIG, SHARD, TOKENS)
    }
    rows = rows_of(plan)
    assert [row["size"] for row in rows] == [len(CONFIG) + len(SHARD) + len(TOKENS), 0]
    assert [(row["carried"], row["left_out"]) for row in rows] == [(3, 0), (2, 0)]


def test_what_the_far_side_has_of_a_model_is_left_out() -> None:
    plan = plan_packing([OF_JUNE], known(OF_MAY))
    assert carried(plan) == [["config.json"]]
    assert rows_of(plan)[0]["left_out"] == 2
    assert content_path(sha256(SHARD)) not in files_of(plan)
    assert "2 files are left out" in "\n".join(lines_of(plan))


def test_what_the_far_side_has_of_another_model_is_not_left_out() -> None:
    """It is not linked from one model to another there."""
    assert carried(plan_packing([OWN], known(OF_MAY))) == [["t.json", "w.safetensors"]]


def test_a_model_that_did_not_change_takes_no_files() -> None:
    plan = plan_packing([OF_MAY], known(OF_MAY))
    assert carried(plan) == [[]]
    assert not any(path.startswith("models/") for path in files_of(plan))


def test_the_script_of_the_far_side_finds_names_commits_and_sums() -> None:
    files = files_of(plan_packing([OF_MAY, OWN], ()))
    table = b"".join(files["load/models"].chunks()).decode()
    assert table == f"001 {OLD} {QWEN}\n002 {OLD} {LOCAL}\n"
    sums = b"".join(files["load/model-001.sums"].chunks()).decode().splitlines()
    assert sums[2] == f"{sha256(TOKENS)}  分词 器/t.json"


def test_no_models_are_no_files_and_no_lines() -> None:
    assert files_of(()) == {}
    assert lines_of(()) == ()


def test_what_a_bundle_says_is_read_back_as_it_was() -> None:
    items = json.loads(json.dumps(items_of(plan_packing([OF_MAY, OWN], ()))))
    assert [one.record for one in parse_items(items, "b")] == [OF_MAY.record, OWN.record]


def a_file(**change: Any) -> dict[str, Any]:
    return {"path": "x", "size": 1, "sha256": "1" * 64, "git_sha1": "", "carried": True} | change


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../etc"}, {"name": "a/b/c"}, {"name": "a/.crossgap"}, {"name": None},
        {"commit": "main"}, {"files": None}, {"files": [{"path": "x"}]},
        {"files": [a_file(path="../../x")]}, {"files": [a_file(path="/x")]},
        {"files": [a_file(sha256="", git_sha1="1" * 40)]}, {"files": [a_file(size=-1)]},
        {"files": [a_file(), a_file()]},
    ],
)  # fmt: skip
def test_items_that_nobody_wrote_are_refused(change: dict[str, Any]) -> None:
    items = items_of(plan_packing([OF_MAY], ()))
    with pytest.raises(Damaged, match="models cannot be read"):
        parse_items([items[0] | change], "b")


@pytest.mark.parametrize("name", ["gpt2", QWEN, LOCAL, "local/a.b"])
def test_names_of_folders_are_taken_in_any_language(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "..", "a/..", "a/b ", "a\\b", "a/b\nc", "a/" + "长" * 90]
)
def test_names_that_are_no_folders_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


def test_every_file_is_described_by_what_it_is() -> None:
    plan = plan_packing([OF_MAY], ())
    about = describe_files(known(OF_MAY))
    assert about[content_path(sha256(TOKENS))] == f"分词 器/t.json of {QWEN}@aaaaaaaaaaaa"
    assert set(files_of(plan)) - {"load/models"} <= about.keys()


def test_a_bundle_gives_the_bytes_of_its_models() -> None:
    held = {content_path(sha256(CHANGED)): Content((CHANGED[:3], CHANGED[3:]))}
    (model,) = open_models(_parsed(plan_packing([OF_JUNE], known(OF_MAY))), held.get, Path("/b"))
    assert set(model.contents) == {sha256(CHANGED)}
    assert b"".join(model.contents[sha256(CHANGED)].chunks()) == CHANGED


@pytest.mark.parametrize("held", [None, Content((b"short",))])
def test_a_manifest_that_contradicts_its_files_is_damage(held: Content | None) -> None:
    with pytest.raises(Damaged, match=r"config\.json of Qwen"):
        open_models(_parsed(plan_packing([OF_MAY], ())), lambda _: held, Path("/b"))


def test_a_base_that_is_not_there_is_named_with_what_to_bring() -> None:
    held = {content_path(sha256(CHANGED)): Content((CHANGED,))}
    (model,) = open_models(_parsed(plan_packing([OF_JUNE], known(OF_MAY))), held.get, Path("/b"))
    bare = HostModel("gpu1 (10.0.0.1)", "/models", QWEN, Disk("/", "/dev/sda1", 10**9))
    error = lacking_base(model, plan_delivery(model.revision, bare), "bundle 2024-05-01-abcdef")
    assert isinstance(error, NotFound)
    assert "w.safetensors, 分词 器/t.json" in error.what
    assert "bundle 2024-05-01-abcdef" in error.remedy

    there = {
        file.path: HeldFile(file.path, file.size, "then", number, file.sha256, ours=True)
        for number, file in enumerate(OF_MAY.record.revision.files)
    }
    has_base = replace(bare, revisions={OLD: there}, current=OLD)
    assert lacking_base(model, plan_delivery(model.revision, has_base), "") is None


def _parsed(plan: tuple[PackedModel, ...]) -> tuple[BundledModel, ...]:
    return parse_items(items_of(plan), "b")
