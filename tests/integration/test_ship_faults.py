"""The flow ship-images through bad days: disks, links, sshd, engines, and runs that were killed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CrossgapError
from tasks.images import act, split
from tasks.images.archive import read_archive
from tasks.images.blobs import Layer
from tasks.images.staging import load_job_name, staged_path
from tests.integration.conftest import Block, Connect
from tests.integration.shipping import BASE, MB, left_over, on_host, ship, three, when
from tests.lab import (
    ImageShelf,
    ImageSpec,
    LabHost,
    LayerSpec,
    container_digest,
    make_images,
    write_archive,
)

LARGE = ImageSpec("lab/large:1", [LayerSpec({"data": 30 * MB}, seed=31)])

pytestmark = pytest.mark.usefixtures("prefect_api", "store")


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_half_made(
    any_host: LabHost, block: Block, images: ImageShelf
) -> None:
    images.make_all([LARGE])
    any_host.slow(100)
    start = any_host.bytes_received()
    filler = when(lambda: any_host.bytes_received() - start > 6 * MB, any_host.fill_disk)

    with pytest.raises(CrossgapError, match="disk filled up"):
        ship([LARGE.name], [block(any_host)])

    filler.join()
    assert on_host(any_host) == set()
    assert not [path for path in left_over(any_host) if path.endswith((".tar", ".part"))]


def test_what_one_host_could_not_take_need_not_be_saved_again(
    plain: LabHost,
    plain2: LabHost,
    block: Block,
    images: ImageShelf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images.make_all([LARGE])
    hosts = [block(plain), block(plain2)]
    plain2.slow(100)
    start = plain2.bytes_received()
    filler = when(lambda: plain2.bytes_received() - start > 6 * MB, plain2.fill_disk)
    with pytest.raises(CrossgapError, match="disk filled up"):
        ship([LARGE.name], hosts)
    filler.join()
    plain2.free_disk()
    plain2.slow(None)
    monkeypatch.delattr(split, "save_into")

    rows = ship([LARGE.name], hosts)

    assert [row.action for row in rows] == ["present", "full"]


def test_a_disk_that_fills_while_layers_are_streamed_is_named(
    plain: LabHost, block: Block, images: ImageShelf
) -> None:
    images.make_all([LARGE])
    plain.slow(100)
    start = plain.bytes_received()
    filler = when(lambda: plain.bytes_received() - start > 6 * MB, plain.fill_disk)

    with pytest.raises(CrossgapError, match="the disk is full"):
        ship([LARGE.name], [block(plain)], transfer="stream")

    filler.join()
    assert on_host(plain) == set()
    assert left_over(plain) == []


def test_a_store_without_room_is_named(
    plain: LabHost, block: Block, images: ImageShelf, store: Path
) -> None:
    names = three(images)
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", store], check=True)
    try:
        with pytest.raises(CrossgapError, match=r"no room for layers.*CROSSGAP_STORE"):
            ship(names, [block(plain)])
    finally:
        subprocess.run(["umount", store], check=True)
    assert on_host(plain) == set()


@pytest.mark.parametrize("way", ["staged", "stream"])
def test_a_flipped_byte_in_the_store_is_found_and_the_layer_fetched_again(
    plain: LabHost,
    plain2: LabHost,
    block: Block,
    images: ImageShelf,
    engine: str,
    store: Path,
    way: Any,
) -> None:
    images.make("lab/flipped:1", [BASE])
    ship(["lab/flipped:1"], [block(plain)])
    for blob in (store / "blobs" / "sha256").iterdir():
        flip(blob)

    (row,) = ship(["lab/flipped:1"], [block(plain2)], transfer=way)

    assert (row.action, row.verified) == ("full", "content")
    there = container_digest(plain2.docker_host, "lab/flipped:1")
    assert there == container_digest(engine, "lab/flipped:1")


def flip(path: Path) -> None:
    """Change one byte in the middle of a file, which looks untouched otherwise."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("way", ["staged", "stream"])
