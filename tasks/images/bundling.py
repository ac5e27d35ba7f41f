"""Images in a bundle: which layers go in, which files they become, and back again.

A bundle holds an OCI layout of all its images. Its large blobs lie in parts, so it also
holds, per image, how an archive for `docker load` is put together out of what is there:
`load/NNN.glue` has what lies around the layers, `load/NNN.list` says what follows what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from blocks.content import Content
from blocks.errors import CrossgapError, Damaged, InvalidInput, NotFound
from tasks.common.units import bytes_text
from tasks.images.arrival import arrival_name, arrival_note
from tasks.images.blobs import Blob, Compression, Descriptor, Layer
from tasks.images.facts import ImageFacts, parse_image_config
from tasks.images.layout import (
    BLOCK,
    LayoutImage,
    blob_path,
    carried_layers,
    chain_ids,
    digest_of,
    documents,
    segments,
)
from tasks.images.names import parse_reference
from tasks.images.presence import sizes_of

KIND = "images"
"""The kind of content that images are in a bundle's manifest."""

COMPRESSION: Compression = "gzip"
"""What every engine unpacks, also those older than 23."""

PartsOf = Callable[[str, int], Sequence[str]]

_TABLE = "load/images"
_BASE = "load/base"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class BundledLayer:
    """What a bundle, or a site's inventory, says of a layer.

    Args:
        form: The layer, in the form in which the far side knows it.
        unpacked: Its unpacked bytes, as far as known.
        carried: Whether its bytes are in the bundle.
    """

    form: Layer
    unpacked: int
    carried: bool


@dataclass(frozen=True)
class BundledImage:
    """What a bundle, or a site's inventory, says of an image.

    Args:
        name: The name and tag that it gets.
        config_digest: `sha256:…` of its configuration.
        manifest_digest: `sha256:…` of its manifest.
        layers: All its layers, the base first.
    """

    name: str
    config_digest: str
    manifest_digest: str
    layers: tuple[BundledLayer, ...]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of its unpacked layers, the base first."""
        return tuple(layer.form.diff_id for layer in self.layers)

    def item(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "config": self.config_digest,
            "manifest": self.manifest_digest,
            "layers": [
                {
                    "diff_id": layer.form.diff_id,
                    "digest": layer.form.blob.digest,
                    "size": layer.form.blob.size,
                    "compression": layer.form.compression,
                    "unpacked": layer.unpacked,
                    "carried": layer.carried,
                }
                for layer in self.layers
            ],
        }


@dataclass(frozen=True)
class PackedImage:
    """What of an image goes into a bundle.

    Args:
        image: The image.
        carried: The diff ids of the layers that the far side may lack, the base first.
        left_out: The other layers, by diff id, as the far side knows them.
    """

    image: ImageFacts
    carried: tuple[str, ...]
    left_out: Mapping[str, Layer]


def parse_items(items: Iterable[Mapping[str, Any]], where: str) -> tuple[BundledImage, ...]:
    """Read what a bundle or an inventory says of images.

    Args:
        items: As JSON has them.
        where: The file, for errors.

    Raises:
        Damaged: They are not what this module writes.
    """
    try:
        return tuple(_parse_item(item) for item in items)
    except (KeyError, TypeError, ValueError, InvalidInput) as error:
        raise Damaged(
            "what it says of its images cannot be read",
            where,
            "Take another copy of it, or make it anew.",
        ) from error


def plan_packing(
    images: Sequence[ImageFacts], known: Sequence[BundledImage]
) -> tuple[PackedImage, ...]:
    """Decide which layers go into a bundle.

    A layer may be left out where the far side has it and everything below it: that
    is how engines with graph drivers look it up.

    Args:
        images: What is wanted.
        known: What the far side has.
    """
    there: dict[str, Layer] = {}
    for one in known:
        forms = (layer.form for layer in one.layers)
        there.update(zip(chain_ids(one.diff_ids), forms, strict=True))
    return tuple(_packed(image, there) for image in images)


def rows_of(
    plan: Sequence[PackedImage], layers: Mapping[str, Layer] | None = None
) -> list[dict[str, Any]]:
    """Say image by image what goes into a bundle, for tables.

    Args:
        plan: What goes in.
        layers: The carried layers by diff id, where they are packed already; their
            unpacked sizes count otherwise.

    Returns:
        Per image its name, how many of its layers are carried and how many left out,
        and the bytes of those that no image before it brings.
    """
    seen: set[str] = set()
    rows = []
    for packed in plan:
        sizes = sizes_of(packed.image)
        if layers is not None:
            sizes |= {diff_id: layer.blob.size for diff_id, layer in layers.items()}
        rows.append(
            {
                "name": packed.image.name,
                "carried": len(packed.carried),
                "left_out": len(packed.left_out),
                "size": sum(sizes[diff_id] for diff_id in packed.carried if diff_id not in seen),
            }
        )
        seen.update(packed.carried)
    return rows


def lines_of(plan: Sequence[PackedImage], layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """Say image by image what is in a bundle, for its table of contents."""
    lines = []
    for packed, row in zip(plan, rows_of(plan, layers), strict=True):
        image = packed.image
        lines += [image.name, f"    for {image.os}/{image.architecture}"]
        if note := arrival_note(parse_reference(image.name)):
            lines.append(f"    {note}")
        text = f"    {row['carried']} layers, {bytes_text(row['size'])} packed"
        if row["left_out"]:
            text += f"; {row['left_out']} layers are left out, as the far side has them"
        lines.append(text)
    return tuple(lines)


def compose_images(
    plan: Sequence[PackedImage],
    configs: Mapping[str, bytes],
    layers: Mapping[str, Layer],
) -> tuple[LayoutImage, ...]:
    """Put together what a bundle's layout holds.

    Args:
        plan: What goes in.
        configs: The configuration of each image, by name.
        layers: The carried layers with their bytes, by diff id.
    """

    def chosen(packed: PackedImage, diff_id: str) -> Layer:
        return layers[diff_id] if diff_id in packed.carried else packed.left_out[diff_id]

    return tuple(
        LayoutImage(
            arrival_name(parse_reference(packed.image.name)),
            configs[packed.image.name],
            tuple(chosen(packed, diff_id) for diff_id in packed.image.diff_ids),
        )
        for packed in plan
    )


def items_of(plan: Sequence[PackedImage], images: Sequence[LayoutImage]) -> list[dict[str, Any]]:
    """Return what a bundle's manifest says of its images."""
    carried = {blob.digest for blob in carried_layers(images)}
    items = []
    for packed, image in zip(plan, images, strict=True):
        sizes = sizes_of(packed.image)
        layers = tuple(
            BundledLayer(layer, sizes[layer.diff_id], layer.blob.digest in carried)
            for layer in image.layers
        )
        manifest = digest_of(image.manifest())
        items.append(BundledImage(image.name, image.config_digest, manifest, layers).item())
    return items


