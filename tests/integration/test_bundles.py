"""Bundles carried from a real engine to real ones, with crossgap on the far side and without."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CrossgapError
from blocks.ssh_connection import close_connections
from blocks.ssh_host import SSHHost
from flows.pack_bundle import pack_bundle
from flows.unpack_bundle import unpack_bundle
from tasks.bundles import steps
from tasks.bundles.results import Bundle, BundlePlan, UnpackPlan
from tasks.images.results import ShipResult
from tests.lab import ImageShelf, ImageSpec, LabHost, LayerSpec
from tests.lab.archives import MadeImage

MB = 1_000_000
BASE = LayerSpec({"base/data.bin": 3 * MB}, seed=1)
# Names of their own: other sessions use the same source engine.
APP = "bundled/ragflow:v0.27.0"
NAMES = [APP, "bundled/mysql:8.0", "bundled.example:5000/redis:7.2-alpine"]

pytestmark = pytest.mark.usefixtures("prefect_api")


@dataclass(frozen=True)
class Desk:
    """The machine where bundles are packed.

    Args:
        disk: What is carried.
    """

    disk: Path

    def pack(self, name: str, images: list[str], **named: Any) -> Bundle:
        bundle = pack_bundle(str(self.disk / name), images, **{"max_part_size": "2MB"} | named)
        assert isinstance(bundle, Bundle)
        return bundle


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> Desk:
    monkeypatch.setenv("DOCKER_HOST", engine)
    monkeypatch.setenv("CROSSGAP_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(steps, "inventory_folder", lambda: tmp_path / "inventories")
    disk = tmp_path / "移动硬盘"
    disk.mkdir()
    return Desk(disk)


@pytest.fixture
def block() -> Iterator[Callable[[LabHost], str]]:
    """Save a block for a host of the lab and return its name."""

    def save(host: LabHost) -> str:
        SSHHost(**host.block_fields()).save(f"test-{host.name}", overwrite=True)
        return f"test-{host.name}"

    yield save
    close_connections()


def unpacked(bundle: Bundle, hosts: list[str]) -> list[ShipResult]:
    rows = unpack_bundle(bundle.path, hosts)
    assert isinstance(rows, list)
    return [row for row in rows if isinstance(row, ShipResult)]


def three(shelf: ImageShelf) -> list[MadeImage]:
    return shelf.make_all(
        [
            ImageSpec(NAMES[0], [BASE, LayerSpec({"app/ragflow": 2 * MB}, seed=2)]),
            ImageSpec(NAMES[1], [BASE, LayerSpec({"app/mysql": MB}, seed=3)]),
            ImageSpec(NAMES[2], [BASE]),
        ]
    )


def newer(shelf: ImageShelf) -> MadeImage:
    """The application as of next month: the same, and one small layer."""
    layers = [BASE, LayerSpec({"app/ragflow": 2 * MB}, seed=2), LayerSpec({"app/fix": 9000})]
    return shelf.make(APP, layers)


def carry(bundle: Bundle, host: LabHost) -> str:
    """Bring a bundle to a host as a disk that can only be read; return its folder there."""
    there = f"/mnt/{Path(bundle.path).name}"
    shutil.copytree(bundle.path, host.path(there))
    host.run(["chmod", "-R", "a-w", there])
    return there


def load(host: LabHost, folder: str) -> str:
    script = 'sh "$1/load.sh" 2>&1; echo "exit $?"'
    return host.run(["sh", "-c", script, "sh", folder])


def config_digests(host: LabHost, names: list[str]) -> list[str]:
    return host.run(["docker", "inspect", "--format", "{{.Id}}", *names]).split()


def on_host(host: LabHost) -> set[str]:
    listing = host.run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"])
    return set(listing.split())


def test_a_bundle_is_loaded_where_no_crossgap_is(
    any_host: LabHost, images: ImageShelf, desk: Desk
) -> None:
    made = three(images)
    bundle = desk.pack("五月的盘", NAMES)
    folder = carry(bundle, any_host)

    first = load(any_host, folder)
    assert "3 loaded, 0 were there already, 0 failed.\nexit 0" in first
    assert config_digests(any_host, NAMES) == [image.config_digest for image in made]
    assert "ragflow" in any_host.run(
        [
            "docker",
            "run",
            "--rm",
            "--network",
            "none",
            APP,
            "sh",
            "-c",
            "ls app; wc -c </base/data.bin",
        ]
    )

    assert "0 loaded, 3 were there already, 0 failed.\nexit 0" in load(any_host, folder)
    sizes = [file.stat().st_size for file in Path(bundle.path).rglob("*")]
    assert max(sizes) <= 2 * MB


def test_the_next_disk_carries_only_what_is_new(
    plain: LabHost, plain2: LabHost, images: ImageShelf, desk: Desk
) -> None:
    three(images)
    may = desk.pack("五月", NAMES)
    load(plain, carry(may, plain))
    fixed = newer(images)
    june = desk.pack("六月", NAMES, since=f"{may.path}/bundle.json")

    rows = {row["name"]: row for row in june.contents}
    assert (rows[APP]["carried"], rows[APP]["left_out"]) == (1, 3)
    assert (rows[NAMES[1]]["carried"], rows[NAMES[2]]["carried"]) == (0, 0)
    assert june.size < 100_000

    assert "exit 0" in load(plain, carry(june, plain))
    assert config_digests(plain, [APP]) == [fixed.config_digest]

    # Somewhere else nobody has loaded what it builds on.
    alone = load(plain2, carry(june, plain2))
    assert "exit 1" in alone
    assert may.id in alone
    assert on_host(plain2) == set()


def test_hosts_get_from_a_bundle_what_they_lack(
    plain: LabHost, images: ImageShelf, desk: Desk, block: Callable[[LabHost], str]
) -> None:
    host = block(plain)
    three(images)
    may = desk.pack("五月", NAMES)
    first = unpacked(may, [host])
    assert {(row.image, row.verified) for row in first} == {(name, "content") for name in NAMES}
    assert sum(row.bytes_sent for row in first) < 8 * MB

    fixed = newer(images)
    inventory = Path(may.path) / f"inventory-{host}.json"
    june = desk.pack("六月", [APP], since=str(inventory))
    assert june.size < 100_000
    planned = unpack_bundle(june.path, [host], dry_run=True)
    assert isinstance(planned, UnpackPlan)
    assert planned.contents[0]["action"].startswith("send 1 of 4 layers")
    (row,) = unpacked(june, [host])
    assert (row.image, row.action, row.layers_sent) == (APP, "delta", 1)
    assert config_digests(plain, [APP]) == [fixed.config_digest]

    # What an earlier disk brought is still known by the inventory of this one.
    nothing = desk.pack("七月", NAMES, since=str(Path(june.path) / f"inventory-{host}.json"))
    assert {row["carried"] for row in nothing.contents} == {0}


def test_this_machine_unpacks_into_its_own_engine(
    plain: LabHost, images: ImageShelf, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = three(images)
    bundle = desk.pack("五月", NAMES)
    monkeypatch.setenv("DOCKER_HOST", plain.docker_host)
    rows = unpacked(bundle, [])
    assert {row.host for row in rows} == {"this-machine"}
    assert config_digests(plain, NAMES) == [image.config_digest for image in made]


def test_a_bundle_without_its_base_is_refused_before_anything_is_sent(
    plain: LabHost, images: ImageShelf, desk: Desk, block: Callable[[LabHost], str]
) -> None:
    three(images)
    may = desk.pack("五月", NAMES)
    newer(images)
    june = desk.pack("六月", [APP], since=may.path)
    host = block(plain)
    before = plain.bytes_received()
    with pytest.raises(CrossgapError) as caught:
        unpack_bundle(june.path, [host])
    assert may.id in str(caught.value)
    assert APP in str(caught.value)
    assert on_host(plain) == set()
    assert plain.bytes_received() - before < 100_000


def test_nothing_of_a_damaged_bundle_reaches_an_engine(
    plain: LabHost, images: ImageShelf, desk: Desk, block: Callable[[LabHost], str]
) -> None:
    three(images)
    bundle = desk.pack("五月", NAMES)
    part = max(Path(bundle.path).glob("blobs/sha256/*.001"), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(CrossgapError, match=f"{part.name}.*is damaged"):
        unpack_bundle(bundle.path, [block(plain)])
    assert on_host(plain) == set()
    said = load(plain, carry(bundle, plain))
    assert f"{part.name}: FAILED" in said
    assert on_host(plain) == set()


def test_only_a_bundle_with_the_right_signature_is_unpacked(
    plain: LabHost, images: ImageShelf, desk: Desk, block: Callable[[LabHost], str], tmp_path: Path
) -> None:
    for name in ("ours", "theirs"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    images.make(APP, [LayerSpec({"app/small": 9000})])
    bundle = desk.pack("五月", [APP], sign_with=str(tmp_path / "ours"))
    assert bundle.signed_by.startswith("ED25519 SHA256:")
    host = block(plain)
    with pytest.raises(CrossgapError, match="none of the trusted ones"):
        unpack_bundle(bundle.path, [host], verify_with=str(tmp_path / "theirs.pub"))
    assert on_host(plain) == set()
    unpack_bundle(bundle.path, [host], verify_with=str(tmp_path / "ours.pub"))
    assert on_host(plain) == {APP}


def test_a_dry_run_says_what_would_be_packed_and_writes_nothing(
    images: ImageShelf, desk: Desk
) -> None:
    three(images)
    plan = pack_bundle(str(desk.disk / "五月"), NAMES, dry_run=True)
    assert isinstance(plan, BundlePlan)
    assert [row["carried"] for row in plan.contents] == [3, 3, 2]
    assert plan.size > 6 * MB
    assert list(desk.disk.iterdir()) == []


def test_the_same_bundle_is_not_packed_twice(images: ImageShelf, desk: Desk) -> None:
    images.make(APP, [LayerSpec({"app/small": 9000})])
    assert desk.pack("五月", [APP]) == desk.pack("五月", [APP])
