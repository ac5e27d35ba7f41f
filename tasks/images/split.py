"""Takes a `docker save` stream apart into the content store, in one pass.

The archive itself is never on disk. A layer is handed over as soon as its last
byte was read; the images, which `manifest.json` at the end of the archive
describes, when all has been read and checked. Of images whose configuration's
digest is known beforehand, nothing is read beyond what is wanted.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import tarfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, get_args

from blocks.cancellation import current_cancellation
from blocks.errors import CommandFailed, Conflict, CrossgapError, Damaged, DiskFull, NotFound
from blocks.files import Progress
from tasks.common.units import bytes_text
from tasks.images.archive import images_in
from tasks.images.blobs import Blob, Compression, Layer
from tasks.images.compress import unpacked
from tasks.images.digests import StreamDigest
from tasks.images.engine import engine_label, open_engine
from tasks.images.facts import ImageFacts, unpacked_size
from tasks.images.layout import chain_ids
from tasks.images.legacy_layers import layer_beside
from tasks.images.presence import sizes_of
from tasks.images.store import Store, StoredImage
from tasks.images.tar_stream import (
    LARGEST_DOCUMENT,
    MOST_DOCUMENTS,
    Forward,
    Gunzipped,
    Member,
    Readable,
    Walk,
    compression_of,
)

if TYPE_CHECKING:
    import requests

OnLayer = Callable[[Layer], None]
OnImage = Callable[[StoredImage], None]

# An engine copies all layers together before the first byte comes.
FIRST_BYTE_SECONDS = 1800
_CHUNK = 1 << 20
_TAIL = 4096
_LOOK_EVERY = 0.2


def save_into(
    store: Store,
    images: Sequence[ImageFacts],
    *,
    on_layer: OnLayer,
    on_image: OnImage,
    wanted: Collection[str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Have the source engine save images, and take them apart into the store.

    Args:
        store: Where layers and configurations go.
        images: What to save; layers that they share are saved once.
        on_layer: Is given each layer when it is there.
        on_image: Is given each image at the end.
        wanted: Diff ids of the layers that matter; all by default. Others are passed
            over where that can be told before they are read.
        progress: Called with the bytes read so far and the bytes expected.

    Raises:
        DiskFull: There is no room here, or none where the engine keeps its data.
        Damaged: The engine stopped half-way; trying again may help.
        NotFound: An image has been removed meanwhile.
        Conflict: A name has come to mean another image meanwhile.
        CrossgapError: As for `tasks.images.engine.open_engine`.
    """
    expected = unpacked_size(images)
    promise = Promise.of(images, wanted)
    store.make_room(_room_needed(store, images, promise))
    with open_engine() as client:
        url = f"{client.base_url}/v{client.api_version}/images/get"
        names = [image.name for image in images]
        with _cancellable(
            lambda: client.get(
                url, params={"names": names}, stream=True, timeout=FIRST_BYTE_SECONDS
            )
        ) as response:
            _check_answer(response)
            source = _Answer(response, expected, progress)
            with _engine_errors(source):
                found = split(store, source, engine_label(), on_layer, promise)
            source.enough()
    for image in found:
        for known in images:
            if _is_same(known, image):
                store.record_image(known.image_id, image.config, image.diff_ids, image.names)
        on_image(image)
    _check_whole(images, found)


def split_archive(store: Store, path: Path, *, on_layer: OnLayer, on_image: OnImage) -> None:
    """Take a gzipped archive, which was read and proven before, apart into the store.

    Args:
        store: Where its layers go.
        path: The archive.
        on_layer: Is given each layer when it is there.
        on_image: Is given each image at the end.

    Raises:
        Damaged: It has changed since it was proven.
        DiskFull: There is no room here.
    """
    try:
        with path.open("rb") as file:
            for image in split(store, Gunzipped(file), str(path), on_layer):
                on_image(image)
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise Damaged(
            f"it has changed since it was read ({error})", str(path), "Start again."
        ) from error


@dataclass(frozen=True)
class Promise:
    """What an archive is known to hold before it is read.

    Args:
        chains: Chain ids of its layers, and their diff ids.
        unwanted: Diff ids of layers that need not be kept.
        images: Its images, if the digest of each configuration is known.
    """

    chains: Mapping[str, str] = field(default_factory=dict)
    unwanted: frozenset[str] = frozenset()
    images: tuple[ImageFacts, ...] = ()

    @classmethod
    def of(cls, images: Sequence[ImageFacts], wanted: Collection[str] | None = None) -> Self:
        """Make it from what is known of some images, and the layers that are wanted."""
        chains = {
            chain: diff_id
            for image in images
            for chain, diff_id in zip(chain_ids(image.diff_ids), image.diff_ids, strict=True)
        }
        unwanted = frozenset(chains.values()) - frozenset(wanted) if wanted is not None else ()
        known = images if all(image.config_digest for image in images) else ()
        return cls(chains, frozenset(unwanted), tuple(known))


