"""Images onto a disk that is carried by hand to where no line goes."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.bundles.contents import Section
from tasks.bundles.inventory import read_known
from tasks.bundles.parts import parse_part_size, part_paths
from tasks.bundles.report import (
    note_bundle,
    note_plan,
    pack_report,
    pack_run_name,
    refuse_models,
)
from tasks.bundles.results import Bundle, BundlePlan
from tasks.bundles.steps import PACK, write_bundle
from tasks.bundles.writing import Recipe, Source
from tasks.images.bundling import KIND, parse_items, plan_packing, rows_of
from tasks.images.packing import packed_images, shipment_of
from tasks.images.wanted import Wanted, find_source


@flow(name=PACK, flow_run_name=pack_run_name)
def pack_bundle(
    path: str,
    images: list[str] = [],  # noqa: B006 - Prefect shows the default in the form
    models: list[str] = [],  # noqa: B006
    since: str = "",
    max_part_size: str = "3.9GB",
    sign_with: str = "",
    dry_run: bool = False,
) -> Bundle | BundlePlan:
    """Pack Docker images into a folder on a disk, to be loaded where no line goes.

    The folder holds everything in parts that fit on any disk, a table of contents, and
    load.sh, by which it is verified and loaded without crossgap. A pack that was cut off
    goes on where it stopped.

    Args:
        path: The folder to make, such as /media/disk/bundle-2024-05.
        images: Names such as ragflow:v0.27.0, or compose:PATH for all images of a compose file.
        models: Not yet; leave it empty.
        since: An earlier bundle, or the inventory that an unpack wrote: what the far side has
            by that is left out.
        max_part_size: Size of the largest file; FAT32 takes up to 4 GiB.
        sign_with: Path of a private SSH key to sign with (or of one that the agent holds).
        dry_run: Only show what would be packed.

    Returns:
        The bundle; of a dry run the plan.

    Raises:
        SeveralFailures: What failed; what was written already is kept for the next run.
    """
    with pack_report(path, images, planned=dry_run) as report:
        refuse_models(models)
        target = Path(path).expanduser().absolute()
        largest = parse_part_size(max_part_size)
        known = read_known(since)
        base = known.base.label if known.base else ""
        with find_source(Wanted(images)) as place:
            there = parse_items(known.contents.get(KIND, ()), since)
            plan = plan_packing(place.wanted_on(""), there)
            if dry_run:
                planned = BundlePlan.of(target, largest, base, rows_of(plan))
                note_plan(report, planned)
                return planned
            with (
                place.supply(shipment_of(plan, str(target))) as supply,
                packed_images(plan, supply, base, part_paths(largest)) as packed,
            ):
                recipe = Recipe(
                    sources=tuple(Source(**vars(file)) for file in packed.files),
                    contents={KIND: packed.items},
                    sections=(Section("Images", packed.lines),),
                    base=known.base,
                    largest_part=largest,
                    sign_with=sign_with,
                )
                bundle = Bundle.of(write_bundle(target, recipe), packed.rows)
        note_bundle(report, bundle)
    return bundle
