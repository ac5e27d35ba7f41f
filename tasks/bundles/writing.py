"""Writes a bundle to a disk, reads it back from there, and only then gives it its name."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blocks.cancellation import current_cancellation
from blocks.content import Content
from blocks.errors import (
    Conflict,
    CrossgapError,
    Damaged,
    DiskFull,
    InvalidInput,
    NotFound,
)
from blocks.files import Progress
from tasks.bundles import signing
from tasks.bundles.contents import CONTENTS_NAME, LOADER_NAME, Section, table_of_contents
from tasks.bundles.disk import disk_errors
from tasks.bundles.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    SUMS_NAME,
    Base,
    Items,
    Manifest,
    parse_manifest,
    part_hashes,
    sums,
)
from tasks.bundles.parts import BundleFile, Part, split
from tasks.bundles.reading import OpenBundle, faults_in
from tasks.bundles.unfinished import Unfinished, unfinished
from tasks.common.units import bytes_text

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

# A disk that is slower than memory is given its bytes in portions, so that progress is
# what is on it, and not what waits in memory.
_PORTION = 64 << 20
# What a file takes beside its bytes: the rest of a large cluster.
_CLUSTER = 64 << 10
_RESERVE = 4 << 20


@dataclass(frozen=True)
class Source:
    """A file that goes into a bundle.

    Args:
        path: Its name there.
        content: Its bytes.
        sha256: Their hash where it is known, which they then have to have.
        what: What it is, for errors.
        discard: Called when the bytes here turn out to be wrong.
    """

    path: str
    content: Content
    sha256: str = ""
    what: str = ""
    discard: Callable[[], object] | None = None


class Packed(Protocol):
    """Things of one kind, ready to be written into a bundle."""

    @property
    def files(self) -> Sequence[Any]:
        """What they become: dataclasses with the fields of a `Source`."""

    @property
    def items(self) -> Items:
        """What the bundle's manifest says of them."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What its table of contents says of them."""


@dataclass(frozen=True)
class Recipe:
    """What a bundle is to be.

    Args:
        sources: Its files.
        contents: What they are, by kind.
        sections: The same for a reader.
        base: What it builds on.
        largest_part: Bytes that a file on the disk may have.
        sign_with: Path of the key to sign with, or nothing.
    """

    sources: tuple[Source, ...]
    contents: Mapping[str, Items]
    sections: tuple[Section, ...]
    base: Base | None
    largest_part: int
    sign_with: str = ""

    @classmethod
    def of(
        cls, kinds: Mapping[str, Packed], base: Base | None, largest_part: int, sign_with: str
    ) -> Recipe:
        """Put a bundle together out of several kinds of things.

        Args:
            kinds: What there is of each; one of which there is nothing is not mentioned.
            base: What it builds on.
            largest_part: Bytes that a file on the disk may have.
            sign_with: Path of the key to sign with, or nothing.
        """
        held = {kind: packed for kind, packed in kinds.items() if packed.items}
        return cls(
            sources=tuple(
                Source(**vars(file)) for packed in kinds.values() for file in packed.files
            ),
            contents={kind: packed.items for kind, packed in held.items()},
            sections=tuple(Section(k.capitalize(), packed.lines) for k, packed in held.items()),
            base=base,
            largest_part=largest_part,
            sign_with=sign_with,
        )


def existing_bundle(target: Path, recipe: Recipe) -> Manifest | None:
    """Return the bundle of that name if it is the one that is wanted; None where there is none.

    Raises:
        Conflict: Something else has the name.
        NotFound: There is no folder to put it into.
    """
    with disk_errors(target.parent):
        if not target.parent.is_dir():
            raise NotFound(
                "there is no such folder to put the bundle into",
                str(target.parent),
                "Mount the disk, or make the folder, and start again.",
            )
        _refuse_mount_point(target)
        if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
            return None
        found = _finished(target)
        signed = (target / SIGNATURE_NAME).is_file()
    if found and (found.contents, found.base, signed) == (
        recipe.contents,
        recipe.base,
        bool(recipe.sign_with),
    ):
        return found
    raise Conflict(
        "there is something else of this name",
        str(target),
        "Give the name of a folder that is not there yet, such as bundle-2024-05.",
    )


