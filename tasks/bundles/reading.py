"""Opens a bundle: everything in it is verified before anything of it is used."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.cancellation import current_cancellation
from blocks.content import CHUNK, Content, FileRange
from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    CrossgapError,
    Damaged,
    InvalidInput,
    NotFound,
    SeveralFailures,
)
from blocks.files import Progress
from tasks.bundles import signing
from tasks.bundles.disk import disk_errors, read_document
from tasks.bundles.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    SUMS_NAME,
    Manifest,
    parse_manifest,
    parse_sums,
    part_hashes,
)
from tasks.bundles.parts import BundleFile, Part
from tasks.bundles.signing import Signer
from tasks.common.units import bytes_text

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_COPY = "Copy it again from where the bundle was made (the disk there may still have it)."


@dataclass(frozen=True)
class OpenBundle:
    """A bundle that was found whole.

    Args:
        folder: Where it lies.
        manifest: What it says of itself.
        signer: Who signed it; None where nobody did.
    """

    folder: Path
    manifest: Manifest
    signer: Signer | None = None

    @property
    def base(self) -> str:
        """What it builds on, in words; empty where it is whole by itself."""
        return self.manifest.base.label if self.manifest.base else ""

    @property
    def sentence(self) -> str:
        """Say what was verified, and who vouches for it."""
        manifest = self.manifest
        signed = self.signer.words if self.signer else "not signed"
        return (
            f"Bundle {manifest.id} of {manifest.created[:10]}: all {manifest.parts} files "
            f"({bytes_text(manifest.size)}) are right; {signed}."
        )

    def content(self, path: str) -> Content | None:
        """Return the bytes of a file from all its parts; None where there is no such file."""
        parts = self._parts.get(path)
        if parts is None:
            return None
        return Content(tuple(FileRange(self.folder / part.path, 0, part.size) for part in parts))

    @cached_property
    def _parts(self) -> dict[str, tuple[Part, ...]]:
        return {file.path: file.parts for file in self.manifest.files}


def open_bundle(
    path: str,
    keys: str = "",
    about: Callable[[Manifest], Mapping[str, str]] = lambda _: {},
    progress: Progress | None = None,
) -> OpenBundle:
    """Open a bundle and verify all of it.

    Args:
        path: Its folder.
        keys: Keys of which one has to have signed it; see `signing.check`. Without, it
            need not be signed; a signature that it has must be right anyway.
        about: Tells from the manifest what files are, by path, for errors.
        progress: Called with the bytes read so far and in all.

    Returns:
        The bundle.

    Raises:
        NotFound: There is no bundle, or a file of it is missing.
        Damaged: A file is not what the manifest says.
        AuthenticationRefused: It is not signed, or by nobody who is trusted.
        InvalidInput: It is of a newer format.
        SeveralFailures: Several files are missing or damaged.
        CrossgapError: The disk cannot be read.
    """
    folder = _folder(path)
    with disk_errors(folder):
        encoded = _read_own(folder, MANIFEST_NAME)
        manifest = parse_manifest(encoded, str(folder))
        listing = _read_own(folder, SUMS_NAME)
        signer = _check_signature(folder, listing, keys)
        _check_listing(folder, manifest, encoded, listing)
        faults = faults_in(folder, manifest.files, about(manifest), progress)
    if len(faults) > 1:
        raise SeveralFailures([error for _, error in faults], str(folder))
    for _, error in faults:
        raise error
    return OpenBundle(folder, manifest, signer)


def faults_in(
    folder: Path,
    files: Sequence[BundleFile],
    about: Mapping[str, str],
    progress: Progress | None = None,
) -> list[tuple[str, CrossgapError]]:
    """Read all files of a bundle, from the disk and not from memory where that can be had.

    Args:
        folder: Where it lies.
        files: What has to be there.
        about: What files are, by path, for the errors.
        progress: Called with the bytes read so far and in all.

    Returns:
        Every file on the disk that is missing or not the right one, and how.
    """
    reader = _Reader(folder, sum(file.size for file in files), progress)
    return [fault for file in files for fault in _faults(reader, file, about.get(file.path, ""))]


def _faults(reader: _Reader, file: BundleFile, what: str) -> Iterator[tuple[str, CrossgapError]]:
    whole = hashlib.sha256() if len(file.parts) > 1 else None
    faulty = False
    for part in file.parts:
        error = reader.fault(part, what, whole)
        if error is not None:
            faulty = True
            yield part.path, error
    if whole and not faulty and whole.hexdigest() != file.sha256:
        yield file.path, _damaged(reader.folder, file.path, file.size, what)


class _Reader:
    """Reads parts one after the other."""

    def __init__(self, folder: Path, total: int, progress: Progress | None) -> None:
        self.folder = folder
        self._total = total
        self._progress = progress
        self._done = 0

    def fault(self, part: Part, what: str, whole: Hash | None) -> CrossgapError | None:
        """Return what is wrong with a part; pass its bytes on."""
        expected = self._done + part.size
        try:
            return self._fault(part, what, whole)
        except OSError as error:
            return CommandFailed(
                f"{part.path}{_in_brackets(what)} cannot be read ({error.strerror})",
                str(self.folder),
                f"The disk may be failing, or was pulled out (see dmesg). {_COPY}",
            )
        finally:
            self._advance(expected - self._done)

    def _fault(self, part: Part, what: str, whole: Hash | None) -> CrossgapError | None:
        own = hashlib.sha256()
        try:
            with _opened(self.folder, part.path) as file:
                if os.fstat(file).st_size != part.size:
                    return _damaged(self.folder, part.path, part.size, what, os.fstat(file).st_size)
                for chunk in _read(file):
                    current_cancellation().check(str(self.folder))
                    own.update(chunk)
                    if whole is not None:
                        whole.update(chunk)
                    self._advance(len(chunk))
        except FileNotFoundError:
            return NotFound(
                f"{part.path} ({bytes_text(part.size)}{_and(what)}) is missing",
                str(self.folder),
                _COPY,
            )
        if own.hexdigest() == part.sha256:
            return None
        return _damaged(self.folder, part.path, part.size, what)

    def _advance(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


@contextmanager
def _opened(folder: Path, path: str) -> Iterator[int]:
    """Open a regular file of a bundle; what is a link is not followed, wherever it leads."""
    place = folder
    for name in path.split("/")[:-1]:
        place /= name
        if place.is_symlink():
            raise _is_link(place)
    place = folder / path
    if place.is_symlink():
        raise _is_link(place)
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _is_link(place)
        # What was written a moment ago would be read from memory, and prove nothing.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(file: int) -> Iterator[bytes]:
    while chunk := os.read(file, CHUNK):
        yield chunk


def _folder(path: str) -> Path:
    folder = Path(path).expanduser().absolute()
    if folder.is_file() and folder.name == MANIFEST_NAME:
        folder = folder.parent
    with disk_errors(folder):
        if not folder.is_dir():
            raise NotFound(
                "there is no such folder",
                str(folder),
                "Mount the disk on the machine that the worker runs on, and check the path.",
            )
        if not (folder / MANIFEST_NAME).exists():
            inside = sorted(found.parent.name for found in folder.glob(f"*/{MANIFEST_NAME}"))
            hint = f" There is one in {', '.join(inside[:5])}." if inside else ""
            raise NotFound(
                f"it is not a bundle (it has no {MANIFEST_NAME})",
                str(folder),
                f"Name the folder that pack-bundle made.{hint}",
            )
    return folder


def _read_own(folder: Path, name: str) -> bytes:
    if (folder / name).is_symlink():
        raise _is_link(folder / name)
    return read_document(folder / name, _COPY)


def _check_signature(folder: Path, listing: bytes, keys: str) -> Signer | None:
    if os.path.lexists(folder / SIGNATURE_NAME):
        signature = _read_own(folder, SIGNATURE_NAME)
        return signing.check(listing, signature, keys, str(folder))
    if keys:
        raise AuthenticationRefused(
            f"it is not signed ({SIGNATURE_NAME} is missing)",
            str(folder),
            f"Copy {SIGNATURE_NAME} from where it was made, have it packed with sign_with, or "
            "leave verify_with empty if you trust the way it came.",
        )
    return None


def _check_listing(folder: Path, manifest: Manifest, encoded: bytes, listing: bytes) -> None:
    """The sums are what is signed: the manifest has to say the same, of itself too."""
    hashes = parse_sums(listing, str(folder))
    if hashes.pop(MANIFEST_NAME, "") != hashlib.sha256(encoded).hexdigest():
        raise Damaged(
            f"{MANIFEST_NAME} is not the one that {SUMS_NAME} was made for", str(folder), _COPY
        )
    if hashes != part_hashes(manifest.files):
        raise Damaged(
            f"{SUMS_NAME} and {MANIFEST_NAME} do not list the same files",
            str(folder),
            "Do not use this bundle: it was not made by crossgap, or was altered.",
        )


def _damaged(folder: Path, path: str, size: int, what: str, found: int | None = None) -> Damaged:
    how = "is damaged: its SHA-256 is wrong"
    if found is not None:
        how = f"is damaged: it has {found:,} bytes instead of {size:,}"
    return Damaged(f"{path}{_in_brackets(what)} {how}", str(folder), _COPY)


def _is_link(place: Path) -> InvalidInput:
    return InvalidInput(
        "it is a link or something else that no bundle has",
        str(place),
        "Do not use this bundle: it was not made by crossgap, or was altered.",
    )


def _in_brackets(what: str) -> str:
    return f" ({what})" if what else ""


def _and(what: str) -> str:
    return f", {what}" if what else ""
