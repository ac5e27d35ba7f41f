"""load.sh in every shell, with a docker that behaves like an engine with a graph driver."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blocks.content import Content
from tasks.bundles.manifest import sums
from tests.unit.conftest import Shell
from tests.unit.test_images_bundling import APP, BASE, NEW, TOP, packed

SIZES = [len(layer) for layer in (BASE, APP, NEW, TOP)]
DOCKER = f"""#!{sys.executable}
import hashlib, io, json, os, sys, tarfile
state = os.environ["ENGINE"]
engine = {{"ids": {{}}, "chains": [], "loads": []}}
if os.path.exists(state):
    engine = json.load(open(state))
if sys.argv[1] == "version":
    sys.exit("Cannot connect to the Docker daemon" if engine.get("down") else print("20.10"))
if sys.argv[1] == "image":
    if sys.argv[-1] not in engine["ids"]:
        sys.exit("Error: No such image: " + sys.argv[-1])
    sys.exit(print(engine["ids"][sys.argv[-1]]))
whole = io.BytesIO(sys.stdin.buffer.read())
tar = tarfile.open(fileobj=whole)
members = {{member.name: tar.extractfile(member).read() for member in tar if member.isfile()}}
sizes = {SIZES}
engine["loads"].append(sorted(len(m) for n, m in members.items() if len(m) in sizes))
for entry in json.loads(members["manifest.json"]):
    chain = ""
    diff_ids = json.loads(members[entry["Config"]])["rootfs"]["diff_ids"]
    for layer, diff_id in zip(entry["Layers"], diff_ids):
        chain = "sha256:" + hashlib.sha256(f"{{chain}} {{diff_id}}".encode()).hexdigest()
        if chain in engine["chains"]:
            continue
        if layer not in members:
            json.dump(engine, open(state, "w"))
            sys.exit(f"open /var/lib/docker/tmp/1/{{layer}}: no such file or directory")
        assert "sha256:" + hashlib.sha256(members[layer]).hexdigest() == diff_id
        engine["chains"].append(chain)
    for tag in entry["RepoTags"]:
        engine["ids"][tag] = engine.get("wrong") or "sha256:" + entry["Config"].rpartition("/")[2]
