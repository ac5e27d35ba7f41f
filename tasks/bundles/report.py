"""What an operator reads after packing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from tasks.bundles.manifest import Manifest
from tasks.bundles.results import Bundle, BundlePlan, UnpackPlan
from tasks.bundles.steps import PACK, UNPACK
from tasks.common.run_report import RunReport
from tasks.common.units import bytes_text, duration_text

_COLUMNS = {
    "name": "what",
    "carried": "layers or files carried",
    "left_out": "left out",
    "size": "size",
}
_UNPACKED = {
    "what": "what",
    "host": "host",
    "action": "action",
    "sent": "layers or files sent",
    "bytes_sent": "bytes sent",
    "seconds": "seconds",
    "verified": "verified",
}
_TO_UNPACK = {"host": "host", "what": "what", "action": "action", "size": "size"}


def pack_run_name() -> str:
    """Name a run of pack-bundle after what it packs where, from its parameters."""
    given = flow_run.parameters
    prefix = "plan: " if given.get("dry_run") else ""
    named = (given.get("images") or [], given.get("models") or [])
    return prefix + pack_subject(given.get("path") or "", *named)


def unpack_run_name() -> str:
    """Name a run of unpack-bundle after what it unpacks where, from its parameters."""
    given = flow_run.parameters
    prefix = "plan: " if given.get("dry_run") else ""
    return prefix + unpack_subject(given.get("path") or "", given.get("hosts") or [])


def pack_subject(path: str, images: Sequence[str], models: Sequence[str]) -> str:
    """Say in a few words what is packed where."""
    named = {"images": images, "models": models} if images or models else {"images": ()}
    what = [
        names[0] if len(names) == 1 else f"{len(names)} {kind}"
        for kind, names in named.items()
        if names or len(named) == 1
    ]
    return f"Pack {' and '.join(what)} into {Path(path).name}"


def unpack_subject(path: str, hosts: Sequence[str]) -> str:
    """Say in a few words what is unpacked where."""
    where = ", ".join(hosts[:3]) if len(hosts) <= 3 else f"{len(hosts)} hosts"
    return f"Unpack {Path(path).name} to {where or 'this machine'}"


def pack_report(
    path: str, images: Sequence[str], models: Sequence[str], *, planned: bool
) -> RunReport[Bundle]:
    """Begin the report of a pack.

    Args:
        path: The bundle's folder.
        images: The images as the operator named them.
        models: The models as the operator named them.
        planned: Whether it is a dry run.
    """
    subject = pack_subject(path, images, models)
    return RunReport(PACK, subject, _COLUMNS, shown={"size": bytes_text}, planned=planned)


def unpack_report(path: str, hosts: Sequence[str], *, planned: bool) -> RunReport[Any]:
    """Begin the report of an unpack; its rows are of several kinds, so they are set as such.

    Args:
        path: The bundle's folder.
        hosts: The hosts as the operator named them.
        planned: Whether it is a dry run.
    """
    report: RunReport[Any] = RunReport(
        UNPACK,
        unpack_subject(path, hosts),
        _TO_UNPACK if planned else _UNPACKED,
        shown={"bytes_sent": bytes_text, "seconds": duration_text},
        planned=planned,
    )
    report.rows = []
    return report


def note_unpack_plan(
    report: RunReport[Any], manifest: Manifest, rows: Sequence[Mapping[str, Any]]
) -> UnpackPlan:
    """Put the plan of a dry run into its report, and return it.

    Args:
        report: The run's report.
        manifest: The bundle's.
        rows: What would be done, as for `UnpackPlan`.
    """
    report.rows = rows
    report.done += [
        f"{row['host']}: {row['what']}: {row['action']}, {row['size']}." for row in rows
    ]
    return UnpackPlan(manifest.id, tuple(rows))


def note_plan(report: RunReport[Bundle], plan: BundlePlan) -> None:
    """Put the plan of a dry run into its report."""
    report.rows = plan.contents
    report.done.append(
        f"At most {bytes_text(plan.size)} in {plan.parts} parts would be written; the layers "
        "of images are packed before that."
    )
    if plan.base:
        report.done.append(f"It would build on {plan.base}.")


def note_bundle(report: RunReport[Bundle], bundle: Bundle) -> None:
    """Put a finished bundle into the report."""
    report.results.append(bundle)
    report.rows = bundle.contents
    signed = f"signed with {bundle.signed_by}" if bundle.signed_by else "not signed"
    report.done.append(
        f"{bundle.path}: bundle {bundle.id}, {bytes_text(bundle.size)} in {bundle.files} files, "
        f"written and read back; {signed}."
    )
    if bundle.base:
        report.done.append(f"It builds on {bundle.base}: the far side has to have that.")
    report.left.append(
        "Unmount the disk before it is pulled out. Keep a copy of bundle.json: with it in since, "
        "the next bundle carries only what is new."
    )


def not_unpacked(manifest: Manifest, known: Collection[str]) -> list[str]:
    """Say what else is in a bundle, which a later version may have put there.

    Args:
        manifest: The bundle's.
        known: The kinds of content that are unpacked.
    """
    return [
        f"The bundle also holds {kind}, which this version of crossgap does not unpack."
        for kind in manifest.contents
        if kind not in known
    ]
