"""The flow ship-images on real hosts and engines: what it ships, and what it refuses to."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CrossgapError
from flows.ship_images import ship_images
from tasks.images.plan import Shipment
from tasks.images.results import ShipResult
from tests.integration.conftest import Block
from tests.integration.shipping import BASE, MB, left_over, on_host, ship, three
from tests.lab import ImageShelf, ImageSpec, LabHost, LayerSpec, write_archive

pytestmark = pytest.mark.usefixtures("prefect_api", "store")


def test_images_arrive_start_and_are_not_sent_again(
    any_host: LabHost, block: Block, images: ImageShelf
) -> None:
    names = three(images)
    host = block(any_host)

    first = ship(names, [host], verify="start")
    again = ship(names, [host], verify="start")

    # The base comes with the smallest of them.
    actions = zip(names, ["delta", "delta", "full"], strict=True)
    assert [(row.image, row.host, row.action) for row in first] == [
        (name, host, action) for name, action in actions
    ]
    assert [row.layers_sent for row in first] == [1, 1, 2]
    assert sum(row.bytes_sent for row in first) > 6 * MB
    assert {row.verified for row in first} == {"started"}
    assert [(row.action, row.layers_sent, row.bytes_sent) for row in again] == [
        ("present", 0, 0)
    ] * 3
    assert on_host(any_host) >= set(names)
    assert any_host.run(["docker", "ps", "-aq"]) == ""
    assert left_over(any_host) == []


def test_only_hosts_that_lack_an_image_get_it(
    plain: LabHost, plain2: LabHost, block: Block, images: ImageShelf
) -> None:
    names = three(images)
    one, two = block(plain), block(plain2)
    ship(names, [one])

    rows = ship(names, [one, two])

    assert [row.action for row in rows if row.host == one] == ["present"] * 3
    assert "present" not in [row.action for row in rows if row.host == two]


def test_an_image_that_is_there_under_another_name_is_only_tagged(
    any_host: LabHost, block: Block, images: ImageShelf
) -> None:
    name = three(images)[0]
    host = block(any_host)
    ship([name], [host])
    any_host.run(["docker", "tag", name, "old/name:1"])
    any_host.run(["docker", "rmi", name])

    (row,) = ship([name], [host])

    assert (row.action, row.bytes_sent) == ("present", 0)
    assert name in on_host(any_host)


def test_another_image_under_the_name_is_replaced(
    plain: LabHost, block: Block, images: ImageShelf
) -> None:
    host = block(plain)
    images.make("lab/app:latest", [LayerSpec({"a": MB}, seed=1)])
    ship(["lab/app:latest"], [host])
    newer = images.make("lab/app:latest", [LayerSpec({"a": MB}, seed=2)])

    (row,) = ship(["lab/app"], [host])

    assert (row.action, row.layers_sent) == ("delta", 1)
    assert newer.config_digest in plain.run(["docker", "inspect", "lab/app:latest"])


def test_a_dry_run_shows_the_plan_and_changes_nothing(
    any_host: LabHost, block: Block, images: ImageShelf
) -> None:
    names = three(images)

    plan = ship_images(names, [block(any_host)], dry_run=True)

    assert isinstance(plan, Shipment)
    assert [row["action"] for row in plan.as_rows()] == [
        "send 1 of 3 layers",
        "send 1 of 3 layers",
        "send 2 of 2 layers",
    ]
    assert on_host(any_host).isdisjoint(names)
    assert left_over(any_host) == []


@pytest.mark.parametrize(
    ("form", "compress"), [("legacy", "gzip"), ("oci", None)], ids=["legacy-gzip", "oci"]
)
def test_an_archive_from_a_cloud_drive_is_checked_and_shipped(
    any_host: LabHost, block: Block, tmp_path: Path, form: Any, compress: Any
) -> None:
    specs = [ImageSpec("lab/from-drive:1", [BASE]), ImageSpec("lab/from-drive:2", [BASE])]
    write_archive(tmp_path / "下载 (1).bin", specs, compress=compress, form=form)

    rows = ship([], [block(any_host)], source="archive", archive=str(tmp_path / "下载 (1).bin"))

    assert [row.image for row in rows] == ["lab/from-drive:1", "lab/from-drive:2"]
    assert on_host(any_host) >= {"lab/from-drive:1", "lab/from-drive:2"}
    assert left_over(any_host) == []


def test_a_folder_of_archives_is_shipped(plain: LabHost, block: Block, tmp_path: Path) -> None:
    for number in (1, 2):
        write_archive(tmp_path / f"{number}.tar", [ImageSpec(f"lab/folder:{number}", [BASE])])

    rows = ship(["lab/folder:2"], [block(plain)], source="archive", archive=str(tmp_path))

    assert [row.image for row in rows] == ["lab/folder:2"]
    assert on_host(plain) == {"lab/folder:2"}


def test_a_damaged_archive_is_found_before_anything_is_sent(
    plain: LabHost, block: Block, tmp_path: Path
) -> None:
    host = block(plain)
    write_archive(tmp_path / "good.tar", [ImageSpec("lab/damaged:1", [BASE])])
    good = (tmp_path / "good.tar").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    files = {
        "cut.tar": good[: len(good) // 2],
        "flipped.tar": bytes(flipped),
        "cut.tar.gz": gzip.compress(good, 1)[:-MB],
        "page.tar": b"<!DOCTYPE html><html>the link has expired</html>",
        "empty.tar": b"",
    }
    before = plain.bytes_received()

    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CrossgapError, match=name):
            ship([], [host], source="archive", archive=str(tmp_path / name))

    assert plain.bytes_received() - before < MB
    assert on_host(plain) == set()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lab/none:1"], r"lab/none:1.*pulling it failed|lab/none:1.*no such image"),
        (["Lab/Upper:1"], "Lab/Upper:1"),
        (["$(touch /tmp/pwned)"], "touch"),
        (["lab/ragflow:v1; rm -rf /"], "rm -rf"),
        (["镜像:1"], "镜像"),
        ([], "empty"),
    ],
)
def test_a_name_that_is_not_an_image_is_named(
    plain: LabHost, block: Block, names: list[str], message: str
) -> None:
    with pytest.raises(CrossgapError, match=message) as error:
        ship(names, [block(plain)], pull="never")

    assert "Traceback" not in str(error.value)
    assert "pwned" not in plain.run(["ls", "/tmp"])


def test_a_host_that_does_not_exist_is_answered_with_those_that_do(
    plain: LabHost, block: Block, images: ImageShelf
) -> None:
    name = block(plain)

    with pytest.raises(CrossgapError, match=f"no host block of this name.*{name}"):
        ship(three(images), ["gpu99"])


def test_all_hosts_are_tried_and_all_failures_reported(
    plain: LabHost, plain2: LabHost, bare: LabHost, block: Block, images: ImageShelf
) -> None:
    names = three(images)
    hosts = [
        block(plain),
        block(plain2, known_hosts=""),
        block(bare, sudo_password="wrong"),
        block(plain, "down", address="198.18.255.254", connect_timeout=1),
    ]

    with pytest.raises(CrossgapError) as error:
        ship(names, hosts)

    message = str(error.value)
    assert "host key is not recorded" in message
    assert "sudo refused the password" in message
    assert "down (198.18.255.254)" in message
    assert "wrong" not in message.replace("wrong-", "")
    assert on_host(plain) >= set(names)


def test_an_engine_that_does_not_run_is_named(
    any_host: LabHost, block: Block, images: ImageShelf
) -> None:
    any_host.stop_engine()

    with pytest.raises(CrossgapError, match=r"engine does not answer.*systemctl start docker"):
        ship(three(images), [block(any_host)])


def test_a_user_who_may_not_use_docker_is_told_what_to_do(
    bare: LabHost, block: Block, images: ImageShelf
) -> None:
    with pytest.raises(CrossgapError, match=r"may not use Docker.*Set 'sudo'"):
        ship(three(images), [block(bare, sudo="no")])


def test_a_host_of_another_architecture_gets_nothing(
    any_host: LabHost, block: Block, images: ImageShelf
) -> None:
    images.make("lab/arm:1", [BASE], architecture="arm64")
    host = block(any_host)
    before = any_host.bytes_received()

    with pytest.raises(CrossgapError, match=r"linux/arm64.*linux/amd64"):
        ship(["lab/arm:1"], [host], pull="never")

    assert any_host.bytes_received() - before < MB


def test_a_disk_without_room_is_found_before_anything_is_sent(
    any_host: LabHost, block: Block, images: ImageShelf
) -> None:
    names = three(images)
    any_host.fill_disk(20 * MB)
    before = any_host.bytes_received()

    with pytest.raises(CrossgapError, match=r"are needed on .* are free"):
        ship(names, [block(any_host)])

    assert any_host.bytes_received() - before < MB


def test_two_blocks_for_one_machine_take_turns(
    plain: LabHost, block: Block, images: ImageShelf
) -> None:
    names = three(images)
    one, two = block(plain, "first-block"), block(plain, "second-block")
    results: list[list[ShipResult]] = []

    runs = [
        threading.Thread(target=lambda host=host: results.append(ship(names, [host])))
        for host in (one, two)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()

    actions = sorted([row.action for row in rows] for rows in results)
    assert actions == [["delta", "delta", "full"], ["present"] * 3]
