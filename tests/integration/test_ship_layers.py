"""Which layers travel to real hosts, by which way, and what containers find in them there."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.images import act, sending, split
from tasks.images.results import ShipResult
from tests.integration.conftest import Block
from tests.integration.registries import running_registry
from tests.integration.shipping import BASE, MB, left_over, on_host, ship, summary, three
from tests.lab import (
    OPAQUE,
    File,
    HardLink,
    ImageShelf,
    ImageSpec,
    LabHost,
    LayerSpec,
    Symlink,
    container_digest,
    image_names,
    make_images,
    remove_images,
    whiteout,
)

KIB = 1 << 10
SLACK = 64 * KIB
# The headers of TCP and SSH.
ON_THE_WIRE = 1.03

EMPTY = LayerSpec({})
LOWER = LayerSpec(
    {
        "srv/removed": b"removed later",
        "srv/hidden/below": b"hidden later",
        "srv/first": b"one file",
        "srv/second": HardLink("srv/first"),
        "srv/数据": 20_000,
    },
    seed=21,
)
TWICE = LayerSpec({"srv/removed": b"back again", "srv/twice": 30_000}, seed=22)
BETWEEN = LayerSpec({whiteout("srv/twice"): b"", whiteout("srv/removed"): b""})
OLD = ImageSpec("lab/app:1", [BASE, LOWER, EMPTY, TWICE, BETWEEN, TWICE])
CHANGE = LayerSpec(
    {
        "app/new": MB,
        "app/same": HardLink("app/new"),
        "app/tool": File(b"#!/bin/sh\n", mode=0o4755),
        "app/link": Symlink("../srv/first"),
        whiteout("srv/removed"): b"",
        f"srv/hidden/{OPAQUE}": b"",
        "srv/first": b"no longer the second's",
    },
    seed=23,
)
NEW = ImageSpec("lab/app:2", [*OLD.layers, CHANGE])

pytestmark = pytest.mark.usefixtures("prefect_api", "store")


def assert_same_content(host: LabHost, engine: str, name: str) -> None:
    """Compare every file of a container there with those of one here."""
    assert container_digest(host.docker_host, name) == container_digest(engine, name)


def test_an_update_costs_its_new_layer(
    any_host: LabHost, block: Block, images: ImageShelf, engine: str
) -> None:
    make_images(any_host.docker_host, [OLD])
    new = images.make_all([NEW])[0]
    host = block(any_host)
    start = any_host.bytes_received()

    (row,) = ship([NEW.name], [host])
    received = any_host.bytes_received() - start
    (again,) = ship([NEW.name], [host])
    idle = any_host.bytes_received() - start - received

    layer = new.layer_bytes[-1]
    assert (row.action, row.layers_sent) == ("delta", 1)
    assert layer - SLACK < row.bytes_sent < layer + SLACK
    assert received - idle < layer * ON_THE_WIRE + SLACK
    assert (again.action, again.bytes_sent) == ("present", 0)
    assert idle < SLACK
    assert_same_content(any_host, engine, NEW.name)
    assert left_over(any_host) == []


def test_of_one_image_each_host_gets_the_layers_that_it_lacks(
    plain: LabHost,
    plain2: LabHost,
    bare: LabHost,
    block: Block,
    images: ImageShelf,
    engine: str,
) -> None:
    name = "registry.example.com:5000/team/lab-many:1.2_x-y"
    layers = [LayerSpec({f"many/{n}": 2000}, seed=n) for n in range(57)]
    many = ImageSpec(name, [*layers[:40], EMPTY, layers[3], *layers[40:], EMPTY])
    (made,) = images.make_all([many])
    make_images(plain2.docker_host, [ImageSpec("lab/most:1", many.layers[:50])])
    make_images(bare.docker_host, [many])
    hosts = [block(plain), block(plain2), block(bare)]

    rows = ship([name], hosts)

    assert [(row.host, row.action) for row in rows] == list(
        zip(hosts, ["full", "delta", "present"], strict=True)
    )
    # The layers that come twice travel once.
    lacking = [made.diff_ids, made.diff_ids[51:], ()]
    assert [row.layers_sent for row in rows] == [len(set(lacked)) for lacked in lacking]
    for host in (plain, plain2, bare):
        assert_same_content(host, engine, name)
        assert left_over(host) == []


@pytest.mark.parametrize("way", ["staged", "stream"])
def test_a_host_that_loses_a_base_before_the_load_gets_all_of_the_image(
    plain: LabHost,
    block: Block,
    images: ImageShelf,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    way: Any,
) -> None:
    make_images(plain.docker_host, [OLD])
    new = images.make_all([NEW])[0]
    step = {"staged": "load", "stream": "load_stream"}[way]
    real: Callable[..., Any] = getattr(act, step)

    def load_after_somebody_pruned(*arguments: Any, **named: Any) -> Any:
        remove_images(plain.docker_host, [OLD.name])
        return real(*arguments, **named)

    monkeypatch.setattr(act, step, load_after_somebody_pruned)
    (row,) = ship([NEW.name], [block(plain)], transfer=way)

    assert (row.action, row.layers_sent) == ("full", len(set(new.diff_ids)))
    assert f"all of {NEW.name} was sent, because its engine lacks a layer" in summary()
    assert_same_content(plain, engine, NEW.name)
    assert left_over(plain) == []


def test_layers_are_streamed_when_asked_and_nothing_is_staged(
    any_host: LabHost,
    block: Block,
    images: ImageShelf,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(sending.Sending, "stage")
    names = three(images)

    rows = ship(names, [block(any_host)], transfer="stream")

    assert [row.layers_sent for row in rows] == [1, 1, 2]
    assert 6 * MB < sum(row.bytes_sent for row in rows) < 8 * MB
    for name in names:
        assert_same_content(any_host, engine, name)
    assert left_over(any_host) == []


def test_layers_are_streamed_where_they_cannot_be_staged(
    plain: LabHost, block: Block, images: ImageShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sending.Sending, "stage")
    images.make("lab/large:1", [LayerSpec({"data": 40 * MB}, seed=24)])
    # There layers and what the engine makes of them share one disk.
    host = block(plain, work_dir="/var/lib/docker/crossgap")
    # Three times the layers and the reserve are more than that, twice is less.
    plain.fill_disk(leave_bytes=175 * MB)

    (row,) = ship(["lab/large:1"], [host])

    assert (row.action, row.verified) == ("full", "content")
    assert on_host(plain) == {"lab/large:1"}


def test_two_runs_for_two_hosts_share_one_store(
    plain: LabHost, plain2: LabHost, block: Block, images: ImageShelf, engine: str, store: Path
) -> None:
    names = three(images)
    results: list[list[ShipResult]] = []

    runs = [
        threading.Thread(target=lambda host=host: results.append(ship(names, [host])))
        for host in (block(plain), block(plain2))
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()

    assert [[row.layers_sent for row in rows] for rows in results] == [[1, 1, 2]] * 2
    for host in (plain, plain2):
        for name in names:
            assert_same_content(host, engine, name)
    assert list((store / "partial").iterdir()) == []


def test_images_of_a_compose_file_are_shipped_from_the_store_the_second_time(
    plain: LabHost,
    plain2: LabHost,
    block: Block,
    images: ImageShelf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = three(images)
    compose = tmp_path / "部署" / "docker-compose.yml"
    compose.parent.mkdir()
    compose.with_name(".env").write_text("RAGFLOW_IMAGE=lab/ragflow:v0.27.0\n")
    compose.write_text(
        "services:\n"
        "  ragflow: {image: '${RAGFLOW_IMAGE}'}\n"
        "  mysql: {image: 'lab/mysql:${MYSQL_VERSION:-8.0}'}\n"
        "  redis: {image: lab/redis:7.2-alpine}\n"
    )
    first = ship([f"compose:{compose}"], [block(plain)])
    monkeypatch.delattr(split, "save_into")

    second = ship([f"compose:{compose}"], [block(plain2)])

    assert sorted(row.image for row in first) == sorted(names)
    assert sorted(row.image for row in second) == sorted(names)
    assert on_host(plain) == on_host(plain2) == set(names)


def test_superseded_images_are_listed_and_removed_when_asked_unless_they_are_used(
    plain: LabHost, block: Block, images: ImageShelf
) -> None:
    tags = {
        month: ImageSpec(
            f"lab/app:{month}",
            [LayerSpec({"month": month.encode()})],
            created=f"{month}-01T00:00:00Z",
        )
        for month in ("2025-01", "2025-02", "2025-03")
    }
    used, unused, new = (spec.name for spec in tags.values())
    make_images(plain.docker_host, [tags["2025-01"], tags["2025-02"]])
    plain.run(["docker", "run", "--detach", "--network", "none", "--name", "service", used])
    images.make_all([tags["2025-03"]])
    host = block(plain)

    ship([new], [host])
    listed, there = summary(), on_host(plain)
    ship([new], [host], prune=True)

    assert f"{unused} (" in listed
    assert "prune removes it" in listed
    assert there == {used, unused, new}
    assert on_host(plain) == {used, new}
    removed = summary()
    assert f"older than {new}) is superseded and was removed" in removed
    assert "stays: service (running) uses it" in removed


def test_an_image_asked_for_by_digest_arrives_under_a_tag_that_the_summary_names(
    plain: LabHost, block: Block, engine: str
) -> None:
    with running_registry() as registry:
        pushed = registry.push(ImageSpec("team/lab-pinned:1", [LayerSpec({"pinned": b"x"})]))
        name = f"{registry.address}/team/lab-pinned@{pushed.digest}"
        tag = f"{registry.address}/team/lab-pinned:{pushed.digest[:19].replace(':', '-')}"
        host = block(plain)

        (row,) = ship([name], [host], source="registry")
        assert (row.image, row.action, row.verified) == (name, "full", "content")
        assert on_host(plain) == {tag}
        assert f"arrived as {tag}" in summary()

        # The same through the engine, where the content is there under another name only.
        plain.run(["docker", "tag", tag, "somebody/else:1"])
        plain.run(["docker", "rmi", tag])
        try:
            (row,) = ship([name], [host])
            assert (row.action, row.bytes_sent) == ("present", 0)
            assert on_host(plain) == {tag, "somebody/else:1"}
            plain.run(["docker", "rmi", tag, "somebody/else:1"])
            (row,) = ship([name], [host], verify="start")
            assert (row.action, row.verified) == ("full", "started")
            assert on_host(plain) == {tag}
        finally:
            subprocess.run(["docker", "-H", engine, "rmi", name], check=True, capture_output=True)
    assert name not in image_names(engine)
