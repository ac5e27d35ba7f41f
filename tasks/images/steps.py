"""The steps of shipping images, as the tasks that an operator sees in a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run

from blocks.content import Content
from blocks.errors import Damaged, Unreachable
from blocks.host import Host
from blocks.hosts import load_host
from blocks.logs import logger
from blocks.outage import waited_out
from tasks.common.progress import HostProgress
from tasks.common.retry import retrying
from tasks.images import act, archive, engine_files, host_facts, prune, pull, split, staging
from tasks.images.archive import ArchiveFacts
from tasks.images.assembly import assemble
from tasks.images.engine_files import EngineFiles
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.layout import compose
from tasks.images.names import Reference
from tasks.images.plan import Send, Tag
from tasks.images.prune import Removal, Superseded
from tasks.images.pull import PullPolicy
from tasks.images.registry.auth import Credentials
from tasks.images.registry.documents import ResolvedImage
from tasks.images.registry.registries import Registry
from tasks.images.sending import Sending
from tasks.images.supply import Supply

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
    names: Sequence[str],
    pull_policy: PullPolicy,
    mirrors: Sequence[str],
    credentials: Credentials | None = None,
) -> tuple[ImageFacts, ...]:
    """Read the wanted images from the source engine, pulling what has to be pulled.

    Args:
        names: Image names.
        pull_policy: When to pull.
        mirrors: Hosts that mirror Docker Hub.
        credentials: For the images' own registry.

    Returns:
        The images, in the order of the names.

    Raises:
        CrossgapError: As for `tasks.images.pull.ensure_images`.
    """
    with HostProgress("ship-images", "source", kind="pull") as progress:
        images = pull.ensure_images(
            names, pull=pull_policy, mirrors=mirrors, auth=credentials, progress=progress
        )
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
def look_at_host(host: str, wanted_on: Callable[[str], Sequence[ImageFacts]]) -> HostFacts:
    """Read a host's engine, disks, layers, and which of the images it has.

    Args:
        host: Name of the host's block.
        wanted_on: Gives the images in question for an architecture.

    Returns:
        The facts.

    Raises:
        CrossgapError: As for `tasks.images.host_facts.read_host`.
    """
    return host_facts.read_host(load_host(host), wanted_on)


@task(
    task_run_name=_counting("references", "look up {} for linux/{{architecture}}"),
    cache_policy=NO_CACHE,
    **retrying(),
)
def resolve_images(
    registry: Registry, references: Sequence[Reference], architecture: str
) -> tuple[ResolvedImage, ...]:
    """Find out in registries what images consist of on one architecture.

    Args:
        registry: The registries of the run.
        references: The images.
        architecture: As Docker calls it.

    Returns:
        The images, pinned by digest.

    Raises:
        CrossgapError: As for `Registry.resolve`.
    """
    return tuple(registry.resolve(reference, architecture) for reference in references)


@task(task_run_name=_counting("images", "fetch {}"), cache_policy=NO_CACHE, **retrying())
def fetch_images(
    images: Sequence[ResolvedImage], lacking: Collection[str], registry: Registry, supply: Supply
) -> None:
    """Get layers of images from registries into the store.

    Args:
        images: The images.
        lacking: Diff ids of the layers that are needed.
        registry: The registries of the run.
        supply: Is given each layer and configuration as it comes.

    Raises:
        CrossgapError: As for `Registry.fetch_layers`.
    """
    title = images[0].name if len(images) == 1 else f"{len(images)}-images"
    for image in images:
        supply.give_image(
            supply.store.record_image(image.config_digest, image.config, image.diff_ids)
        )
    with HostProgress("ship-images", title, kind="fetch") as progress:
        registry.fetch_layers(
            images, supply.store, wanted=lacking, on_layer=supply.give_layer, progress=progress
        )
        progress.done()


@task(task_run_name=_counting("images", "save {}"), cache_policy=NO_CACHE, **retrying())
def save_images(
    images: Sequence[ImageFacts],
    lacking: Collection[str],
    supply: Supply,
) -> None:
    """Get layers of images from the source engine, and keep them in the store.

    They are read where the engine keeps them if that can be, and saved by it otherwise.

    Args:
        images: What to save; layers that they share are saved once.
        lacking: Diff ids of the layers that are needed.
        supply: Is given each layer and configuration as it comes.

    Raises:
        CrossgapError: As for `tasks.images.split.save_into`.
    """
    title = images[0].name if len(images) == 1 else f"{len(images)}-images"
    with HostProgress("ship-images", title, kind="save") as progress:
        how: dict[str, Any] = {
            "wanted": lacking,
            "on_layer": supply.give_layer,
            "on_image": supply.give_image,
            "progress": progress,
        }
        files = EngineFiles.of_source_engine()
        if files is None or not engine_files.take(files, supply.store, images, **how):
            split.save_into(supply.store, images, **how)
        progress.done()


@task(task_run_name="unpack {archive.path.name}", cache_policy=NO_CACHE, **retrying())
def unpack_archive(archive: ArchiveFacts, supply: Supply) -> None:
    """Take a compressed archive apart into the store.

    Args:
        archive: The archive, proven before.
        supply: Is given each layer and configuration as it comes.

    Raises:
        CrossgapError: As for `tasks.images.split.split_archive`.
    """
    split.split_archive(
        supply.store, archive.path, on_layer=supply.give_layer, on_image=supply.give_image
    )


def _patiently(name: str, work: Callable[[Host], T]) -> T:
    """Work on a host that has answered before, waiting out the times when it is away.

    After hours of sending, a line that drops for a minute must not fail the run.
    """
    host = load_host(name)
    return waited_out(host, lambda _: work(host), (Unreachable,))


@task(task_run_name="send {send.image.name} to {host}", cache_policy=NO_CACHE, **retrying())
def send_layers(host: str, send: Send, sending: Sending) -> None:
    """Send the layers that an image lacks into the staging folder of a host.

    Args:
        host: Name of the host's block.
        send: The image, and which of its layers.
        sending: What is sent to this host in this run.

    Raises:
        CrossgapError: As for `Sending.stage`.
    """
    with HostProgress("ship-images", host) as progress:
        sending.stage(send.image, send.missing, progress)
        if sending.is_done:
            progress.done()


@task(task_run_name="load {send.image.name} on {host}", cache_policy=NO_CACHE, **retrying())
def load_image(host: str, send: Send, sending: Sending) -> None:
    """Load an image whose missing layers are staged on a host.

    Args:
        host: Name of the host's block.
        send: The image, and which of its layers were missing.
        sending: What was sent to this host in this run.

    Raises:
        CrossgapError: As for `tasks.images.act.load`.
    """
    log = logger()
    assembly = assemble([sending.layout(send)], sending.staged_path)

    def work(there: Host) -> None:
        glue = there.expand(f"{staging.staging_folder(there)}/{staging.glue_name(assembly.key)}")
        there.put(Content((assembly.glue,)), glue, sha256=sha256(assembly.glue).hexdigest())
        act.load(
            there,
            assembly.load_argv(glue),
            staging.load_job_name(assembly.key),
            timeout=_LOAD_LEAST + send.size / _LOAD_RATE,
            on_output=lambda text: log.info("%s: %s", host, text.strip()),
        )

    _patiently(host, work)


@task(task_run_name="stream {send.image.name} into {host}", cache_policy=NO_CACHE, **retrying())
def stream_image(host: str, send: Send, sending: Sending) -> None:
    """Send an image straight into the engine of a host, where nothing is staged.

    Args:
        host: Name of the host's block.
        send: The image, and which of its layers are missing.
        sending: What is sent to this host in this run.

    Raises:
        CrossgapError: As for `tasks.images.act.load_stream`.
    """
    log = logger()

    def work() -> str:
        archive = compose([sending.layout(send, pack=True)])
        report = sending.progress_of(send, progress)
        said = _patiently(
            host,
            lambda there: act.load_stream(there, archive, progress=report, pace=sending.pace),
        )
        sending.note_streamed(send, archive.size)
        return said

    with HostProgress("ship-images", host) as progress:
        try:
            said = work()
        except Damaged:
            # What is staged is hashed as it arrives; here, the engine is the first to notice.
            if not sending.forget_damaged(send):
                raise
            said = work()
        log.info("%s: %s", host, said.strip())
        if sending.is_done:
            progress.done()


@task(task_run_name="tag {tag.image.name} on {host}", cache_policy=NO_CACHE, **retrying())
def tag_image(host: str, tag: Tag) -> None:
    """Give an image that a host has under another name the wanted one.

    Args:
        host: Name of the host's block.
        tag: What to tag and how.

    Raises:
        CrossgapError: As for `tasks.images.act.tag`.
    """
    _patiently(host, lambda there: act.tag(there, tag.existing, tag.image.lookup))


@task(task_run_name="verify images on {host}", cache_policy=NO_CACHE, **retrying(retries=2))
def verify_images(host: str, wanted: Sequence[ImageFacts]) -> dict[str, str]:
    """Compare what a host has with the wanted images, by configuration and layers.

    Args:
        host: Name of the host's block.
        wanted: The images.

    Returns:
        What is wrong with each image that is not as it should be, by name.

    Raises:
        CrossgapError: As for `tasks.images.act.differences`.
    """
    return _patiently(host, lambda there: act.differences(there, wanted))


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
        keep: Names of staged files that are still to be sent or loaded.

    Raises:
        CrossgapError: As for `Host.run`.
    """
    _patiently(host, lambda there: staging.clear(there, keep))


@task(task_run_name="look for superseded images on {host}", cache_policy=NO_CACHE, **retrying())
def find_superseded(
    host: str, wanted: Sequence[ImageFacts], before: Mapping[str, ImageFacts]
) -> tuple[Superseded, ...]:
    """Find images on a host that the wanted ones have superseded.

    Args:
        host: Name of the host's block.
        wanted: The images that it has now.
        before: What it had under their names before.

    Returns:
        What is superseded, in use or not.

    Raises:
        CrossgapError: As for `tasks.images.prune.read_inventory`.
    """
    return _patiently(
        host, lambda there: prune.superseded(wanted, prune.read_inventory(there), before)
    )


@task(task_run_name="remove {image.label} on {host}", cache_policy=NO_CACHE, **retrying())
def remove_superseded(host: str, image: Superseded) -> Removal:
    """Remove a superseded image that no container uses.

    Args:
        host: Name of the host's block.
        image: The image.

    Returns:
        Whether it is gone, and if not, why.

    Raises:
        CrossgapError: As for `tasks.images.prune.remove`.
    """
    return _patiently(host, lambda there: prune.remove(there, image))
