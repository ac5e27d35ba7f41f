"""CONTENTS.txt: what is on the disk, for whoever finds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.bundles.manifest import Base, Manifest
from tasks.common.units import bytes_text

CONTENTS_NAME = "CONTENTS.txt"
LOADER_NAME = "load.sh"


@dataclass(frozen=True)
class Section:
    """What there is to say about one kind of content.

    Args:
        title: Such as `Images`.
        lines: One for each thing in it, and more below it, indented.
    """

    title: str
    lines: tuple[str, ...]


def table_of_contents(
    manifest: Manifest, sections: Sequence[Section], *, signed: bool, loader: bool
) -> str:
    """Compose the table of contents.

    Args:
        manifest: The bundle's, without the table itself.
        sections: What there is to say, by kind of content.
        signed: Whether the bundle is signed.
        loader: Whether it has a `load.sh`.

    Returns:
        Plain text.
    """
    parts = [
        f"Bundle {manifest.id}, made {manifest.created} by crossgap\n",
        f"{bytes_text(manifest.size)} in {manifest.parts} files\n",
        *(_section(section) for section in sections),
        _section(Section("Builds on", _base_lines(manifest.base))),
        _section(Section("How to check it", _check_lines(signed=signed))),
        _section(Section("How to load it", _load_lines(loader=loader))),
    ]
    return "\n".join(parts)


def _section(section: Section) -> str:
    head = f"{section.title}\n{'-' * len(section.title)}\n"
    return head + "".join(f"{line}\n" for line in section.lines)


def _base_lines(base: Base | None) -> tuple[str, ...]:
    if base is None:
        return ("Nothing: everything that is needed is in it.",)
    return (
        f"{base.label}.",
        "The far side has to have loaded that; only what is new since then is in here.",
    )


def _check_lines(*, signed: bool) -> tuple[str, ...]:
    lines: tuple[str, ...] = ("sha256sum -c SHA256SUMS",)
    if signed:
        lines += (
            "ssh-keygen -Y verify -f ALLOWED_SIGNERS -I NAME -n crossgap-bundle \\",
            "    -s SHA256SUMS.sig < SHA256SUMS",
        )
    return lines


def _load_lines(*, loader: bool) -> tuple[str, ...]:
    lines: tuple[str, ...] = ("With crossgap: run the flow unpack-bundle on this folder.",)
    if loader:
        lines += (
            f"Without: sh {LOADER_NAME}",
            "It checks every file, loads what is not there yet, and can be run again.",
        )
    return lines
