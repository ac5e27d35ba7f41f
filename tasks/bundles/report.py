"""What an operator reads after packing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect.runtime import flow_run

from blocks.errors import InvalidInput
from tasks.bundles.manifest import Manifest
from tasks.bundles.results import Bundle, BundlePlan
from tasks.bundles.steps import PACK
from tasks.common.run_report import RunReport
from tasks.common.units import bytes_text

_COLUMNS = {"name": "what", "carried": "layers carried", "left_out": "left out", "size": "size"}


def pack_run_name() -> str:
    """Name a run of pack-bundle after what it packs where, from its parameters."""
    given = flow_run.parameters
    prefix = "plan: " if given.get("dry_run") else ""
    return prefix + pack_subject(given.get("path") or "", given.get("images") or [])


def unpack_run_name() -> str:
    """Name a run of unpack-bundle after what it unpacks where, from its parameters."""
    given = flow_run.parameters
    prefix = "plan: " if given.get("dry_run") else ""
    return prefix + unpack_subject(given.get("path") or "", given.get("hosts") or [])


def pack_subject(path: str, names: Sequence[str]) -> str:
    """Say in a few words what is packed where."""
    what = names[0] if len(names) == 1 else f"{len(names)} images"
    return f"Pack {what} into {Path(path).name}"


def unpack_subject(path: str, hosts: Sequence[str]) -> str:
    """Say in a few words what is unpacked where."""
    where = ", ".join(hosts[:3]) if len(hosts) <= 3 else f"{len(hosts)} hosts"
    return f"Unpack {Path(path).name} to {where or 'this machine'}"


def pack_report(path: str, names: Sequence[str], *, planned: bool) -> RunReport[Bundle]:
    """Begin the report of a pack.

    Args:
        path: The bundle's folder.
        names: What is packed, as the operator named it.
        planned: Whether it is a dry run.
    """
    shown = {"size": bytes_text}
    return RunReport(PACK, pack_subject(path, names), _COLUMNS, shown=shown, planned=planned)


def note_plan(report: RunReport[Bundle], plan: BundlePlan) -> None:
    """Put the plan of a dry run into its report."""
    report.rows = plan.contents
    report.done.append(
        f"At most {bytes_text(plan.size)} in {plan.parts} parts would be written; the layers "
        "are packed before that."
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


def not_unpacked(manifest: Manifest, known: str) -> list[str]:
    """Say what else is in a bundle, which a later version may have put there.

    Args:
        manifest: The bundle's.
        known: The kind of content that is unpacked.
    """
    return [
        f"The bundle also holds {kind}, which this version of crossgap does not unpack."
        for kind in manifest.contents
        if kind != known
    ]


def refuse_models(models: Sequence[str]) -> None:
    """Refuse models, which bundles do not carry yet.

    Raises:
        InvalidInput: Some are named.
    """
    if models:
        raise InvalidInput(
            "bundles do not carry models yet",
            "models",
            "Leave models empty, and carry the models' folders beside the bundle.",
        )