def files_of(images: Sequence[LayoutImage], base: str, parts_of: PartsOf) -> dict[str, Content]:
    """Return the files of a bundle that holds some images, by path.

    Args:
        images: What its layout holds; of none there is only what loads the rest.
        base: What the far side has to have already, in words; nothing where all is in it.
        parts_of: Gives the names of the parts that a file of a path and size lies in.
    """
    laid_out = documents(images) if images else {}
    files = {path: Content((content,)) for path, content in laid_out.items()}
    files |= {blob_path(blob.digest): blob.content for blob in carried_layers(images)}
    loaded: set[str] = set()
    table = []
    for number, image in enumerate(images, 1):
        glue, listing = _recipe(image, loaded, parts_of)
        key = f"{number:03d}"
        files[f"load/{key}.glue"] = Content((glue,))
        files[f"load/{key}.list"] = Content((listing,))
        manifest = digest_of(image.manifest())
        table.append(f"{key} {image.config_digest} {manifest} {image.name}\n")
    if table:
        files[_TABLE] = Content(("".join(table).encode(),))
    if base:
        files[_BASE] = Content((f"{base}\n".encode(),))
    files["load.sh"] = Content.of_file(Path(__file__).with_name("load.sh"))
    return files


def describe_files(images: Sequence[BundledImage]) -> dict[str, str]:
    """Say what the files of a bundle are, by path, for errors that name them."""
    owners: dict[str, list[str]] = {}
    for image in images:
        for layer in image.layers:
            owners.setdefault(blob_path(layer.form.blob.digest), []).append(image.name)
    about = {
        path: f"layer {path.rpartition('/')[2][:12]} of {_and_others(names)}"
        for path, names in owners.items()
    }
    for number, image in enumerate(images, 1):
        about[blob_path(image.config_digest)] = f"configuration of {image.name}"
        about[blob_path(image.manifest_digest)] = f"manifest of {image.name}"
        for kind in ("glue", "list"):
            about[f"load/{number:03d}.{kind}"] = f"how {image.name} is loaded"
    return about


@dataclass(frozen=True)
class CarriedImages:
    """The images of a bundle, ready to be shipped from it.

    Args:
        images: What they are, each under the name that it gets.
        configs: The configuration of each, by name.
        layers: The layers whose bytes are in the bundle, by diff id.
        known: The other layers, by diff id, as the base has them.
    """

    images: tuple[ImageFacts, ...]
    configs: Mapping[str, bytes]
    layers: Mapping[str, Layer]
    known: Mapping[str, Layer]


