"""Images of real files to measure with: libraries, programs and documents of this machine.

Random bytes would flatter whoever does not compress, zeros whoever does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import docker

from tests.lab.archives import native_architecture
from tests.lab.layers import LayerStore

_PLACES = ("/usr/lib", "/usr/bin", "/usr/share", "/usr/local", "/opt")
_MB = 1_000_000
# Larger files would make one layer of one file.
_LARGEST_FILE = 60 * _MB


@dataclass(frozen=True)
class Layer:
    """A layer as a tar file.

    Args:
        diff_id: Its digest.
        path: The file.
        size: Its bytes.
    """

    diff_id: str
    path: Path
    size: int


def real_layers(folder: Path, sizes: Mapping[str, int]) -> dict[str, Layer]:
    """Make layers of real files, none of them in two layers.

    Args:
        folder: Where the tar files go.
        sizes: Megabytes of each layer by name.
    """
    files = _real_files()
    return {name: _layer(folder / f"{name}.tar", files, size * _MB) for name, size in sizes.items()}


def load_images(
    engine_url: str, folder: Path, images: Mapping[str, Sequence[Layer]], busybox: bool = True
) -> None:
    """Load images of some layers into an engine.

    Args:
        engine_url: The engine's DOCKER_HOST URL.
        folder: Where the archive is made.
        images: Layers by image name, the base first.
        busybox: Whether they begin with a layer that makes them run.
    """
    first = [LayerStore(folder).busybox()] if busybox else []
    archive = folder / "images.tar"
    manifest = []
    written: set[str] = set()
    with tarfile.open(archive, "w") as tar:
        for name, layers in images.items():
            chain = [*first, *layers]
            config = _config([layer.diff_id for layer in chain], name)
            config_name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(tar, config_name, io.BytesIO(config), len(config))
            for layer in chain:
                if layer.diff_id not in written:
                    written.add(layer.diff_id)
                    with layer.path.open("rb") as content:
                        _add(tar, f"{layer.diff_id[7:]}.tar", content, layer.size)
            names = [f"{layer.diff_id[7:]}.tar" for layer in chain]
            manifest.append({"Config": config_name, "RepoTags": [name], "Layers": names})
        encoded = json.dumps(manifest).encode()
        _add(tar, "manifest.json", io.BytesIO(encoded), len(encoded))
    with (
        closing(docker.APIClient(base_url=engine_url, timeout=900, version="1.41")) as engine,
        archive.open("rb") as stream,
    ):
        for answer in engine.load_image(stream):
            if "error" in answer:
                raise RuntimeError(answer["error"])
    archive.unlink()


def _real_files() -> Iterator[Path]:
    for place in _PLACES:
        for folder, folders, names in os.walk(place):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                if 0 < path.stat().st_size <= _LARGEST_FILE:
                    yield path


def _layer(path: Path, files: Iterator[Path], size: int) -> Layer:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for file in files:
            info = tarfile.TarInfo(str(file).lstrip("/"))
            info.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(info, content)
            if tar.offset >= size:
                break
        else:
            raise RuntimeError("this machine has too few files under /usr for the benchmark")
    with path.open("rb") as file_object:
        digest = hashlib.file_digest(file_object, "sha256").hexdigest()
    return Layer(f"sha256:{digest}", path, path.stat().st_size)


def _config(diff_ids: Sequence[str], name: str) -> bytes:
    return json.dumps(
        {
            "architecture": native_architecture(),
            "os": "linux",
            "config": {"Cmd": ["sh", "-c", "sleep 60"], "Labels": {"bench": name}},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
            "history": [{"created_by": "bench"} for _ in diff_ids],
        }
    ).encode()


def _add(tar: tarfile.TarFile, name: str, content: object, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    tar.addfile(info, content)  # type: ignore[arg-type]
