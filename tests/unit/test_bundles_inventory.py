"""What the far side has, by an earlier bundle or by what an unpack wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blocks.content import Content
from blocks.errors import CrossgapError, Damaged, InvalidInput, NotFound, PermissionRefused
from tasks.bundles import steps
from tasks.bundles.inventory import (
    Inventory,
    Known,
    inventory_of,
    read_inventory,
    read_known,
    write_inventory,
)
from tasks.bundles.writing import Recipe, Source, write_bundle

CONTENTS = {"images": ({"name": "app:1"},)}


def inventory() -> Inventory:
    return inventory_of("机房 A/gpu:1", "2024-05-01-abcdef", CONTENTS)


def test_nothing_is_known_where_nothing_is_named() -> None:
    assert read_known("") == Known()


@pytest.mark.parametrize("name", ["", "bundle.json"])
def test_an_earlier_bundle_tells_what_is_there(tmp_path: Path, name: str) -> None:
    source = Source("aa", Content((b"x",)), "")
    recipe = Recipe((source,), CONTENTS, (), None, 1 << 20)
    bundle = write_bundle(tmp_path / "五月", recipe)
    known = read_known(str(tmp_path / "五月" / name))
    assert known.contents == CONTENTS
    assert known.base is not None
    assert known.base.bundle == bundle.manifest.id
    assert ("五月" in known.base.label) is (name == "")


def test_an_inventory_survives_being_written_and_carried(tmp_path: Path) -> None:
    path = write_inventory(inventory(), tmp_path / "new")
    assert path.name == "inventory-机房-A-gpu-1.json"
    assert read_inventory(path) == inventory()
    known = read_known(str(path))
    assert known.contents == CONTENTS
    assert known.base is not None
    assert known.base.bundle == "2024-05-01-abcdef"
    assert "机房 A/gpu:1" in known.base.label
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("{}", InvalidInput, "neither"),
        ("[]", Damaged, "cannot be read"),
        ("", Damaged, "cannot be read"),
        ('{"site": "a", "format": 1}', Damaged, "cannot be read"),
        ('{"site": "a", "format": 2}', InvalidInput, "Update crossgap"),
        ('{"files": [], "format": 2}', InvalidInput, "Update crossgap"),
    ],
)
def test_what_is_no_inventory_is_refused(
    tmp_path: Path, content: str, kind: type[CrossgapError], words: str
) -> None:
    path = tmp_path / "inventory.json"
    path.write_text(content)
    with pytest.raises(kind, match=words):
        read_known(str(path))
    assert read_inventory(path) is None


def test_a_base_that_is_not_there_says_what_may_be_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="since names an earlier bundle"):
        read_known(str(tmp_path))
    with pytest.raises(NotFound, match="since names an earlier bundle"):
        read_known(str(tmp_path / "june"))


def test_a_disk_that_can_only_be_read_keeps_nobody_from_knowing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, disk = tmp_path / "here", tmp_path / "disk"
    monkeypatch.setattr(steps, "inventory_folder", lambda: here)
    monkeypatch.setattr(steps, "write_inventory", _write_unless(disk))
    place = steps.keep_inventory.fn(inventory(), disk)
    assert Path(place).parent == here
    assert json.loads(Path(place).read_bytes())["bundle"] == "2024-05-01-abcdef"
    assert steps.known_inventory(inventory().site) == CONTENTS


def _write_unless(forbidden: Path):
    def write(found: Inventory, folder: Path) -> Path:
        if folder == forbidden:
            raise PermissionRefused("the disk can only be read", str(folder))
        return write_inventory(found, folder)

    return write