def open_images(
    images: Sequence[BundledImage], content: Callable[[str], Content | None], where: str
) -> CarriedImages:
    """Find the images in a bundle that was verified.

    Args:
        images: What its manifest says of them.
        content: Gives a file of the bundle by path, None where there is none.
        where: The bundle, for errors.

    Raises:
        Damaged: The manifest contradicts the files.
        CrossgapError: A file cannot be read.
    """

    def needed(path: str, what: str) -> Content:
        found = content(path)
        if found is None:
            raise Damaged(
                f"its manifest lists no file {path}, which has to hold {what}",
                where,
                "Do not use this bundle: it was not made by crossgap, or was altered.",
            )
        return found

    facts: list[ImageFacts] = []
    configs: dict[str, bytes] = {}
    layers: dict[str, Layer] = {}
    known: dict[str, Layer] = {}
    for image in images:
        held = needed(blob_path(image.config_digest), f"the configuration of {image.name}")
        config = b"".join(held.chunks())
        facts.append(_checked_facts(image, config, where))
        configs[image.name] = config
        for layer in image.layers:
            form = layer.form
            if not layer.carried:
                known[form.diff_id] = form
                continue
            bytes_here = needed(blob_path(form.blob.digest), f"a layer of {image.name}")
            blob = Blob(form.blob.digest, form.blob.size, bytes_here)
            layers[form.diff_id] = Layer(form.diff_id, form.compression, blob)
    return CarriedImages(tuple(facts), configs, layers, known)


def lacking_base(
    image: ImageFacts, lacking: Iterable[str], carried: Mapping[str, Layer], base: str, where: str
) -> CrossgapError | None:
    """Return what is wrong when neither a host nor the bundle has a layer; None if all is there.

    Args:
        image: An image of the bundle.
        lacking: The diff ids of its layers that the host lacks.
        carried: What the bundle carries.
        base: What the bundle builds on, in words.
        where: The host.
    """
    absent = [diff_id for diff_id in lacking if diff_id not in carried]
    if not absent:
        return None
    shown = ", ".join(diff_id[:19] for diff_id in absent[:3])
    more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    return NotFound(
        f"{image.name} needs the layers {shown}{more}, which are neither here nor in the bundle",
        where,
        f"The bundle only carries what is new since {base or 'an earlier one'}: bring that and "
        "unpack it first, or have a bundle packed with the inventory of this host, or without "
        "since. Nothing was loaded.",
    )


def _packed(image: ImageFacts, there: Mapping[str, Layer]) -> PackedImage:
    carried: dict[str, None] = {}
    left_out: dict[str, Layer] = {}
    for diff_id, chain in zip(image.diff_ids, chain_ids(image.diff_ids), strict=True):
        if chain in there:
            left_out[diff_id] = there[chain]
        else:
            carried[diff_id] = None
    return PackedImage(image, tuple(carried), left_out)


def _recipe(image: LayoutImage, loaded: set[str], parts_of: PartsOf) -> tuple[bytes, bytes]:
    """Return glue and list of an image; note which layers an engine has after it."""
    diff_ids = [layer.diff_id for layer in image.layers]
    chains = dict(zip(chain_ids(diff_ids), image.layers, strict=True))
    needed = {layer.blob.digest for chain, layer in chains.items() if chain not in loaded}
    loaded.update(chains)
    glue = bytearray()
    lines: list[tuple[str, str]] = []
    which = "own"
    for segment in segments([image]):
        if isinstance(segment, Blob):
            which = "own" if segment.digest in needed else "shared"
            # Its header came just before.
            lines[-1] = (which, lines[-1][1])
            parts = parts_of(blob_path(segment.digest), segment.size)
            lines += [(which, f"file {part}") for part in parts]
        elif len(segment) % BLOCK:
            lines.append((which, f"zeros {len(segment)}"))
        else:
            begin, count = len(glue) // BLOCK, len(segment) // BLOCK
            lines.append(("own", f"glue {begin} {count}"))
            glue += segment
    listing = "".join(f"{which} {line}\n" for which, line in lines)
    return bytes(glue), listing.encode()


def _parse_item(item: Mapping[str, Any]) -> BundledImage:
    name = parse_reference(str(item["name"])).familiar
    layers = tuple(_parse_layer(layer) for layer in item["layers"])
    return BundledImage(name, _digest(item["config"]), _digest(item["manifest"]), layers)


def _parse_layer(item: Mapping[str, Any]) -> BundledLayer:
    compression = item["compression"]
    if compression not in get_args(Compression):
        raise ValueError(compression)
    blob = Descriptor(_digest(item["digest"]), int(item["size"]))
    form = Layer(_digest(item["diff_id"]), compression, blob)
    return BundledLayer(form, int(item["unpacked"]), item["carried"] is True)


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(value)
    return value


def _checked_facts(image: BundledImage, config: bytes, where: str) -> ImageFacts:
    sizes = [layer.unpacked for layer in image.layers]
    try:
        facts = parse_image_config(config, image.name, sizes)
        matches = facts.diff_ids == image.diff_ids and digest_of(config) == image.config_digest
    except ValueError:
        matches = False
    if not matches:
        raise Damaged(
            f"what it says of {image.name} is not what the image's configuration says",
            where,
            "Do not use this bundle: it was not made by crossgap, or was altered.",
        )
    return facts


def _and_others(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 2} more" if len(unique) > 2 else ""
    return " and ".join(unique[:2]) + more
