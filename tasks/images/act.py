"""What is done to hosts: load, tag, and prove. Every function is safe to call twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blocks.cancellation import Cancellation, cancellation_scope, current_cancellation
from blocks.errors import (
    CommandFailed,
    CrossgapError,
    Damaged,
    EngineUnavailable,
    NotFound,
    WrongArchitecture,
)
from blocks.feed import feed
from blocks.files import Pace, Progress
from tasks.images.docker_cli import checked, docker, explain_failure, unexplained
from tasks.images.facts import ImageFacts, same_content
from tasks.images.host_facts import ANSWER_SECONDS, read_images

if TYPE_CHECKING:
    from blocks.content import Content
    from blocks.host import Host

RUN_LABEL = "io.crossgap.run"
IMAGE_LABEL = "io.crossgap.check"

# A program that dies at once does so within this time.
_SETTLE_SECONDS = 1.0
# Creating a container waits for the engine to make its filesystem.
_CONTAINER_SECONDS = 300.0
_COULD_NOT_START = (125, 126, 127)
_NEVER_STARTED = "0001-01-01"

# What graph drivers say, and what containerd says, of a blob that is in neither place.
_NO_BASE = r"docker-import-\S+: no such file|(?:layer|digest) \S*sha256:\S+ not found"


def load(
    host: Host,
    argv: Sequence[str],
    job_name: str,
    *,
    timeout: float,
    on_output: Callable[[str], None] | None = None,
) -> None:
    """Load an archive into the engine of a host, by a job that outlives the connection.

    A job of this name that still runs is waited for instead of started again.
    The exit code proves little (moby#48293): verify the content afterwards.

    Args:
        host: Where.
        argv: The command that loads it, such as `tasks.images.assembly` makes.
        job_name: From `tasks.images.staging.load_job_name`.
        timeout: Seconds until the job is ended.
        on_output: Is given what docker prints.

    Raises:
        DiskFull: The engine's disk became full.
        NotFound: A layer that was left out is not there, either.
        Damaged: The engine found the archive damaged.
        EngineUnavailable: The engine went away; trying again may help.
        TimedOut: It took longer than the timeout.
        CrossgapError: As for `Host.start_job`.
    """
    job = host.find_job(job_name, sudo=True)
    if job is None or job.look().state != "running":
        job = host.start_job(argv, name=job_name, sudo=True)
    result = job.wait(timeout=timeout, on_output=on_output)
    job.forget()
    _check_load(result.exit_code, result.log_tail, host.label)


def load_stream(
    host: Host,
    archive: Content,
    *,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> str:
    """Stream an archive straight into the engine of a host; nothing is staged there.

    Args:
        host: Where.
        archive: The archive.
        progress: Is told the bytes that were taken there, and in all.
        pace: Limits the rate.

    Returns:
        What docker printed.

    Raises:
        CrossgapError: As for `load`, and as for `blocks.files.feed`.
    """
    argv = ["docker", "load"]
    result = feed(host, argv, archive, progress=progress, pace=pace, sudo=True)
    said = result.stdout + result.stderr
    _check_load(result.exit_code, said, host.label)
    return said


def tag(host: Host, existing: str, name: str) -> None:
    """Give an image on a host another name.

    Args:
        host: Where.
        existing: A name or id that it has there.
        name: The name it shall have too.

    Raises:
        CrossgapError: Docker refused.
    """
    result = docker(host, "tag", existing, name, timeout=ANSWER_SECONDS)
    checked(result, f"tag {existing} as {name}", host.label)


def differences(host: Host, wanted: Sequence[ImageFacts]) -> dict[str, str]:
    """Find out by configuration and layers in what a host differs from what is wanted.

    Args:
        host: Where.
        wanted: The images as their source has them.

    Returns:
        Per name of an image that is not there, or not the same, what is wrong.

    Raises:
        CrossgapError: As for `tasks.images.host_facts.read_images`.
    """
    found = read_images(host, wanted)
    faults = {image.name: _difference(image, found.get(image.name)) for image in wanted}
    return {name: fault for name, fault in faults.items() if fault}


def not_as_wanted(faults: Iterable[str], where: str) -> Damaged:
    """Make the error for images that are not on a host as they should be.

    Args:
        faults: What is wrong, from `differences`.
        where: The host.
    """
    return Damaged(
        "; ".join(faults),
        where,
        "Start again, and the image is sent anew. If it stays so, look at the log of "
        "Docker there and make room on its disk.",
    )


def verify_start(host: Host, image: ImageFacts, run_id: str) -> str:
    """Prove that the engine of a host can start a container of an image.

    The container gets no network and no device and is removed at once, with
    its volumes; so are those that a killed run left behind.

    Args:
        host: Where.
        image: The image as its source has it.
        run_id: Names the run in the container's label.

    Returns:
        How it was proven, in words; an image without a command, such as a
        pure base image, cannot be started and is proven by content.

    Raises:
        CommandFailed: The container could not be started.
        WrongArchitecture: It is built for another processor.
        CrossgapError: As for `tasks.images.docker_cli.docker`.
    """
    _remove_leftovers(host, image)
    name = "crossgap-check-" + hashlib.sha256(f"{run_id} {image.name}".encode()).hexdigest()[:16]
    with _removed_afterwards(host, name):
        if not _create(host, image, name, run_id):
            return "content; the image has no command to start"
        _start(host, image, name)
        return "started"


def _check_load(exit_code: int, text: str, where: str) -> None:
    # From 27.2 on, a load that cannot unpack an image still ends with exit code 0.
    if exit_code == 0 and "Error unpacking image" not in text:
        return
    if re.search(_NO_BASE, text):
        raise NotFound(
            "its engine lacks a layer that it had before",
            where,
            "Start again: the whole image is sent.",
        )
    error = explain_failure(text, where) or unexplained(text, "load the images", where)
    if isinstance(error, EngineUnavailable):
        raise EngineUnavailable(error.what, where, error.remedy, retryable=True)
    raise error


def _difference(wanted: ImageFacts, found: ImageFacts | None) -> str:
    if found is None:
        return f"{wanted.name} is not there after loading"
    if same_content(wanted, found):
        return ""
    if wanted.diff_ids != found.diff_ids:
        return f"{wanted.name} has other layers than its source"
    return f"{wanted.name} has another configuration than its source"


@contextmanager
def _removed_afterwards(host: Host, name: str) -> Iterator[None]:
    """Remove a container when the body ends, also when the run is cancelled."""

    def remove() -> None:
        docker(host, "rm", "-f", "-v", name, timeout=_CONTAINER_SECONDS)

    cancellation = current_cancellation()
    cancellation.on_cancel(name, remove)
    try:
        yield
    finally:
        cancellation.ended(name)
        # Once cancelled, a run's own signal stops every command, this one too.
        with cancellation_scope(Cancellation()):
            remove()


def _remove_leftovers(host: Host, image: ImageFacts) -> None:
    listed = docker(
        host,
        "ps", "--all", "--quiet", "--filter", f"label={IMAGE_LABEL}={image.name}",
        timeout=ANSWER_SECONDS,
    )  # fmt: skip
    ids = checked(listed, "list containers", host.label).split()
    if ids:
        docker(host, "rm", "-f", "-v", *ids, timeout=_CONTAINER_SECONDS)


def _create(host: Host, image: ImageFacts, name: str, run_id: str) -> bool:
    """Create the container; False when the image has nothing to start."""
    result = docker(
        host,
        "create", "--network", "none", "--name", name,
        "--label", f"{RUN_LABEL}={run_id}", "--label", f"{IMAGE_LABEL}={image.name}",
        image.lookup,
        timeout=_CONTAINER_SECONDS,
    )  # fmt: skip
    if result.exit_code != 0 and re.search("no command specified", result.stderr, re.IGNORECASE):
        return False
    checked(result, f"create a container of {image.name}", host.label)
    return True


def _start(host: Host, image: ImageFacts, name: str) -> None:
    started = docker(host, "start", name, timeout=_CONTAINER_SECONDS)
    if started.exit_code == 0:
        current_cancellation().pause(_SETTLE_SECONDS, host.label)
    shown = docker(
        host,
        "inspect", "--type", "container", "--format", "{{json .State}}", name,
        timeout=ANSWER_SECONDS,
    )  # fmt: skip
    state = json.loads(checked(shown, "inspect a container", host.label))
    said = str(state.get("Error") or started.stderr.strip())
    never = str(state.get("StartedAt") or _NEVER_STARTED).startswith(_NEVER_STARTED)
    broken = not state.get("Running") and state.get("ExitCode") in _COULD_NOT_START
    if started.exit_code != 0 or state.get("Error") or never or broken:
        raise _cannot_start(image, said or f"exit code {state.get('ExitCode')}", host.label)


def _cannot_start(image: ImageFacts, said: str, where: str) -> CrossgapError:
    if "exec format error" in said:
        return WrongArchitecture(
            f"{image.name} does not run on this processor",
            where,
            "Get the image for this host's architecture (docker pull --platform).",
        )
    return CommandFailed(
        f"{image.name} is there, but a container of it does not start ({said[-300:]})",
        where,
        "Try docker run with the image on the source machine: its command may be missing.",
    )
