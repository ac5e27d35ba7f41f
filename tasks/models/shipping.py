"""A model here and on hosts: which steps, in which order."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError
from blocks.hosts import load_host
from blocks.logs import logger
from tasks.common.failures import Collected, collect
from tasks.models import folders, host_folders, steps
from tasks.models.arrivals import Arrivals
from tasks.models.delivery import Delivered
from tasks.models.fetching import Terms
from tasks.models.local import Brought, held_alone, plan_here, remove_parts
from tasks.models.records import forget, save_record
from tasks.models.remote_plan import Delivery, Removal, Send, plan_delivery, plan_removal
from tasks.models.sources import Asked, Source, find_on_hub
from tasks.models.tally import Tally

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from blocks.host import Host


def find_model(asked: Asked, *, wanted: bool, alone: bool) -> AbstractContextManager[Source]:
    """Find out what a model consists of and who has it.

    Args:
        asked: What an operator asked for.
        wanted: Whether hosts want it.
        alone: Whether to keep other runs away from it meanwhile; not for a dry run.

    Raises:
        CrossgapError: As for `find_on_hub` and `tasks.models.folders`.
    """
    if asked.host_folder:
        return _find_on_host(asked, *asked.host_folder, wanted=wanted, alone=alone)
    if not asked.is_folder:
        return find_on_hub(asked, alone=alone)
    folder = asked.folder
    files = folders.list_folder(folder, asked.include, asked.exclude)
    record = steps.hash_folder(str(folder), files, manifest=alone)
    return nullcontext(Source(record.revision, record, folder=folder))


@contextmanager
def _find_on_host(
    asked: Asked, name: str, folder: str, *, wanted: bool, alone: bool
) -> Iterator[Source]:
    host = load_host(name)
    files = host_folders.list_host_folder(host, folder, asked.include, asked.exclude)
    record = steps.hash_host_folder(name, folder, files, manifest=alone)
    if not wanted:
        yield Source(record.revision, record, stays=folder)
        return
    place = host_folders.HostPlace(host, folder)
    # One connection each: what limits it is the host's disk or line.
    source = Source(record.revision, record, [place], Terms(connections_per_file=1))
    with held_alone(asked.root / record.revision.model) if alone else nullcontext():
        yield source


@dataclass(frozen=True)
class Targets:
    """Where a model goes.

    Args:
        roots: The folder of models of each host that something is sent to, by name.
        same: Hosts that see the folder of another one, by name; empty for this machine's.
        plans: What is to be done on each host.
        here: What is to be done on this machine; None where nothing is.
    """

    roots: Mapping[str, str]
    same: Mapping[str, str] = field(default_factory=dict)
    plans: Mapping[str, Delivery] = field(default_factory=dict)
    here: Delivery | None = None


def plan_targets(
    source: Source, asked: Asked, roots: Mapping[str, str], *, alone: bool
) -> tuple[Targets, tuple[CrossgapError, ...]]:
    """Find out what is to be done where, before the first byte.

    Args:
        source: Where the model comes from.
        asked: What an operator asked for.
        roots: The folder of models of each host, by name.
        alone: Whether folders may be made; not for a dry run.

    Returns:
        The plan, and why some hosts are not in it.

    Raises:
        Conflict: Something else stands in this machine's folder where the model belongs.
        DiskFull: There is no room on this machine.
        CrossgapError: Nobody gives the bytes.
    """
    revision = source.revision
    here = None
    if source.folder is None and not source.stays:
        here = plan_here(revision, steps.look_here(str(asked.root), revision.model))
        lacking = [action.file for action in here.actions if isinstance(action, Send)]
        if lacking:
            logger().info("%s", steps.check_way(source, lacking))
    failures: list[CrossgapError] = []
    leaders: Mapping[str, str] = roots
    same: dict[str, str] = {}
    if alone and roots:
        shared = steps.see_shared_folders(roots, "" if here is None else str(asked.root))
        failures += shared.failures
        leaders, same = _leaders(roots, shared.results)
    planned = collect(
        lambda host: (
            host,
            plan_delivery(revision, steps.look_at_host(host, leaders[host], revision.model)),
        ),
        leaders,
        name=str,
    )
    failures += planned.failures
    for failure in failures:
        # Hours may pass until the report says so.
        logger().warning("%s", failure)
    plans = dict(planned.results)
    kept = {host: leaders[host] for host in plans}
    same = {host: other for host, other in same.items() if not other or other in plans}
    return Targets(kept, same, plans, here), tuple(failures)


def _leaders(
    roots: Mapping[str, str], groups: Sequence[frozenset[str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Choose who of those that see one folder is sent to; this machine where it is one."""
    leaders: dict[str, str] = {}
    same: dict[str, str] = {}
    for group in groups:
        first, *others = sorted(group)
        if first:
            leaders[first] = roots[first]
        same.update(dict.fromkeys(others, first))
    return leaders, same


