"""The steps of shipping images, as the tasks that an operator sees in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run

from blocks.errors import Unreachable
from blocks.host import Host
from blocks.hosts import load_host
from blocks.logs import logger
from blocks.outage import waited_out
from tasks.common.progress import HostProgress
from tasks.common.retry import retrying
from tasks.images import act, archive, host_facts, pull, source, staging
from tasks.images.archive import ArchiveFacts
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.plan import Tag
from tasks.images.pull import PullPolicy

T = TypeVar("T")

# The slowest engines that we have met unpack 5 MB/s.
_LOAD_RATE = 5e6
_LOAD_LEAST = 900.0


def _counting(parameter: str, sentence: str) -> Callable[[], str]:
    """Name a task run by how many things it is given, or by the one that it is given."""

    def name() -> str:
        given = task_run.parameters[parameter]
        one = getattr(given[0], "name", given[0]) if len(given) == 1 else ""
        return sentence.format(one or f"{len(given)} images")

    return name


@task(
    task_run_name=_counting("names", "read {} from the source engine"),
    cache_policy=NO_CACHE,
    **retrying(),
)
def read_source(
    names: Sequence[str], pull_policy: PullPolicy, mirrors: Sequence[str]
) -> tuple[ImageFacts, ...]:
    """Read the wanted images from the source engine, pulling what has to be pulled.

    Args:
        names: Image names.
        pull_policy: When to pull.
        mirrors: Hosts that mirror Docker Hub.

    Returns:
        The images, in the order of the names.

    Raises:
        CrossgapError: As for `tasks.images.pull.ensure_images`.
    """
    with HostProgress("ship-images", "source", kind="pull") as progress:
        images = pull.ensure_images(names, pull=pull_policy, mirrors=mirrors, progress=progress)
        progress.done()
    return images


@task(task_run_name="check {path}", cache_policy=NO_CACHE)
def check_archives(path: str) -> tuple[ArchiveFacts, ...]:
    """Read image archives from end to end, proving every layer.

    Args:
        path: A `docker save` file, or a folder of them.

    Returns:
        What they hold.

    Raises:
        CrossgapError: As for `tasks.images.archive.read_archives`.
    """
    with HostProgress("ship-images", "archive", kind="check") as progress:
        archives = archive.read_archives(Path(path), progress)
        progress.done()
    return archives


@task(task_run_name="look at {host}", cache_policy=NO_CACHE, **retrying())
def look_at_host(host: str, wanted: Sequence[ImageFacts]) -> HostFacts:
    """Read a host's engine, disks, and which of the images it has.

    Args:
        host: Name of the host's block.
        wanted: The images in question.

    Returns:
        The facts.

    Raises:
        CrossgapError: As for `tasks.images.host_facts.read_host`.
    """
    return host_facts.read_host(load_host(host), wanted)


@task(task_run_name=_counting("images", "save {}"), cache_policy=NO_CACHE, **retrying())
def save_images(images: Sequence[ImageFacts]) -> ArchiveFacts:
    """Have the source engine save images in one archive.

    Args:
        images: What to save.

    Returns:
        The archive, in this machine's spool.

    Raises:
        CrossgapError: As for `tasks.images.source.save_images`.
    """
    with HostProgress("ship-images", "spool", kind="save") as progress:
        saved = source.save_images(images, source.spool_dir(), progress)
        progress.done()
    return saved


def _patiently(name: str, work: Callable[[Host], T]) -> T:
    """Work on a host that has answered before, waiting out the times when it is away.

    After hours of sending, a line that drops for a minute must not fail the run.
    """
    host = load_host(name)
    return waited_out(host, lambda _: work(host), (Unreachable,))


@task(task_run_name="load {title} on {host}", cache_policy=NO_CACHE, **retrying())
def load_archive(
    host: str,
    staged: str,
    sha256: str,
    size: int,
    title: str,  # noqa: ARG001 - names the task run
) -> None:
    """Load an archive that lies on a host into its engine.

    Args:
        host: Name of the host's block.
        staged: The archive's path there.
        sha256: Its hash, which names the job that loads it.
        size: Its bytes, which set the deadline.
        title: What it is, for the name of the task run.

    Raises:
        CrossgapError: As for `tasks.images.act.load`.
    """
    log = logger()
    _patiently(
        host,
        lambda there: act.load(
            there,
            staged,
            staging.load_job_name(sha256),
            timeout=_LOAD_LEAST + size / _LOAD_RATE,
            on_output=lambda text: log.info("%s: %s", host, text.strip()),
        ),
    )


@task(task_run_name="tag {tag.image.name} on {host}", cache_policy=NO_CACHE, **retrying())
def tag_image(host: str, tag: Tag) -> None:
    """Give an image that a host has under another name the wanted one.

    Args:
        host: Name of the host's block.
        tag: What to tag and how.

    Raises:
        CrossgapError: As for `tasks.images.act.tag`.
    """
    _patiently(host, lambda there: act.tag(there, tag.existing, tag.image.name))


@task(task_run_name="verify images on {host}", cache_policy=NO_CACHE, **retrying(retries=2))
def verify_images(host: str, wanted: Sequence[ImageFacts]) -> None:
    """Prove that a host has the wanted images, by configuration and layers.

    Args:
        host: Name of the host's block.
        wanted: The images.

    Raises:
        CrossgapError: As for `tasks.images.act.verify_content`.
    """
    _patiently(host, lambda there: act.verify_content(there, wanted))


@task(task_run_name="start {image.name} on {host}", cache_policy=NO_CACHE, **retrying(retries=2))
def start_image(host: str, image: ImageFacts) -> str:
    """Prove that a host can start a container of an image.

    Args:
        host: Name of the host's block.
        image: The image.

    Returns:
        How it was proven, in words.

    Raises:
        CrossgapError: As for `tasks.images.act.verify_start`.
    """
    run_id = str(flow_run.id or "by hand")
    return _patiently(host, lambda there: act.verify_start(there, image, run_id))


@task(task_run_name="clean up on {host}", cache_policy=NO_CACHE, **retrying(retries=2))
def clean_up(host: str, keep: Sequence[str] = ()) -> None:
    """Remove what this run and killed ones left on a host.

    Args:
        host: Name of the host's block.
        keep: Hashes of the archives that are still to be sent or loaded.

    Raises:
        CrossgapError: As for `Host.run`.
    """
    _patiently(host, lambda there: staging.clear(there, keep))
