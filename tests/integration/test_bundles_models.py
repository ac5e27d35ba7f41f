"""Models carried on a disk, with crossgap on the far side and without."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CrossgapError, SeveralFailures
from blocks.hosts import load_host
from blocks.local_host import LocalHost
from blocks.model_hub import HubEndpoint, ModelHub
from flows.fetch_model import fetch_model
from flows.pack_bundle import pack_bundle
from flows.unpack_bundle import unpack_bundle
from tasks.bundles import steps
from tasks.bundles.reading import open_bundle
from tasks.bundles.results import Bundle, BundlePlan, UnpackPlan
from tasks.images.results import ShipResult
from tasks.models.arrivals import Arrivals
from tasks.models.bundling import open_models, parse_items
from tasks.models.delivery import deliver
from tasks.models.files import MANIFEST, ModelFile, Revision
from tasks.models.records import Record, save_record
from tasks.models.remote_facts import read_host_model
from tasks.models.remote_plan import plan_delivery
from tasks.models.unpacking import UnpackedModel, models_there, plan_deliveries, unpack_models
from tests.integration.conftest import Block
from tests.lab import ImageShelf, LabHost, LayerSpec

pytestmark = pytest.mark.usefixtures("prefect_api")

MB = 1_000_000
CHAT = "Qwen/Qwen3-tiny"
OLD, NEW = "a" * 40, "b" * 40
SHARD = os.urandom(5 * MB)
FILES = {
    "config.json": b"{}",
    "分词 器/it's.json": "词".encode(),
    "model 1.safetensors": SHARD,
    "empty": b"",
}
LATER = FILES | {"config.json": b'{"new": true}'}
OWN = {"config.json": b"own", "weights/甲.bin": os.urandom(20_000)}


@dataclass(frozen=True)
class Desk:
    """The machine where bundles are packed.

    Args:
        disk: What is carried.
        models: The folder of models.
    """

    disk: Path
    models: Path

    def fetched(self, files: Mapping[str, bytes], commit: str) -> Path:
        """Have a revision here as fetch-model leaves it."""
        source = self.models.parent / f"origin-{commit[:4]}"
        write(source, files)
        listed = tuple(
            ModelFile(path, len(content), hashlib.sha256(content).hexdigest())
            for path, content in sorted(files.items())
        )
        revision = Revision(CHAT, "main", commit, listed, "https://hub")
        arrivals = Arrivals()
        for file in listed:
            arrivals.give(file, source / file.path)
        there = read_host_model(LocalHost(), str(self.models), CHAT)
        deliver(LocalHost(), plan_delivery(revision, there), arrivals)
        save_record(self.models / CHAT, Record(revision))
        return self.models / CHAT / commit

    def pack(self, name: str, models: list[str], **named: Any) -> Bundle:
        given = {"max_part_size": "2MB", "models_dir": str(self.models)} | named
        bundle = pack_bundle(str(self.disk / name), models=models, **given)
        assert isinstance(bundle, Bundle)
        return bundle

    def refused(self, models: list[str], **named: Any) -> str:
        with pytest.raises(SeveralFailures) as caught:
            self.pack("refused", models, **named)
        return str(caught.value)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setenv("CROSSGAP_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(steps, "inventory_folder", lambda: tmp_path / "inventories")
    disk = tmp_path / "移动硬盘"
    disk.mkdir()
    return Desk(disk, tmp_path / "models 模型")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a model that something else fetched."""
    write(tmp_path / "我的 模型", OWN)
    return tmp_path / "我的 模型"


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """The models folder of a host that is this machine, with the block far-host."""
    LocalHost(models_dir=str(tmp_path / "far 远")).save("far-host", overwrite=True)
    return tmp_path / "far 远"


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def check_manifest(folder: Path) -> None:
    subprocess.run(["sha256sum", "-c", "--quiet", "--strict", MANIFEST], cwd=folder, check=True)


def unpacked(bundle: Bundle, hosts: list[str]) -> list[UnpackedModel]:
    rows = unpack_bundle(bundle.path, hosts)
    assert isinstance(rows, list)
    return [row for row in rows if isinstance(row, UnpackedModel)]


def parts_of(bundle: Bundle) -> list[Path]:
    return sorted(Path(bundle.path).glob("models/sha256/*.0*"))


def test_models_travel_without_any_engine(desk: Desk, own: Path, far: Path) -> None:
    desk.fetched(FILES, OLD)
    bundle = desk.pack("五月", [CHAT, str(own)])
    assert max(file.stat().st_size for file in Path(bundle.path).rglob("*")) <= 2 * MB
    assert len(parts_of(bundle)) == 3
    text = (Path(bundle.path) / "CONTENTS.txt").read_text()
    assert f"{CHAT}\n    commit {OLD}" in text
    assert "Images" not in text

    planned = unpack_bundle(bundle.path, ["far-host"], dry_run=True)
    assert isinstance(planned, UnpackPlan)
    assert [row["action"] for row in planned.contents] == ["full", "full"]
    assert not far.exists()

    first = unpacked(bundle, ["far-host"])
    assert [(row.action, row.host, row.files_sent) for row in first] == [
        ("full", "far-host", 4),
        ("full", "far-host", 2),
    ]
    assert contents(far / CHAT / OLD) == FILES
    assert (far / CHAT / "current").readlink() == Path(OLD)
    check_manifest(far / CHAT / OLD)
    (there,) = (far / "local/我的 模型").glob("?" * 40)
    assert contents(there) == OWN
    check_manifest(there)

    assert [row.action for row in unpacked(bundle, ["far-host"])] == ["present", "present"]
    assert desk.pack("五月", [CHAT, str(own)]) == bundle