def split(
    store: Store,
    source: Readable,
    where: str,
    on_layer: OnLayer,
    promise: Promise | None = None,
) -> tuple[StoredImage, ...]:
    """Take an archive of images apart.

    Args:
        store: Where its layers go.
        source: The bytes of the archive, a plain tar file.
        where: What it is, for errors.
        on_layer: Is given each layer when it is there.
        promise: What it is known to hold; no more of it is read than is wanted.

    Returns:
        The images in it, each checked by its digests.

    Raises:
        Damaged: A layer or configuration is missing or altered.
        InvalidInput: It is not an archive of images.
        EOFError: It ends too early.
        ValueError: It is no tar file.
        tarfile.TarError: It is damaged.
    """
    splitter = _Splitter(store, where, on_layer, promise or Promise())
    walk = Walk(source, splitter.take)
    for _ in walk.steps():
        if (found := splitter.all_wanted()) is not None:
            return found
    return tuple(image.stored() for image in images_in(walk.members, where))


class _Splitter:
    """Takes the members of one archive."""

    def __init__(self, store: Store, where: str, on_layer: OnLayer, promise: Promise) -> None:
        self._store = store
        self._where = where
        self._on_layer = on_layer
        self._promise = promise
        self._cancellation = current_cancellation()
        self._documents = 0
        self._beside: dict[str, str] = {}
        there = (
            layer
            for diff_id in set(promise.chains.values())
            for form in get_args(Compression)
            if (layer := store.layer(diff_id, form)) is not None
        )
        self._there = {layer.blob.digest: layer for layer in there}
        wanted = set(promise.chains.values()) - promise.unwanted
        self._here = {one.diff_id: one for one in self._there.values() if one.diff_id in wanted}
        self._left = wanted - self._here.keys()
        self._configs: dict[str, bytes] = {}

    def all_wanted(self) -> tuple[StoredImage, ...] | None:
        """Return the promised images when all that is wanted of them has been read."""
        images = self._promise.images
        if self._left or not images or any(i.config_digest not in self._configs for i in images):
            return None
        for layer in self._here.values():
            self._on_layer(layer)
        return tuple(
            StoredImage(
                self._configs[image.config_digest],
                image.config_digest,
                image.diff_ids,
                () if "@" in image.name else (image.name,),
            )
            for image in images
        )

    def take(self, name: str, size: int, file: Forward) -> Member:
        """Read one member; a layer goes into the store unless it is there or unwanted."""
        head = self._read(file, size)
        if head[:1] in (b"{", b"[") and size <= LARGEST_DOCUMENT:
            document = head + b"".join(self._chunks(file, size - len(head)))
            if _is_json(document):
                return self._document(name, document)
            head = document  # A layer whose first file has an odd name.
        if posixpath.basename(name) == "VERSION":
            self._pass_over(file, size - len(head))
            return Member(name, size, "", "none", size, "")
        return self._known(name, size, head, file) or self._kept(name, size, head, file)

    def _document(self, name: str, document: bytes) -> Member:
        self._documents += len(document)
        if self._documents > MOST_DOCUMENTS:
            raise ValueError("more JSON than any image has")
        folder, _, base = name.rpartition("/")
        if base == "json" and (diff_id := layer_beside(document, self._promise.chains)):
            self._beside[f"{folder}/layer.tar"] = diff_id
        digest = hashlib.sha256(document).hexdigest()
        self._configs[f"sha256:{digest}"] = document
        size = len(document)
        return Member(name, size, digest, "none", size, digest, document=document)

    def _known(self, name: str, size: int, head: bytes, file: Forward) -> Member | None:
        """Pass over a layer that need not be read, by what its name tells."""
        blob = re.fullmatch(r"blobs/sha256/([0-9a-f]{64})", name)
        digest = f"sha256:{blob[1]}" if blob else self._beside.get(name, "")
        there = self._there.get(digest)
        if there is not None and there.blob.size == size:
            if there.diff_id not in self._promise.unwanted:
                self._on_layer(self._here.pop(there.diff_id, there))
            compression, diff_id = there.compression, there.diff_id
        elif digest in self._promise.unwanted:
            compression, diff_id = "none", digest
        else:
            return None
        self._pass_over(file, size - len(head))
        plain = diff_id.removeprefix("sha256:")
        return Member(name, size, digest.removeprefix("sha256:"), compression, size, plain)

    def _kept(self, name: str, size: int, head: bytes, file: Forward) -> Member:
        with self._store.writer(size=size) as writer:
            writer.write(head)
            for chunk in self._chunks(file, size - len(head)):
                writer.write(chunk)
            blob = writer.commit()
        compression = compression_of(head)
        plain_size, diff_id = size, blob.digest
        if compression != "none":
            try:
                plain_size, diff_id = self._unpacked(blob, compression)
            except (ValueError, EOFError):
                # A plain tar may happen to begin so; if it is none, its digest will tell.
                compression = "none"
        self._on_layer(self._store.record_layer(diff_id, compression, blob))
        self._left.discard(diff_id)
        plain = diff_id.removeprefix("sha256:")
        return Member(name, size, blob.hex, compression, plain_size, plain)

    def _unpacked(self, blob: Blob, compression: Compression) -> tuple[int, str]:
        """Return size and diff id of a compressed layer."""
        size = 0
        with StreamDigest() as digest:
            for chunk in unpacked(blob.content.chunks(), compression):
                self._cancellation.check(self._where)
                digest.update(chunk)
                size += len(chunk)
            return size, f"sha256:{digest.hexdigest()}"

    def _chunks(self, file: Forward, size: int) -> Iterator[bytes]:
        while size:
            chunk = self._read(file, size)
            if not chunk:
                raise EOFError("the member is cut off")
            size -= len(chunk)
            yield chunk

    def _pass_over(self, file: Forward, size: int) -> None:
        for _ in self._chunks(file, size):
            pass

    def _read(self, file: Forward, size: int) -> bytes:
        self._cancellation.check(self._where)
        return file.read(min(_CHUNK, size))


