"""Models out of a bundle onto hosts: which steps, in which order, and what came of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blocks.errors import CrossgapError, DiskFull, NotFound
from blocks.local_host import LocalHost
from tasks.common.failures import Collected, collect
from tasks.common.units import bytes_text, duration_text
from tasks.models import steps
from tasks.models.bundling import BundledModel, CarriedModel, label_of, lacking_base
from tasks.models.delivery import Delivered
from tasks.models.files import MANIFEST, ModelFile, Revision
from tasks.models.local import held_alone
from tasks.models.proving import prove_there
from tasks.models.records import Record, save_record
from tasks.models.remote_facts import proven
from tasks.models.remote_plan import Delivery, Keep, plan_delivery
from tasks.models.shipping import Coming, Targets, deliver, plan_targets, roots_of
from tasks.models.sources import Asked, Source

if TYPE_CHECKING:
    from blocks.host import Host


@dataclass(frozen=True)
class UnpackedModel:
    """A model that a host has now.

    Args:
        model: Its name and the beginning of its commit.
        host: The name of the host's block.
        action: `present` when nothing was missing, `full` when every file travelled,
            `delta` otherwise.
        files_sent: How many files travelled.
        bytes_sent: Bytes that travelled.
        seconds: How long it took.
        path: Its folder there.
        verified: How it was proven.
    """

    model: str
    host: str
    action: Literal["present", "delta", "full"]
    files_sent: int
    bytes_sent: int
    seconds: float
    path: str
    verified: str = "content"

    @property
    def row(self) -> dict[str, Any]:
        """The row of it in a table of all that was unpacked."""
        return {
            "what": self.model,
            "host": self.host,
            "action": self.action,
            "sent": self.files_sent,
            "bytes_sent": self.bytes_sent,
            "seconds": self.seconds,
            "verified": self.verified,
        }

    @property
    def sentence(self) -> str:
        """Say what was done."""
        if self.action == "present":
            return f"{self.host}: {self.model} is there already, in {self.path}."
        return (
            f"{self.host}: {self.model} is in {self.path}; {self.files_sent} files with "
            f"{bytes_text(self.bytes_sent)} sent in {duration_text(self.seconds)}, and proven "
            "there."
        )


@dataclass(frozen=True)
class Unpacking:
    """A model of a bundle, and where it goes.

    Args:
        model: The model.
        targets: The hosts.
        base: What the bundle builds on, in words.
    """

    model: CarriedModel
    targets: Targets
    base: str

    def rows(self) -> list[dict[str, Any]]:
        """Say host by host what would be done, for tables."""
        rows = []
        for host, plan in self.targets.plans.items():
            there = all(isinstance(action, Keep) for action in plan.actions)
            full = len(plan.sends) == len(plan.actions)
            rows.append(
                {
                    "host": host,
                    "what": label_of(self.model.revision),
                    "action": "present" if there else "full" if full else "delta",
                    "size": bytes_text(plan.bytes_to_send),
                }
            )
        return rows


def plan_deliveries(
    models: Sequence[CarriedModel], hosts: Sequence[Host], base: str, *, alone: bool
) -> tuple[tuple[Unpacking, ...], tuple[CrossgapError, ...]]:
    """Find out what of a bundle's models goes where, before the first byte.

    Args:
        models: The models.
        hosts: The hosts; each has its own folder of models.
        base: What the bundle builds on, in words.
        alone: Whether folders may be made; not for a dry run.

    Returns:
        The plan, and why some hosts get nothing, or not all.

    Raises:
        CrossgapError: As for `plan_targets`.
    """
    roots = roots_of(hosts, "")
    planned: list[Unpacking] = []
    failures: list[CrossgapError] = []
    for model in models:
        source = _source(model)
        targets, problems = plan_targets(source, Asked(source.revision.model), roots, alone=alone)
        look = partial(_with_base, model, base, keep=alone)
        checked = collect(look, targets.plans.items(), name=lambda pair: pair[0])
        failures += [*problems, *checked.failures]
        planned.append(Unpacking(model, _only(targets, dict(checked.results)), base))
    full = too_small(planned)
    failures += full.values()
    kept = [
        {host: plan for host, plan in one.targets.plans.items() if host not in full}
        for one in planned
    ]
    fitting = zip(planned, kept, strict=True)
    return (
        tuple(replace(one, targets=_only(one.targets, plans)) for one, plans in fitting),
        tuple(failures),
    )


def unpack_models(
    planned: Iterable[Unpacking], hosts: Sequence[Host]
) -> tuple[tuple[UnpackedModel, ...], tuple[CrossgapError, ...]]:
    """Bring a bundle's models to hosts, one model after the other.

    Args:
        planned: The models, and where they go.
        hosts: The hosts.

    Returns:
        What is there now, and what failed.
    """
    results: list[UnpackedModel] = []
    failures: list[CrossgapError] = []
    here = {host.name for host in hosts if isinstance(host, LocalHost)}
    for one in planned:
        with ExitStack() as held:
            for host, plan in one.targets.plans.items():
                if host in here:
                    held.enter_context(held_alone(Path(plan.there.folder)))
            delivered = _unpack(one)
            for host in here & {name for name, _ in delivered.results}:
                _keep_record(one.model.record, Path(one.targets.plans[host].there.folder))
        results += _results(one, dict(delivered.results))
        failures += delivered.failures
    return tuple(results), tuple(failures)


def models_there(host: Host, models: Collection[str]) -> list[BundledModel]:
    """Return what a host has, proven, of some models, for its inventory.

    Args:
        host: The host.
        models: Their names.

    Raises:
        CrossgapError: As for `steps.look_at_host`.
    """
    root = roots_of([host], "")[host.name]
    found = []
    for model in sorted(models):
        there = steps.look_at_host(host.name, root, model)
        for commit, held in sorted(there.revisions.items()):
            files = tuple(
                ModelFile(path, one.size, one.sha256)
                for path, one in sorted(proven(held).items())
                if path != MANIFEST
            )
            if files:
                revision = Revision(model, commit, commit, files)
                found.append(BundledModel(Record(revision, compared=False)))
    return found


def _with_base(
    model: CarriedModel, base: str, planned: tuple[str, Delivery], *, keep: bool
) -> tuple[str, Delivery]:
    """Look closer at a host that seems to lack what the bundle does not carry.

    Raises:
        NotFound: It does lack it.
        CrossgapError: As for `prove_there`.
    """
    host, plan = planned
    sizes = {send.file.size for send in plan.sends if send.file.sha256 not in model.contents}
    if not sizes:
        return planned
    plan = plan_delivery(plan.revision, prove_there(host, plan.there, sizes, keep=keep))
    if error := lacking_base(model, plan, base):
        raise error
    return host, plan


def _source(model: CarriedModel) -> Source:
    return Source(model.revision, model.record, folder=model.folder)


def _only(targets: Targets, plans: Mapping[str, Delivery]) -> Targets:
    """Leave out hosts that have no plan, and those that see their folders."""
    return Targets(
        {host: root for host, root in targets.roots.items() if host in plans},
        {host: other for host, other in targets.same.items() if other in plans},
        plans,
    )


def too_small(planned: Sequence[Unpacking]) -> dict[str, CrossgapError]:
    """Find the hosts whose disk takes each of the models, but not all of them.

    Args:
        planned: The models, and where they go.

    Returns:
        What to say of each such host, by name.
    """
    needed: dict[str, int] = {}
    failures: dict[str, CrossgapError] = {}
    for one in planned:
        for host, plan in one.targets.plans.items():
            needed[host] = needed.get(host, 0) + plan.room_needed
            if plan.sends and needed[host] > plan.there.disk.free:
                failures[host] = DiskFull(
                    f"the models need {bytes_text(needed[host])} together, but "
                    f"{plan.there.disk.mount} has {bytes_text(plan.there.disk.free)} free",
                    plan.there.host,
                    "Free space there, or set the block's models_dir to a larger disk. Nothing "
                    "of the models was sent to this host.",
                )
    return failures


def _unpack(one: Unpacking) -> Collected[tuple[str, Delivered]]:
    model, revision = one.model, one.model.revision
    coming = Coming(revision.model)
    for file in revision.files:
        if file.sha256 in model.contents:
            coming.arrivals.give(file, model.contents[file.sha256])
    # Only waited for where what a host has turns out to be damaged.
    coming.arrivals.fail(
        NotFound(
            f"files of {label_of(revision)} that are damaged or gone where it goes to are not in "
            "the bundle (the log names them)",
            str(model.folder),
            f"It builds on {one.base or 'an earlier one'}: unpack that again, or have a bundle "
            "packed without since.",
        )
    )
    return deliver(one.targets, _source(model), coming)


def _results(one: Unpacking, delivered: Mapping[str, Delivered]) -> list[UnpackedModel]:
    revision = one.model.revision
    results = []
    nothing = Delivered(0, 0, 0, 0, 0.0)
    same = {host: nothing for host, other in one.targets.same.items() if other in delivered}
    for host, done in {**delivered, **same}.items():
        leader = one.targets.same.get(host, host)
        moved = done.files_sent + done.files_linked
        whole = done.files_sent >= len(revision.files)
        results.append(
            UnpackedModel(
                model=label_of(revision),
                host=host,
                action="present" if not moved else "full" if whole else "delta",
                files_sent=done.files_sent,
                bytes_sent=done.bytes_sent,
                seconds=done.seconds,
                path=f"{one.targets.plans[leader].there.folder}/{revision.commit}",
            )
        )
    return results


def _keep_record(record: Record, model_folder: Path) -> None:
    """Let this machine know what a hub said, so that it can deliver without one."""
    if record.compared:
        save_record(model_folder, record)
