"""Layers read from the folder where the source engine keeps them.

`docker save` copies all of an image before its first byte comes, also when one small
layer is wanted of it. Where this process may read the engine's data folder (a worker
that runs as root beside the engine), a layer is put together as the engine itself
does it: from its unpacked files, and from what was in the tar around them, which the
engine keeps as tar-split (https://github.com/vbatts/tar-split; the folders are those
of moby's layer/filestore.go and daemon/graphdriver/overlay2). Nothing is taken on
trust: a layer counts when its bytes have its diff id, a configuration when they have
the image's id. Whatever does not fit is left to `docker save`.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Self

from blocks.cancellation import current_cancellation
from blocks.errors import Damaged
from blocks.files import Progress
from blocks.logs import logger
from tasks.images.blobs import Layer
from tasks.images.engine import engine_label, open_engine
from tasks.images.facts import ImageFacts
from tasks.images.layout import chain_ids, digest_of
from tasks.images.presence import sizes_of
from tasks.images.store import Store, StoredImage

SWITCH = "CROSSGAP_DOCKER_FILES"

_CHUNK = 1 << 20
_FILE, _SEGMENT = 1, 2
_CACHE_ID = re.compile(r"[0-9a-z]+")
# What comes of files that are not as expected, or go away while they are read.
_UNUSABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, Damaged)


class EngineFiles:
    """The layers and configurations of an engine on this machine.

    Args:
        root: The engine's data folder.
    """

    def __init__(self, root: Path) -> None:
        self._layers = root / "image/overlay2/layerdb/sha256"
        self._configs = root / "image/overlay2/imagedb/content/sha256"
        self._contents = root / "overlay2"

    @classmethod
    def of_source_engine(cls) -> Self | None:
        """Return those of the source engine, if this process may read them.

        Raises:
            CrossgapError: As for `open_engine`.
        """
        if os.environ.get(SWITCH, "").strip().lower() in ("no", "0", "false", "off"):
            return None
        with open_engine() as client:
            info = client.info()
        files = cls(Path(str(info.get("DockerRootDir") or "/var/lib/docker")))
        readable = os.access(files._layers, os.R_OK | os.X_OK)
        return files if info.get("Driver") == "overlay2" and readable else None

    def config(self, image_id: str) -> bytes:
        """Return the configuration of an image, to the byte.

        Raises:
            OSError: It is not there.
            ValueError: It is another one.
        """
        config = (self._configs / image_id.removeprefix("sha256:")).read_bytes()
        if digest_of(config) != image_id:
            raise ValueError(f"{image_id} is not what its name says")
        return config

    def layer(self, chain_id: str) -> Iterator[bytes]:
        """Yield the tar of a layer, which is still to be proven.

        Args:
            chain_id: Of the layer and those below it.

        Raises:
            OSError: A file is not there.
            EOFError: A file is shorter than it was.
            ValueError: A file is not what it should be.
        """
        folder = self._layers / chain_id.removeprefix("sha256:")
        cache_id = (folder / "cache-id").read_text().strip()
        if not _CACHE_ID.fullmatch(cache_id):
            raise ValueError(f"{cache_id!r} is no cache id")
        files = _UnpackedFiles(self._contents / cache_id / "diff")
        gathered = bytearray()
        with gzip.open(folder / "tar-split.json.gz") as entries:
            for line in entries:
                entry = json.loads(line)
                if entry["type"] == _SEGMENT:
                    gathered += base64.b64decode(entry["payload"])
                elif entry["type"] == _FILE and (size := entry.get("size")):
                    for chunk in files.read(_name(entry), size):
                        gathered += chunk
                        if len(gathered) >= _CHUNK:
                            yield bytes(gathered)
                            gathered.clear()
        yield bytes(gathered)


def take(
    files: EngineFiles,
    store: Store,
    images: Sequence[ImageFacts],
    *,
    wanted: Collection[str],
    on_layer: Callable[[Layer], None],
    on_image: Callable[[StoredImage], None],
    progress: Progress | None = None,
) -> bool:
    """Bring what is wanted of some images from the engine's own files into a store.

    Args:
        files: The engine's files.
        store: Where layers and configurations go.
        images: The images.
        wanted: Diff ids of the layers that are needed.
        on_layer: Is given each layer when it is there.
        on_image: Is given each image, before its layers.
        progress: Called with the bytes read so far and the bytes expected.

    Returns:
        Whether all went well; if not, the engine has to save the images.

    Raises:
        DiskFull: There is no room here.
        Cancelled: The run was cancelled.
    """
    chains, sizes = _lacking(store, images, wanted, on_layer)
    store.make_room(sum(sizes.values()))
    count = 0
    try:
        for image in images:
            config = files.config(image.image_id)
            names = () if "@" in image.name else (image.name,)
            on_image(store.record_image(image.image_id, config, image.diff_ids, names))
        for diff_id, chain_id in chains.items():
            with store.writer(diff_id, size=sizes[diff_id]) as writer:
                for chunk in files.layer(chain_id):
                    current_cancellation().check(engine_label())
                    writer.write(chunk)
                    count += len(chunk)
                    if progress is not None:
                        progress(count, max(count, sum(sizes.values())))
                blob = writer.commit()
            on_layer(store.record_layer(diff_id, "none", blob))
        if progress is not None and count:
            progress(count, count)
    except _UNUSABLE as error:
        logger().info("Docker is asked to save the images; its own files do not serve (%s).", error)
        return False
    return True


def _lacking(
    store: Store,
    images: Sequence[ImageFacts],
    wanted: Collection[str],
    on_layer: Callable[[Layer], None],
) -> tuple[dict[str, str], dict[str, int]]:
    """Return chain id and size of each layer that the store lacks; announce the others."""
    chains: dict[str, str] = {}
    sizes: dict[str, int] = {}
    announced: set[str] = set()
    for image in images:
        own = sizes_of(image)
        for chain_id, diff_id in zip(chain_ids(image.diff_ids), image.diff_ids, strict=True):
            if diff_id not in wanted or diff_id in chains or diff_id in announced:
                continue
            if (there := store.layer(diff_id)) is not None:
                announced.add(diff_id)
                on_layer(there)
            else:
                chains[diff_id] = chain_id
                sizes[diff_id] = own.get(diff_id, 0)
    return chains, sizes


def _name(entry: dict[str, str]) -> bytes:
    """Return a file's name; one that is not UTF-8 is kept apart."""
    if raw := entry.get("name_raw"):
        return base64.b64decode(raw)
    return entry["name"].encode("utf-8", "surrogateescape")


class _UnpackedFiles:
    """The files of a layer, none of them outside of its folder."""

    def __init__(self, folder: Path) -> None:
        self._root = os.path.realpath(os.fsencode(folder))
        self._inside = b""

    def read(self, name: bytes, size: int) -> Iterator[bytes]:
        path = self._root + b"/" + name.lstrip(b"/")
        self._check_inside(path.rpartition(b"/")[0])
        # Neither a link nor a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{path!r} is no file")
            while size:
                chunk = os.read(descriptor, min(size, _CHUNK))
                if not chunk:
                    raise EOFError(f"{path!r} is shorter than it was")
                size -= len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    def _check_inside(self, folder: bytes) -> None:
        """Refuse a folder that is reached by a link out of the layer."""
        if folder == self._inside:
            return
        real = os.path.realpath(folder)
        if real != self._root and not real.startswith(self._root + b"/"):
            raise ValueError(f"{folder!r} leads out of the layer")
        self._inside = folder
