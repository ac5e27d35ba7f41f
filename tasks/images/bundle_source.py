"""A bundle that was verified, as a source that hosts are shipped to from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.hosts import load_host
from tasks.common.retry import retrying
from tasks.images.blobs import Layer
from tasks.images.bundling import BundledImage, CarriedImages, lacking_base
from tasks.images.facts import ImageFacts
from tasks.images.host_facts import read_images
from tasks.images.plan import HostPlan, Shipment
from tasks.images.sources import FixedSource, known_forms
from tasks.images.store import Store, StoredImage
from tasks.images.supply import Supply


class BundleSource(FixedSource):
    """The images of a bundle.

    Args:
        carried: What the bundle carries, verified.
        store: Where layers are kept that have to be brought into another form.
    """

    def __init__(self, carried: CarriedImages, store: Store) -> None:
        super().__init__(carried.images, store)
        self._carried = carried

    def forms(self) -> Mapping[str, Sequence[Layer]]:
        """Return the forms of layers that the bundle names, and those in the store."""
        forms = known_forms(self._store, self._images)
        for layers in (self._carried.layers, self._carried.known):
            for diff_id, layer in layers.items():
                forms.setdefault(diff_id, []).append(layer)
        return forms

    @contextmanager
    def supply(self, shipment: Shipment) -> Iterator[Supply]:  # noqa: ARG002
        """Open a supply of what the bundle carries."""
        with Supply(self._store) as supply:
            for layer in self._carried.layers.values():
                supply.give_layer(layer)
            for image in self._carried.images:
                config = self._carried.configs[image.name]
                supply.give_image(
                    StoredImage(config, image.config_digest, image.diff_ids, (image.name,))
                )
            yield supply

    def with_bases(self, shipment: Shipment, base: str) -> Shipment:
        """Refuse hosts that lack what the bundle builds on, before anything is sent there.

        Args:
            shipment: The plan.
            base: What the bundle builds on, in words.
        """
        return Shipment(tuple(self._with_base(plan, base) for plan in shipment.hosts))

    def _with_base(self, plan: HostPlan, base: str) -> HostPlan:
        errors = (
            lacking_base(send.image, send.missing, self._carried.layers, base, plan.host)
            for send in plan.sends
        )
        problems = tuple(error for error in errors if error is not None)
        return replace(plan, problems=(*plan.problems, *problems))


@task(task_run_name="see what else {host} has", cache_policy=NO_CACHE, **retrying(retries=2))
def images_left(host: str, known: Sequence[BundledImage]) -> list[BundledImage]:
    """Return those of some images that a host still has, for its inventory.

    Args:
        host: Name of the host's block.
        known: Images that an earlier inventory names.

    Raises:
        CrossgapError: As for `tasks.images.host_facts.read_images`.
    """
    if not known:
        return []
    wanted = [
        ImageFacts(image.name, image.config_digest, image.config_digest, image.diff_ids, "")
        for image in known
    ]
    found = read_images(load_host(host), wanted)
    return [
        image
        for image in known
        if image.name in found and found[image.name].diff_ids == image.diff_ids
    ]
