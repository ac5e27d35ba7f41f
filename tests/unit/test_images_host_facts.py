"""Facts of a host, from the answers of its commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blocks.disk import Disk
from blocks.errors import CommandFailed, EngineUnavailable, PermissionRefused
from blocks.host import CommandResult
from tasks.images import host_facts
from tasks.images.facts import ImageFacts
from tasks.images.host_facts import read_host, read_images
from tests.unit.conftest import Shell
from tests.unit.images_doubles import AnsweringHost, answer

INFO: dict[str, Any] = {
    "ServerVersion": "20.10.24",
    "Architecture": "x86_64",
    "DockerRootDir": "/data1/docker",
    "DriverStatus": [["Backing Filesystem", "extfs"]],
}
DF = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 100 40 60 40% /\n"


def image(name: str, digest: str) -> ImageFacts:
    return ImageFacts(name, digest, digest, ("l1",), "amd64")


def inspected(digest: str, *tags: str) -> dict[str, Any]:
    return {
        "Id": digest,
        "RepoTags": list(tags),
        "RepoDigests": None,
        "Architecture": "amd64",
        "Os": "linux",
        "RootFS": {"Layers": ["l1"]},
        "Config": {},
    }


def host(
    images: list[dict[str, Any]], missing: str = "", answers: dict[str, CommandResult] | None = None
) -> AnsweringHost:
    stderr = f"Error: No such image: {missing}\n" if missing else ""
    standard = {
        "docker info": answer(json.dumps(INFO)),
        "docker image inspect": answer(json.dumps(images) + "\n", stderr, 1 if missing else 0),
        "sh -c": answer(DF),
    }
    return AnsweringHost({**standard, **(answers or {})})


WANTED = [image("app:1", "sha256:a"), image("base:1", "sha256:b")]


def test_a_host_is_read_in_four_commands() -> None:
    asked = host([inspected("sha256:a", "app:1")], missing="base:1")
    facts = read_host(asked, WANTED)
    assert len(asked.asked) == 4
    assert (facts.architecture, facts.engine_version, facts.store) == (
        "amd64",
        "20.10.24",
        "graphdriver",
    )
    assert facts.docker_root == "/data1/docker"
    assert facts.docker_root_disk == facts.staging_disk == Disk("/dev/sda1", "/", 60 * 1024)
    assert dict(facts.staged) == {}
    assert list(facts.images) == ["app:1"]


def test_only_the_asked_names_and_contents_are_inspected() -> None:
    asked = host([])
    read_host(asked, WANTED)
    (inspect,) = [argv for argv, _ in asked.asked if argv[1:3] == ["image", "inspect"]]
    assert inspect[3:] == ["app:1", "base:1", "sha256:a", "sha256:b"]


def test_a_host_without_any_of_the_images_is_no_error() -> None:
    assert dict(read_host(host([], missing="app:1"), WANTED).images) == {}


def test_the_same_content_under_another_name_is_found() -> None:
    facts = read_host(host([inspected("sha256:a", "team/app:old"), inspected("sha256:b")]), WANTED)
    assert dict(facts.images) == {}
    assert dict(facts.twins) == {"app:1": "team/app:old", "base:1": "sha256:b"}


def test_an_image_asked_for_by_digest_is_found_by_its_id() -> None:
    pinned = image("app@sha256:" + "c" * 64, "sha256:a")
    found = read_images(host([inspected("sha256:a", "whatever:1")]), [pinned])
    assert found[pinned.name].config_digest == "sha256:a"


def test_the_disk_of_the_docker_root_is_read_as_root_and_that_of_the_staging_as_the_user() -> None:
    asked = host([])
    read_host(asked, WANTED)
    disks = [(argv[-1], sudo) for argv, sudo in asked.asked if argv[0] == "sh"]
    assert disks == [("~/.crossgap/staging", False), ("/data1/docker", True)]


def test_what_lies_staged_is_read_with_the_room() -> None:
    whole, part, old = "1" * 32, "2" * 32, "3" * 32
    listing = (
        f"2000\t/root/.crossgap/staging/{whole}.tar\n"
        f"4\t/root/.crossgap/staging/{whole}.txt\n"
        f"1000\t/root/.crossgap/staging/.{part}.tar.{'2' * 16}.part\n"
        f"4\t/root/.crossgap/staging/.{part}.tar.{'2' * 16}.part.writer\n"
        f"7\t/my disk/staging/{old}.tar\n"
        "9\t/root/.crossgap/staging/notes.tar\n"
    )
    asked = host([])
    asked.answers = {"sh -c path": answer(DF), "sh -c case": answer(listing + DF)} | asked.answers
    facts = read_host(asked, WANTED)
    assert dict(facts.staged) == {whole: 2000 * 1024, part: 1000 * 1024, old: 7 * 1024}
    assert facts.staging_disk == facts.docker_root_disk


@pytest.mark.parametrize("work_dir", ["~/工作 $(x)", "{tmp}/工作 $(x)"])
def test_staged_files_are_seen_by_every_shell(shell: Shell, tmp_path: Path, work_dir: str) -> None:
    folder = tmp_path / "工作 $(x)"
    script = host_facts._STAGED + host_facts._DF
    before = shell.run(f"HOME={tmp_path}\n{script}", work_dir.replace("{tmp}", str(tmp_path)))
    folder.mkdir()
    (folder / ("1" * 32 + ".tar")).write_bytes(bytes(1 << 20))
    (folder / ("." + "2" * 32 + ".tar.22.part")).write_bytes(bytes(2 << 20))
    after = shell.run(f"HOME={tmp_path}\n{script}", work_dir.replace("{tmp}", str(tmp_path)))

    assert (before.returncode, after.returncode, after.stderr) == (0, 0, b"")
    assert len(before.stdout.splitlines()) == 2
    seen = host_facts._STAGED_FILE.findall(after.stdout.decode())
    assert [key[0] for _, key in seen] == ["1", "2"]
    assert [round(int(kilobytes), -2) for kilobytes, _ in seen] == [1000, 2000]


def test_an_engine_that_is_down_is_seen_though_info_ends_well() -> None:
    errors = {"ServerErrors": ["Cannot connect to the Docker daemon at unix:///x. Is the docker…"]}
    down = host([], answers={"docker info": answer(json.dumps({"ID": ""} | errors))})
    with pytest.raises(EngineUnavailable, match="does not answer"):
        read_host(down, WANTED)


def test_a_user_without_the_right_to_use_docker_is_told_what_to_ask_for() -> None:
    refusal = answer("", "permission denied while trying to connect to the Docker daemon", 1)
    with pytest.raises(PermissionRefused, match="group docker"):
        read_host(host([], answers={"docker info": refusal}), WANTED)


def test_an_answer_that_is_no_json_is_quoted() -> None:
    odd = host([], answers={"docker info": answer("Emulate Docker CLI using podman")})
    with pytest.raises(CommandFailed, match="Emulate Docker CLI"):
        read_host(odd, WANTED)


def test_other_complaints_about_images_are_not_taken_for_missing_ones() -> None:
    broken = answer("[]\n", "Error response from daemon: layer does not exist", 1)
    with pytest.raises(CommandFailed, match="layer does not exist"):
        read_host(host([], answers={"docker image inspect": broken}), WANTED)
