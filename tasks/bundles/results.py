"""What came of packing: a bundle, or the plan of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.bundles.reading import OpenBundle


@dataclass(frozen=True)
class Bundle:
    """A bundle on a disk.

    Args:
        path: Its folder.
        id: Names it for people and for later bundles.
        created: When, in RFC 3339.
        size: Bytes of all its files.
        files: How many files these are.
        base: What it builds on, in words; empty where it is whole by itself.
        signed_by: Type and fingerprint of the key that signed it; empty where none did.
        contents: What is in it, one row per thing: its name, how many pieces are carried
            and left out, and the bytes that it adds.
    """

    path: str
    id: str
    created: str
    size: int
    files: int
    base: str
    signed_by: str
    contents: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, bundle: OpenBundle, rows: Sequence[Mapping[str, Any]]) -> Bundle:
        """Say what was written.

        Args:
            bundle: The bundle.
            rows: What is in it.
        """
        manifest = bundle.manifest
        return cls(
            path=str(bundle.folder),
            id=manifest.id,
            created=manifest.created,
            size=manifest.size,
            files=manifest.parts,
            base=bundle.base,
            signed_by=bundle.signer.key if bundle.signer else "",
            contents=tuple(rows),
        )


@dataclass(frozen=True)
class BundlePlan:
    """What a bundle would be.

    Args:
        path: Its folder.
        size: Bytes at most, before they are packed.
        parts: How many parts of the largest size that fills.
        base: What it would build on, in words.
        contents: As for `Bundle`.
    """

    path: str
    size: int
    parts: int
    base: str
    contents: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(
        cls, target: Path, largest: int, base: str, rows: Sequence[Mapping[str, Any]]
    ) -> BundlePlan:
        """Say what would be written.

        Args:
            target: The bundle's folder.
            largest: Bytes that a part may have.
            base: What it would build on, in words.
            rows: What would be in it.
        """
        size = sum(int(row["size"]) for row in rows)
        return cls(str(target), size, -(-size // largest), base, tuple(rows))


@dataclass(frozen=True)
class UnpackPlan:
    """What unpacking a bundle would do.

    Args:
        bundle: The bundle's id.
        contents: One row per thing and host: `what`, `host`, and in words `action` and the
            `size` of what would be sent, unpacked.
    """

    bundle: str
    contents: tuple[Mapping[str, Any], ...]
