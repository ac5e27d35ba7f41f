"""What is known about images and hosts, and how it is read from Docker's JSON.

Everything here is pure; `engine` and `host_facts` fetch what it parses.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from blocks.disk import Disk
from tasks.images.arrival import arrival_name
from tasks.images.blobs import Compression
from tasks.images.names import parse_reference

Store = Literal["graphdriver", "containerd"]

# What `uname -m` and Docker call the same processor.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}

# The parts of an image's configuration that decide what a container of it does.
_RUNTIME_SETTINGS = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "OnBuild",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
)
_FIRST_WITH_ZSTD = 23
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True)
class ImageFacts:
    """One image under one name.

    Args:
        name: The name as Docker shows it, or the config digest of a nameless image.
        image_id: What its engine calls it; engines differ in this.
        config_digest: `sha256:…` of its configuration, empty where the engine
            (with a containerd store) does not tell.
        diff_ids: Digests of its unpacked layers, the base first.
        architecture: As Docker calls it: `amd64`, `arm64`, ….
        os: `linux` as a rule.
        variant: Of the architecture, such as `v8`; often empty.
        size: Bytes of its unpacked layers.
        created: RFC 3339, without trailing zeros; empty if never set.
        config_fingerprint: Hash of the settings that decide what a container does.
        layer_sizes: Unpacked bytes of each layer; empty where not known.
    """

    name: str
    image_id: str
    config_digest: str
    diff_ids: tuple[str, ...]
    architecture: str
    os: str = "linux"
    variant: str = ""
    size: int = 0
    created: str = ""
    config_fingerprint: str = ""
    layer_sizes: tuple[int, ...] = ()

    @property
    def lookup(self) -> str:
        """The name under which a host that loaded the image knows it."""
        return arrival_name(parse_reference(self.name)) if "@" in self.name else self.name


@dataclass(frozen=True)
class EngineFacts:
    """A Docker engine.

    Args:
        version: Such as `20.10.24`.
        architecture: As Docker calls it.
        store: How it keeps images.
        root: Where it keeps its data.
        cpus: How many processors it has.
    """

    version: str
    architecture: str
    store: Store
    root: str
    cpus: int = 1

    @property
    def unpacks_zstd(self) -> bool:
        """Whether it takes layers that are compressed with zstd."""
        return _major(self.version) >= _FIRST_WITH_ZSTD

    @property
    def image_root(self) -> str:
        """Where the bytes of images go; a containerd store has its own place."""
        return "/var/lib/containerd" if self.store == "containerd" else self.root


@dataclass(frozen=True)
class HostFacts:
    """What matters on a host for shipping images to it.

    Args:
        host: Its label.
        architecture: As Docker calls it.
        engine_version: Such as `20.10.24`.
        store: How its engine keeps images.
        docker_root: Where its engine keeps them.
        docker_root_disk: The filesystem of that place.
        staging_disk: The filesystem that files are sent to.
        wanted: The images that it shall have, each under the name it shall have.
        images: Of the wanted names, those that exist there.
        twins: For wanted names, what else the same content is called there.
        layers: What its store has: chain ids for graph drivers (their sizes are
            not known), digests of blobs and their sizes for containerd.
        staged: Bytes of layers that lie there already, whole or in part, by diff id.
        staged_forms: In which form, where so much lies there that sending goes on with it.
        cpus: How many processors it has.
        unpacks_zstd: Whether its engine takes layers compressed with zstd.
    """

    host: str
    architecture: str
    engine_version: str
    store: Store
    docker_root: str
    docker_root_disk: Disk
    staging_disk: Disk
    wanted: tuple[ImageFacts, ...] = ()
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    twins: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    staged: Mapping[str, int] = field(default_factory=dict)
    staged_forms: Mapping[str, Compression] = field(default_factory=dict)
    cpus: int = 1
    unpacks_zstd: bool = False


def same_content(one: ImageFacts, other: ImageFacts) -> bool:
    """Whether two images are the same, whatever their names, ids and engines.

    The config digest covers everything. An engine with a containerd store
    calls an image by its manifest digest instead (docker/cli#5526); then the
    layers and every setting that inspect shows have to agree.
    """
    if one.diff_ids != other.diff_ids:
        return False
    if one.config_digest and other.config_digest:
        return one.config_digest == other.config_digest
    return (one.architecture, one.os, one.created, one.config_fingerprint) == (
        other.architecture,
        other.os,
        other.created,
        other.config_fingerprint,
    )


def runs_on(image: ImageFacts, architecture: str) -> bool:
    """Whether a host of this architecture can run the image."""
    if image.os not in ("", "linux"):
        return False
    if image.architecture in ("", architecture):
        return True
    return (architecture, image.architecture) == ("amd64", "386")


def unpacked_size(images: Iterable[ImageFacts]) -> int:
    """Return the bytes of all layers of some images, shared ones counted once.

    An image whose single layers are not known counts whole.
    """
    whole = 0
    layers: dict[str, int] = {}
    for image in {(i.config_digest or i.image_id): i for i in images}.values():
        if len(image.layer_sizes) == len(image.diff_ids):
            layers.update(zip(image.diff_ids, image.layer_sizes, strict=True))
        else:
            whole += image.size
    return whole + sum(layers.values())


def docker_architecture(machine: str) -> str:
    """Return Docker's name for what `uname -m` prints."""
    return _ARCHITECTURES.get(machine, machine)


def parse_engine_info(info: Mapping[str, Any]) -> EngineFacts:
    """Read the answer to `docker info`, which is the same as the API's `/info`."""
    status = info.get("DriverStatus") or []
    containerd = any("io.containerd.snapshotter" in str(value) for _, value in status)
    return EngineFacts(
        version=str(info.get("ServerVersion", "")),
        architecture=docker_architecture(str(info.get("Architecture", ""))),
        store="containerd" if containerd else "graphdriver",
        root=str(info.get("DockerRootDir") or "/var/lib/docker"),
        cpus=int(info.get("NCPU") or 1),
    )


def parse_image(
    inspected: Mapping[str, Any], name: str, store: Store, layer_sizes: Sequence[int] = ()
) -> ImageFacts:
    """Read one object of `docker image inspect`.

    Args:
        inspected: The object.
        name: Under which of its names it was wanted.
        store: The kind of store of the engine that was asked.
        layer_sizes: Unpacked bytes of its layers, where known.
    """
    image_id = str(inspected["Id"])
    return ImageFacts(
        name=name,
        image_id=image_id,
        config_digest=image_id if store == "graphdriver" else "",
        diff_ids=tuple((inspected.get("RootFS") or {}).get("Layers") or ()),
        architecture=docker_architecture(str(inspected.get("Architecture") or "")),
        os=str(inspected.get("Os") or "linux"),
        variant=str(inspected.get("Variant") or ""),
        size=int(inspected.get("Size") or 0),
        created=_normal_time(inspected.get("Created")),
        config_fingerprint=_fingerprint(inspected.get("Config")),
        layer_sizes=tuple(layer_sizes),
    )


def parse_image_config(content: bytes, name: str, layer_sizes: Sequence[int]) -> ImageFacts:
    """Read an image's configuration as archives and registries hold it.

    Args:
        content: The JSON, whose hash is the config digest.
        name: The image's name, or empty.
        layer_sizes: Unpacked bytes of its layers.

    Raises:
        ValueError: It is not the configuration of an image.
    """
    config = json.loads(content)
    if not isinstance(config, dict) or "rootfs" not in config:
        raise ValueError("not an image configuration")
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    return ImageFacts(
        name=name or digest,
        image_id=digest,
        config_digest=digest,
        diff_ids=tuple((config["rootfs"] or {}).get("diff_ids") or ()),
        architecture=docker_architecture(str(config.get("architecture") or "")),
        os=str(config.get("os") or "linux"),
        variant=str(config.get("variant") or ""),
        size=sum(layer_sizes),
        created=_normal_time(config.get("created")),
        config_fingerprint=_fingerprint(config.get("config")),
        layer_sizes=tuple(layer_sizes),
    )


def parse_layer_sizes(history: Sequence[Mapping[str, Any]], layers: int) -> tuple[int, ...]:
    """Read the sizes of an image's layers from its history, the newest step first.

    Steps that changed no file have size 0 and no layer, which an empty layer
    looks like too; where the count does not fit, nothing is claimed.
    """
    sizes = tuple(int(step["Size"]) for step in reversed(history) if int(step.get("Size") or 0))
    return sizes if len(sizes) == layers else ()


def _major(version: str) -> int:
    digits = re.match(r"\d+", version)
    return int(digits[0]) if digits else 0


def _normal_time(value: object) -> str:
    """Drop what engines write differently: trailing zeros, and a time never set."""
    text = re.sub(r"\.\d+", lambda part: part[0].rstrip("0").rstrip("."), str(value or ""))
    return "" if text == _NEVER else text


def _fingerprint(config: object) -> str:
    """Hash the settings that matter; engines fill in empty ones differently."""
    settings = config if isinstance(config, dict) else {}
    kept = {key: settings[key] for key in _RUNTIME_SETTINGS if settings.get(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