def write_bundle(
    target: Path,
    recipe: Recipe,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> OpenBundle:
    """Write a bundle, going on with what an earlier try has written.

    Args:
        target: The folder that it shall be.
        recipe: What it is to be.
        progress: Called with the bytes on the disk and in all.
        checking: Called with the bytes read back and in all.

    Returns:
        What was written.

    Raises:
        Conflict: Another pack writes it, or something else has the name.
        DiskFull: There is no room, found before or while writing.
        Damaged: A file changed while it was read, or the disk gives back other bytes.
        CrossgapError: The disk, or the key, cannot be used.
    """
    if (found := existing_bundle(target, recipe)) is not None:
        return _signed(target, found)
    with unfinished(target) as work, disk_errors(target.parent):
        # Another pack may just have finished it.
        if (found := existing_bundle(target, recipe)) is not None:
            return _signed(target, found)
        pack = _Pack(work, recipe, progress)
        pack.prepare()
        files = [pack.write(source) for source in recipe.sources]
        manifest = pack.conclude(files)
        _read_back(work, manifest, checking)
        work.finish(target)
    return _signed(target, manifest)


class _Pack:
    """One bundle being written."""

    def __init__(self, work: Unfinished, recipe: Recipe, progress: Progress | None) -> None:
        self._work = work
        self._recipe = recipe
        self._progress = progress
        self._total = sum(source.content.size for source in recipe.sources)
        self._done = 0

    def prepare(self) -> None:
        """Find out what hinders before hours are spent: the key, the room."""
        if self._recipe.sign_with:
            signing.sign(b"", self._recipe.sign_with)
        parts = [(part, source) for source in self._recipe.sources for part in self._split(source)]
        self._work.clear_foreign({part.path for part, _ in parts})
        missing = [part for part, source in parts if not self._work.kept(part, source.sha256)]
        need = sum(part.size + _CLUSTER for part in missing) + _RESERVE
        free = shutil.disk_usage(self._work.folder).free
        # A part that was half written is written over.
        free += sum(_allocated(self._work.folder / part.path) for part in missing)
        if need > free:
            raise DiskFull(
                f"{bytes_text(need)} are needed, {bytes_text(free)} are free",
                str(self._work.folder.parent),
                "Make room there, take a larger disk, or name an earlier bundle in since.",
            )

    def write(self, source: Source) -> BundleFile:
        """Write one file, or find it written."""
        parts = self._split(source)
        hashes = [self._work.kept(part, source.sha256) for part in parts]
        if all(hashes):
            self._advance(source.content.size)
            return _file(source, parts, hashes, source.sha256)
        whole = hashlib.sha256() if len(parts) > 1 else None
        for index, part in enumerate(parts):
            hashes[index] = self._bring(source, part, hashes[index], whole)
        found = whole.hexdigest() if whole else hashes[0]
        if source.sha256 and found != source.sha256:
            for part in parts:
                self._work.forget(part.path)
            if source.discard:
                source.discard()
            raise _altered(source)
        return _file(source, parts, hashes, found)

    def conclude(self, files: Sequence[BundleFile]) -> Manifest:
        """Write what the bundle says of itself, the signature last."""
        now = datetime.now(UTC)
        manifest = Manifest(
            id=f"{now:%Y-%m-%d}-{secrets.token_hex(3)}",
            created=f"{now:%Y-%m-%dT%H:%M:%SZ}",
            files=tuple(files),
            contents=self._recipe.contents,
            base=self._recipe.base,
        )
        text = table_of_contents(
            manifest,
            self._recipe.sections,
            signed=bool(self._recipe.sign_with),
            loader=any(file.path == LOADER_NAME for file in files),
        )
        table = self.write(Source(CONTENTS_NAME, Content((text.encode(),))))
        manifest = replace(manifest, files=(*manifest.files, table))
        encoded = manifest.encode()
        hashes = part_hashes(manifest.files) | {MANIFEST_NAME: hashlib.sha256(encoded).hexdigest()}
        listing = sums(hashes.items())
        own = {MANIFEST_NAME: encoded, SUMS_NAME: listing}
        if self._recipe.sign_with:
            own[SIGNATURE_NAME] = signing.sign(listing, self._recipe.sign_with)
        for name, content in own.items():
            self._write_part(Part(name, 0, len(content)), iter([content]))
        return manifest

    def _split(self, source: Source) -> tuple[Part, ...]:
        return split(source.path, source.content.size, self._recipe.largest_part)

    def _bring(self, source: Source, part: Part, kept: str, whole: Hash | None) -> str:
        """Write one part, or only read its bytes for the hash of the whole."""
        chunks = _chunks(source, part, whole)
        if kept:
            for chunk in chunks:
                self._advance(len(chunk))
            return kept
        sha256 = self._write_part(part, chunks)
        self._work.record(part, source.sha256, sha256)
        return sha256

    def _write_part(self, part: Part, chunks: Iterator[bytes]) -> str:
        own = hashlib.sha256()
        path = self._work.folder / part.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            waiting = 0
            for chunk in chunks:
                current_cancellation().check(str(self._work.folder))
                _write_all(file.fileno(), chunk)
                own.update(chunk)
                waiting += len(chunk)
                if waiting >= _PORTION:
                    os.fdatasync(file.fileno())
                    waiting = 0
                self._advance(len(chunk))
            os.fsync(file.fileno())
        return own.hexdigest()

    def _advance(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _chunks(source: Source, part: Part, whole: Hash | None) -> Iterator[bytes]:
    """Yield the bytes of one part from where they lie now."""
    left = part.size
    try:
        chunks = source.content.chunks(part.offset)
        while left and (chunk := next(chunks, b"")):
            own = chunk[:left]
            left -= len(own)
            if whole is not None:
                whole.update(own)
            yield own
    except (OSError, EOFError) as error:
        raise _altered(source) from error


def _write_all(file: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(file, rest) :]


def _file(source: Source, parts: Sequence[Part], hashes: Sequence[str], sha256: str) -> BundleFile:
    written = tuple(replace(part, sha256=own) for part, own in zip(parts, hashes, strict=True))
    return BundleFile(source.path, source.content.size, sha256, written)


def _altered(source: Source) -> Damaged:
    return Damaged(
        "its bytes here are not, or no longer, the right ones",
        source.what or source.path,
        "Start again, and it is taken anew from the source.",
    )


def _read_back(work: Unfinished, manifest: Manifest, progress: Progress | None) -> None:
    """Prove that the disk gives back what was written; some claim more room than they have."""
    faults = faults_in(work.folder, manifest.files, {}, progress)
    for path, _ in faults:
        work.forget(path)
    if faults:
        names = ", ".join(path for path, _ in faults[:5])
        raise Damaged(
            f"the disk gives back other bytes than were written to it ({names})",
            str(work.folder.parent),
            "Start again, and what is wrong is written anew; if it stays so, take another disk.",
        )


def _signed(target: Path, manifest: Manifest) -> OpenBundle:
    signature = target / SIGNATURE_NAME
    if not signature.is_file():
        return OpenBundle(target, manifest)
    with disk_errors(target):
        listing = (target / SUMS_NAME).read_bytes()
        signer = signing.check(listing, signature.read_bytes(), "", str(target))
    return OpenBundle(target, manifest, signer)


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.is_file() else 0


def _finished(target: Path) -> Manifest | None:
    try:
        return parse_manifest((target / MANIFEST_NAME).read_bytes(), str(target))
    except (OSError, CrossgapError):
        return None


def _refuse_mount_point(target: Path) -> None:
    if target.is_mount():
        raise InvalidInput(
            "it is the top of a disk, and a bundle is a folder on one",
            str(target),
            f"Name a folder in it that is not there yet, such as {target}/bundle-2024-05.",
        )
