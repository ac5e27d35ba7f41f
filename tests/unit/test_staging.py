"""Staged layers: where they lie, and how they go away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from blocks.local_host import LocalHost
from tasks.images.blobs import Compression, Descriptor, Layer
from tasks.images.staging import (
    _CLEAR,
    _FORGET,
    clear,
    glue_name,
    load_job_name,
    staged_forms,
    staged_name,
    staged_path,
)
from tests.unit.conftest import Shell
from tests.unit.images_doubles import AnsweringHost, answer

DAY = 86_400
NAMES = ["a.tar", "a b", 'it\'s "x"', "镜像.tar", "-rf", "*", "$(touch x)"]


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    return LocalHost(work_dir=f"{tmp_path}/工作 folder/")


def layer(digit: str = "1", compression: Compression = "none") -> Layer:
    return Layer(f"sha256:{digit * 64}", compression, Descriptor("sha256:" + "f" * 64, 7))


def staged(host: LocalHost, one: Layer | None = None, age_days: float = 0) -> Path:
    path = Path(staged_path(host, one or layer()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"layer")
    os.utime(path, (time.time() - age_days * DAY,) * 2)
    return path


def test_a_layer_is_staged_below_the_work_folder_by_what_it_is(host: LocalHost) -> None:
    one = layer("a", "gzip")
    assert staged_path(host, one) == f"{host.work_dir}staging/{'a' * 64}.tar.gz"
    assert staged_path(LocalHost(), one) == f"~/.crossgap/staging/{'a' * 64}.tar.gz"


def test_each_form_of_a_layer_has_a_name_of_its_own() -> None:
    forms: list[Compression] = ["none", "gzip", "zstd"]
    names = [staged_name(layer("a", form)) for form in forms]
    assert names == staged_forms("sha256:" + "a" * 64)
    assert len(set(names)) == 3


def test_all_layers_go_but_those_that_are_still_needed_in_whatever_form(host: LocalHost) -> None:
    forms: list[Compression] = ["none", "gzip", "zstd"]
    kept = [staged(host, layer("2", form), age_days=9) for form in forms]
    gone = [staged(host, layer("1")), staged(host, layer("3", "gzip"))]
    gone.append(kept[0].with_name(glue_name("2" * 32)))
    gone[-1].write_bytes(b"around the layers")
    part = kept[1].with_name(f".{kept[1].name}.{'2' * 16}.part")
    part.touch()
    os.utime(part, (0, 0))

    clear(host, staged_forms("sha256:" + "2" * 64))

    assert [path for path in [*kept, *gone, part] if path.exists()] == [*kept, part]


def test_the_folder_goes_when_nothing_is_left_in_it(host: LocalHost) -> None:
    only = staged(host)

    clear(host)
    clear(host)

    assert not only.parent.exists()
    assert only.parent.parent.exists()


def test_the_home_folder_is_found(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(host.work_dir).parent))
    at_home = LocalHost(work_dir="~/工作 folder")
    only = staged(host)

    clear(at_home)

    assert not only.exists()


@pytest.mark.parametrize("name", NAMES)
def test_parts_that_nobody_came_back_for_go_after_a_week(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name / "staging"
    folder.mkdir(parents=True)
    for file, age in ((f".old {name}.part", 9), (f".new {name}.part", 6), (f"{name}.tar", 0)):
        (folder / file).touch()
        os.utime(folder / file, (time.time() - age * DAY,) * 2)

    done = shell.run(_CLEAR, tmp_path / name, "7", "load-images-")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert [path.name for path in folder.iterdir()] == [f".new {name}.part"]


def test_clearing_where_nothing_was_staged_is_no_error(shell: Shell, tmp_path: Path) -> None:
    done = shell.run(_CLEAR, tmp_path / "none", "7", "load-images-", "1.tar")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Jobs


def job(host: LocalHost, name: str, *, ended: bool, age_days: float = 0) -> Path:
    folder = Path(host.work_dir) / "jobs" / name
    folder.mkdir(parents=True)
    if ended:
        (folder / "exit").write_text("0")
    os.utime(folder, (time.time() - age_days * DAY,) * 2)
    return folder


def test_only_loads_that_have_ended_or_are_long_gone_are_forgotten(host: LocalHost) -> None:
    folders = [
        job(host, load_job_name("1" * 32), ended=True),
        job(host, load_job_name("2" * 32), ended=False, age_days=9),
        job(host, load_job_name("3" * 32), ended=False),
        job(host, "load-models", ended=True),
    ]

    clear(host)

    assert [folder.exists() for folder in folders] == [False, False, True, True]


@pytest.mark.parametrize("name", NAMES)
def test_jobs_are_forgotten_by_every_shell(shell: Shell, tmp_path: Path, name: str) -> None:
    host = LocalHost(work_dir=str(tmp_path / name))
    ended = job(host, load_job_name("1" * 32), ended=True)
    running = job(host, load_job_name("2" * 32), ended=False)

    listed = shell.run(_CLEAR, tmp_path / name, "7", "load-images-")
    jobs = listed.stdout.decode().splitlines()
    done = shell.run(_FORGET, "7", *jobs)

    assert jobs == [str(ended), str(running)]
    assert (done.returncode, done.stderr) == (0, b"")
    assert (ended.exists(), running.exists()) == (False, True)


def test_a_host_without_jobs_is_cleared_in_one_command() -> None:
    host = AnsweringHost({"sh -c": answer()})
    clear(host, ["1.tar"])
    ((argv, sudo),) = host.asked
    assert (argv[4:], sudo) == (["~/.crossgap", "7", "load-images-", "1.tar"], False)


def test_only_root_can_look_into_the_jobs_of_root() -> None:
    host = AnsweringHost({"sh -c": answer("/home/a b/.crossgap/jobs/load-images-1\n")})
    clear(host)
    argv, sudo = host.asked[1]
    assert (argv[4:], sudo) == (["7", "/home/a b/.crossgap/jobs/load-images-1"], True)
