"""Which layers of an image a host has, by its kind of store. Pure.

An engine with graph drivers looks a layer up by its chain id: it, and all that
lies below it. An engine with a containerd store looks for the blob that the
manifest names, by its digest, compressed or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.images.blobs import Descriptor, Layer
from tasks.images.facts import HostFacts, ImageFacts, Store
from tasks.images.layout import chain_ids


def store_keys(image: ImageFacts, store: Store) -> tuple[str, ...]:
    """Return by what an engine looks for each layer of an image.

    Args:
        image: The image.
        store: The engine's kind of store.

    Returns:
        Chain ids for graph drivers; diff ids, which stand for the digests of all
        their forms, for a containerd store.
    """
    return image.diff_ids if store == "containerd" else chain_ids(image.diff_ids)


def layers_there(
    image: ImageFacts, host: HostFacts, forms: Mapping[str, Sequence[Layer]]
) -> dict[str, Layer]:
    """Find the layers of an image that a host has, in the form that it knows them by.

    Args:
        image: The image.
        host: The host.
        forms: Per diff id the forms that are known here.

    Returns:
        The layers, without their bytes, by what the engine looks for (`store_keys`).
    """
    if host.store == "containerd":
        return _by_digest(image, host, forms)
    sizes = sizes_of(image)
    return {
        chain: Layer(diff_id, "none", Descriptor(diff_id, sizes[diff_id]))
        for diff_id, chain in zip(image.diff_ids, chain_ids(image.diff_ids), strict=True)
        if chain in host.layers
    }


def _by_digest(
    image: ImageFacts, host: HostFacts, forms: Mapping[str, Sequence[Layer]]
) -> dict[str, Layer]:
    there: dict[str, Layer] = {}
    for diff_id in image.diff_ids:
        plain = Layer(diff_id, "none", Descriptor(diff_id, 0))
        for form in (plain, *forms.get(diff_id, ())):
            if (size := host.layers.get(form.blob.digest)) is not None:
                known = Descriptor(form.blob.digest, size)
                there[diff_id] = Layer(diff_id, form.compression, known)
                break
    return there


def sizes_of(image: ImageFacts) -> dict[str, int]:
    """Return the unpacked bytes of each layer of an image, by diff id.

    Where the single layers are not known, each counts as an equal share.
    """
    layers = image.diff_ids
    if len(image.layer_sizes) == len(layers):
        return dict(zip(layers, image.layer_sizes, strict=True))
    share = -(-image.size // max(1, len(layers)))
    return dict.fromkeys(layers, share)
