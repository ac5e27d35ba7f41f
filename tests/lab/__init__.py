"""Pretend offline servers on one Linux machine; `README.md` beside this says how to use them."""

from tests.lab.archives import ImageSpec, MadeImage, write_archive
from tests.lab.containers import container_digest, container_files
from tests.lab.engine import engine_url, release_engine
from tests.lab.errors import LabBusy, LabError, LabUnavailable
from tests.lab.hosts import LabHost
from tests.lab.images import (
    ImageShelf,
    image_names,
    load_archive,
    make_image,
    make_images,
    remove_images,
)
from tests.lab.lab import Lab, StatusRow
from tests.lab.layers import (
    OPAQUE,
    File,
    Folder,
    HardLink,
    LayerSpec,
    Symlink,
    whiteout,
)
from tests.lab.spec import DEFAULT_HOSTS, HostSpec

__all__ = [
    "DEFAULT_HOSTS",
    "OPAQUE",
    "File",
    "Folder",
    "HardLink",
    "HostSpec",
    "ImageShelf",
    "ImageSpec",
    "Lab",
    "LabBusy",
    "LabError",
    "LabHost",
    "LabUnavailable",
    "LayerSpec",
    "MadeImage",
    "StatusRow",
    "Symlink",
    "container_digest",
    "container_files",
    "engine_url",
    "image_names",
    "load_archive",
    "make_image",
    "make_images",
    "release_engine",
    "remove_images",
    "whiteout",
    "write_archive",
]
