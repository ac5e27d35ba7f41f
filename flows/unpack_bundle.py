"""Images from a disk that was carried by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect import flow

from blocks.cancellation import ends_remote_work
from tasks.bundles.inventory import inventory_of
from tasks.bundles.manifest import Manifest
from tasks.bundles.reading import OpenBundle
from tasks.bundles.report import not_unpacked, unpack_run_name
from tasks.bundles.steps import UNPACK, check_bundle, hosts_named, keep_inventory, known_inventory
from tasks.common.failures import collect
from tasks.common.locks import hosts_locked
from tasks.images.bundle_source import BundleSource, images_left
from tasks.images.bundling import KIND, BundledImage, describe_files, open_images, parse_items
from tasks.images.plan import Shipment, plan_shipment
from tasks.images.results import Shipped, ShipResult
from tasks.images.ship_report import note_plan, note_results, ship_report
from tasks.images.shipping import Terms, ship_to
from tasks.images.steps import look_at_host
from tasks.images.store import Store


@flow(name=UNPACK, flow_run_name=unpack_run_name)
def unpack_bundle(
    path: str,
    hosts: list[str] = [],  # noqa: B006 - Prefect shows the default in the form
    verify_with: str = "",
    dry_run: bool = False,
) -> list[ShipResult] | Shipment:
    """Bring what is on a carried disk to servers, or into this machine's engine.

    All of the bundle is verified before any engine is touched; then each host gets the
    layers that it lacks. What each has afterwards is noted in an inventory, for the since of
    the next bundle.

    Args:
        path: The bundle's folder.
        hosts: Names of host blocks, or SITE:GROUP; none for this machine's engine.
        verify_with: The public SSH key (or the path of one, or of an allowed_signers file)
            that has to have signed it; empty to take unsigned bundles too.
        dry_run: Only verify the bundle and show what would be done.

    Returns:
        One result per image and host; of a dry run the plan.

    Raises:
        SeveralFailures: Everything that failed; what succeeded stays done.
    """
    with ship_report(UNPACK, ["a bundle"], hosts or ["this machine"], planned=dry_run) as report:
        named = hosts_named(hosts)
        bundle = check_bundle(path, verify_with, _about)
        report.done.append(bundle.sentence)
        report.left += not_unpacked(bundle.manifest, KIND)
        images = parse_items(bundle.manifest.contents.get(KIND, ()), path)
        carried = open_images(images, bundle.content, path)
        with (
            BundleSource(carried, Store.default()) as place,
            hosts_locked([] if dry_run else named) as locked,
            ends_remote_work(),
        ):
            report.fail(locked.failures)
            machines = {host.label: host for host in (named if dry_run else locked.hosts)}
            looked = collect(
                lambda host: look_at_host(host.name, place.wanted_on),
                machines.values(),
                name=lambda host: host.label,
            )
            facts = {found.host: found for found in report.taken(looked)}
            shipment = plan_shipment(list(facts.values()), place.forms())
            shipment = place.with_bases(shipment, bundle.base)
            if dry_run:
                note_plan(report, shipment)
                return shipment
            with place.supply(shipment) as supply:
                shipped = collect(
                    lambda plan: ship_to(
                        machines[plan.host], plan, facts[plan.host], supply, Terms()
                    ),
                    shipment.hosts,
                    name=lambda plan: plan.host,
                )
            outcomes = report.taken(shipped)
            note_results(report, outcomes)
            report.done += [_note_inventory(bundle, images, one) for one in outcomes if one.results]
    return report.results


def _about(manifest: Manifest) -> Mapping[str, str]:
    return describe_files(parse_items(manifest.contents.get(KIND, ()), "bundle.json"))


def _note_inventory(bundle: OpenBundle, images: Sequence[BundledImage], shipped: Shipped) -> str:
    """Note what a host has now: the images of the bundle, and what it had of earlier ones."""
    host = shipped.results[0].host
    arrived = {row.image for row in shipped.results}
    own = [image for image in images if image.name in arrived]
    earlier = parse_items(known_inventory(host).get(KIND, ()), f"the inventory of {host}")
    left = images_left(host, [image for image in earlier if image.name not in arrived])
    contents = {KIND: tuple(image.item() for image in (*own, *left))}
    place = keep_inventory(inventory_of(host, bundle.manifest.id, contents), bundle.folder)
    return f"What {host} has now is noted in {place}: name it in since for the next bundle."
