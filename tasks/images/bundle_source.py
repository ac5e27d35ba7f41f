"""A bundle that was verified, as a source that hosts are shipped to from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.errors import CrossgapError
from blocks.hosts import load_host
from tasks.common.failures import Collected, collect
from tasks.common.retry import retrying
from tasks.images.blobs import Layer
from tasks.images.bundling import BundledImage, CarriedImages, lacking_base
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.host_facts import read_images
from tasks.images.plan import HostPlan, Shipment, plan_shipment
from tasks.images.results import Shipped, ShipResult
from tasks.images.shipping import Terms, ship_to
from tasks.images.sources import FixedSource, known_forms
from tasks.images.steps import look_at_host
from tasks.images.store import Store, StoredImage
from tasks.images.supply import Supply

if TYPE_CHECKING:
    from blocks.host import Host


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


@dataclass(frozen=True)
class Unpacking:
    """What of a bundle's images goes to which host.

    Args:
        hosts: The hosts, by their label.
        facts: What is known of each.
        shipment: The plan.
    """

    hosts: Mapping[str, Host]
    facts: Mapping[str, HostFacts]
    shipment: Shipment

    def rows(self) -> list[dict[str, Any]]:
        """Say host by host what would be done, for tables."""
        return [{**row, "what": row["image"]} for row in self.shipment.as_rows()]


def plan_unpacking(
    place: BundleSource, hosts: Sequence[Host], base: str
) -> tuple[Unpacking, tuple[CrossgapError, ...]]:
    """Find out what of a bundle's images goes where, before the first byte.

    Args:
        place: The bundle's images; for none of them no engine is asked.
        hosts: The hosts.
        base: What the bundle builds on, in words.

    Returns:
        The plan, and why some hosts are not in it.
    """
    machines = {host.label: host for host in hosts if place.wanted_on("")}
    looked = collect(
        lambda host: look_at_host(host.name, place.wanted_on),
        machines.values(),
        name=lambda host: host.label,
    )
    facts = {found.host: found for found in looked.results}
    shipment = plan_shipment(looked.results, place.forms())
    return Unpacking(machines, facts, place.with_bases(shipment, base)), looked.failures


def unpack_images(place: BundleSource, planned: Unpacking) -> Collected[Shipped]:
    """Bring a bundle's images to hosts.

    Args:
        place: The bundle's images.
        planned: Where they go.
    """
    with place.supply(planned.shipment) as supply:
        return collect(
            lambda plan: ship_to(
                planned.hosts[plan.host], plan, planned.facts[plan.host], supply, Terms()
            ),
            planned.shipment.hosts,
            name=lambda plan: plan.host,
        )


def row_of(result: ShipResult) -> dict[str, Any]:
    """Return the row of an image in a table of all that was unpacked."""
    return {**vars(result), "what": result.image, "sent": result.layers_sent}


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
