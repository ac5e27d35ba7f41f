"""A model from a hub or a folder onto this machine and onto servers without a network."""

from __future__ import annotations

from prefect import flow

from blocks.cancellation import ends_remote_work
from blocks.hosts import host_names, load_host
from blocks.site import expand_hosts
from tasks.common.locks import hosts_locked
from tasks.models.report import fetch_report, note_outcome, note_plan, note_source, run_name
from tasks.models.results import FetchedModel, ModelPlan
from tasks.models.shipping import coming, deliver, find_model, plan_targets, prune, roots_of
from tasks.models.sources import Asked
from tasks.models.steps import FLOW


@flow(name=FLOW, flow_run_name=run_name)
def fetch_model(
    model: str,
    revision: str = "main",
    hub: str = "hf-mirror",
    include: list[str] = [],  # noqa: B006 - Prefect shows the default in the form
    exclude: list[str] = [],  # noqa: B006
    destination: str = "~/models",
    hosts: list[str] = [],  # noqa: B006
    host_destination: str = "",
    prune_revisions: bool = False,
    dry_run: bool = False,
) -> FetchedModel | ModelPlan:
    """Fetch a model, prove every byte of it, and bring it to servers without a network.

    What is here or there already does not travel again, also of other revisions. A run
    that was cut off goes on where it stopped.

    Args:
        model: A name such as Qwen/Qwen3-8B, or a folder that something else fetched: on the
            worker's machine, such as /data/qwen3, or on a host, such as gpu1:/data/qwen3.
        revision: Branch, tag or commit; it is pinned to a commit.
        hub: Name of a Model Hub block.
        include: Only these files, such as `*.safetensors`; empty for all.
        exclude: Not these files, such as `*.bin` or `original/`.
        destination: Folder of models on the worker's machine.
        hosts: Names of host blocks, or SITE:GROUP, that it is brought to.
        host_destination: Folder of models there; empty for the one of each host's block.
        prune_revisions: Remove older revisions of this model, here and there. Without it
            they are only listed.
        dry_run: Only show what would be done.

    Returns:
        Where it is and what it took; of a dry run the plan.

    Raises:
        SeveralFailures: Everything that failed; what succeeded stays done.
    """
    with fetch_report(model, hosts, planned=dry_run) as report:
        asked = Asked(model, revision, hub, include, exclude, destination)
        named = [load_host(name) for name in expand_hosts(hosts, host_names)] if hosts else []
        with (
            find_model(asked, wanted=bool(hosts), alone=not dry_run) as source,
            hosts_locked([] if dry_run else named) as locked,
            ends_remote_work(),
        ):
            note_source(report, source)
            report.fail(locked.failures)
            machines = named if dry_run else locked.hosts
            roots = roots_of(machines, host_destination)
            targets, problems = plan_targets(source, asked, roots, alone=not dry_run)
            report.fail(problems)
            if dry_run:
                return note_plan(report, source, targets)
            with coming(source, str(asked.root)) as arriving:
                delivered = deliver(targets, source, arriving)
            there = {name for name, _ in delivered.results} | ({""} if arriving.brought else set())
            removed = prune(source, asked, targets, there, really=prune_revisions)
        return note_outcome(
            report, source, targets, arriving, delivered, removed, pruned=prune_revisions
        )
