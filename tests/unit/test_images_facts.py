"""Facts about images and hosts, from what Docker and df print."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tasks.images.facts import (
    ImageFacts,
    docker_architecture,
    parse_engine_info,
    parse_image,
    parse_image_config,
    parse_layer_sizes,
    runs_on,
    same_content,
    unpacked_size,
)

LAYERS = ["sha256:" + "a" * 64, "sha256:" + "b" * 64]

# The same image: as its configuration has it, and as two kinds of engine show it.
CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-01-02T03:04:05.600000000Z",
    "config": {"Cmd": ["/bin/sh"], "Env": ["A=1"], "Labels": None, "Hostname": "built-here"},
    "rootfs": {"type": "layers", "diff_ids": LAYERS},
}
INSPECTED: dict[str, Any] = {
    "Id": "sha256:" + "1" * 64,
    "RepoTags": ["app:1"],
    "Created": "2026-01-02T03:04:05.6Z",
    "Architecture": "amd64",
    "Os": "linux",
    "Size": 12345,
    "Config": {"Cmd": ["/bin/sh"], "Env": ["A=1"], "Labels": {}, "Entrypoint": None, "User": ""},
    "RootFS": {"Type": "layers", "Layers": LAYERS},
}


def from_config(**changes: Any) -> ImageFacts:
    return parse_image_config(json.dumps(CONFIG | changes).encode(), "app:1", (5, 7))


def test_a_graph_drivers_image_id_is_its_config_digest_and_a_containerd_stores_is_not() -> None:
    assert parse_image(INSPECTED, "app:1", "graphdriver").config_digest == INSPECTED["Id"]
    shown = parse_image(INSPECTED, "app:1", "containerd")
    assert (shown.config_digest, shown.image_id) == ("", INSPECTED["Id"])
    assert (shown.size, shown.diff_ids) == (12345, tuple(LAYERS))


def test_an_image_of_a_containerd_store_is_the_same_as_its_source_by_layers_and_settings() -> None:
    assert same_content(from_config(), parse_image(INSPECTED, "other:2", "containerd"))


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "arm64"},
        {"created": "2026-01-02T03:04:06Z"},
        {"config": {"Cmd": ["/bin/bash"], "Env": ["A=1"]}},
        {"config": {"Cmd": ["/bin/sh"], "Env": ["A=2"]}},
        {"rootfs": {"type": "layers", "diff_ids": LAYERS[:1]}},
        {"rootfs": {"type": "layers", "diff_ids": LAYERS[::-1]}},
    ],
)
def test_any_difference_that_matters_makes_another_image(changes: dict[str, Any]) -> None:
    assert not same_content(from_config(**changes), parse_image(INSPECTED, "a", "containerd"))


def test_two_config_digests_decide_alone() -> None:
    one = from_config()
    assert same_content(one, replace(one, name="b", created="", config_fingerprint="x"))
    assert not same_content(one, replace(one, config_digest="sha256:other"))


def test_a_creation_time_never_set_is_the_same_however_it_is_written() -> None:
    never = parse_image(INSPECTED | {"Created": "0001-01-01T00:00:00Z"}, "a", "containerd")
    without = {key: value for key, value in CONFIG.items() if key != "created"}
    image = parse_image_config(json.dumps(without).encode(), "a", ())
    assert never.created == image.created == ""
    assert same_content(never, image)


def test_times_with_an_offset_keep_it() -> None:
    assert from_config(created="2026-01-02T03:04:05.000+08:00").created == (
        "2026-01-02T03:04:05+08:00"
    )


@pytest.mark.parametrize("content", [b"[]", b"{}", b"{", b'"x"'])
def test_what_is_no_image_configuration_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"image configuration|Expecting"):
        parse_image_config(content, "a", ())


def test_an_image_asked_for_by_digest_is_looked_up_by_the_tag_that_it_arrives_under() -> None:
    pinned = replace(from_config(), name="app@sha256:" + "c" * 64)
    assert pinned.lookup == "app:sha256-" + "c" * 12
    assert from_config().lookup == "app:1"


def test_layer_sizes_come_from_history_when_the_count_fits() -> None:
    history = [{"Size": 0}, {"Size": 7}, {"Size": 0}, {"Size": 5}]
    assert parse_layer_sizes(history, 2) == (5, 7)
    assert parse_layer_sizes(history, 3) == ()
    assert parse_layer_sizes([], 2) == ()


def test_shared_layers_are_counted_once_and_unknown_ones_with_their_image() -> None:
    one = ImageFacts("a", "1", "1", ("x", "y"), "amd64", size=30, layer_sizes=(10, 20))
    two = ImageFacts("b", "2", "2", ("x", "z"), "amd64", size=15, layer_sizes=(10, 5))
    unknown = ImageFacts("c", "3", "3", ("x",), "amd64", size=10)
    assert unpacked_size([one, two, replace(one, name="again")]) == 35
    assert unpacked_size([one, two, unknown]) == 45
    assert unpacked_size([]) == 0


@pytest.mark.parametrize(
    ("image", "host", "runs"),
    [
        ("amd64", "amd64", True),
        ("arm64", "amd64", False),
        ("amd64", "arm64", False),
        ("386", "amd64", True),
        ("amd64", "386", False),
        ("", "arm64", True),
    ],
)
def test_an_image_runs_on_its_own_architecture(image: str, host: str, runs: bool) -> None:
    assert runs_on(ImageFacts("a", "", "", (), image), host) is runs


def test_an_image_for_windows_runs_on_no_host() -> None:
    assert not runs_on(ImageFacts("a", "", "", (), "amd64", os="windows"), "amd64")


@pytest.mark.parametrize(
    ("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("ppc64le", "ppc64le")]
)
def test_the_processor_goes_by_dockers_name(machine: str, name: str) -> None:
    assert docker_architecture(machine) == name


def test_the_kind_of_store_is_read_from_the_driver_status() -> None:
    info: dict[str, Any] = {
        "ServerVersion": "29.0.1",
        "Architecture": "aarch64",
        "DockerRootDir": "/data/docker",
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    }
    facts = parse_engine_info(info)
    assert (facts.version, facts.architecture) == ("29.0.1", "arm64")
    assert (facts.store, facts.image_root) == ("containerd", "/var/lib/containerd")
    facts = parse_engine_info(info | {"DriverStatus": [["Backing Filesystem", "extfs"]]})
    assert (facts.store, facts.image_root) == ("graphdriver", "/data/docker")
    assert parse_engine_info(info | {"DriverStatus": None}).store == "graphdriver"


@pytest.mark.parametrize(
    ("version", "takes_it"),
    [
        ("20.10.24", False),
        ("22.06.0-beta.0", False),
        ("23.0.0", True),
        ("29.1", True),
        ("100.0", True),
        ("dev", False),
        ("", False),
    ],
)
def test_engines_from_23_on_take_zstd(version: str, takes_it: bool) -> None:
    assert parse_engine_info({"ServerVersion": version}).unpacks_zstd is takes_it


@pytest.mark.parametrize(("info", "cpus"), [({"NCPU": 64}, 64), ({"NCPU": 0}, 1), ({}, 1)])
def test_a_host_has_at_least_one_processor(info: dict[str, Any], cpus: int) -> None:
    assert parse_engine_info(info).cpus == cpus
