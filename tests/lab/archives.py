"""Archives as `docker save` writes them, with no engine involved.

Sources of the formats: moby v20.10.24 and v25.0.0, image/tarexport/save.go; OCI image
layout and image configuration 1.0.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from tests.lab.errors import LabError
from tests.lab.layers import CREATED, Layer, LayerSpec, LayerStore, tar_member

Form = Literal["legacy", "oci"]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
# The first process of a container ignores SIGTERM unless it says otherwise; `docker stop`
# would take its ten seconds.
SLEEP = ("sh", "-c", "trap exit TERM; sleep 2147483647 & wait")


def native_architecture() -> str:
    """Return this machine's architecture by Docker's name."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class ImageSpec:
    """One image; its first layer is busybox', which all images share.

    Attributes:
        name: Repository and tag.
        layers: The layers above busybox', lowest first.
        cmd: What a container of it runs; by default it sleeps until it is stopped.
        env: Environment, `NAME=value`.
        architecture: `amd64` or `arm64`; only what is written in the image, busybox is ours.
        labels: Labels of the image.
        created: When it says it was made, RFC 3339.
        busybox: Whether it starts with busybox' layer; without it, no container runs.
    """

    name: str
    layers: Sequence[LayerSpec] = ()
    cmd: Sequence[str] = SLEEP
    env: Sequence[str] = ()
    architecture: str = field(default_factory=native_architecture)
    labels: Mapping[str, str] = field(default_factory=dict)
    created: str = CREATED
    busybox: bool = True

    def __post_init__(self) -> None:
        if ":" not in self.name.rpartition("/")[2]:
            raise LabError(f"{self.name}: an image made here needs a tag")


@dataclass(frozen=True)
class MadeImage:
    """What came of an ImageSpec.

    Attributes:
        name: Repository and tag.
        config_digest: `sha256:…` of its configuration, the image id of a graph-driver engine.
        diff_ids: `sha256:…` of each uncompressed layer, lowest first.
        layer_bytes: Size of each uncompressed layer's tar.
    """

    name: str
    config_digest: str
    diff_ids: tuple[str, ...]
    layer_bytes: tuple[int, ...]


