"""Layers made to measure: a chosen number of bytes that no compression shrinks, or given text.

The same spec gives the same bytes, so digests are known and bases are shared. Whole layers
go through files: memory stays flat whatever the size.
"""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import IO

from tests.lab.commands import CLEAN_ENVIRONMENT, execute
from tests.lab.errors import LabUnavailable

CHUNK = 1 << 20
CREATED = "2024-01-01T00:00:00Z"
CREATED_SECONDS = 1704067200


@dataclass(frozen=True)
class LayerSpec:
    """One layer.

    Attributes:
        files: Per path without a leading slash its content, or a number of random bytes.
        seed: Two layers with the same files and seed are the same layer.
    """

    files: Mapping[str, int | bytes]
    seed: int = 0


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
        path = self._folder / hashlib.sha256(key.encode()).hexdigest()
        return self._tarred(path, _file_entries(spec))

    def _tarred(self, path: Path, entries: Iterator[tuple[tarfile.TarInfo, IO[bytes]]]) -> Layer:
        with (
            path.open("wb") as output,
            tarfile.open(fileobj=output, mode="w|", format=tarfile.GNU_FORMAT) as tar,
        ):
            for info, content in entries:
                tar.addfile(info, content)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Layer(f"sha256:{digest}", path, path.stat().st_size)


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


def _file_entries(spec: LayerSpec) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    folders = {str(p) for name in spec.files for p in Path(name).parents} - {"."}
    for folder in sorted(folders):
        yield tar_member(folder, tarfile.DIRTYPE, mode=0o755), io.BytesIO()
    for name in sorted(spec.files):
        content = spec.files[name]
        info = tar_member(name, tarfile.REGTYPE)
        if isinstance(content, bytes):
            info.size = len(content)
            yield info, io.BytesIO(content)
        else:
            info.size = content
            yield info, _Random(f"{spec.seed}:{name}", content)  # type: ignore[misc]


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
