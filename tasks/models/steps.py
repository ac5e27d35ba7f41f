"""The steps of fetching a model, as the tasks that an operator sees in a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.hosts import load_host
from blocks.local_host import LocalHost
from tasks.common.failures import Collected
from tasks.common.progress import HostProgress
from tasks.common.retry import retrying
from tasks.models import delivery, folders, host_folders, local, remote_facts, sources
from tasks.models.arrivals import Arrivals
from tasks.models.delivery import Delivered
from tasks.models.files import ModelFile, Revision
from tasks.models.local import Brought
from tasks.models.records import Record
from tasks.models.remote_facts import HostModel
from tasks.models.remote_plan import Removal, plan_delivery
from tasks.models.sources import Source
from tasks.models.tally import Tally

FLOW = "fetch-model"


@task(task_run_name="hash {folder}", cache_policy=NO_CACHE, **retrying(retries=2))
def hash_folder(folder: str, files: Sequence[ModelFile], *, manifest: bool = True) -> Record:
    """Hash a folder's files and write their manifest into it.

    Args:
        folder: The folder, absolute.
        files: Its files.
        manifest: Whether to write it.

    Raises:
        CrossgapError: As for `tasks.models.folders.hash_folder`.
    """
    with HostProgress(FLOW, "folder", kind="hash") as progress:
        tally = Tally(sum(file.size for file in files), len(files), progress)
        record = folders.hash_folder(Path(folder), files, tally, manifest=manifest)
        progress.done()
    return record


@task(task_run_name="hash {folder} on {host}", cache_policy=NO_CACHE, **retrying(retries=2))
def hash_host_folder(
    host: str, folder: str, files: Sequence[ModelFile], *, manifest: bool = True
) -> Record:
    """Hash a folder's files on a host, and write their manifest into it.

    Args:
        host: Name of the host's block.
        folder: The folder there.
        files: Its files.
        manifest: Whether to write it.

    Raises:
        CrossgapError: As for `tasks.models.host_folders.hash_host_folder`.
    """
    with HostProgress(FLOW, host, kind="hash") as progress:
        tally = Tally(sum(file.size for file in files), len(files), progress)
        there = load_host(host)
        record = host_folders.hash_host_folder(there, folder, files, tally, manifest=manifest)
        progress.done()
    return record


@task(task_run_name="look at {model} here", cache_policy=NO_CACHE, **retrying())
def look_here(root: str, model: str) -> HostModel:
    """Read what this machine has of a model.

    Args:
        root: The folder of models, absolute.
        model: The model's name.

    Raises:
        CrossgapError: As for `read_host_model`.
    """
    return local.read_here(Path(root), model)


@task(task_run_name="look at {model} on {host}", cache_policy=NO_CACHE, **retrying())
def look_at_host(host: str, root: str, model: str) -> HostModel:
    """Read what a host has of a model.

    Args:
        host: Name of the host's block.
        root: Its folder of models.
        model: The model's name.

    Raises:
        CrossgapError: As for `read_host_model`.
    """
    return remote_facts.read_host_model(load_host(host), root, model)


@task(task_run_name="see who shares a folder", cache_policy=NO_CACHE, **retrying(retries=2))
def see_shared_folders(roots: Mapping[str, str], here: str = "") -> Collected[frozenset[str]]:
    """Find out which hosts see one and the same folder.

    Args:
        roots: The folder of models by the name of the host's block.
        here: This machine's own folder, if it is one of them.

    Raises:
        CrossgapError: As for `load_host`.
    """
    hosts = [load_host(name) for name in roots]
    return remote_facts.shared_folders(hosts, roots, Path(here) if here else None)


@task(task_run_name="see who gives the bytes", cache_policy=NO_CACHE, **retrying(retries=2))
def check_way(source: Source, files: Sequence[ModelFile]) -> str:
    """Ask for one byte of the largest file, before anything is fetched.

    Args:
        source: Where the model comes from.
        files: The files that are to be fetched.

    Returns:
        A sentence about who gives them.

    Raises:
        CrossgapError: As for `tasks.models.sources.check_way`.
    """
    return sources.check_way(source, files)


@task(task_run_name="fetch {source.revision.model}", cache_policy=NO_CACHE, **retrying())
def fetch_files(source: Source, root: str, tally: Tally, arrivals: Arrivals) -> Brought:
    """Bring a model's files here, each proven before it counts.

    Args:
        source: Where the model comes from.
        root: The folder of models here, absolute.
        tally: Counts what is fetched.
        arrivals: Is given each file when it is proven.

    Returns:
        The files, and what had to be fetched of them.

    Raises:
        CrossgapError: As for `tasks.models.local.bring_here`.
    """
    there = local.read_here(Path(root), source.revision.model)
    plan = local.plan_here(source.revision, there)
    with HostProgress(FLOW, source.revision.model, kind="fetch") as progress:
        progress.counting = lambda: f"{tally.files_done} of {tally.files} files"
        tally.progress = progress
        brought = local.bring_here(plan, source.places, source.terms, tally, arrivals)
        progress.done()
    return brought


@task(
    task_run_name="bring {brought.plan.revision.model} into view here",
    cache_policy=NO_CACHE,
    **retrying(retries=2),
)
def bring_into_view(brought: Brought) -> None:
    """Give the folder its name, now that all of it is here.

    Args:
        brought: The revision.

    Raises:
        CrossgapError: As for `tasks.models.local.bring_into_view`.
    """
    local.bring_into_view(brought)


@task(task_run_name="deliver {revision.model} to {host}", cache_policy=NO_CACHE, **retrying())
def deliver_model(host: str, root: str, revision: Revision, arrivals: Arrivals) -> Delivered:
    """Bring a model to a host, file by file as they become available here.

    Args:
        host: Name of the host's block.
        root: Its folder of models.
        revision: The model.
        arrivals: The files.

    Raises:
        CrossgapError: As for `tasks.models.delivery.deliver`.
    """
    there = load_host(host)
    plan = plan_delivery(revision, remote_facts.read_host_model(there, root, revision.model))
    with HostProgress(FLOW, host) as progress:
        done = delivery.deliver(there, plan, arrivals, progress=progress)
        progress.done()
    return done


@task(task_run_name="remove old revisions on {host}", cache_policy=NO_CACHE, **retrying(retries=2))
def remove_revisions(host: str, root: str, model: str, keep: Collection[str]) -> Removal:
    """Remove a model's revisions that nobody needs.

    Args:
        host: Name of the host's block; empty for this machine.
        root: The folder of models there.
        model: The model's name.
        keep: Commits that stay.

    Raises:
        CrossgapError: As for `tasks.models.delivery.remove_revisions`.
    """
    there = load_host(host) if host else LocalHost()
    facts = remote_facts.read_host_model(there, root, model)
    return delivery.remove_revisions(there, facts, keep)