def test_an_engine_that_is_killed_during_the_load_is_loaded_into_when_it_is_back(
    any_host: LabHost,
    block: Block,
    images: ImageShelf,
    monkeypatch: pytest.MonkeyPatch,
    way: Any,
) -> None:
    base = ImageSpec("lab/base:1", [BASE])
    images.make_all([replace(LARGE, layers=[BASE, *LARGE.layers])])
    make_images(any_host.docker_host, [base])
    step = {"staged": "load", "stream": "load_stream"}[way]
    real: Callable[..., Any] = getattr(act, step)
    killed: list[str] = []

    def kill() -> None:
        any_host.stop_engine()
        killed.append(any_host.name)

    def load_while_somebody_kills_it(*arguments: Any, **named: Any) -> Any:
        if killed:
            return real(*arguments, **named)
        killer = when(lambda: loading(any_host), kill)
        try:
            return real(*arguments, **named)
        finally:
            killer.join()
            any_host.start_engine()

    monkeypatch.setattr(act, step, load_while_somebody_kills_it)
    (row,) = ship([LARGE.name], [block(any_host)], transfer=way)

    assert (row.action, row.verified) == ("delta", "content")
    assert killed
    assert on_host(any_host) == {base.name, LARGE.name}
    assert left_over(any_host) == []


def loading(host: LabHost) -> bool:
    """Whether the engine of a host unpacks a layer."""
    return any(
        "docker-untar" in line or "docker-applyLayer" in line for _, line in host.processes()
    )


def test_a_run_that_goes_on_needs_room_for_the_rest_only(
    plain: LabHost, block: Block, connect: Connect, tmp_path: Path
) -> None:
    # There layers and what the engine makes of them share one disk.
    fields = {"work_dir": "/var/lib/docker/crossgap"}
    path, layer = archived(tmp_path, ImageSpec("lab/large:1", [LayerSpec({"data": 40 * MB})]))
    host = connect(plain, **fields)
    try:
        with pytest.raises(_CutOffError):
            host.put(
                layer.here.content,
                staged_path(host, layer),
                pace=_cut_off(32 * MB),
                sha256=layer.blob.hex,
            )
        # Three times 40 MB and the reserve are more than that, without the part they are less.
        plain.fill_disk(leave_bytes=180 * MB)

        (row,) = ship(
            [], [block(plain, **fields)], source="archive", archive=str(path), transfer="staged"
        )

        assert 0 < row.bytes_sent < 15 * MB
        assert on_host(plain) == {"lab/large:1"}
        assert plain.run(["find", fields["work_dir"], "-type", "f"]) == ""
    finally:
        plain.run(["rm", "-rf", fields["work_dir"]])


def test_what_a_killed_run_left_is_gone_after_the_next_even_when_nothing_is_sent(
    any_host: LabHost, block: Block, connect: Connect, tmp_path: Path
) -> None:
    path, layer = archived(tmp_path, ImageSpec("lab/killed:1", [BASE]))
    name, host = block(any_host), connect(any_host)
    ship([], [name], source="archive", archive=str(path))
    host.put(layer.here.content, staged_path(host, layer))
    other = replace(layer, diff_id=f"sha256:{'5' * 64}")
    with pytest.raises(_CutOffError):
        host.put(layer.here.content, staged_path(host, other), pace=_cut_off(MB))
    ended = host.start_job(["true"], name=load_job_name("a" * 32), sudo=True)
    ended.wait(timeout=60)
    running = host.start_job(["sleep", "120"], name=load_job_name("b" * 32), sudo=True)
    try:
        (row,) = ship([], [name], source="archive", archive=str(path))

        assert row.action == "present"
        left = left_over(any_host)
        assert not [path for path in left if path.endswith(".tar")]
        assert [path for path in left if path.endswith(".part")]
        assert ended.look().state == "absent"
        assert running.look().state == "running"
    finally:
        running.cancel()
        running.forget()


def archived(folder: Path, spec: ImageSpec) -> tuple[Path, Layer]:
    """Write an archive of one image, and return it with its largest layer."""
    path = folder / "a.tar"
    write_archive(path, [spec])
    layers = read_archive(path).layers.values()
    return path, max(layers, key=lambda layer: layer.blob.size)


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


def test_a_cut_link_and_a_killed_sshd_are_waited_out_and_the_run_completes(
    any_host: LabHost, block: Block, images: ImageShelf
) -> None:
    images.make_all([LARGE])
    any_host.slow(100)
    start = any_host.bytes_received()

    def cut() -> None:
        any_host.cut()
        time.sleep(6)
        any_host.mend()

    def kill() -> None:
        any_host.stop_sshd()
        time.sleep(2)
        any_host.start_sshd()

    faults = [
        when(lambda: any_host.bytes_received() - start > 8 * MB, cut),
        when(lambda: any_host.bytes_received() - start > 20 * MB, kill),
    ]
    (row,) = ship([LARGE.name], [block(any_host)])
    for fault in faults:
        fault.join()

    assert row.verified == "content"
    # An SSH window may be lost with each, and the wire has headers.
    assert any_host.bytes_received() - start < 33 * MB * 1.15 + 8 * MB
