"""Reads from hosts what they have of a model, and which of them see one and the same folder."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.disk import Disk, parse_disk
from blocks.errors import CommandFailed, CrossgapError, PermissionRefused
from blocks.local_host import LocalHost
from blocks.sending import writing_failed
from tasks.common.failures import Collected, collect
from tasks.models.files import MANIFEST, OWN_FOLDER
from tasks.models.remote_scripts import (
    MARKER,
    leave_marker,
    read_model,
    remove_marker,
    see_markers,
)

if TYPE_CHECKING:
    from blocks.host import Host

# A disk that sleeps, or a folder on a network, answers late.
_READ_SECONDS = 300.0
_ANSWER_SECONDS = 60.0

# As `stat -c %y` writes it; some busybox leave out the fraction, or the zone.
_TIME = r"\d{4}-\d\d-\d\d [\d:.]+(?: [+-]\d{4})?"
_FACTS = rf"(\d+) ({_TIME}) (\d+)"
_STAT_LINE = re.compile(rf"{_FACTS} \./(.+)", re.ASCII)
_PROOF_LINE = re.compile(rf"([0-9a-f]{{64}}) {_FACTS} (.+)", re.ASCII)
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *]\./(.+)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True)
class HeldFile:
    """A file that lies on a host.

    Args:
        path: Where it is in its revision's folder.
        size: Bytes.
        mtime: When it was changed last, as `stat -c %y` says it in UTC.
        inode: Its number there, which hard links share.
        sha256: In hexadecimal; empty for what is not proven, or no longer.
        ours: Whether there is, or was, a proof of a file of this name.
    """

    path: str
    size: int
    mtime: str
    inode: int
    sha256: str = ""
    ours: bool = False

    @property
    def proof_line(self) -> str:
        """The line that proves it, with its line break."""
        return f"{self.sha256} {self.size} {self.mtime} {self.inode} {self.path}\n"

    def is_as(self, other: HeldFile) -> bool:
        """Whether stat says the same of both, so that what is proven of one is of the other."""
        return (self.size, self.mtime, self.inode) == (other.size, other.mtime, other.inode)


Files = Mapping[str, HeldFile]
"""Files by their path in a revision's folder."""


