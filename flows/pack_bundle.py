"""Images and models onto a disk that is carried by hand to where no line goes."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.bundles.inventory import read_known
from tasks.bundles.parts import parse_part_size, part_paths
from tasks.bundles.report import note_bundle, note_plan, pack_report, pack_run_name
from tasks.bundles.results import Bundle, BundlePlan
from tasks.bundles.steps import PACK, write_bundle
from tasks.bundles.writing import Packed, Recipe
from tasks.images import bundling as image_bundling
from tasks.images.packing import find_images, packed_images, shipment_of
from tasks.models import bundling as model_bundling
from tasks.models.packing import find_models, pack_models

IMAGES, MODELS = image_bundling.KIND, model_bundling.KIND


@flow(name=PACK, flow_run_name=pack_run_name)
def pack_bundle(
    path: str,
    images: list[str] = [],  # noqa: B006 - Prefect shows the default in the form
    models: list[str] = [],  # noqa: B006
    since: str = "",
    max_part_size: str = "3.9GB",
    sign_with: str = "",
    dry_run: bool = False,
    models_dir: str = "~/models",
) -> Bundle | BundlePlan:
    """Pack Docker images and models into a folder on a disk, for where no line goes.

    The folder holds everything in parts that fit on any disk, a table of contents, and
    load.sh, by which it is verified and loaded without crossgap. A pack that was cut off
    goes on where it stopped.

    Args:
        path: The folder to make, such as /media/disk/bundle-2024-05.
        images: Names such as ragflow:v0.27.0, or compose:PATH for all images of a compose file.
        models: Names such as Qwen/Qwen3-8B, of which fetch-model has brought the files here,
            or Qwen/Qwen3-8B@COMMIT; or folders such as /data/models/qwen3.
        since: An earlier bundle, or the inventory that an unpack wrote: what the far side has
            by that is left out.
        max_part_size: Size of the largest file; FAT32 takes up to 4 GiB.
        sign_with: Path of a private SSH key to sign with (or of one that the agent holds).
        dry_run: Only show what would be packed.
        models_dir: Folder of models on the worker's machine, for models given by name.

    Returns:
        The bundle; of a dry run the plan.

    Raises:
        SeveralFailures: What failed; what was written already is kept for the next run.
    """
    with pack_report(path, images, models, planned=dry_run) as report:
        target = Path(path).expanduser().absolute()
        largest = parse_part_size(max_part_size)
        known = read_known(since)
        base = known.base.label if known.base else ""
        known_images = image_bundling.parse_items(known.contents.get(IMAGES, ()), since)
        known_models = model_bundling.parse_items(known.contents.get(MODELS, ()), since)
        with find_images(images, required=not models) as place:
            image_plan = image_bundling.plan_packing(place.wanted_on(""), known_images)
            found = find_models(models, models_dir)
            model_plan = model_bundling.plan_packing(found, known_models)
            if dry_run:
                rows = image_bundling.rows_of(image_plan) + model_bundling.rows_of(model_plan)
                planned = BundlePlan.of(target, largest, base, rows)
                note_plan(report, planned)
                return planned
            packed_models = pack_models(model_plan)
            with (
                place.supply(shipment_of(image_plan, str(target))) as supply,
                packed_images(image_plan, supply, base, part_paths(largest)) as packed,
            ):
                kinds: dict[str, Packed] = {IMAGES: packed, MODELS: packed_models}
                recipe = Recipe.of(kinds, known.base, largest, sign_with)
                written = write_bundle(target, recipe)
        bundle = Bundle.of(written, (*packed.rows, *packed_models.rows))
        note_bundle(report, bundle)
    return bundle
