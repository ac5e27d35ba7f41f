"""Gathers what a bundle holds of images: layers from the supply, in the form that all take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.content import Content
from blocks.errors import InvalidInput
from tasks.common.retry import retrying
from tasks.images.blobs import Layer
from tasks.images.bundling import (
    COMPRESSION,
    PackedImage,
    PartsOf,
    compose_images,
    describe_files,
    files_of,
    items_of,
    lines_of,
    parse_items,
    rows_of,
)
from tasks.images.layout import blob_path
from tasks.images.plan import HostPlan, Send, Shipment
from tasks.images.sources import EngineSource, Source
from tasks.images.store import Store
from tasks.images.supply import Supply
from tasks.images.wanted import Wanted, find_source


@dataclass(frozen=True)
class PackedFile:
    """A file that images become in a bundle.

    Args:
        path: Its name there.
        content: Its bytes.
        sha256: Their hash.
        what: What it is, in words.
        discard: To be called when the bytes here turn out to be wrong.
    """

    path: str
    content: Content
    sha256: str
    what: str
    discard: Callable[[], object] | None


@dataclass(frozen=True)
class PackedImages:
    """Images, ready to be written into a bundle.

    Args:
        files: What they become.
        items: What the bundle's manifest says of them.
        lines: What its table of contents says of them.
        rows: What a table of the run says of them.
    """

    files: tuple[PackedFile, ...]
    items: tuple[dict[str, Any], ...]
    lines: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


def find_images(names: Sequence[str], *, required: bool) -> Source:
    """Look the images up that a bundle shall hold.

    Args:
        names: Names, or `compose:PATH`.
        required: Whether there have to be any; if not, no engine is needed for none.

    Raises:
        InvalidInput: There are none, and have to be.
        CrossgapError: As for `find_source`.
    """
    if names:
        return find_source(Wanted(names))
    if required:
        raise InvalidInput(
            "nothing is named that could be packed",
            "images and models",
            "Name images such as ragflow:v0.27.0, models such as Qwen/Qwen3-8B, or both.",
        )
    return EngineSource((), Store.default())


def shipment_of(plan: Sequence[PackedImage], place: str) -> Shipment:
    """Return a bundle's plan as a source understands it: a shipment to the disk.

    Args:
        plan: What goes in.
        place: Where the bundle is made.
    """
    sends = tuple(Send(packed.image, packed.carried) for packed in plan)
    return Shipment((HostPlan(place, sends, sends),))


@contextmanager
def packed_images(
    plan: Sequence[PackedImage], supply: Supply, base: str, parts_of: PartsOf
) -> Iterator[PackedImages]:
    """Gather images for a bundle, and keep their layers in the store meanwhile.

    Args:
        plan: What goes in.
        supply: Where the layers come from.
        base: What the bundle builds on, in words.
        parts_of: Gives the names of the parts that a file of a path and size lies in.

    Yields:
        What is to be written.

    Raises:
        CrossgapError: As for `Supply.layer` and `Store.compressed`.
    """
    layers: dict[str, Layer] = {}
    for packed in plan:
        layers |= pack_layers(packed, supply)
    configs = {packed.image.name: supply.image(packed.image).config for packed in plan}
    layout = compose_images(plan, configs, layers)
    items = items_of(plan, layout)
    about = describe_files(parse_items(items, base))
    by_path = {blob_path(layer.blob.digest): layer for layer in layers.values()}

    def file(path: str, content: Content) -> PackedFile:
        layer = by_path.get(path)
        if layer is None:
            return PackedFile(path, content, content.sha256(), about.get(path, ""), None)
        discard = _Discard(supply, layer)
        return PackedFile(path, content, layer.blob.hex, about.get(path, ""), discard)

    with supply.store.held([layer.blob.digest for layer in layers.values()]):
        files = files_of(layout, base, parts_of)
        yield PackedImages(
            tuple(file(path, content) for path, content in files.items()),
            tuple(items),
            lines_of(plan, layers),
            tuple(rows_of(plan, layers)),
        )


@task(task_run_name="pack the layers of {packed.image.name}", cache_policy=NO_CACHE, **retrying())
def pack_layers(packed: PackedImage, supply: Supply) -> dict[str, Layer]:
    """Bring the layers of an image that a bundle carries into its form.

    Args:
        packed: The image, and which of its layers.
        supply: Where they come from.

    Returns:
        The layers by diff id, with their bytes.

    Raises:
        CrossgapError: As for `Supply.layer` and `Store.compressed`.
    """
    return {
        diff_id: supply.store.compressed(supply.layer(packed.image, diff_id), COMPRESSION)
        for diff_id in packed.carried
    }


@dataclass(frozen=True)
class _Discard:
    """Forgets a layer whose packed form in the store turned out to be wrong."""

    supply: Supply
    layer: Layer

    def __call__(self) -> None:
        self.supply.damaged(self.layer)
