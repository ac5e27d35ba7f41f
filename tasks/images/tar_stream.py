"""Reads a tar file once, from front to end, and hashes everything on the way.

Nothing is unpacked and memory stays flat. What the reader does not know yet
(which member is a layer, which its digest) is decided afterwards from the
hashes that are returned.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError, Damaged, InvalidInput
from blocks.files import Progress
from tasks.images.blobs import Compression
from tasks.images.compress import unpacked
from tasks.images.digests import StreamDigest

_CHUNK = 1 << 20
_BLOCK = 512
# Configurations and manifests are some kilobytes; anything larger is no such thing.
LARGEST_DOCUMENT = 8 << 20
MOST_DOCUMENTS = 128 << 20
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"

# First bytes of what people send by mistake.
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip file"),
    (b"Rar!", "a rar file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (_ZSTD, "compressed with zstd"),
)
_HTML = (b"<!doctype", b"<html", b"<?xml")


@dataclass(frozen=True)
class Member:
    """One member of a tar file.

    Args:
        name: Its path in the file, normalised.
        size: Bytes as stored.
        sha256: Hash of the bytes as stored, in hex.
        compression: By its first bytes.
        unpacked_size: Bytes after unpacking gzip; otherwise the size.
        unpacked_sha256: Hash after unpacking gzip; otherwise the same hash.
        link: For a link, the normalised path that it leads to; otherwise empty.
        document: The content, where it may be JSON; otherwise empty.
        offset: Where it begins in the tar file.
    """

    name: str
    size: int
    sha256: str
    compression: Compression
    unpacked_size: int
    unpacked_sha256: str
    link: str = ""
    document: bytes = b""
    offset: int = 0


@dataclass(frozen=True)
class TarContents:
    """A tar file that was read to its end.

    Args:
        size: Bytes of the file.
        sha256: Its hash in hex.
        compression: Of the file as a whole.
        members: By normalised path; of two with one name, the later.
    """

    size: int
    sha256: str
    compression: Literal["none", "gzip"]
    members: dict[str, Member]


class Readable(Protocol):
    """What bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to so many bytes, none at the end."""


class _BrokenHeaderError(tarfile.ReadError):
    """A header that is none, where tarfile by itself would take it for the end."""


class StrictTarInfo(tarfile.TarInfo):
    """Tells a proper end from a torn one; `TarFile.next` stops silently at both."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> StrictTarInfo:
        """Read the next header; errors that tarfile takes for an end are told apart."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise EOFError(str(error)) from error
        except tarfile.HeaderError as error:
            raise _BrokenHeaderError(str(error)) from error


def read_tar(path: Path, progress: Progress | None = None) -> TarContents:
    """Read a tar file, plain or gzipped, to its end.

    Args:
        path: The file; its name does not matter.
        progress: Called with the bytes read so far and in all.

    Returns:
        Hashes of the file and of every member, and small documents.

    Raises:
        Damaged: It is cut off, or its gzip checksum is wrong.
        InvalidInput: It is something else than a tar file.
        Cancelled: The run was cancelled.
    """
    with path.open("rb") as file, StreamDigest() as digest:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_BLOCK)
        _refuse_other_formats(path, head)
        file.seek(0)
        source = _HashedFile(file, path, size, digest, progress)
        zipped = head.startswith(_GZIP)
        walk = Walk(Gunzipped(source) if zipped else source)
        try:
            walk.run()
            source.drain()
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise _damaged(path, walk.current, source.read_bytes, size, error) from error
        return TarContents(size, digest.hexdigest(), "gzip" if zipped else "none", walk.members)


class _HashedFile:
    """The file itself: counted and hashed as it is read."""

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        size: int,
        digest: StreamDigest,
        progress: Progress | None,
    ) -> None:
        self._file = file
        self._path = path
        self._size = size
        self._digest = digest
        self._progress = progress
        self._cancellation = current_cancellation()
        self.read_bytes = 0

    def read(self, size: int) -> bytes:
        self._cancellation.check(str(self._path))
        chunk = self._file.read(size)
        self.read_bytes += len(chunk)
        self._digest.update(chunk)
        if self._progress is not None:
            self._progress(self.read_bytes, self._size)
        return chunk

    def drain(self) -> None:
        while self.read(_CHUNK):
            pass


TakeMember = Callable[[str, int, "Forward"], Member]
"""Reads a member of a name and size from a file."""


class _Inflate:
    """Unpacks gzip, of one or several members, in pieces of bounded size."""

    def __init__(self) -> None:
        self._unzip = zlib.decompressobj(wbits=31)

    @property
    def whole(self) -> bool:
        """Whether the data ended where a member does."""
        return self._unzip.eof

    def pieces(self, data: bytes) -> Iterator[bytes]:
        held_back = False
        while data or held_back:
            if self._unzip.eof:
                # Zeros may pad a file; anything else begins another member.
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._unzip = zlib.decompressobj(wbits=31)
            output = self._unzip.decompress(data, _CHUNK)
            data = self._unzip.unused_data if self._unzip.eof else self._unzip.unconsumed_tail
            held_back = len(output) == _CHUNK and not self._unzip.eof
            if output:
                yield output


class Gunzipped:
    """The unpacked bytes of a gzip file, to be read from front to end."""

    def __init__(self, source: Readable) -> None:
        self._pieces = unpacked(iter(lambda: source.read(_CHUNK), b""), "gzip")
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return up to so many bytes, none at the end."""
        if not self._rest:
            self._rest = next(self._pieces, b"")
        output, self._rest = self._rest[:size], self._rest[size:]
        return output


