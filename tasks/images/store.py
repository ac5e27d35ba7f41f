"""The content store: layers and configurations by digest, kept from run to run.

A layer is saved, packed and hashed once, for all images, hosts and runs. Below
the folder lie

    blobs/sha256/HEX      every form of every layer
    layers/HEX.json       per diff id, the forms that are there
    images/HEX.json       per image id, its configuration and layers
    partial/              what is being written
    locks/                who uses what

Blobs come into view whole, by a rename. What a run was given stays until its
`Store` goes away; of the rest, the least recently used makes room for others. Every
read is proven: a host hashes what arrives there, streams are hashed on the way
(`read`), and a blob that is found damaged is discarded and fetched again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, get_args

from blocks.cancellation import current_cancellation
from blocks.content import Content, FileRange
from blocks.errors import CommandFailed, Damaged, DiskFull, InvalidInput, SourceDamaged
from tasks.common.units import bytes_text
from tasks.images.blobs import Blob, Compression, Layer
from tasks.images.compress import packed, unpacked
from tasks.images.digests import StreamDigest
from tasks.images.holds import Holds, alone, claims
from tasks.images.layout import digest_of

STORE_VARIABLE = "CROSSGAP_STORE"
SIZE_VARIABLE = "CROSSGAP_STORE_SIZE"

_LARGEST_DEFAULT = 100 * 10**9
_SHARE_OF_DISK = 5
# Room that is left on the disk for everything else that is going on.
_HEADROOM = 64 << 20
_FORMS: tuple[Compression, ...] = get_args(Compression)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE | re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class StoredImage:
    """What an image consists of, but for its layers' bytes.

    Args:
        config: Its configuration, to the byte.
        config_digest: `sha256:…` of that.
        diff_ids: Digests of its unpacked layers, the base first.
        names: Names that it had where it came from.
    """

    config: bytes
    config_digest: str
    diff_ids: tuple[str, ...]
    names: tuple[str, ...] = ()


class Store:
    """A content store; any number of processes and threads may use it at once.

    Args:
        folder: Where it is; made when missing.
        limit: Bytes that it may grow to, unless more are in use at once.

    Raises:
        CommandFailed: The folder cannot be used.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._holds = Holds(folder / "locks/held")
        with self._usable():
            for name in ("blobs/sha256", "layers", "images", "partial", "locks"):
                (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
            self.trim()

    @classmethod
    def default(cls) -> Self:
        """Return the store that `CROSSGAP_STORE` and `CROSSGAP_STORE_SIZE` describe.

        They default to `~/.crossgap/store`, and to 100 GB or a fifth of its disk,
        whichever is less.

        Raises:
            InvalidInput: The size is none.
            CommandFailed: The folder cannot be used.
        """
        folder = Path(os.environ.get(STORE_VARIABLE) or "~/.crossgap/store").expanduser()
        text = os.environ.get(SIZE_VARIABLE, "").strip()
        return cls(folder, parse_size(text) if text else _default_limit(folder))

    def blob(self, digest: str) -> Blob | None:
        """Return a blob if it is there, and note that it is of use."""
        path = self._blob_path(digest)
        with self._usable():
            # Held before it is looked for: what is found stays.
            self._holds.add(digest)
            try:
                size = path.stat().st_size
                os.utime(path)
            except FileNotFoundError:
                self._holds.drop(digest)
                return None
        return _blob(digest, size, path)

    def layer(self, diff_id: str, compression: Compression | None = None) -> Layer | None:
        """Return a form of a layer if it is there, and note that it is of use.

        Args:
            diff_id: Digest of the unpacked layer.
            compression: Which form; any by default, the unpacked one first.
        """
        record = _read_record(self._layer_path(diff_id))
        for form in (compression,) if compression else _FORMS:
            found = record.get(form)
            if isinstance(found, dict) and _DIGEST.fullmatch(str(found.get("digest"))):
                blob = self.blob(found["digest"])
                # A power cut may have left less of it than was written.
                if blob is not None and blob.size == found.get("size"):
                    return Layer(diff_id, form, blob)
        return None

    def record_layer(self, diff_id: str, compression: Compression, blob: Blob) -> Layer:
        """Note that a blob is a form of a layer, after that was proven.

        Args:
            diff_id: Digest of the unpacked layer.
            compression: The form.
            blob: One that is in the store.
        """
        path = self._layer_path(diff_id)
        with self._usable(), self._alone(f"record {diff_id}"):
            record = _read_record(path)
            record[compression] = {"digest": blob.digest, "size": blob.size}
            self._write_record(path, record)
        return Layer(diff_id, compression, blob)

    def image(self, image_id: str) -> StoredImage | None:
        """Return what an image consists of, by what its source calls it."""
        record = _read_record(self._image_path(image_id))
        try:
            config = record["config"].encode("utf-8", "surrogateescape")
            diff_ids, names = map(str, record["diff_ids"]), map(str, record["names"])
            image = StoredImage(config, record["config_digest"], tuple(diff_ids), tuple(names))
        except (KeyError, TypeError, AttributeError, ValueError):
            return None
        return image if digest_of(config) == image.config_digest else None

    def record_image(
        self, image_id: str, config: bytes, diff_ids: Sequence[str], names: Sequence[str] = ()
    ) -> StoredImage:
        """Note what an image consists of.

        Args:
            image_id: What its source calls it.
            config: Its configuration, to the byte.
            diff_ids: Digests of its unpacked layers.
            names: Names that it has there.
        """
        image = StoredImage(config, digest_of(config), tuple(diff_ids), tuple(names))
        record = {
            "config": config.decode("utf-8", "surrogateescape"),
            "config_digest": image.config_digest,
            "diff_ids": list(diff_ids),
            "names": list(names),
        }
        with self._usable():
            self._write_record(self._image_path(image_id), record)
        return image

    @contextmanager
    def writer(self, expected: str = "", *, size: int = 0) -> Iterator[Writer]:
        """Write a blob, which comes into view by `Writer.commit`, or never.

        Args:
            expected: The digest that it must have, where that is known.
            size: Bytes that it will have, as far as known; room is made for them.

        Raises:
            DiskFull: There is no room, also after all that can go has gone.
            CommandFailed: The folder cannot be used.
        """
        self.make_room(size)
        with ExitStack() as opened:
            with self._usable():
                path = opened.enter_context(self._part())
                file = opened.enter_context(path.open("xb", buffering=0))
            digest = opened.enter_context(StreamDigest())
            yield Writer(self, file, path, digest, expected)

    def compressed(self, layer: Layer, compression: Compression) -> Layer:
        """Return a form of a layer, made now unless it is there.

        Args:
            layer: Any form of it, with its bytes.
            compression: The form that is wanted.

        Raises:
            SourceDamaged: The layer's bytes here are not what they should be.
            DiskFull: There is no room.
        """
        if layer.compression == compression:
            return layer
        # Of two that want it at once, the second waits and finds it.
        with self._usable(), self._alone(f"{compression} {layer.diff_id}"):
            if (there := self.layer(layer.diff_id, compression)) is not None:
                return there
            blob = self._recompressed(layer, compression)
            return self.record_layer(layer.diff_id, compression, blob)

    def unpacked(self, layer: Layer) -> Layer:
        """Return a layer uncompressed, unpacked now unless it is there.

        Args:
            layer: Any form of it, with its bytes.

        Raises:
            SourceDamaged: The layer's bytes here are not what they should be.
            DiskFull: There is no room.
        """
        return self.compressed(layer, "none")

    def read(self, blob: Blob) -> Generator[bytes, None, None]:
        """Yield the bytes of a blob, and prove at the end that they were the right ones.

        Args:
            blob: One of the store, or one that lies elsewhere.

        Raises:
            SourceDamaged: They were not; what the store has of it has been discarded.
        """
        cancellation = current_cancellation()
        with StreamDigest() as digest:
            try:
                for chunk in blob.content.chunks():
                    cancellation.check(str(self.folder))
                    digest.update(chunk)
                    yield chunk
            except (OSError, EOFError) as error:
                raise self._damaged(blob, f"cannot be read ({error})") from error
            if digest.hexdigest() != blob.hex:
                raise self._damaged(blob, "is damaged")

    @contextmanager
    def held(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep blobs from being removed to make room, by this run or another.

        What this store has given out is kept so anyway; this is for blobs that are
        known by their digest only.
        """
        with ExitStack() as until:
            for digest in digests:
                with self._usable():
                    self._holds.add(digest)
                until.callback(self._holds.drop, digest)
            yield

    def discard(self, digest: str) -> None:
        """Remove a blob that was found damaged; its records find nothing then."""
        with self._usable():
            self._blob_path(digest).unlink(missing_ok=True)

    def trim(self) -> None:
        """Remove what was used least recently, until the store is within its limit."""
        self._evict(0, 0)

    def make_room(self, size: int) -> None:
        """Remove what was used least recently, until so many bytes fit.

        Args:
            size: Bytes that are to be written.

        Raises:
            DiskFull: The disk has no room for them, also without all that can go.
        """
        if size <= 0:
            return
        with self._usable():
            self._evict(size, size + _HEADROOM)
            free = shutil.disk_usage(self.folder).free
        if free < size + _HEADROOM:
            raise self._no_room(f"{bytes_text(size)} are needed, {bytes_text(free)} are free")

    def _evict(self, more: int, room: int) -> int:
        """Remove blobs that nobody uses, the least recently used first.

        Args:
            more: Bytes that will come on top of what is there.
            room: Bytes that have to be free on the disk.

        Returns:
            The bytes that were freed.
        """
        blobs = sorted(_files(self.folder / "blobs/sha256"))
        total = sum(size for _, size, _ in blobs)
        freed = 0
        with claims(self.folder / "locks/held") as claimed:
            for _, size, path in blobs:
                fits = total - freed + more <= self.limit
                if fits and (not room or shutil.disk_usage(self.folder).free >= room):
                    break
                with claimed.attempt(f"sha256:{path.name}") as ours:
                    if ours:
                        path.unlink(missing_ok=True)
                        freed += size
        if freed:
            self._forget()
        return freed

    def _forget(self) -> None:
        """Remove the records of layers of which nothing is left, and of images of such layers.

        A record that another run writes at that moment may go too: then its layer is
        fetched once more.
        """
        for path in (self.folder / "layers").glob("*.json"):
            digests = [str(form.get("digest")) for form in _read_record(path).values()]
            if not any(self._blob_path(digest).exists() for digest in digests):
                path.unlink(missing_ok=True)
        for path in (self.folder / "images").glob("*.json"):
            diff_ids = _read_record(path).get("diff_ids") or ()
            if diff_ids and not any(self._layer_path(diff_id).exists() for diff_id in diff_ids):
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed runs left half-written."""
        with claims(self.folder / "locks/held") as claimed:
            for path in (self.folder / "partial").glob("*.part"):
                with claimed.attempt(path.name) as ours:
                    if ours:
                        path.unlink(missing_ok=True)

    def _recompressed(self, layer: Layer, compression: Compression) -> Blob:
        blob = layer.blob
        if not isinstance(blob, Blob):
            raise TypeError(f"the bytes of {layer.diff_id} are not here")
        with (
            self.held([blob.digest]),
            self.writer() as writer,
            StreamDigest() as plain,
            closing(self.read(blob)) as chunks,
        ):
            try:
                for chunk in packed(
                    _hashed(unpacked(chunks, layer.compression), plain), compression
                ):
                    writer.write(chunk)
            except (ValueError, EOFError) as error:
                raise self._damaged(blob, f"cannot be unpacked ({error})") from error
            if f"sha256:{plain.hexdigest()}" != layer.diff_id:
                raise self._damaged(blob, f"is not the layer {layer.diff_id[:19]}…")
            return writer.commit()

    def _damaged(self, blob: Blob, how: str) -> SourceDamaged:
        self.discard(blob.digest)
        piece = next((p for p in blob.content.pieces if isinstance(p, FileRange)), None)
        return SourceDamaged(
            f"the blob {blob.digest[:19]}… {how}",
            str(piece.path if piece else self.folder),
            "If it is the store's it has been discarded and is fetched anew: start again. "
            "The disk may be failing: look at dmesg and smartctl.",
            retryable=True,
        )

    def _blob_path(self, digest: str) -> Path:
        return self.folder / "blobs/sha256" / _hex(digest)

    def _layer_path(self, diff_id: str) -> Path:
        return self.folder / "layers" / f"{_hex(diff_id)}.json"

    def _image_path(self, image_id: str) -> Path:
        return self.folder / "images" / f"{_hex(image_id)}.json"

    def _write_record(self, path: Path, record: dict[str, Any]) -> None:
        with self._part() as part:
            text = json.dumps(record, ensure_ascii=False)
            part.write_bytes(text.encode("utf-8", "surrogateescape"))
            part.replace(path)

    @contextmanager
    def _part(self) -> Iterator[Path]:
        """Name a file to write to; what is left of it at the end goes away."""
        path = self.folder / "partial" / f"{os.getpid()}-{secrets.token_hex(8)}.part"
        # Held, so that a run which begins meanwhile does not take it for a leftover.
        self._holds.add(path.name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            self._holds.drop(path.name)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        with alone(self.folder / "locks/making", name):
            yield

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn the file system's complaints into errors that an operator understands."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_room("the disk became full while writing") from error
            raise CommandFailed(
                f"the folder for layers cannot be used ({error.strerror or error})",
                str(self.folder),
                f"Name a folder that may be written to in {STORE_VARIABLE}.",
            ) from error

    def _no_room(self, how: str) -> DiskFull:
        return DiskFull(
            f"no room for layers ({how})",
            str(self.folder),
            f"Make room there, or name a folder on a larger disk in {STORE_VARIABLE}.",
        )


class Writer:
    """A blob that is being written; from `Store.writer`."""

    def __init__(
        self, store: Store, file: BinaryIO, path: Path, digest: StreamDigest, expected: str
    ) -> None:
        self._store = store
        self._file = file
        self._path = path
        self._digest = digest
        self._expected = expected
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Append some bytes.

        Raises:
            DiskFull: The disk is full, also after all that can go has gone.
        """
        self._digest.update(chunk)
        self.size += len(chunk)
        rest = memoryview(chunk)
        with self._store._usable():
            while rest:
                try:
                    rest = rest[self._file.write(rest) :]
                except OSError as error:
                    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                    if not full or not self._store._evict(0, len(rest) + _HEADROOM):
                        raise

    def commit(self) -> Blob:
        """Bring the blob into view.

        Returns:
            The blob, in its place.

        Raises:
            Damaged: It has another digest than was expected.
            DiskFull: The disk is full.
        """
        digest = f"sha256:{self._digest.hexdigest()}"
        if self._expected and digest != self._expected:
            raise Damaged(
                f"it has the digest {digest[:19]}…, not {self._expected[:19]}…",
                str(self._store.folder),
                "Start again: it is fetched anew.",
                retryable=True,
            )
        path = self._store._blob_path(digest)
        # No fsync: after a power cut a blob may be shorter or hold zeros. Every read is
        # proven, so that costs one more fetch; an fsync would cost seconds per gigabyte.
        with self._store._usable():
            self._file.close()
            # Held before it is in view, and until the store goes away.
            self._store._holds.add(digest)
            self._path.replace(path)
            self._store.trim()
        return _blob(digest, self.size, path)


def parse_size(text: str) -> int:
    """Return the bytes that a text such as `100GB` means.

    Raises:
        InvalidInput: It means none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise InvalidInput(f"{text!r} is no size", SIZE_VARIABLE, "Write it like 100GB or 2TB.")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].upper()])


def _default_limit(folder: Path) -> int:
    """Return the limit for a store that need not be there yet."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return min(_LARGEST_DEFAULT, shutil.disk_usage(there).total // _SHARE_OF_DISK)


def _blob(digest: str, size: int, path: Path) -> Blob:
    return Blob(digest, size, Content((FileRange(path, 0, size),)))


def _hex(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        # Never a path that somebody else made up.
        raise InvalidInput(f"{digest!r} is no digest", "content store")
    return digest.removeprefix("sha256:")


def _files(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield when each file was used, its size and its path."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat()
                yield status.st_mtime_ns, status.st_size, Path(entry.path)


def _hashed(chunks: Iterable[bytes], digest: StreamDigest) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
