"""What an operator reads after a model was fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect.runtime import flow_run

from tasks.common.failures import Collected
from tasks.common.run_report import RunReport
from tasks.common.units import bytes_text, duration_text
from tasks.models.delivery import Delivered
from tasks.models.files import MANIFEST, Revision
from tasks.models.local import Brought
from tasks.models.remote_plan import Delivery, Keep, Link, Prove, Removal, Send
from tasks.models.results import FetchedModel, ModelPlan, Movement
from tasks.models.shipping import Coming, Targets
from tasks.models.sources import Source
from tasks.models.steps import FLOW
from tasks.models.tally import Tally

_COLUMNS = {
    "what": "what",
    "source": "from",
    "target": "to",
    "files": "files",
    "size": "bytes",
    "seconds": "seconds",
}
_NAMED = 3  # more hosts than this are counted instead
_SHOWN_RETRIES = 5


def run_name() -> str:
    """Name a flow run after what it fetches, from its parameters."""
    given = flow_run.parameters
    prefix = "plan: " if given.get("dry_run") else ""
    return prefix + subject(str(given.get("model") or "?"), given.get("hosts") or [])


def subject(model: str, hosts: Sequence[str]) -> str:
    """Say in a few words what is fetched, and for whom."""
    name = model.rstrip("/").rpartition("/")[2] if model.startswith(("/", "~", ".")) else model
    if not hosts:
        return f"Fetch {name}"
    where = ", ".join(hosts) if len(hosts) <= _NAMED else f"{len(hosts)} hosts"
    return f"Fetch {name} for {where}"


def fetch_report(model: str, hosts: Sequence[str], *, planned: bool) -> RunReport[Movement]:
    """Begin the report of a run.

    Args:
        model: The model as the operator named it.
        hosts: The hosts as the operator named them.
        planned: Whether it is a dry run.
    """
    return RunReport(
        FLOW,
        subject(model, hosts),
        _COLUMNS,
        shown={"size": bytes_text, "seconds": duration_text},
        planned=planned,
    )


def planned_movements(delivery: Delivery, source: str, target: str) -> list[Movement]:
    """Say what would come to one place.

    Args:
        delivery: What is to be done there.
        source: Who gives what it lacks.
        target: The place.
    """
    kinds = (("there already", Keep), ("to be hashed", Prove), ("to be linked", Link))
    rows = []
    for what, kind in kinds:
        files = [action.file for action in delivery.actions if isinstance(action, kind)]
        if files:
            size = sum(file.size for file in files)
            rows.append(Movement(what, target, target, len(files), size))
    sends = [action.file for action in delivery.actions if isinstance(action, Send)]
    if sends:
        size = sum(file.size for file in sends)
        rows.append(Movement("to be brought", source, target, len(sends), size))
    return rows


def note_source(report: RunReport[Movement], source: Source) -> None:
    """Say what the model is and where it comes from."""
    revision = source.revision
    promised = (
        "compared with what the hub promises"
        if source.record.compared
        else "not compared with any hub"
    )
    report.done.append(
        f"{revision.model} at {revision.asked} is commit {revision.commit}: {len(revision.files)} "
        f"files with {bytes_text(revision.size)}, every byte hashed, {promised}."
    )
    if source.note:
        report.left.append(source.note)


def note_plan(report: RunReport[Movement], source: Source, targets: Targets) -> ModelPlan:
    """Put the plan of a dry run into its report, and return it."""
    movements: list[Movement] = []
    if targets.here is not None:
        movements += planned_movements(targets.here, source.record.revision.endpoint, "here")
    for host, plan in targets.plans.items():
        movements += planned_movements(plan, "here", host)
    report.results += movements
    report.done += [
        f"{one.target}: {one.files} files with {bytes_text(one.size)} {one.what}."
        for one in movements
    ]
    revision = source.revision
    files = len(revision.files)
    return ModelPlan(revision.model, revision.commit, files, revision.size, tuple(movements))


def note_outcome(
    report: RunReport[Movement],
    source: Source,
    targets: Targets,
    arriving: Coming,
    delivered: Collected[tuple[str, Delivered]],
    removed: Mapping[str, Removal],
    *,
    pruned: bool,
) -> FetchedModel:
    """Put all that was done into the report, and return what there is now."""
    revision = source.revision
    if arriving.failure:
        report.fail([arriving.failure])
        report.left.append("What has arrived is kept: the next run goes on with it.")
    report.fail([f for f in delivered.failures if f.what != arriving.incomplete.what])
    if arriving.brought:
        note_fetch(report, arriving.brought, arriving.tally, arriving.seconds)
    done = dict(delivered.results)
    note_delivery(report, done, targets.same)
    for host, removal in removed.items():
        note_removal(report, host or "here", removal, done=pruned)
    path = source.folder or Path(source.stays)
    if targets.here:
        path = Path(targets.here.there.folder) / revision.commit
    if done:
        host = next(iter(done))
        note_serving(
            report, f"{targets.plans[host].there.folder}/{revision.commit}", revision, host
        )
    elif not arriving.failure:
        where = "its host" if source.stays else "this machine"
        note_serving(report, str(path), revision, where)
    return FetchedModel(
        path=str(path),
        commit=revision.commit,
        bytes_fetched=arriving.tally.fetched,
        bytes_delivered=sum(one.bytes_sent for one in done.values()),
        files=len(revision.files),
        compared=source.record.compared,
    )


def note_fetch(report: RunReport[Movement], brought: Brought, tally: Tally, seconds: float) -> None:
    """Say what came from where, and what had to be asked for again."""
    total = len(brought.files)
    kept = total - brought.fetched - brought.linked
    if kept:
        size = sum(a.file.size for a in brought.plan.actions if not isinstance(a, Send | Link))
        report.results.append(Movement("there already", "here", "here", kept, size))
    if brought.linked:
        size = sum(a.file.size for a in brought.plan.actions if isinstance(a, Link))
        report.results.append(Movement("linked", "here", "here", brought.linked, size))
    for place, size in tally.by_place.most_common():
        report.results.append(
            Movement("fetched", place, "here", tally.files_from[place], size, seconds)
        )
    if tally.by_place:
        gave = ", ".join(
            f"{place} gave {bytes_text(n)}" for place, n in tally.by_place.most_common()
        )
        report.done.append(f"{brought.fetched} of {total} files were fetched: {gave}.")
    else:
        report.done.append(f"All {total} files were here already, and are proven.")
    _note_retries(report, tally)


def _note_retries(report: RunReport[Movement], tally: Tally) -> None:
    reasons = Counter((retry.place, retry.why) for retry in tally.retries)
    for (place, why), count in reasons.most_common(_SHOWN_RETRIES):
        times = "once" if count == 1 else f"{count} times"
        report.left.append(f"{place} had to be asked again {times}: {why}.")
    if len(reasons) > _SHOWN_RETRIES:
        report.left.append(f"{len(reasons) - _SHOWN_RETRIES} more reasons are in the log.")


def note_delivery(
    report: RunReport[Movement], delivered: Mapping[str, Delivered], same: Mapping[str, str]
) -> None:
    """Say what was brought to which host.

    Args:
        report: The run's report.
        delivered: What it took, by host.
        same: Hosts that see the folder of another one, by name; empty for this machine's.
    """
    for host, one in delivered.items():
        if one.files_linked:
            report.results.append(Movement("linked", host, host, one.files_linked, 0))
        what = "delivered" if one.files_sent else "there already"
        report.results.append(
            Movement(what, "here", host, one.files_sent, one.bytes_sent, one.seconds)
        )
        report.done.append(
            f"{host}: {one.files_sent} files with {bytes_text(one.bytes_sent)} sent in "
            f"{duration_text(one.seconds)}, and proven there."
            if one.files_sent
            else f"{host}: all files are there, and proven."
        )
    for host, other in same.items():
        whose = f"the folder of {other}" if other else "this machine's folder"
        report.done.append(f"{host}: sees {whose}, so nothing was sent to it.")


def note_removal(report: RunReport[Movement], where: str, removal: Removal, *, done: bool) -> None:
    """Say which old revisions went, or could go."""
    if removal.commits:
        commits = ", ".join(commit[:12] for commit in removal.commits)
        freed = bytes_text(removal.freed)
        if done:
            report.done.append(f"{where}: old revisions were removed ({commits}), {freed} freed.")
        else:
            report.left.append(
                f"{where}: old revisions are there ({commits}); 'prune_revisions' removes them, "
                f"which frees {freed}."
            )
    for commit, why in removal.left.items():
        report.left.append(f"{where}: the old revision {commit[:12]} stays: {why}.")


def note_serving(report: RunReport[Movement], folder: str, revision: Revision, where: str) -> None:
    """Say how to serve it."""
    name = revision.model.rpartition("/")[2]
    report.done.append(
        f"On {where} it is served by: vllm serve {folder} "
        f"--served-model-name {name}. To prove it there again, run sha256sum -c {MANIFEST} in "
        "that folder."
    )