class Forward:
    """What tarfile needs of a file, over a source that can only be read on.

    Args:
        source: The source, at its beginning.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._position = 0

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer only at the end."""
        data = self._source.read(size)
        while len(data) < size and (more := self._source.read(size - len(data))):
            data += more
        self._position += len(data)
        return data

    def seek(self, position: int) -> None:
        """Read on to a position."""
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass


class Walk:
    """One pass over the members of a tar file.

    Args:
        source: Its bytes, from the first on.
        take: Reads one regular member; by default it is hashed.

    Attributes:
        current: The member that is being read, or was read last; empty at the end.
        members: Those read so far, by normalised path; of two with one name, the later.
    """

    def __init__(self, source: Readable, take: TakeMember | None = None) -> None:
        self._file = Forward(source)
        self._take_member = take or self._hash
        self._documents = 0
        self.current = ""
        self.members: dict[str, Member] = {}

    def run(self) -> None:
        """Read to the end.

        Raises:
            EOFError, ValueError, tarfile.TarError: As for `steps`.
        """
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """Read one member after the other, up to the end or as far as is asked for.

        Raises:
            EOFError: It ends too early.
            ValueError: It is no tar file, or one that leads out of itself.
            tarfile.TarError: It is damaged.
        """
        file: Any = self._file
        with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo) as tar:
            for info in tar:
                self.current = info.name
                self._take(info)
                yield
        self.current = ""
        # tarfile stops after the first of the two empty blocks that end a tar.
        if self._file.read(_BLOCK) != bytes(_BLOCK):
            raise EOFError("the end of the archive is missing")
        while self._file.read(_CHUNK):
            pass

    def _take(self, info: tarfile.TarInfo) -> None:
        name = inside(info.name)
        if info.islnk() or info.issym():
            folder = posixpath.dirname(name) if info.issym() else ""
            target = inside(posixpath.join(folder, info.linkname))
            self.members[name] = Member(name, 0, "", "none", 0, "", link=target)
        elif info.isreg():
            # Not by way of tarfile, which would copy every byte several times.
            self._file.seek(info.offset_data)
            self.members[name] = replace(
                self._take_member(name, info.size, self._file), offset=info.offset_data
            )

    def _hash(self, name: str, size: int, file: Forward) -> Member:
        stored, unpacked = hashlib.sha256(), hashlib.sha256()
        chunk = file.read(min(_CHUNK, size))
        compression = compression_of(chunk)
        keep = chunk[:1] in (b"{", b"[") and size <= LARGEST_DOCUMENT
        document = bytearray()
        unzip = _LayerUnzip(unpacked) if compression == "gzip" else None
        left = size
        while chunk:
            left -= len(chunk)
            stored.update(chunk)
            if unzip is not None:
                unzip.feed(chunk)
            if keep:
                document += chunk
            chunk = file.read(min(_CHUNK, left))
        if left:
            raise EOFError("the member is cut off")
        digest = stored.hexdigest()
        if unzip is None:
            return Member(name, size, digest, compression, size, digest, "", self._kept(document))
        whole = unzip.finish()
        return Member(
            name, size, digest, compression, unzip.size, unpacked.hexdigest() if whole else ""
        )

    def _kept(self, document: bytearray) -> bytes:
        self._documents += len(document)
        if self._documents > MOST_DOCUMENTS:
            raise ValueError("more JSON than any image has")
        return bytes(document)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class _LayerUnzip:
    """Hashes what a gzip member of the archive unpacks to."""

    def __init__(self, digest: _Hash) -> None:
        self._digest = digest
        self._inflate = _Inflate()
        self._broken = False
        self.size = 0

    def feed(self, chunk: bytes) -> None:
        if self._broken:
            return
        try:
            for piece in self._inflate.pieces(chunk):
                self.size += len(piece)
                self._digest.update(piece)
        except zlib.error:
            # Told later by the hash, with the name of the layer that it is.
            self._broken = True

    def finish(self) -> bool:
        """Return whether the stream was whole."""
        return not self._broken and self._inflate.whole