def test_the_next_disk_carries_only_what_is_new(desk: Desk, far: Path) -> None:
    old = desk.fetched(FILES, OLD)
    may = desk.pack("五月", [CHAT])
    unpacked(may, ["far-host"])
    desk.fetched(LATER, NEW)
    june = desk.pack("六月", [CHAT], since=f"{may.path}/inventory-far-host.json")
    (row,) = june.contents
    assert (row["carried"], row["left_out"]) == (1, 3)
    assert june.size < 100_000

    (result,) = unpacked(june, ["far-host"])
    assert (result.action, result.files_sent) == ("delta", 1)
    assert contents(far / CHAT / NEW) == LATER
    check_manifest(far / CHAT / NEW)
    assert (far / CHAT / "current").readlink() == Path(NEW)

    # By its folder, or by name and commit, an older revision can be meant, too.
    again = f"{june.path}/inventory-far-host.json"
    for number, entry in enumerate([str(old), f"{CHAT}@{OLD[:8]}"]):
        (row,) = desk.pack(f"七月 {number}", [entry], since=again).contents
        assert (row["name"], row["carried"]) == (f"{CHAT}@{OLD[:12]}", 0)


def test_a_bundle_without_its_base_is_refused_before_anything_is_sent(
    desk: Desk, far: Path
) -> None:
    desk.fetched(FILES, OLD)
    may = desk.pack("五月", [CHAT])
    desk.fetched(LATER, NEW)
    june = desk.pack("六月", [CHAT], since=may.path)
    with pytest.raises(CrossgapError) as caught:
        unpack_bundle(june.path, ["far-host"])
    assert "model 1.safetensors" in str(caught.value)
    assert may.id in str(caught.value)
    assert not (far / CHAT).exists()


def test_a_base_that_is_damaged_there_is_not_linked(desk: Desk, far: Path) -> None:
    desk.fetched(FILES, OLD)
    may = desk.pack("五月", [CHAT])
    unpacked(may, ["far-host"])
    (far / CHAT / OLD / "model 1.safetensors").write_bytes(bytes(len(SHARD)))
    desk.fetched(LATER, NEW)
    june = desk.pack("六月", [CHAT], since=may.path)
    with pytest.raises(CrossgapError, match=r"model 1\.safetensors"):
        unpack_bundle(june.path, ["far-host"])
    assert not (far / CHAT / NEW).exists()


def test_a_base_without_a_proof_is_hashed_there(desk: Desk, far: Path) -> None:
    desk.fetched(FILES, OLD)
    may = desk.pack("五月", [CHAT])
    unpacked(may, ["far-host"])
    # As if load.sh had written it.
    shutil.rmtree(far / CHAT / ".crossgap")
    desk.fetched(LATER, NEW)
    june = desk.pack("六月", [CHAT], since=may.path)
    planned = unpack_bundle(june.path, ["far-host"], dry_run=True)
    assert isinstance(planned, UnpackPlan)
    assert [row["action"] for row in planned.contents] == ["delta"]
    assert not (far / CHAT / ".crossgap").exists()
    (result,) = unpacked(june, ["far-host"])
    assert (result.action, result.files_sent) == ("delta", 1)
    assert contents(far / CHAT / NEW) == LATER
    check_manifest(far / CHAT / NEW)


def test_nothing_of_a_damaged_bundle_arrives(desk: Desk, far: Path) -> None:
    desk.fetched(FILES, OLD)
    bundle = desk.pack("五月", [CHAT])
    part = parts_of(bundle)[1]
    part.write_bytes(bytes(part.stat().st_size))
    said = rf"{part.name} \(model 1\.safetensors of {CHAT}@\w+\) is damaged"
    with pytest.raises(CrossgapError, match=said):
        unpack_bundle(bundle.path, ["far-host"])
    assert not far.exists()