def write_archive(
    path: Path | str,
    images: Sequence[ImageSpec],
    compress: Literal["gzip"] | None = None,
    form: Form = "legacy",
) -> list[MadeImage]:
    """Write a file as `docker save IMAGES` does.

    Args:
        path: The file to write.
        images: What goes in, in this order.
        compress: `gzip` for what `docker save | gzip` makes.
        form: `legacy` as Docker 20.10 writes it, a layer that was written before being a
            symbolic link to it; `oci` as Docker 25 and later do, an OCI layout that also has
            `manifest.json`.

    Returns:
        The digests of each image.
    """
    with tempfile.TemporaryDirectory(prefix=".layers-", dir=Path(path).parent) as folder:
        store = LayerStore(Path(folder))
        finished = [_finish(spec, store) for spec in images]
        members = _legacy_members(finished) if form == "legacy" else _oci_members(finished)
        with (
            _opened(Path(path), compress) as file,
            tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in sorted(members):
                _add_member(tar, name, members[name])
    return [image.made for image in finished]


@dataclass(frozen=True)
class _Finished:
    made: MadeImage
    config: bytes
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _Link:
    target: str


_Member = bytes | Layer | _Link | None  # None is a folder


def _finish(spec: ImageSpec, store: LayerStore) -> _Finished:
    layers = [store.layer(layer) for layer in spec.layers]
    if spec.busybox:
        layers.insert(0, store.busybox())
    config = {
        "architecture": spec.architecture,
        "os": "linux",
        "created": spec.created,
        "config": {
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", *spec.env],
            "Cmd": list(spec.cmd),
            "Labels": dict(spec.labels) or None,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": CREATED, "created_by": "ADD"} for _ in layers],
    }
    encoded = _encoded(config)
    made = MadeImage(
        spec.name,
        _digest(encoded),
        tuple(layer.diff_id for layer in layers),
        tuple(layer.size for layer in layers),
    )
    return _Finished(made, encoded, tuple(layers))


def _legacy_members(images: Sequence[_Finished]) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    written: dict[str, str] = {}
    manifest = []
    repositories: dict[str, dict[str, str]] = {}
    for image in images:
        config_name = f"{_hex(image.made.config_digest)}.json"
        members[config_name] = image.config
        ids = _legacy_ids(image)
        for position, (layer_id, layer) in enumerate(zip(ids, image.layers, strict=True)):
            if layer_id in members:
                continue
            parent = {"parent": ids[position - 1]} if position else {}
            members[layer_id] = None
            members[f"{layer_id}/VERSION"] = b"1.0"
            members[f"{layer_id}/json"] = _encoded({"id": layer_id, **parent, "os": "linux"})
            first = written.setdefault(layer.diff_id, layer_id)
            is_first = first == layer_id
            link = _Link(f"../{first}/layer.tar")
            members[f"{layer_id}/layer.tar"] = layer if is_first else link
        layer_names = [f"{layer_id}/layer.tar" for layer_id in ids]
        entry = {"Config": config_name, "RepoTags": [image.made.name], "Layers": layer_names}
        manifest.append(entry)
        repository, _, tag = image.made.name.rpartition(":")
        repositories.setdefault(repository, {})[tag] = ids[-1]
    members["manifest.json"] = _encoded(manifest)
    members["repositories"] = _encoded(repositories)
    return members


def _legacy_ids(image: _Finished) -> list[str]:
    """Name the layers: by what is below them, the uppermost also by the image it belongs to."""
    ids = []
    below = ""
    for position, layer in enumerate(image.layers, start=1):
        tail = image.config if position == len(image.layers) else b""
        below = _hex(_digest(f"{below} {layer.diff_id} ".encode() + tail))
        ids.append(below)
    return ids


def _oci_members(images: Sequence[_Finished]) -> dict[str, _Member]:
    members: dict[str, _Member] = {"blobs": None, "blobs/sha256": None}
    members["oci-layout"] = _encoded({"imageLayoutVersion": "1.0.0"})
    descriptors, manifest = [], []
    for image in images:
        for layer in image.layers:
            members[_blob(layer.diff_id)] = layer
        members[_blob(image.made.config_digest)] = image.config
        layers = [_descriptor(LAYER_TYPE, layer.diff_id, layer.size) for layer in image.layers]
        config = _descriptor(CONFIG_TYPE, image.made.config_digest, len(image.config))
        document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE}
        encoded = _encoded({**document, "config": config, "layers": layers})
        members[_blob(_digest(encoded))] = encoded
        notes = {
            "io.containerd.image.name": f"docker.io/{image.made.name}",
            "org.opencontainers.image.ref.name": image.made.name.rpartition(":")[2],
        }
        descriptor = _descriptor(MANIFEST_TYPE, _digest(encoded), len(encoded))
        descriptors.append({**descriptor, "annotations": notes})
        entry = {"Config": _blob(image.made.config_digest), "RepoTags": [image.made.name]}
        manifest.append({**entry, "Layers": [_blob(layer.diff_id) for layer in image.layers]})
    index = {"schemaVersion": 2, "manifests": descriptors}
    members["index.json"] = _encoded({**index, "mediaType": INDEX_TYPE})
    members["manifest.json"] = _encoded(manifest)
    return members


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _blob(digest: str) -> str:
    return f"blobs/sha256/{_hex(digest)}"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _encoded(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


@contextmanager
def _opened(path: Path, compress: str | None) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if compress is None:
            yield file
            return
        with gzip.GzipFile(fileobj=file, filename="", mode="wb", compresslevel=1, mtime=0) as out:
            yield out  # type: ignore[misc]


def _add_member(tar: tarfile.TarFile, name: str, member: _Member) -> None:
    if member is None:
        tar.addfile(tar_member(f"{name}/", tarfile.DIRTYPE, mode=0o755))
    elif isinstance(member, _Link):
        info = tar_member(name, tarfile.SYMTYPE)
        info.linkname = member.target
        tar.addfile(info)
    elif isinstance(member, bytes):
        info = tar_member(name, tarfile.REGTYPE)
        info.size = len(member)
        tar.addfile(info, io.BytesIO(member))
    else:
        info = tar_member(name, tarfile.REGTYPE)
        info.size = member.size
        with member.path.open("rb") as content:
            tar.addfile(info, content)