json.dump(engine, open(state, "w"))
print("Loaded image")
"""


class Site:
    """A bundle in a folder with a Chinese name, and a machine that it was carried to."""

    def __init__(self, folder: Path, shell: Shell) -> None:
        self.folder = folder / "五月 的盘 $(x)"
        self._shell = shell
        self._state = folder / "engine.json"
        self._docker = folder / "docker"
        self._docker.write_text(DOCKER)
        self._docker.chmod(0o755)

    def bring(self, files: dict[str, Content], largest: int = 700) -> None:
        hashes = []
        for path, content in files.items():
            whole = b"".join(content.chunks())
            names = (
                [path]
                if not path.startswith("blobs") or len(whole) <= largest
                else [f"{path}.001", f"{path}.002"]
            )
            for number, name in enumerate(names):
                piece = whole if len(names) == 1 else (whole[:largest], whole[largest:])[number]
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(piece)
                hashes.append((name, hashlib.sha256(piece).hexdigest()))
        (self.folder / "SHA256SUMS").write_bytes(sums(hashes))

    def engine(self) -> dict[str, Any]:
        return json.loads(self._state.read_bytes())

    def set_engine(self, **fields: object) -> None:
        fresh: dict[str, Any] = {"ids": {}, "chains": [], "loads": []}
        known = self.engine() if self._state.exists() else fresh
        self._state.write_text(json.dumps(known | fields))

    def load(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = str(self._shell.program)
        more = {"DOCKER": str(self._docker), "ENGINE": str(self._state)}
        return subprocess.run(
            [program, str(self.folder / "load.sh"), *arguments],
            env=self._shell.environment(more),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )


@pytest.fixture
def site(tmp_path: Path, shell: Shell) -> Site:
    return Site(tmp_path, shell)


def test_images_are_loaded_each_layer_once_and_not_again(site: Site) -> None:
    items, files = packed([("app:1", (BASE, APP)), ("lab.test:5000/top:1", (BASE, TOP))])
    site.bring(files)
    first = site.load()
    assert first.returncode == 0, first.stderr
    assert "2 loaded, 0 were there already, 0 failed." in first.stdout
    engine = site.engine()
    assert engine["ids"] == {one.name: one.config_digest for one in items}
    assert engine["loads"] == [[512, 1500], [700]]

    again = site.load()
    assert again.returncode == 0
    assert "0 loaded, 2 were there already" in again.stdout
    assert site.engine() == engine


def test_a_delta_loads_on_its_base_and_says_what_to_bring_without_it(site: Site) -> None:
    known, whole = packed([("app:1", (BASE, APP))])
    _, delta = packed([("app:2", (BASE, APP, NEW))], known)
    site.bring(delta)
    alone = site.load()
    assert alone.returncode == 1
    assert "app:2: NOT LOADED" in alone.stdout
    assert "bundle 2024-01-01-abcdef" in alone.stdout
    assert "no image" not in site.engine()["ids"]

    site.bring(whole)
    (site.folder / "load/base").unlink()
    assert site.load().returncode == 0
    site.bring(delta)
    both = site.load()
    assert both.returncode == 0, both.stdout
    assert site.engine()["loads"][-1] == [100]


def test_where_an_image_before_it_failed_an_image_brings_all_its_layers(site: Site) -> None:
    """The first one's archive brought the base, and somebody removed it since."""
    items, files = packed([("app:1", (BASE, APP)), ("top:1", (BASE, TOP))])
    site.bring(files)
    site.set_engine(ids={"app:1": items[0].config_digest})
    result = site.load()
    assert result.returncode == 0, result.stdout
    assert site.engine()["loads"] == [[700], [700, 1500]]


@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_nothing_is_loaded_from_a_damaged_disk(site: Site, fault: str) -> None:
    _, files = packed([("app:1", (BASE, APP))])
    site.bring(files)
    part = next(site.folder.glob("blobs/sha256/*.002"))
    part.write_bytes(b"x") if fault == "altered" else part.unlink()
    site.set_engine()
    for arguments in ((), ("check",)):
        result = site.load(*arguments)
        assert result.returncode == 1
        assert f"{part.name}: FAILED" in result.stdout
        assert "NOT COMPLETE" in result.stderr
    assert site.engine()["loads"] == []


def test_an_engine_that_claims_to_have_loaded_is_not_believed(site: Site) -> None:
    _, files = packed([("app:1", (BASE,))])
    site.bring(files)
    site.set_engine(wrong="sha256:other")
    result = site.load()
    assert result.returncode == 1
    assert "app:1: NOT LOADED" in result.stdout


def test_without_docker_it_says_how_to_go_on(site: Site) -> None:
    _, files = packed([("app:1", (BASE,))])
    site.bring(files)
    site.set_engine(down=True)
    result = site.load()
    assert result.returncode == 1
    assert "Cannot connect" in result.stderr
    assert 'DOCKER="sudo docker"' in result.stderr


def test_checking_alone_needs_no_docker(site: Site) -> None:
    _, files = packed([("app:1", (BASE,))])
    site.bring(files)
    site.set_engine(down=True)
    result = site.load("check")
    assert result.returncode == 0
    assert site.engine()["loads"] == []


def test_a_disk_that_can_only_be_read_is_enough(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = packed([("app:1", (BASE,))])
    site.bring(files)
    before = {path: path.stat().st_mtime_ns for path in [site.folder, *site.folder.rglob("*")]}
    assert site.load().returncode == 0
    assert {
        path: path.stat().st_mtime_ns for path in [site.folder, *site.folder.rglob("*")]
    } == before