def test_this_machine_gets_them_into_its_own_folder_and_can_deliver_from_there(
    desk: Desk, far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.fetched(FILES, OLD)
    bundle = desk.pack("五月", [CHAT])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (row,) = unpacked(bundle, [])
    assert row.host == "this-machine"
    here = tmp_path / "home/models"
    assert contents(here / CHAT / OLD) == FILES
    ModelHub(endpoints=[HubEndpoint(url="http://127.0.0.1:9")]).save("no-hub", overwrite=True)
    fetch_model(CHAT, hub="no-hub", destination=str(here), hosts=["far-host"])
    assert contents(far / CHAT / OLD) == FILES


def test_hosts_that_see_one_folder_get_a_model_once(desk: Desk, far: Path, tmp_path: Path) -> None:
    far.mkdir()
    (tmp_path / "nfs").symlink_to(far)
    LocalHost(models_dir=str(tmp_path / "nfs")).save("nfs-host", overwrite=True)
    desk.fetched(FILES, OLD)
    bundle = open_bundle(desk.pack("五月", [CHAT]).path)
    items = parse_items(bundle.manifest.contents["models"], "")
    models = open_models(items, bundle.content, bundle.folder)
    hosts = [load_host("far-host"), load_host("nfs-host")]

    planned, refused = plan_deliveries(models, hosts, "", alone=True)
    rows, failures = unpack_models(planned, hosts)

    assert (refused, failures) == ((), ())
    assert [(row.host, row.action) for row in rows] == [
        ("far-host", "full"),
        ("nfs-host", "present"),
    ]
    assert contents(far / CHAT / OLD) == FILES
    for host in hosts:
        (there,) = models_there(host, [CHAT])
        assert [file.path for file in there.revision.files] == sorted(FILES)


def test_a_server_gets_images_and_models_of_one_disk(
    plain: LabHost,
    images: ImageShelf,
    engine: str,
    desk: Desk,
    own: Path,
    block: Block,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine)
    images.make("bundled/vllm:1", [LayerSpec({"app/small": 9000})])
    desk.fetched(FILES, OLD)
    bundle = desk.pack("五月", [CHAT, str(own)], images=["bundled/vllm:1"])
    rows = unpack_bundle(bundle.path, [block(plain, models_dir="~/模型 dir")])
    assert isinstance(rows, list)
    assert [type(row) for row in rows] == [ShipResult, UnpackedModel, UnpackedModel]
    folder = f"{plain.home}/模型 dir/{CHAT}/current"
    said = plain.run(["sh", "-c", 'cd "$1" && sha256sum -c SHA256SUMS', "sh", folder])
    assert said.count(": OK") == len(FILES)
    assert "bundled/vllm" in plain.run(["docker", "images"])

    # Of another one, nothing is lost from the inventory.
    shutil.rmtree(bundle.path + "/blobs")
    desk.fetched(LATER, NEW)
    inventory = f"{bundle.path}/inventory-test-{plain.name}.json"
    june = desk.pack("六月", [CHAT, str(own)], images=["bundled/vllm:1"], since=inventory)
    assert [row["carried"] for row in june.contents] == [0, 1, 0]


def test_a_bare_server_needs_no_engine_for_models(bare: LabHost, desk: Desk, block: Block) -> None:
    desk.fetched(FILES, OLD)
    (row,) = unpacked(desk.pack("五月", [CHAT]), [block(bare)])
    said = bare.run(["sh", "-c", 'cd "$1" && sha256sum -c SHA256SUMS', "sh", row.path])
    assert said.count(": OK") == len(FILES)


def test_a_site_without_crossgap_writes_them_by_the_script(
    desk: Desk, own: Path, tmp_path: Path
) -> None:
    desk.fetched(FILES, OLD)
    bundle = desk.pack("五月", [CHAT, str(own)])
    command = ["sh", f"{bundle.path}/load.sh", "models", "目的 地"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "2 written, 0 were there already, 0 failed." in said
    assert contents(tmp_path / "目的 地" / CHAT / OLD) == FILES
    check_manifest(tmp_path / "目的 地" / CHAT / "current")


def test_what_is_not_proven_is_hashed_and_what_changed_is_refused(desk: Desk) -> None:
    folder = desk.fetched(FILES, OLD)
    os.utime(folder / "model 1.safetensors")
    assert desk.pack("五月", [CHAT]).size > len(SHARD)
    (folder / "model 1.safetensors").write_bytes(bytes(len(SHARD)))
    assert "model 1.safetensors is not what it was" in desk.refused([CHAT])
    (folder / "model 1.safetensors").unlink()
    assert "model 1.safetensors is missing" in desk.refused([CHAT])
    assert [path.name for path in desk.disk.iterdir()] == ["五月"]


def test_models_that_are_not_here_are_named_all_at_once(desk: Desk, tmp_path: Path) -> None:
    desk.fetched(FILES, OLD)
    said = desk.refused(["Qwen/unknown", f"{CHAT}@{NEW}", str(tmp_path / "nothing"), "a b/c"])
    assert "nothing is named that could be packed" in desk.refused([])
    for part in ("Qwen/unknown", f"its revision '{NEW}' is not here", "nothing", "a b/c", OLD):
        assert part in said


def test_a_dry_run_says_what_would_be_packed_and_writes_nothing(desk: Desk, own: Path) -> None:
    desk.fetched(FILES, OLD)
    plan = pack_bundle(
        str(desk.disk / "五月"), models=[CHAT, str(own)], models_dir=str(desk.models), dry_run=True
    )
    assert isinstance(plan, BundlePlan)
    assert [row["carried"] for row in plan.contents] == [4, 2]
    assert plan.size == sum(len(content) for content in (*FILES.values(), *OWN.values()))
    assert list(desk.disk.iterdir()) == []
    assert contents(own) == OWN