def _is_json(document: bytes) -> bool:
    try:
        json.loads(document)
    except ValueError:
        return False
    return True


def _is_same(known: ImageFacts, found: StoredImage) -> bool:
    if known.config_digest:
        return known.config_digest == found.config_digest
    return known.diff_ids == found.diff_ids


def _room_needed(store: Store, images: Iterable[ImageFacts], promise: Promise) -> int:
    sizes: dict[str, int] = {}
    for image in images:
        sizes.update(sizes_of(image))
    return sum(
        size
        for diff_id, size in sizes.items()
        if diff_id not in promise.unwanted and store.layer(diff_id) is None
    )


def _check_whole(images: Iterable[ImageFacts], found: Sequence[StoredImage]) -> None:
    for image in images:
        if not any(_is_same(image, one) for one in found):
            raise Conflict(
                "its name has come to mean another image while it was being saved",
                f"image {image.name!r}",
                "Start again: the image that has the name now is shipped then.",
            )


def _cancellable(ask: Callable[[], requests.Response]) -> requests.Response:
    """Wait for an answer, but no longer than the run goes on.

    The engine answers when it has copied all layers; that may take minutes, in
    which nothing can interrupt the thread that waits for it.
    """
    answer: Future[requests.Response] = Future()

    def wait() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=wait, name="first-byte", daemon=True).start()
    while not answer.done():
        current_cancellation().check(engine_label())
        futures.wait([answer], _LOOK_EVERY)
    return answer.result()


class _Answer:
    """The engine's answer: read in large pieces, its end kept, its reader told how far it is."""

    def __init__(
        self, response: requests.Response, expected: int, progress: Progress | None
    ) -> None:
        self._raw = response.raw
        self._expected = expected
        self._progress = progress
        self.count = 0
        self.tail = b""

    def read(self, size: int, /) -> bytes:
        chunk: bytes = self._raw.read(size)
        self.count += len(chunk)
        self.tail = (self.tail + chunk[-_TAIL:])[-_TAIL:]
        if self._progress is not None:
            self._progress(self.count, max(self._expected, self.count))
        return chunk

    def enough(self) -> None:
        """Note that no more will be read."""
        if self._progress is not None:
            self._progress(self.count, self.count)

    def drain(self) -> None:
        """Read a little more: why an answer ends badly is said at its end."""
        import urllib3.exceptions

        with suppress(urllib3.exceptions.HTTPError, OSError, ValueError):
            self.read(1 << 16)


@contextmanager
def _engine_errors(source: _Answer) -> Iterator[None]:
    """Tell what a broken answer means: an engine that fails half-way appends why, as JSON."""
    import urllib3.exceptions

    try:
        yield
    except (
        EOFError,
        ValueError,
        OSError,
        tarfile.TarError,
        urllib3.exceptions.HTTPError,
    ) as error:
        source.drain()
        found = re.search(rb'\{"(?:errorDetail|message|error)".*', source.tail, re.DOTALL)
        if found:
            raise _complaint(_message(found[0].decode("utf-8", "replace"))) from error
        raise Damaged(
            f"the engine stopped sending the images after {bytes_text(source.count)}",
            engine_label(),
            "See whether the engine was restarted or its disk is full; then start again.",
            retryable=True,
        ) from error


def _check_answer(response: requests.Response) -> None:
    if response.status_code == 200:
        return
    said = _message(response.content[:_TAIL].decode("utf-8", "replace"))
    if response.status_code == 404:
        raise NotFound(
            f"an image has been removed meanwhile ({said})",
            engine_label(),
            "Get it back with docker pull or docker load, then start again.",
        )
    raise _complaint(said)


def _complaint(said: str) -> CrossgapError:
    if re.search(r"no space left|disk quota", said, re.IGNORECASE):
        return DiskFull(
            f"the source engine's own disk is full ({said})",
            engine_label(),
            "Make room where the source engine keeps its data; it copies the images there "
            "before it hands them out (docker system df shows what takes room).",
        )
    return CommandFailed(
        f"Docker could not save the images ({said})", engine_label(), "Look at its log."
    )


def _message(body: str) -> str:
    try:
        document = json.loads(body)
        return str(document.get("message") or document.get("error") or body).strip()
    except (ValueError, AttributeError):
        return body.strip()[-300:]
