"""The steps of packing and unpacking, as the tasks that an operator sees in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.errors import CrossgapError
from blocks.host import Host
from blocks.hosts import host_names, load_host
from blocks.local_host import LocalHost
from blocks.logs import logger
from blocks.site import expand_hosts
from tasks.bundles import reading, writing
from tasks.bundles.inventory import (
    Inventory,
    inventory_folder,
    inventory_name,
    read_inventory,
    write_inventory,
)
from tasks.bundles.manifest import Items, Manifest
from tasks.bundles.reading import OpenBundle
from tasks.bundles.writing import Recipe
from tasks.common.progress import HostProgress

PACK = "pack-bundle"
UNPACK = "unpack-bundle"
THIS_MACHINE = "this-machine"


@task(task_run_name="write {target.name}", cache_policy=NO_CACHE)
def write_bundle(target: Path, recipe: Recipe) -> OpenBundle:
    """Write a bundle, and read it back from the disk.

    Args:
        target: Its folder.
        recipe: What it is to be.

    Returns:
        What was written.

    Raises:
        CrossgapError: As for `tasks.bundles.writing.write_bundle`.
    """
    with (
        HostProgress(PACK, target.name, kind="write") as written,
        HostProgress(PACK, target.name, kind="check") as checked,
    ):
        bundle = writing.write_bundle(target, recipe, written, checked)
        written.done()
        checked.done()
    return bundle


def hosts_named(names: list[str]) -> list[Host]:
    """Return the hosts to unpack to.

    Args:
        names: Host blocks, or SITE:GROUP; none for the machine that the worker runs on,
            which gets a block of its own, as steps load hosts by name.

    Raises:
        CrossgapError: As for `blocks.site.expand_hosts` and `blocks.hosts.load_host`.
    """
    if not names:
        if THIS_MACHINE not in host_names():
            LocalHost().save(THIS_MACHINE)
        names = [THIS_MACHINE]
    return [load_host(name) for name in expand_hosts(names, host_names)]


@task(task_run_name="check {path}", cache_policy=NO_CACHE)
def check_bundle(
    path: str, keys: str, about: Callable[[Manifest], Mapping[str, str]]
) -> OpenBundle:
    """Verify all of a bundle.

    Args:
        path: Its folder.
        keys: Keys of which one has to have signed it, or nothing.
        about: Tells what files are, for errors.

    Returns:
        The bundle.

    Raises:
        CrossgapError: As for `tasks.bundles.reading.open_bundle`.
    """
    with HostProgress(UNPACK, "bundle", kind="check") as progress:
        opened = reading.open_bundle(path, keys, about, progress)
        progress.done()
    return opened


def known_inventory(site: str) -> Mapping[str, Items]:
    """Return what an earlier unpack noted of a site, by kind; nothing where none did."""
    found = read_inventory(inventory_folder() / inventory_name(site))
    return found.contents if found else {}


@task(task_run_name="note what {inventory.site} has", cache_policy=NO_CACHE)
def keep_inventory(inventory: Inventory, beside: Path) -> str:
    """Write what a site has, here and where a person can carry it back.

    Args:
        inventory: What it has.
        beside: The bundle's folder; a disk that can only be read is no error.

    Returns:
        Where it lies, for the report.

    Raises:
        CrossgapError: This machine's own folder cannot be written to.
    """
    here = write_inventory(inventory, inventory_folder())
    try:
        return str(write_inventory(inventory, beside))
    except CrossgapError as error:
        logger().info("The inventory is kept on this machine only: %s", error)
        return str(here)
