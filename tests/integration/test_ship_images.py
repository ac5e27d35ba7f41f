"""The flow ship-images on real hosts and engines: the good days and the bad ones."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CrossgapError
from blocks.ssh_connection import close_connections
from blocks.ssh_host import SSHHost
from flows.ship_images import ship_images
from tasks.images import shipping
from tasks.images.archive import ArchiveFacts, read_archive
from tasks.images.plan import Shipment
from tasks.images.results import ShipResult
from tasks.images.source import drop_spool
from tasks.images.staging import load_job_name, staged_path
from tests.integration.conftest import Connect
from tests.lab import ImageShelf, ImageSpec, LabHost, LayerSpec, write_archive

MB = 1_000_000
BASE = LayerSpec({"base/data.bin": 3 * MB}, seed=1)

pytestmark = pytest.mark.usefixtures("prefect_api", "spool")


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> Path:
    """Point the worker at the source engine and at a spool of its own."""
    monkeypatch.setenv("DOCKER_HOST", engine)
    monkeypatch.setenv("CROSSGAP_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture
def block() -> Iterator[Callable[..., str]]:
    """Save a block for a host of the lab and return its name."""

    def save(host: LabHost, name: str = "", **fields: Any) -> str:
        name = name or f"test-{host.name}"
        SSHHost(**{**host.block_fields(), **fields}).save(name, overwrite=True)
        return name

    yield save
    close_connections()


def ship(*arguments: Any, **named: Any) -> list[ShipResult]:
    results = ship_images(*arguments, **named)
    assert isinstance(results, list)
    return results


def three(shelf: ImageShelf) -> list[str]:
    specs = [
        ImageSpec("lab/ragflow:v0.27.0", [BASE, LayerSpec({"app/ragflow": 2 * MB}, seed=2)]),
        ImageSpec("lab/mysql:8.0", [BASE, LayerSpec({"app/mysql": MB}, seed=3)]),
        ImageSpec("lab/redis:7.2-alpine", [BASE]),
    ]
    shelf.make_all(specs)
    return [spec.name for spec in specs]


def on_host(host: LabHost) -> set[str]:
    listing = host.run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"])
    return set(listing.split())


def left_over(host: LabHost) -> list[str]:
    """What lies in the user's work folder."""
    found = host.run(["sh", "-c", f"find {host.home}/.crossgap -type f 2>/dev/null || true"])
    return found.split()


def test_images_arrive_start_and_are_not_sent_again(
    any_host: LabHost, block: Callable[..., str], images: ImageShelf, spool: Path
) -> None:
    names = three(images)
    host = block(any_host)

    first = ship(names, [host], verify="start")
    again = ship(names, [host], verify="start")

    assert [(row.image, row.host, row.action) for row in first] == [
        (name, host, "full") for name in names
    ]
    assert sum(row.bytes_sent for row in first) > 6 * MB
    assert {row.verified for row in first} == {"started"}
    assert [(row.action, row.layers_sent, row.bytes_sent) for row in again] == [
        ("present", 0, 0)
    ] * 3
    assert on_host(any_host) >= set(names)
    assert any_host.run(["docker", "ps", "-aq"]) == ""
    assert left_over(any_host) == []
    assert list(spool.glob("*.tar*")) == []


