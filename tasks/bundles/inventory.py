"""What a site has: the inventory that each unpack writes, and what `since` may name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from blocks.errors import InvalidInput
from tasks.bundles.disk import disk_errors, read_document
from tasks.bundles.manifest import (
    FORMAT,
    MANIFEST_NAME,
    Base,
    Items,
    parse_contents,
    parse_document,
    parse_manifest,
    refuse_newer_format,
    text_of,
    understood,
)

_UNUSUAL = re.compile(r'[\x00-\x1f\\/:*?"<>|\s]+')


@dataclass(frozen=True)
class Inventory:
    """What a site has.

    Args:
        site: What a person calls it.
        written: When, in RFC 3339.
        bundle: Id of the bundle that was unpacked last.
        contents: What is there, by kind, in the words of a bundle's manifest.
    """

    site: str
    written: str
    bundle: str
    contents: Mapping[str, Items]

    def encode(self) -> bytes:
        """Return it as the content of a file."""
        document = {
            "format": FORMAT,
            "site": self.site,
            "written": self.written,
            "bundle": self.bundle,
            "contents": {kind: list(items) for kind, items in self.contents.items()},
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class Known:
    """What the far side is known to have.

    Args:
        base: Where that is known from; None where nothing is.
        contents: What it has, by kind.
    """

    base: Base | None = None
    contents: Mapping[str, Items] = field(default_factory=dict)


def inventory_of(site: str, bundle: str, contents: Mapping[str, Items]) -> Inventory:
    """Make the inventory of a site as it is now.

    Args:
        site: What a person calls it.
        bundle: Id of the bundle that was unpacked.
        contents: What is there, by kind.
    """
    return Inventory(site, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", bundle, contents)


def inventory_folder() -> Path:
    """Return where this machine keeps the inventories of sites: `~/.crossgap/inventories`."""
    return Path("~/.crossgap/inventories").expanduser()


def inventory_name(site: str) -> str:
    """Return the file name of a site's inventory, one that every file system takes."""
    return f"inventory-{_UNUSUAL.sub('-', site).strip('-.') or 'site'}.json"


def write_inventory(inventory: Inventory, folder: Path) -> Path:
    """Write an inventory into a folder, whole or not at all.

    Raises:
        CrossgapError: The folder cannot be written to.
    """
    path = folder / inventory_name(inventory.site)
    beside = path.with_name(path.name + ".new")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(inventory.encode())
        beside.replace(path)
    return path


def read_inventory(path: Path) -> Inventory | None:
    """Read an inventory that an earlier unpack wrote; None where there is none, or no good one."""
    with suppress(Exception):
        return _parse_inventory(path.read_bytes(), str(path))
    return None


def read_known(since: str) -> Known:
    """Read what the far side has.

    Args:
        since: An earlier bundle (its folder or its `bundle.json`), an inventory that an
            unpack wrote, or nothing.

    Raises:
        NotFound: There is no such file or folder.
        InvalidInput: It is something else, or of a newer format.
        Damaged: It cannot be read.
    """
    if not since:
        return Known()
    path = Path(since).expanduser()
    folder = ""
    if path.is_dir():
        folder = f" ({path.absolute().name})"
        path /= MANIFEST_NAME
    content = read_document(
        path,
        "since names an earlier bundle (its folder, or its bundle.json by itself), or the "
        "inventory file that an unpack wrote.",
    )
    document = parse_document(content, str(path), path.name)
    if "files" in document:
        manifest = parse_manifest(content, str(path))
        label = f"bundle {manifest.id} of {manifest.created[:10]}{folder}"
        return Known(Base(manifest.id, label), manifest.contents)
    if "site" not in document:
        raise InvalidInput(
            "it is neither a bundle's manifest nor an inventory",
            str(path),
            "Name an earlier bundle, or the inventory file that an unpack wrote.",
        )
    inventory = _parse_inventory(content, str(path))
    label = f"what {inventory.site} had on {inventory.written[:10]}"
    return Known(Base(inventory.bundle, label), inventory.contents)


def _parse_inventory(content: bytes, where: str) -> Inventory:
    document = parse_document(content, where, "inventory")
    refuse_newer_format(document, where)

    def read() -> Inventory:
        return Inventory(
            text_of(document["site"]),
            text_of(document["written"]),
            text_of(document["bundle"]),
            parse_contents(document["contents"]),
        )

    return understood(read, where, "inventory")