@dataclass(frozen=True)
class HostModel:
    """What a host has of a model.

    Args:
        host: The host, as messages name it.
        root: Its folder of models, absolute.
        model: `organisation/name`.
        disk: The disk that the model is, or would be, on.
        revisions: The files of each revision in view, by commit.
        incoming: Those that have arrived of a revision and are not in view.
        current: The commit that `current` points to; empty where there is no such link.
        occupied: What is not ours, by the path at which it stands in our way.
    """

    host: str
    root: str
    model: str
    disk: Disk
    revisions: Mapping[str, Files] = field(default_factory=dict)
    incoming: Mapping[str, Files] = field(default_factory=dict)
    current: str = ""
    occupied: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Where the model is, or would be, absolute."""
        return f"{self.root}/{self.model}"


def proven(files: Files) -> dict[str, HeldFile]:
    """Return those of some files that are proven, by path."""
    return {path: held for path, held in files.items() if held.sha256}


def unproven(files: Files) -> dict[str, HeldFile]:
    """Return those of some files that no proof, or none that still holds, speaks of."""
    return {path: held for path, held in files.items() if not held.sha256}


def read_host_model(host: Host, root: str, model: str) -> HostModel:
    """Read what a host has of a model, in one round trip.

    Args:
        host: The host.
        root: Its folder of models, absolute or below `~`.
        model: `organisation/name`.

    Returns:
        The facts; nothing on the host is changed.

    Raises:
        PermissionRefused: The user may not look into the model's folder.
        CrossgapError: As for `Host.run`.
    """
    argv = read_model(root.rstrip("/"), model)
    result = host.run(argv, timeout=_READ_SECONDS, check=False)
    if result.exit_code != 0:
        if "ermission denied" in result.stderr:
            raise PermissionRefused(
                f"the user may not look into {root}/{model}",
                host.label,
                "Set the block's models_dir to a folder that the user owns.",
            )
        raise host.command_failed(["look", "at", f"{root}/{model}"], result)
    return parse_host_model(result.stdout, host.label, model)


def parse_host_model(text: str, host: str, model: str) -> HostModel:
    """Read what `remote_scripts.read_model` prints.

    Args:
        text: All of it.
        host: The host, as messages name it.
        model: `organisation/name`.

    Raises:
        CommandFailed: It is not what the script prints.
    """
    root, current, disk = "", "", ""
    occupied: dict[str, str] = {}
    sections: dict[tuple[str, str], list[str]] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        word, _, rest = line.partition(" ")
        match word:
            case "root":
                root = rest.rstrip("/")
            case "disk":
                disk = rest
            case "current":
                current = rest
            case "blocked":
                kind, _, path = rest.partition(" ")
                occupied[path] = _KINDS.get(kind, "something else")
            case "revision" | "incoming" | "proof":
                lines = sections.setdefault((word, rest), [])
            case _:
                lines.append(line)
    if not disk:
        raise CommandFailed(
            f"the answer about {model} is not understood ({text[:200]!r})",
            host,
            "See whether something on that host stands in for the real commands.",
        )
    base = f"{root}/{model}"
    if current and not _COMMIT.fullmatch(current):
        occupied[f"{base}/current"] = f"a link to {current}"
    revisions, incoming = _revisions(sections)
    for commit in [commit for commit, files in revisions.items() if not _is_ours(files)]:
        occupied[f"{base}/{commit}"] = _KINDS["folder"]
        del revisions[commit]
    return HostModel(
        host, root, model, parse_disk(disk, host), revisions, incoming, current, occupied
    )


_KINDS = {
    "file": "a file",
    "folder": "a folder that crossgap did not make",
    "link": "a link that crossgap did not make",
}

_Sections = Mapping[tuple[str, str], Sequence[str]]


def _revisions(sections: _Sections) -> tuple[dict[str, Files], dict[str, Files]]:
    revisions: dict[str, Files] = {}
    incoming: dict[str, Files] = {}
    for (kind, commit), lines in sections.items():
        if kind == "proof" or not _COMMIT.fullmatch(commit):
            continue
        proofs = _proofs(sections.get(("proof", commit), ()))
        kept = revisions if kind == "revision" else incoming
        kept[commit] = {
            held.path: _with_proof(held, proofs.get(held.path, ())) for held in stat_lines(lines)
        }
    return revisions, incoming


def _is_ours(files: Files) -> bool:
    return MANIFEST in files or bool(proven(files))


def _with_proof(held: HeldFile, proofs: Sequence[HeldFile]) -> HeldFile:
    # A revision's file and the one that is to take its place are proven side by side.
    sha256 = next((proof.sha256 for proof in reversed(proofs) if proof.is_as(held)), "")
    return replace(held, sha256=sha256, ours=bool(proofs))


def _proofs(lines: Iterable[str]) -> dict[str, list[HeldFile]]:
    proofs: dict[str, list[HeldFile]] = {}
    for line in lines:
        # What a kill has torn proves nothing.
        if match := _PROOF_LINE.fullmatch(line.removeprefix("= ")):
            sha256, size, mtime, inode, path = match.groups()
            proof = HeldFile(path, int(size), mtime, int(inode), sha256)
            proofs.setdefault(path, []).append(proof)
    return proofs


def stat_lines(lines: Iterable[str]) -> Iterator[HeldFile]:
    """Read what our scripts print of `stat`, and pass over everything else."""
    for line in lines:
        if match := _STAT_LINE.fullmatch(line):
            size, mtime, inode, path = match.groups()
            yield HeldFile(path, int(size), mtime, int(inode))


def parse_check(text: str) -> dict[str, HeldFile]:
    """Read what `remote_scripts.check` prints.

    Args:
        text: All of it.

    Returns:
        The files that did not change while they were hashed, by path, with their hashes.
    """
    sections: list[list[str]] = [[], [], []]
    number = 0
    for line in text.split("\n"):
        if line == "--":
            number += 1
        else:
            sections[min(number, 2)].append(line)
    sums = [match for line in sections[1] if (match := _SUM_LINE.fullmatch(line))]
    hashes = {match[2]: match[1] for match in sums}
    before = {held.path: held for held in stat_lines(sections[0])}
    return {
        held.path: replace(held, sha256=hashes.get(held.path, ""))
        for held in stat_lines(sections[2])
        if held == before.get(held.path)
    }


def shared_folders(
    hosts: Sequence[Host], roots: Mapping[str, str], here: Path | None = None
) -> Collected[frozenset[str]]:
    """Find out which hosts see one and the same folder, as on NFS.

    Each leaves an empty file with a name that nobody can guess, and then looks for
    those of all others. The folders are made where they are missing.

    Args:
        hosts: The hosts.
        roots: Per host name its folder of models, absolute or below `~`.
        here: This machine's own folder, if it is one of them; its name is empty.

    Returns:
        The names of the hosts, those that see one folder together, in the order of the
        hosts; and the failures of hosts whose folder cannot be written.
    """
    places = [_Place(host.name, host, roots[host.name].rstrip("/")) for host in hosts]
    if here is not None:
        places.insert(0, _Place("", LocalHost(), str(here)))
    name = _Place.label
    try:
        left = collect(_Place.leave, places, name=name)
        markers = [place.marker for place in left.results]
        seen = collect(lambda place: place.see(markers), left.results, name=name)
    finally:
        with cancellation_scope(Cancellation()):
            collect(_Place.clear, places, name=name)
    groups: list[set[str]] = []
    for place, markers_seen in seen.results:
        together = {other.name for other in left.results if other.marker in markers_seen}
        together.add(place.name)
        met = [group for group in groups if group & together]
        groups = [group for group in groups if group not in met]
        groups.append(together.union(*met))
    answered = [place.name for place, _ in seen.results]
    joined = {name: frozenset(group) for group in groups for name in group}
    ordered = dict.fromkeys(joined[name] & frozenset(answered) for name in answered)
    return Collected(tuple(ordered), (*left.failures, *seen.failures))


class _Place:
    """A folder as one host sees it, and the marker there."""

    def __init__(self, name: str, host: Host, root: str) -> None:
        self.name = name
        self.marker = f"{MARKER}{secrets.token_hex(12)}"
        self._host = host
        self._root = root or "/"

    def label(self) -> str:
        return self._host.label

    def leave(self) -> _Place:
        argv = leave_marker(self._root, self.marker)
        result = self._host.run(argv, timeout=_ANSWER_SECONDS, check=False)
        if result.exit_code != 0:
            raise not_written(self._host, self._root, result.stderr)
        return self

    def see(self, markers: Sequence[str]) -> tuple[_Place, frozenset[str]]:
        argv = see_markers(self._root, markers)
        return self, frozenset(self._host.run(argv, timeout=_ANSWER_SECONDS).stdout.split())

    def clear(self) -> None:
        # One that stays is taken away by the next run that leaves one.
        with suppress(CrossgapError):
            self._host.run(remove_marker(self._root, self.marker), timeout=_ANSWER_SECONDS)


def not_written(host: Host, path: str, said: str) -> CrossgapError:
    """Make the error for a folder of models that could not be written.

    Args:
        host: The host.
        path: The folder.
        said: What the far side printed.
    """
    error = writing_failed(host, path, said)
    if isinstance(error, PermissionRefused):
        remedy = "Set the block's models_dir to a folder that the user owns."
        return PermissionRefused(error.what, error.where, remedy)
    return error


def own_folder(model: HostModel) -> str:
    """Return the folder beside a model's revisions that is ours, absolute."""
    return f"{model.folder}/{OWN_FOLDER}"