def test_only_what_a_host_lacks_is_sent(
    plain: LabHost, plain2: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    names = three(images)
    one, two = block(plain), block(plain2)
    ship(names, [one])

    rows = ship(names, [one, two])

    actions = {(row.host, row.action) for row in rows}
    assert actions == {(one, "present"), (two, "full")}


def test_an_image_that_is_there_under_another_name_is_only_tagged(
    any_host: LabHost, block: Callable[..., str], images: ImageShelf
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
    plain: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    host = block(plain)
    images.make("lab/app:latest", [LayerSpec({"a": MB}, seed=1)])
    ship(["lab/app:latest"], [host])
    newer = images.make("lab/app:latest", [LayerSpec({"a": MB}, seed=2)])

    (row,) = ship(["lab/app"], [host])

    assert row.action == "full"
    assert newer.config_digest in plain.run(["docker", "inspect", "lab/app:latest"])


def test_a_dry_run_shows_the_plan_and_changes_nothing(
    any_host: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    names = three(images)

    plan = ship_images(names, [block(any_host)], dry_run=True)

    assert isinstance(plan, Shipment)
    assert [row["action"] for row in plan.as_rows()] == ["send"] * 3
    assert on_host(any_host).isdisjoint(names)
    assert left_over(any_host) == []


@pytest.mark.parametrize("form", ["legacy", "oci"])
@pytest.mark.parametrize("compress", [None, "gzip"])
def test_an_archive_from_a_cloud_drive_is_checked_and_shipped(
    any_host: LabHost, block: Callable[..., str], tmp_path: Path, form: Any, compress: Any
) -> None:
    specs = [ImageSpec("lab/from-drive:1", [BASE]), ImageSpec("lab/from-drive:2", [BASE])]
    write_archive(tmp_path / "下载 (1).bin", specs, compress=compress, form=form)

    rows = ship([], [block(any_host)], source="archive", archive=str(tmp_path / "下载 (1).bin"))

    assert [row.image for row in rows] == ["lab/from-drive:1", "lab/from-drive:2"]
    assert on_host(any_host) >= {"lab/from-drive:1", "lab/from-drive:2"}
    assert left_over(any_host) == []


def test_a_folder_of_archives_is_shipped(
    plain: LabHost, block: Callable[..., str], tmp_path: Path
) -> None:
    for number in (1, 2):
        write_archive(tmp_path / f"{number}.tar", [ImageSpec(f"lab/folder:{number}", [BASE])])

    rows = ship(["lab/folder:2"], [block(plain)], source="archive", archive=str(tmp_path))

    assert [row.image for row in rows] == ["lab/folder:2"]
    assert on_host(plain) == {"lab/folder:2"}


def test_a_damaged_archive_is_found_before_anything_is_sent(
    plain: LabHost, block: Callable[..., str], tmp_path: Path
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
    plain: LabHost, block: Callable[..., str], names: list[str], message: str
) -> None:
    with pytest.raises(CrossgapError, match=message) as error:
        ship(names, [block(plain)], pull="never")

    assert "Traceback" not in str(error.value)
    assert "pwned" not in plain.run(["ls", "/tmp"])


def test_a_host_that_does_not_exist_is_answered_with_those_that_do(
    plain: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    name = block(plain)

    with pytest.raises(CrossgapError, match=f"no host block of this name.*{name}"):
        ship(three(images), ["gpu99"])


def test_all_hosts_are_tried_and_all_failures_reported(
    plain: LabHost, plain2: LabHost, bare: LabHost, block: Callable[..., str], images: ImageShelf
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
    any_host: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    any_host.stop_engine()

    with pytest.raises(CrossgapError, match=r"engine does not answer.*systemctl start docker"):
        ship(three(images), [block(any_host)])


def test_a_user_who_may_not_use_docker_is_told_what_to_do(
    bare: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    with pytest.raises(CrossgapError, match=r"may not use Docker.*Set 'sudo'"):
        ship(three(images), [block(bare, sudo="no")])


def test_a_host_of_another_architecture_gets_nothing(
    any_host: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    images.make("lab/arm:1", [BASE], architecture="arm64")
    host = block(any_host)
    before = any_host.bytes_received()

    with pytest.raises(CrossgapError, match=r"linux/arm64.*linux/amd64"):
        ship(["lab/arm:1"], [host], pull="never")

    assert any_host.bytes_received() - before < MB


def test_a_disk_without_room_is_found_before_anything_is_sent(
    any_host: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    names = three(images)
    any_host.fill_disk(20 * MB)
    before = any_host.bytes_received()

    with pytest.raises(CrossgapError, match=r"are needed on .* are free"):
        ship(names, [block(any_host)])

    assert any_host.bytes_received() - before < MB


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_half_made(
    any_host: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    images.make("lab/large:1", [LayerSpec({"data": 30 * MB})])
    any_host.slow(100)
    start = any_host.bytes_received()
    filler = _when(lambda: any_host.bytes_received() - start > 6 * MB, any_host.fill_disk)

    with pytest.raises(CrossgapError, match="disk filled up"):
        ship(["lab/large:1"], [block(any_host)])

    filler.join()
    assert on_host(any_host) == set()
    assert not [path for path in left_over(any_host) if path.endswith((".tar", ".part"))]


def test_a_host_that_failed_keeps_the_saved_archive_for_the_next_run(
    plain: LabHost,
    plain2: LabHost,
    block: Callable[..., str],
    images: ImageShelf,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images.make("lab/large:1", [LayerSpec({"data": 30 * MB})])
    hosts = [block(plain), block(plain2)]
    plain2.slow(100)
    start = plain2.bytes_received()
    filler = _when(lambda: plain2.bytes_received() - start > 6 * MB, plain2.fill_disk)
    with pytest.raises(CrossgapError, match="disk filled up"):
        ship(["lab/large:1"], hosts)
    filler.join()
    plain2.free_disk()
    plain2.slow(None)

    (saved,) = spool.glob("*.tar")
    before = saved.stat()
    sent: list[os.stat_result] = []

    def drop(archive: ArchiveFacts) -> None:
        sent.append(archive.path.stat())
        drop_spool(archive)

    monkeypatch.setattr(shipping, "drop_spool", drop)
    rows = ship(["lab/large:1"], hosts)

    assert [row.action for row in rows] == ["present", "full"]
    assert [(now.st_ino, now.st_mtime_ns) for now in sent] == [(before.st_ino, before.st_mtime_ns)]
    assert list(spool.glob("*.tar*")) == []


def test_a_run_that_goes_on_needs_room_for_the_rest_only(
    plain: LabHost, block: Callable[..., str], connect: Connect, tmp_path: Path
) -> None:
    # There the archive and what the engine makes of it share one disk.
    fields = {"work_dir": "/var/lib/docker/crossgap"}
    write_archive(tmp_path / "a.tar", [ImageSpec("lab/large:1", [LayerSpec({"data": 40 * MB})])])
    archive = read_archive(tmp_path / "a.tar")
    host = connect(plain, **fields)
    try:
        with pytest.raises(_CutOffError):
            host.put(archive.path, staged_path(host, archive.sha256), pace=_cut_off(32 * MB))
        # (40 + 2 * 40) MB and the reserve are more than that, without the part they are less.
        plain.fill_disk(leave_bytes=180 * MB)

        (row,) = ship([], [block(plain, **fields)], source="archive", archive=str(archive.path))

        assert 0 < row.bytes_sent < 15 * MB
        assert on_host(plain) == {"lab/large:1"}
        assert plain.run(["find", fields["work_dir"], "-type", "f"]) == ""
    finally:
        plain.run(["rm", "-rf", fields["work_dir"]])


def test_what_a_killed_run_left_is_gone_after_the_next_even_when_nothing_is_sent(
    any_host: LabHost, block: Callable[..., str], connect: Connect, tmp_path: Path
) -> None:
    write_archive(tmp_path / "a.tar", [ImageSpec("lab/killed:1", [BASE])])
    archive = read_archive(tmp_path / "a.tar")
    name, host = block(any_host), connect(any_host)
    ship([], [name], source="archive", archive=str(archive.path))
    host.put(archive.path, staged_path(host, archive.sha256))
    with pytest.raises(_CutOffError):
        host.put(archive.path, staged_path(host, "5" * 64), pace=_cut_off(MB))
    ended = host.start_job(["true"], name=load_job_name(archive.sha256), sudo=True)
    ended.wait(timeout=60)
    running = host.start_job(["sleep", "120"], name=load_job_name("5" * 64), sudo=True)
    try:
        (row,) = ship([], [name], source="archive", archive=str(archive.path))

        assert row.action == "present"
        left = left_over(any_host)
        assert not [path for path in left if path.endswith(".tar")]
        assert [path for path in left if path.endswith(".part")]
        assert ended.look().state == "absent"
        assert running.look().state == "running"
    finally:
        running.cancel()
        running.forget()


class _CutOffError(Exception):
    """Ends a transfer as a kill would."""


def _cut_off(after: int) -> Callable[[int], None]:
    """Make a pace that ends a transfer after some bytes."""
    sent = 0

    def pace(size: int) -> None:
        nonlocal sent
        sent += size
        if sent > after:
            raise _CutOffError

    return pace


def test_a_cut_link_is_waited_out_and_the_run_completes(
    any_host: LabHost, block: Callable[..., str], images: ImageShelf
) -> None:
    images.make("lab/large:1", [LayerSpec({"data": 30 * MB})])
    any_host.slow(100)
    start = any_host.bytes_received()

    def cut() -> None:
        any_host.cut()
        time.sleep(6)
        any_host.mend()

    cutter = _when(lambda: any_host.bytes_received() - start > 8 * MB, cut)
    (row,) = ship(["lab/large:1"], [block(any_host)])
    cutter.join()

    assert row.verified == "content"
    # An SSH window may be lost on the way, and the wire has headers.
    assert any_host.bytes_received() - start < 33 * MB * 1.15 + 4 * MB


def test_a_spool_that_is_full_is_named(
    plain: LabHost,
    block: Callable[..., str],
    images: ImageShelf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = shutil.disk_usage("/")._replace(free=MB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)

    with pytest.raises(CrossgapError, match=r"no room to save the images.*CROSSGAP_SPOOL"):
        ship(three(images), [block(plain)])


def test_two_blocks_for_one_machine_take_turns(
    plain: LabHost, block: Callable[..., str], images: ImageShelf
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

    actions = sorted(rows[0].action for rows in results)
    assert actions == ["full", "present"]


def _when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do something once, as soon as a condition holds."""

    def watch() -> None:
        for _ in range(3000):
            if condition():
                act()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
