"""Pretend offline servers on one Linux machine; `README.md` beside this says how to use them."""

from tests.lab.archives import ImageSpec, MadeImage, write_archive
from tests.lab.engine import engine_url, release_engine
from tests.lab.errors import LabBusy, LabError, LabUnavailable
from tests.lab.hosts import LabHost
from tests.lab.images import ImageShelf, make_image, make_images, remove_images
from tests.lab.lab import Lab, StatusRow
from tests.lab.layers import LayerSpec
from tests.lab.spec import DEFAULT_HOSTS, HostSpec

__all__ = [
    "DEFAULT_HOSTS",
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
    "engine_url",
    "make_image",
    "make_images",
    "release_engine",
    "remove_images",
    "write_archive",
]
