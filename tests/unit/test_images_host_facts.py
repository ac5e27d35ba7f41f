"""Facts of a host, from the answers of its commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.disk import Disk
from blocks.errors import CommandFailed, EngineUnavailable, PermissionRefused
from blocks.host import CommandResult
from tasks.images import host_facts
from tasks.images.facts import EngineFacts, HostFacts, ImageFacts
from tasks.images.host_facts import read_host, read_images, read_layers
from tasks.images.layout import chain_ids
from tests.unit.conftest import Shell
from tests.unit.images_doubles import AnsweringHost, answer

INFO: dict[str, Any] = {
    "ServerVersion": "20.10.24",
    "Architecture": "x86_64",
    "DockerRootDir": "/data1/docker",
    "NCPU": 16,
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
        "sh -c ids": answer("[]\n"),
        "sh -c for": answer(),
        "sh -c": answer(DF),
    }
    return AnsweringHost({**standard, **(answers or {})})


WANTED = [image("app:1", "sha256:a"), image("base:1", "sha256:b")]


def read(host: AnsweringHost) -> HostFacts:
    return read_host(host, lambda _: WANTED)


def test_a_host_is_read_in_five_commands() -> None:
    asked = host([inspected("sha256:a", "app:1")], missing="base:1")
    facts = read(asked)
    assert len(asked.asked) == 5
    assert (facts.architecture, facts.engine_version, facts.store) == (
        "amd64",
        "20.10.24",
        "graphdriver",
    )
    assert facts.docker_root == "/data1/docker"
    assert facts.docker_root_disk == facts.staging_disk == Disk("/dev/sda1", "/", 60 * 1024)
    assert dict(facts.staged) == {}
    assert list(facts.images) == ["app:1"]
    assert facts.wanted == tuple(WANTED)
    assert (facts.cpus, facts.unpacks_zstd) == (16, False)


def test_the_images_are_those_for_the_hosts_architecture() -> None:
    asked: list[str] = []

    def wanted_on(architecture: str) -> list[ImageFacts]:
        asked.append(architecture)
        return WANTED[:1]

    info = answer(json.dumps(INFO | {"Architecture": "aarch64"}))
    facts = read_host(host([], missing="x", answers={"docker info": info}), wanted_on)
    assert asked == ["arm64"]
    assert facts.wanted == (WANTED[0],)


def test_only_the_asked_names_and_contents_are_inspected() -> None:
    asked = host([])
    read(asked)
    (inspect,) = [argv for argv, _ in asked.asked if argv[1:3] == ["image", "inspect"]]
    assert inspect[3:] == ["app:1", "base:1", "sha256:a", "sha256:b"]


def test_a_host_without_any_of_the_images_is_no_error() -> None:
    assert dict(read(host([], missing="app:1")).images) == {}


def test_the_same_content_under_another_name_is_found() -> None:
    facts = read(host([inspected("sha256:a", "team/app:old"), inspected("sha256:b")]))
    assert dict(facts.images) == {}
    assert dict(facts.twins) == {"app:1": "team/app:old", "base:1": "sha256:b"}


def test_an_image_asked_for_by_digest_is_found_by_the_tag_that_it_arrives_under() -> None:
    pinned = image("app@sha256:" + "c" * 64, "sha256:a")
    tag = "app:sha256-" + "c" * 12
    assert read_images(host([inspected("sha256:a", "whatever:1")]), [pinned]) == {}
    found = read_images(host([inspected("sha256:a", tag)]), [pinned])
    assert found[pinned.name].config_digest == "sha256:a"


def test_the_disk_of_the_docker_root_is_read_as_root_and_that_of_the_staging_as_the_user() -> None:
    asked = host([])
    read(asked)
    disks = [(argv[-1], sudo) for argv, sudo in asked.asked if "df -Pk" in " ".join(argv)]
    assert disks == [("~/.crossgap/staging", False), ("/data1/docker", True)]


def test_a_plain_part_that_is_more_than_a_sample_is_gone_on_with() -> None:
    asked = host([])
    listing = f"{64 << 10}\t/root/.crossgap/staging/.{'1' * 64}.tar.{'2' * 16}.part\n"
    asked.answers = {"sh -c path": answer(DF), "sh -c case": answer(listing + DF)} | asked.answers
    assert dict(read(asked).staged_forms) == {f"sha256:{'1' * 64}": "none"}


def test_what_lies_staged_is_read_with_the_room() -> None:
    whole, part, old, packed = ("1" * 64, "2" * 64, "3" * 64, "4" * 64)
    staging = "/root/.crossgap/staging"
    listing = (
        f"2000\t{staging}/{whole}.tar\n"
        f"4\t{staging}/{whole}.txt\n"
        f"8\t{staging}/{'5' * 32}.glue\n"
        f"1000\t{staging}/.{part}.tar.gz.{'2' * 16}.part\n"
        f"4\t{staging}/.{part}.tar.gz.{'2' * 16}.part.writer\n"
        f"7\t/my disk/staging/{old}.tar.zst\n"
        f"5\t{staging}/{packed}.tar\n"
        f"3\t{staging}/{packed}.tar.gz\n"
        f"9\t{staging}/notes.tar\n"
    )
    asked = host([])
    asked.answers = {"sh -c path": answer(DF), "sh -c case": answer(listing + DF)} | asked.answers
    facts = read(asked)
    assert dict(facts.staged) == {
        f"sha256:{whole}": 2000 * 1024,
        f"sha256:{part}": 1000 * 1024,
        f"sha256:{old}": 7 * 1024,
        # Of several forms only one will be of use.
        f"sha256:{packed}": 5 * 1024,
    }
    # The first megabytes of a plain part may be but the sample that the link was measured with.
    assert dict(facts.staged_forms) == {
        f"sha256:{part}": "gzip",
        f"sha256:{old}": "zstd",
        f"sha256:{packed}": "gzip",
    }
    assert facts.staging_disk == facts.docker_root_disk


@pytest.mark.parametrize("work_dir", ["~/工作 $(x)", "{tmp}/工作 $(x)"])
def test_staged_files_are_seen_by_every_shell(shell: Shell, tmp_path: Path, work_dir: str) -> None:
    folder = tmp_path / "工作 $(x)"
    script = host_facts._STAGED + host_facts._DF
    before = shell.run(f"HOME={tmp_path}\n{script}", work_dir.replace("{tmp}", str(tmp_path)))
    folder.mkdir()
    (folder / ("1" * 64 + ".tar")).write_bytes(bytes(1 << 20))
    (folder / ("." + "2" * 64 + ".tar.gz.22.part")).write_bytes(bytes(2 << 20))
    after = shell.run(f"HOME={tmp_path}\n{script}", work_dir.replace("{tmp}", str(tmp_path)))

    assert (before.returncode, after.returncode, after.stderr) == (0, 0, b"")
    assert len(before.stdout.splitlines()) == 2
    seen = host_facts._STAGED_FILE.findall(after.stdout.decode())
    assert [key[0] for _, key, _ in seen] == ["1", "2"]
    assert [round(int(kilobytes), -2) for kilobytes, _, _ in seen] == [1000, 2000]


# Layers


ENGINE = EngineFacts("20.10.24", "amd64", "graphdriver", "/data1/docker")


def test_of_a_graph_driver_the_chains_of_all_images_are_read_as_root() -> None:
    said = '["l1","l2"]\n["l1","x"]\nnull\nWARNING: something else\n[]\n'
    asked = host([], answers={"sh -c ids": answer(said)})
    assert read_layers(asked, ENGINE) == dict.fromkeys(
        [*chain_ids(["l1", "l2"]), *chain_ids(["l1", "x"])], 0
    )
    assert [sudo for _, sudo in asked.asked] == [True]


def test_of_a_containerd_store_the_blobs_are_read_as_root() -> None:
    root = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256"
    said = f"  1500 {root}/{'a' * 64}\n7 {root}/{'b' * 64}\n   1507 total\nnoise\n"
    asked = host([], answers={"sh -c for": answer(said)})
    layers = read_layers(asked, replace(ENGINE, store="containerd"))
    assert layers == {f"sha256:{'a' * 64}": 1500, f"sha256:{'b' * 64}": 7}
    ((argv, sudo),) = asked.asked
    assert (argv[-1], sudo) == ("/data1/docker", True)


def test_nobody_asks_for_the_layers_of_a_host_that_has_all_images() -> None:
    has = [inspected("sha256:a", "app:1"), inspected("sha256:b", "base:1")]
    full = host(has)
    assert read(full).layers == {}
    other = host([inspected("sha256:x", "app:1"), inspected("sha256:b", "base:1")])
    read(other)
    listings = [
        [argv for argv, _ in asked.asked if argv[2].startswith("ids")] for asked in (full, other)
    ]
    assert [len(listing) for listing in listings] == [0, 1]


def docker_that(folder: Path, script: str) -> str:
    """Put a docker on a PATH."""
    docker = folder / "docker"
    docker.write_text(f"#!/bin/sh\n{script}")
    docker.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("listed", "inspected", "lines"),
    [
        ("printf 'a\\nb\\na\\n'", "shift 4; printf '%s\\n' \"$@\"", [b"a", b"b"]),
        ("true", "echo asked about nothing", []),
        ("printf 'a\\nb\\n'", "echo '[]'; echo 'no such image' >&2; exit 1", [b"[]"]),
    ],
    ids=["each once", "no images", "one that went meanwhile"],
)
def test_layers_of_all_images_are_listed_by_every_shell(
    shell: Shell, tmp_path: Path, listed: str, inspected: str, lines: list[bytes]
) -> None:
    script = f"case $2 in ls) {listed} ;; inspect) {inspected} ;; esac"
    path = docker_that(tmp_path, script)
    done = shell.run(host_facts._GRAPHDRIVER_LAYERS, path=f"{path}:{shell.path}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines() == lines


def test_blobs_are_found_by_every_shell(shell: Shell, tmp_path: Path) -> None:
    root = tmp_path / "docker root"
    store = root / "containerd/daemon/io.containerd.content.v1.content"
    (store / "blobs/sha256").mkdir(parents=True)
    (store / "ingest").mkdir()
    (store / "blobs/sha256" / ("a" * 64)).write_bytes(bytes(1234))
    (store / "blobs/sha256" / ("b" * 64)).write_bytes(b"")
    (store / "ingest" / ("c" * 64)).write_bytes(b"half")
    done = shell.run(host_facts._CONTAINERD_LAYERS, root)
    assert done.returncode == 0
    ours = [line for line in done.stdout.decode().splitlines() if str(root) in line]
    found = host_facts._BLOB_FILE.findall("\n".join(ours))
    assert sorted(found) == [("0", "b" * 64), ("1234", "a" * 64)]


# Complaints


def test_an_engine_that_is_down_is_seen_though_info_ends_well() -> None:
    errors = {"ServerErrors": ["Cannot connect to the Docker daemon at unix:///x. Is the docker…"]}
    down = host([], answers={"docker info": answer(json.dumps({"ID": ""} | errors))})
    with pytest.raises(EngineUnavailable, match="does not answer"):
        read(down)


def test_a_user_without_the_right_to_use_docker_is_told_what_to_ask_for() -> None:
    refusal = answer("", "permission denied while trying to connect to the Docker daemon", 1)
    with pytest.raises(PermissionRefused, match="group docker"):
        read(host([], answers={"docker info": refusal}))


def test_an_answer_that_is_no_json_is_quoted() -> None:
    odd = host([], answers={"docker info": answer("Emulate Docker CLI using podman")})
    with pytest.raises(CommandFailed, match="Emulate Docker CLI"):
        read(odd)


def test_other_complaints_about_images_are_not_taken_for_missing_ones() -> None:
    broken = answer("[]\n", "Error response from daemon: layer does not exist", 1)
    with pytest.raises(CommandFailed, match="layer does not exist"):
        read(host([], answers={"docker image inspect": broken}))
