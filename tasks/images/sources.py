"""Where a run's images come from, each kind with the same three answers.

What is wanted for a host, which forms of layers are known already, and a supply
of what hosts lack.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Self

from tasks.images import steps
from tasks.images.archive import ArchiveFacts
from tasks.images.blobs import Compression, Layer
from tasks.images.facts import ImageFacts, parse_image_config
from tasks.images.names import parse_references
from tasks.images.plan import Shipment, loading_order
from tasks.images.registry.documents import ResolvedImage
from tasks.images.registry.registries import Registry
from tasks.images.store import Store
from tasks.images.supply import Supply


class Source(ABC):
    """A place that images come from, as a context manager that lets go of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    @abstractmethod
    def wanted_on(self, architecture: str) -> tuple[ImageFacts, ...]:
        """Return the images that a host of an architecture shall have."""

    @abstractmethod
    def forms(self) -> Mapping[str, Sequence[Layer]]:
        """Return the forms of layers that are known here, by diff id."""

    @abstractmethod
    def supply(self, shipment: Shipment) -> AbstractContextManager[Supply]:
        """Open a supply of what hosts lack.

        Args:
            shipment: The plan; what it needs is being fetched from then on.
        """


class FixedSource(Source):
    """A source that has its images for one architecture, whichever host asks.

    Args:
        images: What is wanted of it.
        store: Where layers are kept from run to run.
    """

    def __init__(self, images: Sequence[ImageFacts], store: Store) -> None:
        self._images = tuple(images)
        self._store = store

    def wanted_on(self, architecture: str) -> tuple[ImageFacts, ...]:  # noqa: ARG002
        """Return the images."""
        return self._images

    def forms(self) -> Mapping[str, Sequence[Layer]]:
        """Return the forms of layers that are in the store."""
        return known_forms(self._store, self._images)


class EngineSource(FixedSource):
    """The source engine, and the store of what it saved before."""

    @contextmanager
    def supply(self, shipment: Shipment) -> Iterator[Supply]:
        """Open a supply, and have the engine save what the store does not have."""
        with Supply(self._store, steps.save_images) as supply:
            lacking = shipment.missing
            needed = [image for image in shipment.images if not supply.has(image, lacking)]
            supply.start(save_groups(needed), lacking)
            yield supply


class ArchiveSource(FixedSource):
    """Files that docker save made.

    Args:
        images: What is wanted of them.
        archives: The files, proven.
        store: Where the layers of compressed ones are unpacked to.
    """

    def __init__(
        self, images: Sequence[ImageFacts], archives: Sequence[ArchiveFacts], store: Store
    ) -> None:
        super().__init__(images, store)
        self._archives = tuple(archives)

    @contextmanager
    def supply(self, shipment: Shipment) -> Iterator[Supply]:
        """Open a supply of what the archives hold."""
        with Supply(self._store) as supply:
            needed = {image.image_id for image in shipment.images}
            for archive in self._archives:
                if not needed & {image.image_id for image in archive.images}:
                    continue
                if archive.compression != "none":
                    steps.unpack_archive(archive, supply)
                    continue
                for layer in archive.layers.values():
                    supply.give_layer(layer)
                for image in archive.stored:
                    supply.give_image(image)
            yield supply


class RegistrySource(Source):
    """Registries, with no engine between.

    Args:
        names: What is wanted.
        registry: The registries of the run.
        store: Where layers are kept.
    """

    def __init__(self, names: Sequence[str], registry: Registry, store: Store) -> None:
        self._references = parse_references(names)
        self._registry = registry
        self._store = store
        self._lock = threading.Lock()
        self._resolved: dict[str, tuple[ResolvedImage, ...]] = {}

    def __exit__(self, *_: object) -> None:
        self._registry.__exit__(None, None, None)

    def wanted_on(self, architecture: str) -> tuple[ImageFacts, ...]:
        """Look the images up for an architecture, once per run.

        Raises:
            CrossgapError: As for `Registry.resolve`.
        """
        with self._lock:
            if architecture not in self._resolved:
                self._resolved[architecture] = steps.resolve_images(
                    self._registry, self._references, architecture
                )
        return tuple(map(_facts_of, self._resolved[architecture]))

    def forms(self) -> Mapping[str, Sequence[Layer]]:
        """Return the forms of layers that are in the store, and those of the registry."""
        forms: dict[str, list[Layer]] = {}
        for images in self._resolved.values():
            for diff_id, known in known_forms(self._store, map(_facts_of, images)).items():
                forms.setdefault(diff_id, known)
            for layer in (layer for image in images for layer in image.layers):
                forms[layer.diff_id].append(layer)
        return forms

    @contextmanager
    def supply(self, shipment: Shipment) -> Iterator[Supply]:
        """Open a supply, and have what the store does not have fetched."""
        resolved = {
            image.config_digest: image for images in self._resolved.values() for image in images
        }

        def fetch(images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply) -> None:
            wanted = [resolved[image.config_digest] for image in images]
            steps.fetch_images(wanted, lacking, self._registry, supply)

        with Supply(self._store, fetch) as supply:
            lacking = shipment.missing
            needed = [image for image in shipment.images if not supply.has(image, lacking)]
            supply.start([needed] if needed else [], lacking)
            yield supply


# Layers of real images unpack to two or three times their size.
_UNPACKS_TO = 3


def _facts_of(image: ResolvedImage) -> ImageFacts:
    sizes = [
        layer.blob.size * (1 if layer.compression == "none" else _UNPACKS_TO)
        for layer in image.layers
    ]
    return parse_image_config(image.config, image.reference.familiar, sizes)


def save_groups(images: Sequence[ImageFacts]) -> list[list[ImageFacts]]:
    """Decide which images the engine saves in one go.

    All together is least work, as layers that they share are saved once; but
    the first byte comes when the last layer has been copied. So the one that
    brings the shared base is saved beside the rest, and travels and loads meanwhile.

    Args:
        images: What is to be saved.
    """
    ordered = loading_order(images)
    if len(ordered) < _WORTH_SPLITTING:
        return [ordered] if ordered else []
    return [ordered[:1], ordered[1:]]


_WORTH_SPLITTING = 3


def known_forms(store: Store, images: Iterable[ImageFacts]) -> dict[str, list[Layer]]:
    """Return the forms of the images' layers that a store has, by diff id."""
    compressions: Collection[Compression] = ("none", "gzip", "zstd")
    return {
        diff_id: [
            layer for form in compressions if (layer := store.layer(diff_id, form)) is not None
        ]
        for image in images
        for diff_id in image.diff_ids
    }
