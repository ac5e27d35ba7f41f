"""What a container of an image holds, so that two engines can be compared."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import docker

from tests.lab.layers import CHUNK

# A container that is never started still has to be given a command.
_NO_COMMAND = ["-"]
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.DIRTYPE: "folder",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
}


def container_files(engine_url: str, image: str) -> dict[str, str]:
    """Return what a container of an image holds.

    Args:
        engine_url: The engine's DOCKER_HOST URL: a host's `docker_host`, or the source's.
        image: A name or id that it has there.

    Returns:
        Per path its kind, rights, owner, link target, extended attributes and the hash of
        its content, as text that reads well where two of them differ.
    """
    with _exported(engine_url, image) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        return {member.name: _described(tar, member) for member in tar}


def container_digest(engine_url: str, image: str) -> str:
    """Return one hash over everything that `container_files` tells."""
    files = container_files(engine_url, image)
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _described(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    parts = [_KINDS[member.type], f"{member.mode & 0o7777:o}", f"{member.uid}:{member.gid}"]
    if member.issym() or member.islnk():
        parts.append(f"to {member.linkname}")
    parts += [
        f"{key.removeprefix('SCHILY.')}={value!r}"
        for key, value in sorted(member.pax_headers.items())
        if key.startswith("SCHILY.xattr.")
    ]
    if member.isreg() and (content := tar.extractfile(member)):
        parts.append(hashlib.file_digest(content, "sha256").hexdigest())  # type: ignore[arg-type]
    return " ".join(parts)


@contextmanager
def _exported(engine_url: str, image: str) -> Iterator[IO[bytes]]:
    with docker.APIClient(base_url=engine_url, timeout=300, version="1.41") as engine:
        container = engine.create_container(image, command=_NO_COMMAND)["Id"]
        try:
            chunks = _Chunks(engine.export(container, CHUNK))
            yield io.BufferedReader(chunks, CHUNK)  # type: ignore[type-var]
        finally:
            engine.remove_container(container, force=True, v=True)


class _Chunks(io.RawIOBase):
    """A file of what comes in chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self._rest = self._rest or next(self._chunks, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
