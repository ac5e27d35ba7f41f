"""The archive that every engine loads: an OCI image layout that also has manifest.json.

Blobs that the far side has are left out. Engines with graph drivers read
manifest.json and open a layer only when its chain is not there; engines with a
containerd store read index.json and fetch only what their content store lacks.
An archive of the same images and layers is the same to the byte.

Formats: https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md and
https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from blocks.content import Content, FileRange
from tasks.images.blobs import Blob, Layer
from tasks.images.names import parse_reference

BLOCK = 512
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class LayoutImage:
    """An image as an archive holds it.

    Args:
        name: The name and tag that it gets, or empty.
        config: Its configuration, to the byte.
        layers: Its layers, the base first; those without bytes are left out.
    """

    name: str
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def config_digest(self) -> str:
        """`sha256:…` of the configuration."""
        return digest_of(self.config)

    def manifest(self) -> bytes:
        """Return its OCI manifest."""
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST_TYPE,
                "config": _descriptor(_CONFIG_TYPE, self.config_digest, len(self.config)),
                "layers": [
                    _descriptor(layer.media_type, layer.blob.digest, layer.blob.size)
                    for layer in self.layers
                ],
            }
        )


def documents(images: Sequence[LayoutImage]) -> dict[str, bytes]:
    """Return all files of a layout but its layers, by path.

    Args:
        images: What the layout holds.
    """
    found = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"})}
    index, manifest = [], []
    for image in images:
        own = image.manifest()
        found[blob_path(image.config_digest)] = image.config
        found[blob_path(digest_of(own))] = own
        descriptor = _descriptor(_MANIFEST_TYPE, digest_of(own), len(own))
        index.append(descriptor | _annotations(image.name))
        manifest.append(
            {
                "Config": blob_path(image.config_digest),
                "RepoTags": [image.name] if image.name else None,
                "Layers": [blob_path(layer.blob.digest) for layer in image.layers],
            }
        )
    found["index.json"] = _json({"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": index})
    found["manifest.json"] = _json(manifest)
    return found


def carried_layers(images: Iterable[LayoutImage]) -> list[Blob]:
    """Return the layers whose bytes a layout holds, each once, in order."""
    blobs = [layer.blob for image in images for layer in image.layers]
    return list({blob.digest: blob for blob in blobs if isinstance(blob, Blob)}.values())


def compose(images: Sequence[LayoutImage]) -> Content:
    """Compose the tar file of a layout, whose layers stay where they are.

    Args:
        images: What it holds.
    """
    pieces: list[FileRange | bytes] = []
    for segment in segments(images):
        pieces += segment.content.pieces if isinstance(segment, Blob) else [segment]
    return Content(tuple(pieces))


def segments(images: Sequence[LayoutImage]) -> Iterator[Blob | bytes]:
    """Yield the tar file of a layout in order: layers, and what is around them.

    What is around them comes in whole blocks, but for the zeros that fill up a
    layer's last block.

    Args:
        images: What it holds.
    """
    folders = b"".join(_header(f"{name}/", 0, folder=True) for name in ("blobs", "blobs/sha256"))
    files = documents(images)
    yield folders + b"".join(
        _header(name, len(content)) + content + padding(len(content))
        for name, content in sorted(files.items())
    )
    for blob in carried_layers(images):
        yield _header(blob_path(blob.digest), blob.size)
        yield blob
        if zeros := padding(blob.size):
            yield zeros
    yield bytes(2 * BLOCK)


def blob_path(digest: str) -> str:
    """Return where a layout keeps the blob of a digest."""
    return f"blobs/{digest.replace(':', '/')}"


def digest_of(content: bytes) -> str:
    """Return `sha256:…` of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def padding(size: int) -> bytes:
    """Return the zeros that follow a member of this many bytes in a tar file."""
    return bytes(-size % BLOCK)


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Return the chain id of each layer of an image: it and all below it.

    Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md#layer-chainid
    """
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return tuple(chains)


def _header(name: str, size: int, *, folder: bool = False) -> bytes:
    """Return a tar header that is the same whoever makes it, and when."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o755 if folder else 0o644
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return info.tobuf(tarfile.GNU_FORMAT)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _annotations(name: str) -> dict[str, object]:
    if not name:
        return {}
    reference = parse_reference(name)
    full = f"{reference.domain}/{reference.path}:{reference.tag}"
    return {
        "annotations": {
            "io.containerd.image.name": full,
            "org.opencontainers.image.ref.name": reference.tag,
        }
    }


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
