"""Images and models from a disk that was carried by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect import flow

from blocks.cancellation import ends_remote_work
from blocks.host import Host
from tasks.bundles.inventory import inventory_of
from tasks.bundles.manifest import Manifest
from tasks.bundles.reading import OpenBundle
from tasks.bundles.report import not_unpacked, note_unpack_plan, unpack_report, unpack_run_name
from tasks.bundles.results import UnpackPlan
from tasks.bundles.steps import UNPACK, check_bundle, hosts_named, keep_inventory, known_inventory
from tasks.common.failures import collect
from tasks.common.locks import hosts_locked
from tasks.images import bundling as image_bundling
from tasks.images.bundle_source import (
    BundleSource,
    images_left,
    plan_unpacking,
    row_of,
    unpack_images,
)
from tasks.images.bundling import BundledImage
from tasks.images.results import ShipResult
from tasks.images.ship_report import note_results
from tasks.images.store import Store
from tasks.models import bundling as model_bundling
from tasks.models.bundling import BundledModel
from tasks.models.unpacking import UnpackedModel, models_there, plan_deliveries, unpack_models

IMAGES, MODELS = image_bundling.KIND, model_bundling.KIND


@flow(name=UNPACK, flow_run_name=unpack_run_name)
def unpack_bundle(
    path: str,
    hosts: list[str] = [],  # noqa: B006 - Prefect shows the default in the form
    verify_with: str = "",
    dry_run: bool = False,
) -> list[ShipResult | UnpackedModel] | UnpackPlan:
    """Bring what is on a carried disk to servers, or to this machine.

    All of the bundle is verified before anything is touched; then each host gets the layers
    and files that it lacks: images into its engine, models into its folder of models. What
    each has afterwards is noted in an inventory, for the since of the next bundle.

    Args:
        path: The bundle's folder.
        hosts: Names of host blocks, or SITE:GROUP; none for this machine's engine and ~/models.
        verify_with: The public SSH key (or the path of one, or of an allowed_signers file)
            that has to have signed it; empty to take unsigned bundles too.
        dry_run: Only verify the bundle and show what would be done.

    Returns:
        One result per image or model and host; of a dry run the plan.

    Raises:
        SeveralFailures: Everything that failed; what succeeded stays done.
    """
    with unpack_report(path, hosts, planned=dry_run) as report:
        named = hosts_named(hosts)
        bundle = check_bundle(path, verify_with, _about)
        report.done.append(bundle.sentence)
        report.left += not_unpacked(bundle.manifest, (IMAGES, MODELS))
        images = image_bundling.open_images(_images(bundle.manifest), bundle.content, path)
        models = model_bundling.open_models(_models(bundle.manifest), bundle.content, bundle.folder)
        with (
            BundleSource(images, Store.default()) as place,
            hosts_locked([] if dry_run else named) as locked,
            ends_remote_work(),
        ):
            machines = named if dry_run else locked.hosts
            shipment, unseen = plan_unpacking(place, machines, bundle.base)
            deliveries, refused = plan_deliveries(models, machines, bundle.base, alone=not dry_run)
            report.fail([*locked.failures, *unseen])
            if dry_run:
                report.fail([*shipment.shipment.problems, *refused])
                rows = shipment.rows() + [row for one in deliveries for row in one.rows()]
                return note_unpack_plan(report, bundle.manifest, rows)
            note_results(report, report.taken(unpack_images(place, shipment)))
            delivered, failures = unpack_models(deliveries, machines)
            report.fail([*refused, *failures])
            report.done += [one.sentence for one in delivered]
            report.rows = [
                *(row_of(one) for one in report.results),
                *(one.row for one in delivered),
            ]
            report.results += delivered
            served = {one.host for one in report.results}
            noted = collect(
                lambda host: _note_inventory(bundle, host, report.results),
                [host for host in machines if host.name in served],
                name=lambda host: host.label,
            )
            report.done += report.taken(noted)
    return report.results


def _images(manifest: Manifest) -> tuple[BundledImage, ...]:
    return image_bundling.parse_items(manifest.contents.get(IMAGES, ()), "bundle.json")


def _models(manifest: Manifest) -> tuple[BundledModel, ...]:
    return model_bundling.parse_items(manifest.contents.get(MODELS, ()), "bundle.json")


def _about(manifest: Manifest) -> Mapping[str, str]:
    images = image_bundling.describe_files(_images(manifest))
    return images | model_bundling.describe_files(_models(manifest))


def _note_inventory(
    bundle: OpenBundle, host: Host, results: Sequence[ShipResult | UnpackedModel]
) -> str:
    """Note what a host has now: what the bundle brought, and what it had of earlier ones."""
    earlier, where = known_inventory(host.name), f"the inventory of {host.name}"
    arrived = {
        one.image for one in results if isinstance(one, ShipResult) and one.host == host.name
    }
    known = image_bundling.parse_items(earlier.get(IMAGES, ()), where)
    images = [image for image in _images(bundle.manifest) if image.name in arrived]
    images += images_left(host.name, [image for image in known if image.name not in arrived])
    models = [
        *_models(bundle.manifest),
        *model_bundling.parse_items(earlier.get(MODELS, ()), where),
    ]
    there = models_there(host, {model.revision.model for model in models})
    contents = {
        IMAGES: tuple(image.item() for image in images),
        MODELS: tuple(model.item() for model in there),
    }
    place = keep_inventory(inventory_of(host.name, bundle.manifest.id, contents), bundle.folder)
    return f"What {host.name} has now is noted in {place}: name it in since for the next bundle."
