"""load.sh writes the models of a bundle into a folder, in every shell."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tasks.bundles.manifest import sums
from tasks.bundles.parts import split
from tasks.images.bundling import files_of as images_of
from tasks.models.bundling import BundledModel, FoundModel, files_of, plan_packing
from tasks.models.files import ModelFile, Revision
from tasks.models.records import Record
from tests.unit.conftest import Shell

OLD, NEW = "a" * 40, "b" * 40
NAME = "local/我的 模型"
PART = 1000
FILES = {
    "config.json": b"{}",
    "分词 器/it's.json": b"t",
    "w  .safetensors": os.urandom(2500),
    "empty": b"",
}
LATER = FILES | {"config.json": b'{"new": 1}'}


class Site:
    """A disk in a folder with a Chinese name, and a machine without crossgap and without Docker."""

    def __init__(self, folder: Path, shell: Shell) -> None:
        self.disk = folder / "五月 的盘 $(x)"
        self.models = folder / "models 模型"
        self._folder = folder
        self._shell = shell

    def model(self, files: Mapping[str, bytes], commit: str) -> FoundModel:
        source = self._folder / commit
        for path, content in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content)
        listed = tuple(
            ModelFile(path, len(content), hashlib.sha256(content).hexdigest())
            for path, content in sorted(files.items())
        )
        return FoundModel(Record(Revision(NAME, commit, commit, listed)), source)

    def bring(self, model: FoundModel, known: FoundModel | None = None) -> None:
        """Make the disk hold a model, and nothing else."""
        since = [BundledModel(known.record)] if known else []
        contents = files_of(plan_packing([model], since))
        contents |= images_of((), "bundle 2024-05-01-abcdef" if known else "", lambda *_: [])
        subprocess.run(["rm", "-rf", self.disk], check=True)
        hashes = []
        for path, content in contents.items():
            for part in split(path, content.size, PART if path.startswith("models/") else 10**6):
                piece = b"".join(content.cut(part.offset, part.offset + part.size).chunks())
                (self.disk / part.path).parent.mkdir(parents=True, exist_ok=True)
                (self.disk / part.path).write_bytes(piece)
                hashes.append((part.path, hashlib.sha256(piece).hexdigest()))
        (self.disk / "SHA256SUMS").write_bytes(sums(hashes))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._shell.program, self.disk / "load.sh", *arguments],
            env=self._shell.environment({"DOCKER": "no-docker"}),
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    def write(self) -> subprocess.CompletedProcess[str]:
        return self.run("models", str(self.models))

    def there(self, commit: str) -> dict[str, bytes]:
        folder = self.models / NAME / commit
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "SHA256SUMS"
        }


@pytest.fixture
def site(tmp_path: Path, shell: Shell) -> Site:
    return Site(tmp_path, shell)


def test_a_model_is_written_whole_and_proven_once(site: Site) -> None:
    site.bring(site.model(FILES, OLD))
    first = site.write()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "1 written, 0 were there already, 0 failed." in first.stdout
    assert site.there(OLD) == FILES
    folder = site.models / NAME
    subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder / OLD, check=True)
    assert sorted(path.name for path in folder.iterdir()) == [OLD, "current"]
    assert (folder / "current").readlink() == Path(OLD)

    again = site.write()
    assert again.returncode == 0
    assert "0 written, 1 were there already, 0 failed." in again.stdout


def test_a_folder_is_found_from_where_the_script_was_started(site: Site) -> None:
    site.bring(site.model(FILES, OLD))
    assert site.run("models", site.models.name).returncode == 0
    assert site.there(OLD) == FILES


def test_a_delta_takes_the_rest_from_the_revision_that_is_there(site: Site) -> None:
    old = site.model(FILES, OLD)
    new = site.model(LATER, NEW)
    site.bring(new, old)
    alone = site.write()
    assert alone.returncode == 1
    assert "NOT WRITTEN" in alone.stdout
    assert "bundle 2024-05-01-abcdef" in alone.stdout
    assert not (site.models / NAME / NEW).exists()

    site.bring(old)
    assert site.write().returncode == 0
    site.bring(new, old)
    both = site.write()
    assert both.returncode == 0, both.stdout + both.stderr
    assert site.there(NEW) == LATER
    assert site.there(OLD) == FILES
    assert (site.models / NAME / "current").readlink() == Path(NEW)


def test_a_delta_does_not_take_damaged_files(site: Site) -> None:
    old = site.model(FILES, OLD)
    site.bring(old)
    assert site.write().returncode == 0
    (site.models / NAME / OLD / "w  .safetensors").write_bytes(b"x" * 2500)
    site.bring(site.model(LATER, NEW), old)
    result = site.write()
    assert result.returncode == 1
    assert "w  .safetensors is neither" in result.stdout
    assert not (site.models / NAME / NEW).exists()


def test_nothing_is_written_from_a_damaged_disk(site: Site) -> None:
    site.bring(site.model(FILES, OLD))
    part = next(site.disk.glob("models/sha256/*.002"))
    part.write_bytes(b"x" * part.stat().st_size)
    result = site.write()
    assert result.returncode == 1
    assert f"{part.name}: FAILED" in result.stdout
    assert not site.models.exists()


def test_what_was_cut_off_is_gone_on_with(site: Site) -> None:
    site.bring(site.model(FILES, OLD))
    half = site.models / NAME / f"{OLD}.unfinished"
    half.mkdir(parents=True)
    (half / "config.json").write_bytes(FILES["config.json"])
    (half / "w  .safetensors").write_bytes(FILES["w  .safetensors"][:1000])
    before = (half / "config.json").stat().st_ino
    assert site.write().returncode == 0
    assert site.there(OLD) == FILES
    assert (site.models / NAME / OLD / "config.json").stat().st_ino == before


def test_something_else_in_the_way_is_left_alone(site: Site) -> None:
    site.bring(site.model(FILES, OLD))
    target = site.models / NAME / OLD
    target.mkdir(parents=True)
    (target / "mine").write_bytes(b"mine")
    result = site.write()
    assert result.returncode == 1
    assert "move it away" in result.stdout
    assert site.there(OLD) == {"mine": b"mine"}


def test_a_disk_with_models_only_says_how_they_are_written(site: Site) -> None:
    site.bring(site.model(FILES, OLD))
    plain = site.run()
    assert plain.returncode == 0, plain.stderr
    assert "sh load.sh models FOLDER" in plain.stdout
    unsaid = site.run("models")
    assert unsaid.returncode == 1
    assert "Checking" not in unsaid.stdout
    assert "sh load.sh models FOLDER" in unsaid.stderr
