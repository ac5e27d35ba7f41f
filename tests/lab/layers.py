"""Layers made to measure: files of random bytes or given text, links, whiteouts.

The same spec gives the same bytes, so digests are known and bases are shared. Whole layers
go through files: memory stays flat whatever the size.
"""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import IO

from tests.lab.commands import CLEAN_ENVIRONMENT, execute
from tests.lab.errors import LabUnavailable

CHUNK = 1 << 20
CREATED = "2024-01-01T00:00:00Z"
CREATED_SECONDS = 1704067200


# In a folder, it hides what the layers below have there.
OPAQUE = ".wh..wh..opq"
# The layer without any file as Docker makes it, which engines know by its digest.
EMPTY_TAR = bytes(1024)


@dataclass(frozen=True)
class File:
    """A file with more than content.

    Attributes:
        content: Its bytes, or a number of random ones.
        mode: Its rights, such as 0o4755.
        xattrs: Extended attributes, such as `security.capability`.
    """

    content: int | bytes = b""
    mode: int = 0o644
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """A folder that is to be there even if it is empty, or has rights of its own."""

    mode: int = 0o755


@dataclass(frozen=True)
class Symlink:
    """A symbolic link; its target need not exist."""

    target: str


@dataclass(frozen=True)
class HardLink:
    """Another name of a file of the same layer; its target is a path as in the spec."""

    target: str


Entry = int | bytes | File | Folder | Symlink | HardLink


@dataclass(frozen=True)
class LayerSpec:
    """One layer.

    Attributes:
        files: Per path without a leading slash what is there: content, a number of random
            bytes, or another `Entry`. See `whiteout` and `OPAQUE` for what a layer takes
            away. Without any, it is Docker's own empty layer.
        seed: Two layers with the same files and seed are the same layer.
    """

    files: Mapping[str, Entry]
    seed: int = 0


def whiteout(path: str) -> str:
    """Return the file that takes away a file or folder of the layers below."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}.wh.{name}"


@dataclass(frozen=True)
class Layer:
    """A layer that lies in a file.

    Attributes:
        diff_id: `sha256:…` of its tar.
        path: The tar.
        size: Its bytes.
    """

    diff_id: str
    path: Path
    size: int


class LayerStore:
    """Layers' tars in a folder, each spec's made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._layers: dict[str, Layer] = {}

    def layer(self, spec: LayerSpec) -> Layer:
        """Return the layer of a spec."""
        key = repr((sorted(spec.files.items()), spec.seed))
        if key not in self._layers:
            self._layers[key] = self._write(spec, key)
        return self._layers[key]

    def busybox(self) -> Layer:
        """Return the layer that makes a container run: busybox under all its names."""
        if "busybox" not in self._layers:
            path = self._folder / "busybox"
            self._layers["busybox"] = self._tarred(path, _busybox_entries())
        return self._layers["busybox"]

    def _write(self, spec: LayerSpec, key: str) -> Layer:
        path = self._folder / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
        if not spec.files:
            path.write_bytes(EMPTY_TAR)
            return _layer(path)
        return self._tarred(path, _file_entries(spec))

    def _tarred(self, path: Path, entries: Iterator[tuple[tarfile.TarInfo, IO[bytes]]]) -> Layer:
        with (
            path.open("wb") as output,
            tarfile.open(fileobj=output, mode="w|", format=tarfile.GNU_FORMAT) as tar,
        ):
            for info, content in entries:
                # Docker writes extended attributes as pax records; other layers have none.
                tar.format = tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT
                tar.addfile(info, content)
        return _layer(path)


class _Random(io.RawIOBase):
    """So many bytes that cannot be compressed, the same ones for the same seed."""

    def __init__(self, seed: str, size: int) -> None:
        self._source = random.Random(seed)
        self._left = size
        self._chunk = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        while len(self._chunk) < wanted:
            self._chunk += self._source.randbytes(CHUNK)
        given, self._chunk = self._chunk[:wanted], self._chunk[wanted:]
        self._left -= wanted
        return given


def _layer(path: Path) -> Layer:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Layer(f"sha256:{digest}", path, path.stat().st_size)


def _file_entries(spec: LayerSpec) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    named = {str(p) for name in spec.files for p in Path(name).parents} - {"."}
    for folder in sorted(named - set(spec.files)):
        yield tar_member(folder, tarfile.DIRTYPE, mode=0o755), io.BytesIO()
    # A hard link comes after what it links to.
    last = sorted(spec.files, key=lambda name: (isinstance(spec.files[name], HardLink), name))
    for name in last:
        yield _member(name, spec.files[name], spec.seed)


def _member(name: str, entry: Entry, seed: int) -> tuple[tarfile.TarInfo, IO[bytes]]:
    match entry:
        case Folder():
            return tar_member(name, tarfile.DIRTYPE, mode=entry.mode), io.BytesIO()
        case Symlink() | HardLink():
            kind = tarfile.SYMTYPE if isinstance(entry, Symlink) else tarfile.LNKTYPE
            info = tar_member(name, kind)
            info.linkname = entry.target
            return info, io.BytesIO()
        case File():
            info, content = _member(name, entry.content, seed)
            info.mode = entry.mode
            info.pax_headers = {
                f"SCHILY.xattr.{key}": value.decode(errors="surrogateescape")
                for key, value in sorted(entry.xattrs.items())
            }
            return info, content
    info = tar_member(name, tarfile.REGTYPE)
    if isinstance(entry, bytes):
        info.size = len(entry)
        return info, io.BytesIO(entry)
    info.size = entry
    return info, _Random(f"{seed}:{name}", entry)  # type: ignore[return-value]


def _busybox_entries() -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    found = which("busybox", path=CLEAN_ENVIRONMENT["PATH"])
    if not found:
        raise LabUnavailable(
            "busybox is missing", "Run as root: apt-get install --yes busybox-static"
        )
    binary = Path(found).read_bytes()
    for folder, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777)):
        yield tar_member(folder, tarfile.DIRTYPE, mode=mode), io.BytesIO()
    info = tar_member("bin/busybox", tarfile.REGTYPE, mode=0o755)
    info.size = len(binary)
    yield info, io.BytesIO(binary)
    for applet in sorted(set(execute(found, "--list").split()) - {"busybox"}):
        link = tar_member(f"bin/{applet}", tarfile.SYMTYPE)
        link.linkname = "busybox"
        yield link, io.BytesIO()


def tar_member(name: str, kind: bytes, mode: int = 0o644) -> tarfile.TarInfo:
    """Return a tar member that is the same whoever makes it, and when."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o777 if kind == tarfile.SYMTYPE else mode
    info.mtime = CREATED_SECONDS
    return info
