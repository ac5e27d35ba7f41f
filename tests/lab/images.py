"""Images made to measure in an engine: `FROM scratch`, a static busybox, chosen layers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import docker

from tests.lab.archives import ImageSpec, MadeImage, write_archive
from tests.lab.errors import LabError
from tests.lab.layers import LayerSpec


def make_image(
    engine_url: str,
    name: str,
    layers: Sequence[LayerSpec] = (),
    **details: Any,
) -> MadeImage:
    """Make one image in an engine.

    Args:
        engine_url: The engine's DOCKER_HOST URL.
        name: Repository and tag.
        layers: The layers above busybox', lowest first.
        details: Further fields of ImageSpec.

    Returns:
        Its digests, known without asking the engine.
    """
    return make_images(engine_url, [ImageSpec(name, layers, **details)])[0]


def make_images(engine_url: str, images: Sequence[ImageSpec]) -> list[MadeImage]:
    """Make several images in an engine; layers that they share are generated once.

    Raises:
        LabError: The engine did not take them; carries its words.
    """
    with tempfile.TemporaryDirectory(prefix="crossgap-images-") as folder:
        archive = Path(folder) / "images.tar"
        made = write_archive(archive, images)
        with archive.open("rb") as stream:
            load_archive(engine_url, stream)
    return made


def load_archive(engine_url: str, archive: IO[bytes] | Iterable[bytes]) -> None:
    """Have an engine load an archive, as `docker load` does.

    Raises:
        LabError: The engine did not take it; carries its words.
    """
    with docker.APIClient(base_url=engine_url, timeout=300, version="1.41") as engine:
        # The client only hands it on to requests, which takes iterators as well.
        answers = list(engine.load_image(archive))
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        raise LabError(f"the engine did not load the images: {errors[0]}")


def image_names(engine_url: str) -> set[str]:
    """Return the names and tags of an engine's images."""
    with docker.APIClient(base_url=engine_url, timeout=60, version="1.41") as engine:
        names = {name for image in engine.images() for name in image["RepoTags"] or ()}
    return names - {"<none>:<none>"}


def remove_images(engine_url: str, names: Sequence[str]) -> None:
    """Remove images from an engine; those that are not there are no error."""
    with docker.APIClient(base_url=engine_url, timeout=60, version="1.41") as engine:
        for name in names:
            try:
                engine.remove_image(name, force=True)
            except docker.errors.ImageNotFound:
                continue


class ImageShelf:
    """Images made in one engine for a while: what `clear` is called for, is gone then.

    Args:
        engine_url: The engine's DOCKER_HOST URL.
    """

    def __init__(self, engine_url: str) -> None:
        self.engine_url = engine_url
        self._names: list[str] = []

    def make(self, name: str, layers: Sequence[LayerSpec] = (), **details: Any) -> MadeImage:
        """Make one image; see `make_image`."""
        return self.make_all([ImageSpec(name, layers, **details)])[0]

    def make_all(self, images: Sequence[ImageSpec]) -> list[MadeImage]:
        """Make several images; see `make_images`."""
        self._names += [image.name for image in images]
        return make_images(self.engine_url, images)

    def clear(self) -> None:
        """Remove from the engine what was made."""
        remove_images(self.engine_url, self._names)
        self._names.clear()
