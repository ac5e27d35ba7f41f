"""Manifests, indexes and configurations, as registries hand them out.

Formats: https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md and
https://distribution.github.io/distribution/spec/manifest-v2-2/.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blocks.errors import Damaged, InvalidInput
from tasks.images.arrival import arrival_name
from tasks.images.blobs import Compression, Descriptor, Layer
from tasks.images.facts import docker_architecture, parse_image_config, runs_on
from tasks.images.names import Reference
from tasks.images.registry.platforms import wrong_architecture

LARGEST_MANIFEST = 4 << 20
LARGEST_CONFIG = 16 << 20
_MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
ACCEPTED = ", ".join(_MANIFEST_TYPES)
_CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYER_TYPES: dict[str, Compression] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}", re.ASCII)
_PUSH_AGAIN = "Have it built and pushed again, or choose another tag."


@dataclass(frozen=True)
class Manifest:
    """What makes up one image for one platform.

    Args:
        config: Its configuration.
        layers: Its layers as they are to be fetched, the base first.
    """

    config: Descriptor
    layers: tuple[tuple[Compression, Descriptor], ...]


@dataclass(frozen=True)
class ResolvedImage:
    """An image in a registry, pinned to the byte.

    Args:
        reference: As it was asked for.
        digest: Of its manifest for the host's platform.
        config: Its configuration, to the byte.
        layers: Its layers as the registry keeps them, the base first; their
            blobs are mere descriptors.
        index_digest: Of the multi-platform index it was found in, or empty.
    """

    reference: Reference
    digest: str
    config: bytes = field(repr=False)
    layers: tuple[Layer, ...]
    index_digest: str = ""

    @property
    def name(self) -> str:
        """The name that it gets on a host."""
        return arrival_name(self.reference)

    @property
    def config_digest(self) -> str:
        """`sha256:…` of the configuration."""
        return f"sha256:{hashlib.sha256(self.config).hexdigest()}"

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the unpacked layers, the base first."""
        return tuple(layer.diff_id for layer in self.layers)


def parse_document(content: bytes, where: str) -> dict[str, Any]:
    """Read a manifest or an index, of whichever of the two formats.

    Args:
        content: What the registry gave.
        where: The image and the registry, for errors.

    Raises:
        Damaged: It is neither.
    """
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict) or "schemaVersion" not in document:
        raise Damaged(
            f"the answer is no manifest ({shown(content)})",
            where,
            "See whether something stands in for the registry: a proxy, a login page.",
            retryable=True,
        )
    return document


def index_entries(document: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the descriptors of an index, or None for the manifest of one image."""
    entries = document.get("manifests")
    if not isinstance(entries, list):
        return None
    return [entry for entry in entries if isinstance(entry, dict)]


def parse_manifest(document: Mapping[str, Any], where: str) -> Manifest:
    """Read the manifest of one image.

    Args:
        document: As `parse_document` returned it.
        where: The image and the registry, for errors.

    Raises:
        InvalidInput: It is of a kind that hosts cannot be given: Docker's first
            format, an artifact that is no image, a layer that may not be passed on.
        Damaged: It contradicts the format.
    """
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise InvalidInput(
            "it is kept in the format of Docker before 1.10 (schema 1), which has no checksums",
            where,
            _PUSH_AGAIN,
        )
    config, layers = document.get("config"), document.get("layers")
    if not isinstance(config, dict) or not isinstance(layers, list):
        raise Damaged("its manifest names no configuration or layers", where, _PUSH_AGAIN)
    kind = str(config.get("mediaType", ""))
    if kind not in _CONFIG_TYPES:
        what = str(document.get("artifactType") or kind)[:100]
        raise InvalidInput(
            f"it is no container image ({what})", where, "Name one that containers are made of."
        )
    return Manifest(
        parse_descriptor(config, where), tuple(_parse_layer(layer, where) for layer in layers)
    )


def parse_descriptor(entry: object, where: str) -> Descriptor:
    """Read a descriptor.

    Raises:
        Damaged: It is none.
    """
    found = entry if isinstance(entry, dict) else {}
    digest, size = str(found.get("digest", "")), found.get("size")
    if not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
        raise Damaged(
            f"its manifest has a descriptor without SHA-256 or size ({digest[:80]!r})",
            where,
            _PUSH_AGAIN,
        )
    return Descriptor(digest, size)


def assemble(
    reference: Reference,
    digest: str,
    index_digest: str,
    manifest: Manifest,
    config: bytes,
    architecture: str,
) -> ResolvedImage:
    """Put together what a registry said of an image.

    Args:
        reference: As it was asked for.
        digest: Of the manifest.
        index_digest: Of the index that named it, or empty.
        manifest: The manifest.
        config: The configuration, its digest checked.
        architecture: The host's.

    Raises:
        Damaged: Configuration and manifest contradict each other.
        WrongArchitecture: The host cannot run it.
    """
    where = f"image {reference.familiar!r}"
    try:
        facts = parse_image_config(config, reference.familiar, ())
    except (ValueError, TypeError, AttributeError) as error:
        raise Damaged("its configuration is none of an image", where, _PUSH_AGAIN) from error
    if len(facts.diff_ids) != len(manifest.layers) or not all(
        isinstance(diff_id, str) and _DIGEST.fullmatch(diff_id) for diff_id in facts.diff_ids
    ):
        raise Damaged(
            f"its manifest has {len(manifest.layers)} layers, "
            f"its configuration {len(facts.diff_ids)}",
            where,
            _PUSH_AGAIN,
        )
    if not runs_on(facts, docker_architecture(architecture.removeprefix("linux/").split("/")[0])):
        made_for = "/".join(part for part in (facts.os, facts.architecture, facts.variant) if part)
        raise wrong_architecture([made_for], architecture, where)
    layers = zip(facts.diff_ids, manifest.layers, strict=True)
    return ResolvedImage(
        reference,
        digest,
        config,
        tuple(Layer(diff_id, compression, blob) for diff_id, (compression, blob) in layers),
        index_digest,
    )


def has_digest(content: bytes, digest: str) -> bool:
    """Whether some bytes have a digest, of any algorithm that names may have."""
    algorithm, _, expected = digest.partition(":")
    return hashlib.new(algorithm, content).hexdigest() == expected


def shown(content: bytes) -> str:
    """Return the beginning of something unexpected, fit for a message."""
    text = " ".join(content[:200].decode("utf-8", "replace").split())
    if re.search(r"<(?:!doctype|html|head)", text, re.IGNORECASE):
        title = re.search(rb"<title[^>]*>([^<]{1,80})", content, re.IGNORECASE)
        return "a web page" + (f" titled {title[1].decode('utf-8', 'replace')!r}" if title else "")
    return repr("".join(c if c.isprintable() else "?" for c in text)[:80])


def _parse_layer(entry: object, where: str) -> tuple[Compression, Descriptor]:
    kind = str(entry.get("mediaType", "")) if isinstance(entry, dict) else ""
    if "nondistributable" in kind or ".foreign." in kind:
        raise InvalidInput(
            "one of its layers may only be fetched from its maker, not from a registry",
            where,
            "Pull it with an engine there and ship it from that (source 'engine').",
        )
    if kind not in _LAYER_TYPES:
        raise InvalidInput(f"one of its layers is of an unknown kind ({kind[:100]!r})", where)
    return _LAYER_TYPES[kind], parse_descriptor(entry, where)