class Coming:
    """A model on its way here.

    Attributes:
        arrivals: Its files, for whoever waits for them.
        tally: What came from where.
        seconds: How long it took.
        brought: What is here, once all is.
        failure: Why it is not.
        incomplete: What those are told who wait for files that do not come.
    """

    def __init__(self, name: str) -> None:
        self.incomplete = CrossgapError(
            "not all of it could be fetched, so no more can be delivered",
            f"model {name!r}",
            "What was fetched is there; start again, and the rest follows.",
        )
        self.arrivals = Arrivals()
        self.tally = Tally()
        self.seconds = 0.0
        self.brought: Brought | None = None
        self.failure: CrossgapError | None = None


@contextmanager
def coming(source: Source, root: str) -> Iterator[Coming]:
    """Bring a model here while the body passes on what has come, then into view.

    Args:
        source: Where it comes from.
        root: The folder of models here, absolute.

    Yields:
        What is being brought; complete when this ends.
    """
    model = Coming(source.revision.model)
    if source.folder is not None:
        for file in source.revision.files:
            model.arrivals.give(file, source.folder / file.path)
    if source.folder is not None or source.stays:
        yield model
        return
    begin = time.monotonic()

    def bring() -> Brought:
        try:
            return steps.fetch_files(source, root, model.tally, model.arrivals)
        except BaseException:
            model.arrivals.fail(model.incomplete)
            raise
        finally:
            model.seconds = time.monotonic() - begin

    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        future: Future[Brought] = pool.submit(contextvars.copy_context().run, bring)
        try:
            yield model
        except BaseException:
            current_cancellation().cancel()
            raise
        try:
            model.brought = future.result()
        except CrossgapError as error:
            model.failure = error
    if model.brought:
        steps.bring_into_view(model.brought)
        complete = {file.path: file for file in model.brought.files}
        files = tuple(complete.get(file.path, file) for file in source.record.revision.files)
        revision = replace(source.record.revision, files=files)
        save_record(Path(root) / revision.model, replace(source.record, revision=revision))


def deliver(
    targets: Targets, source: Source, model: Coming, at_once: int = 8
) -> Collected[tuple[str, Delivered]]:
    """Bring a model's files to all hosts as they come.

    Args:
        targets: The hosts.
        source: The model.
        model: Its files.
        at_once: How many hosts are worked on at once.
    """
    return collect(
        lambda host: (
            host,
            steps.deliver_model(host, targets.roots[host], source.revision, model.arrivals),
        ),
        targets.plans,
        name=str,
        at_once=at_once,
    )


def prune(
    source: Source,
    asked: Asked,
    targets: Targets,
    there: Collection[str],
    *,
    really: bool,
) -> dict[str, Removal]:
    """Remove older revisions of the model where it has arrived, or only find them.

    Args:
        source: The model.
        asked: What an operator asked for.
        targets: Where it went.
        there: The hosts that it has come to; this machine under an empty name.
        really: Whether to remove them.

    Returns:
        What went or could go, by host.
    """
    revision = source.revision
    plans = dict(targets.plans) if targets.here is None else {"": targets.here, **targets.plans}
    removals = {}
    for host, plan in plans.items():
        if host not in there:
            continue
        if really and not host:
            remove_parts(asked.root / revision.model)
        keep = [revision.commit]
        removal = plan_removal(replace(plan.there, current=revision.commit), keep)
        if really and removal.commits:
            removal = steps.remove_revisions(host, plan.there.root, revision.model, keep)
            if not host:
                for commit in removal.commits:
                    forget(asked.root / revision.model, commit)
        removals[host] = removal
    return removals


def roots_of(hosts: Sequence[Host], destination: str) -> dict[str, str]:
    """Return where models are kept on each host.

    Args:
        hosts: The hosts.
        destination: The same folder for all, or empty for each block's own.
    """
    return {host.name: destination or getattr(host, "models_dir", "~/models") for host in hosts}