def compression_of(head: bytes) -> Compression:
    """Tell by its first bytes how a member is compressed."""
    if head.startswith(_GZIP):
        return "gzip"
    return "zstd" if head.startswith(_ZSTD) else "none"


def inside(name: str) -> str:
    """Normalise a member's path; nothing is unpacked, but an escape means no good."""
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path == ".." or "\0" in path:
        raise _EscapeError(name)
    return path


class _EscapeError(ValueError):
    """A member that names a place outside of the archive."""


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if not head.strip(b"\0"):
        kind = "is empty" if not head else "begins with nothing but zeros"
        raise Damaged(f"the file {kind}", str(path), "Copy or download it again.")
    if head.lstrip().lower().startswith(_HTML):
        raise InvalidInput(
            "this is a web page, not an image archive",
            str(path),
            "A cloud drive sends a page when the link has expired or wants a login; "
            "download the file itself again.",
        )
    for magic, kind in _OTHER_FORMATS:
        if head.startswith(magic):
            raise InvalidInput(
                f"this is {kind}, not a docker archive",
                str(path),
                "Unpack it first, or make the archive by docker save, as .tar or .tar.gz.",
            )
    if not head.startswith(_GZIP) and head[257:262] != b"ustar":
        raise InvalidInput(
            "this is no tar file, so no docker archive",
            str(path),
            "Name a file that docker save made, as .tar or .tar.gz.",
        )


def _damaged(path: Path, member: str, read: int, size: int, error: Exception) -> CrossgapError:
    if isinstance(error, _EscapeError):
        return InvalidInput(
            f"it holds a member that leads out of the archive, {str(error)!r}",
            str(path),
            "docker save makes no such thing; find out where the file comes from.",
        )
    place = f" within {member}" if member else ""
    cut_off = isinstance(error, EOFError) or str(error) == "unexpected end of data"
    what = "the file is cut off" if cut_off else f"the file is damaged ({error})"
    return Damaged(
        f"{what}{place}, after {read:,} of {size:,} bytes on disk",
        str(path),
        "Compare its size with the original's and copy or download it again.",
    )
