"""What an operator reads after images were shipped."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.runtime import flow_run

from tasks.common.run_report import RunReport
from tasks.common.units import bytes_text, duration_text
from tasks.images.plan import HostPlan, Shipment
from tasks.images.results import Shipped, ShipResult

_COLUMNS = {
    "image": "image",
    "host": "host",
    "action": "action",
    "layers_sent": "layers sent",
    "bytes_sent": "bytes sent",
    "seconds": "seconds",
    "verified": "verified",
}
_NAMED = 3  # more hosts than this are counted instead

_PLAN_COLUMNS = {"host": "host", "image": "image", "action": "action", "size": "size"}


def run_name() -> str:
    """Name a flow run after what it ships where, from its parameters."""
    given = flow_run.parameters
    prefix = "plan: " if given.get("dry_run") else ""
    return prefix + subject(given.get("images") or [], given.get("hosts") or [])


def subject(images: Sequence[str], hosts: Sequence[str]) -> str:
    """Say in a few words what is shipped where."""
    what = images[0] if len(images) == 1 else f"{len(images) or 'all'} images"
    where = ", ".join(hosts) if len(hosts) <= _NAMED else f"{len(hosts)} hosts"
    return f"Ship {what} to {where}"


def ship_report(
    flow: str, images: Sequence[str], hosts: Sequence[str], *, planned: bool
) -> RunReport[ShipResult]:
    """Begin the report of a run.

    Args:
        flow: The flow's name.
        images: The images as the operator named them; none for all of an archive.
        hosts: The hosts as the operator named them.
        planned: Whether it is a dry run.
    """
    return RunReport(
        flow,
        subject(images, hosts),
        _PLAN_COLUMNS if planned else _COLUMNS,
        shown={"bytes_sent": bytes_text, "seconds": duration_text},
        planned=planned,
    )


def note_plan(report: RunReport[ShipResult], shipment: Shipment) -> None:
    """Put the plan of a dry run into its report."""
    report.rows = shipment.as_rows()
    report.fail(shipment.problems)
    report.done += [
        f"{plan.host}: {_sending(plan)}." for plan in shipment.hosts if not plan.problems
    ]


def note_results(report: RunReport[ShipResult], shipped: Sequence[Shipped]) -> None:
    """Put what was done on the hosts into the report."""
    for outcome in shipped:
        report.results += outcome.results
        report.fail(outcome.failures)
        if outcome.results:
            report.done.append(_done_on(outcome.results))
        report.done += outcome.notes
    if report.failed:
        report.left.append(
            "Layers that have arrived, whole or in part, stay in the hosts' work folders for a "
            "week: the next run goes on with them."
        )


def _done_on(results: Sequence[ShipResult]) -> str:
    there = sum(result.action == "present" for result in results)
    layers = sum(result.layers_sent for result in results)
    sent = sum(result.bytes_sent for result in results)
    return (
        f"{results[0].host}: {len(results) - there} of {len(results)} images sent, {there} were "
        f"there already; {layers} layers, {bytes_text(sent)} in "
        f"{duration_text(max(result.seconds for result in results))}."
    )


def _sending(plan: HostPlan) -> str:
    if not plan.sends:
        return "nothing would be sent"
    size = sum(plan.layers.values())
    how = "streamed into its engine" if plan.way == "stream" else "staged there, then loaded"
    return (
        f"{len(plan.layers)} layers with {bytes_text(size)} unpacked would be sent, packed where "
        f"that pays, {how}"
    )
