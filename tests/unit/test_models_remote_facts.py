"""What hosts have of a model, and which of them see one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CommandFailed, PermissionRefused, Unreachable
from blocks.local_host import LocalHost
from tasks.models import remote_facts
from tasks.models.remote_facts import (
    HeldFile,
    parse_check,
    parse_host_model,
    proven,
    read_host_model,
    shared_folders,
    unproven,
)
from tests.unit.images_doubles import AnsweringHost, answer

COMMIT = "c" * 40
DF = "disk /dev/sda1 1000 400 600 40% /data one\n"
SUM = "0" * 64


def named(name: str) -> LocalHost:
    host = LocalHost()
    host._block_document_name = name
    return host


def test_facts_are_read_from_what_the_script_prints() -> None:
    text = (
        f"root /models dir\n{DF}current {COMMIT}\n"
        f"revision {COMMIT}\n"
        "7 2026-11-21 11:05:21.074217128 +0000 11 ./a 1\n"
        "8 2026-11-21 11:05:21 12 ./sub/b\n"
        "9 2026-11-21 11:05:21 +0000 13 ./void\n"
        f"incoming {COMMIT}\n"
        "5 2026-11-21 11:05:22 +0000 14 ./void\n"
        "3 2026-11-21 11:05:22 +0000 15 ./.x.part\n"
        f"proof {COMMIT}\n"
        f"= {SUM} 7 2026-11-21 11:05:21.074217128 +0000 11 a 1\n"
        "= torn\n"
        f"= {SUM} 8 2026-11-21 11:05:21 12 sub/b\n"
        f"= {'1' * 64} 8 2026-11-21 11:05:21 12 sub/b\n"
        f"= {SUM} 9 2026-11-21 11:05:20 +0000 13 void\n"
        f"= {'2' * 64} 5 2026-11-21 11:05:22 +0000 14 void\n"
    )

    found = parse_host_model(text, "gpu1", "org/name")

    assert (found.root, found.folder) == ("/models dir", "/models dir/org/name")
    assert (found.current, found.disk.free, found.occupied) == (COMMIT, 600 * 1024, {})
    files = found.revisions[COMMIT]
    # Of two proofs of one state the later counts.
    assert {path: held.sha256 for path, held in proven(files).items()} == {
        "a 1": SUM,
        "sub/b": "1" * 64,
    }
    assert unproven(files) == {
        "void": HeldFile("void", 9, "2026-11-21 11:05:21 +0000", 13, "", True)
    }
    assert {path: held.sha256 for path, held in found.incoming[COMMIT].items()} == {
        "void": "2" * 64,
        ".x.part": "",
    }


def test_an_answer_that_is_none_is_an_error() -> None:
    with pytest.raises(CommandFailed, match="not understood"):
        parse_host_model("command not found\n", "gpu1", "org/name")


def test_a_proof_line_is_read_as_it_was_written() -> None:
    held = HeldFile("a  b 5 6", 7, "2026-11-21 11:05:21.074217128 +0000", 11, SUM)
    text = (
        f"root /m\n{DF}revision {COMMIT}\n7 {held.mtime} 11 ./a  b 5 6\n"
        f"proof {COMMIT}\n= {held.proof_line}"
    )

    found = parse_host_model(text, "gpu1", "org/name").revisions[COMMIT]["a  b 5 6"]

    assert found.sha256 == SUM
    assert found.is_as(held)


def test_a_folder_that_may_not_be_read_is_an_error_with_a_remedy() -> None:
    host = AnsweringHost({"sh": answer("", "find: Permission denied", 1)})

    with pytest.raises(PermissionRefused, match="may not look into ~/models/org/name"):
        read_host_model(host, "~/models", "org/name")


def test_another_failure_is_named() -> None:
    with pytest.raises(CommandFailed, match="df: I/O error"):
        read_host_model(AnsweringHost({"sh": answer("", "df: I/O error", 1)}), "/m", "org/name")


def test_reading_changes_nothing_and_takes_one_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    start = LocalHost.start

    def counted(self: LocalHost, argv: Any, **named: Any) -> Any:
        asked.append(argv)
        return start(self, argv, **named)

    monkeypatch.setattr(LocalHost, "start", counted)

    found = read_host_model(LocalHost(), f"{tmp_path}/模型 dir/", "org/name")

    assert found.folder == f"{tmp_path}/模型 dir/org/name"
    assert list(tmp_path.iterdir()) == []
    assert len(asked) == 1


def test_a_check_without_hashes_tells_what_stat_says() -> None:
    line = "7 2026-11-21 11:05:21 +0000 11 ./a\n"

    assert parse_check(f"{line}--\n--\n{line}") == {
        "a": HeldFile("a", 7, "2026-11-21 11:05:21 +0000", 11)
    }
    assert parse_check("--\n--\n") == {}


# Who sees one folder


def test_hosts_that_see_one_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "nfs 一").mkdir()
    (tmp_path / "same").symlink_to("nfs 一")
    hosts = [named("gpu1"), named("gpu2"), named("gpu3"), named("gpu4")]
    roots = {
        "gpu1": f"{tmp_path}/nfs 一",
        "gpu2": f"{tmp_path}/own/models",
        "gpu3": f"{tmp_path}/same/",
        "gpu4": f"{tmp_path}/other",
    }

    found = shared_folders(hosts, roots, tmp_path / "other")

    assert found.results == (
        frozenset({"", "gpu4"}),
        frozenset({"gpu1", "gpu3"}),
        frozenset({"gpu2"}),
    )
    assert found.failures == ()
    assert not list(tmp_path.rglob(".crossgap-marker-*"))


def test_a_host_whose_folder_cannot_be_written_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    roots = {"gpu1": f"{tmp_path}/file", "gpu2": f"{tmp_path}/models"}

    found = shared_folders([named("gpu1"), named("gpu2")], roots)

    assert found.results == (frozenset({"gpu2"}),)
    assert len(found.failures) == 1
    assert f"writing {tmp_path}/file failed" in str(found.failures[0])
    assert not list(tmp_path.rglob(".crossgap-marker-*"))


def test_a_folder_of_somebody_else_is_said_to_be(tmp_path: Path) -> None:
    said = "sh: cannot create /m/x: Permission denied"
    host = AnsweringHost({"sh": answer("", said, 2)})

    (failure,) = shared_folders([host], {"gpu1": "/m"}).failures

    assert isinstance(failure, PermissionRefused)
    assert "models_dir" in failure.remedy


def test_markers_go_also_when_looking_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(root: str, names: object) -> list[str]:
        raise Unreachable("it is gone", "gpu1")

    monkeypatch.setattr(remote_facts, "see_markers", broken)

    found = shared_folders([named("gpu1")], {"gpu1": str(tmp_path)})

    assert [failure.what for failure in found.failures] == ["it is gone"]
    assert list(tmp_path.iterdir()) == []
