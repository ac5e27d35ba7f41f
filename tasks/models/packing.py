"""Finds the models that a bundle shall hold on this machine, each proven, and gathers them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.content import Content
from blocks.errors import CrossgapError, Damaged, NotFound, SeveralFailures
from blocks.local_host import LocalHost
from blocks.pouring import local_errors
from tasks.common.failures import collect
from tasks.common.retry import retrying
from tasks.models import folders, steps
from tasks.models.bundling import (
    FoundModel,
    PackedModel,
    check_name,
    describe_files,
    files_of,
    items_of,
    label_of,
    lines_of,
    parse_items,
    rows_of,
)
from tasks.models.files import MANIFEST, ModelFile, Revision, check_files
from tasks.models.hub.names import check_model
from tasks.models.records import Record, read_record, recall
from tasks.models.remote_facts import HostModel, read_host_model
from tasks.models.sources import Asked

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHORTEST_COMMIT = 7
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)", re.ASCII)


@dataclass(frozen=True)
class PackedFile:
    """A file that models become in a bundle.

    Args:
        path: Its name there.
        content: Its bytes.
        sha256: Their hash.
        what: What it is, in words.
    """

    path: str
    content: Content
    sha256: str
    what: str


@dataclass(frozen=True)
class PackedModels:
    """Models, ready to be written into a bundle.

    Args:
        files: What they become.
        items: What the bundle's manifest says of them.
        lines: What its table of contents says of them.
        rows: What a table of the run says of them.
    """

    files: tuple[PackedFile, ...]
    items: tuple[dict[str, Any], ...]
    lines: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


def find_models(entries: Sequence[str], models_dir: str) -> tuple[FoundModel, ...]:
    """Find models on this machine; what of them is not proven is hashed.

    Args:
        entries: Each `organisation/name` or `organisation/name@commit`, as fetched into
            the folder of models, or a folder: that of a revision, or any other one with a
            model's files.
        models_dir: The folder of models here.

    Returns:
        The models, each once, in the order of the entries.

    Raises:
        SeveralFailures: What was not found, or is not what it was when it was proven.
    """
    root = Path(models_dir).expanduser().absolute()
    found = collect(lambda entry: _find(entry.strip(), root), entries, name=str, at_once=1)
    if found.failures:
        raise SeveralFailures(found.failures, "models")
    once = {label_of(model.record.revision): model for model in found.results}
    return tuple(once.values())


def pack_models(plan: Sequence[PackedModel]) -> PackedModels:
    """Gather models for a bundle.

    Args:
        plan: What goes in.
    """
    items = items_of(plan)
    about = describe_files(parse_items(items, "bundle.json"))
    known = {path: path.rpartition("/")[2] for path in about if path.startswith("models/")}
    return PackedModels(
        tuple(
            PackedFile(path, content, known.get(path) or content.sha256(), about.get(path, ""))
            for path, content in files_of(plan).items()
        ),
        tuple(items),
        lines_of(plan),
        tuple(rows_of(plan)),
    )


@task(task_run_name="look at {model} in {root}", cache_policy=NO_CACHE, **retrying(retries=2))
def look_in(root: str, model: str) -> HostModel:
    """Read what this machine has of a model.

    Args:
        root: The folder of models, absolute.
        model: The model's name.

    Raises:
        CrossgapError: As for `read_host_model`.
    """
    return read_host_model(LocalHost(), root, model)


def _find(entry: str, root: Path) -> FoundModel:
    asked = Asked(entry)
    if not asked.is_folder:
        name, _, commit = entry.partition("@")
        return _find_revision(root, check_model(name), commit)
    folder = asked.folder.resolve()
    if _COMMIT.fullmatch(folder.name) and (folder / MANIFEST).is_file():
        record = read_record(folder.parent, folder.name)
        name = record.revision.model if record else "/".join(folder.parts[-3:-1])
        return _find_revision(folder.parents[len(name.split("/"))], name, folder.name)
    record = steps.hash_folder(str(folder), folders.list_folder(folder), manifest=False)
    # Where it lies here is nobody's business on the far side.
    revision = replace(record.revision, asked=record.revision.commit)
    check_name(revision.model)
    return FoundModel(replace(record, revision=revision), folder)


def _find_revision(root: Path, name: str, commit: str) -> FoundModel:
    there = look_in(str(root), name)
    return _proven(there, _chosen(there, commit))


def _chosen(there: HostModel, asked: str) -> str:
    """Return the one revision that is meant: a commit, or the beginning of one."""
    if not asked and there.current in there.revisions:
        return there.current
    known = [commit for commit in there.revisions if commit.startswith(asked)]
    if asked and len(known) == 1 and len(asked) >= _SHORTEST_COMMIT:
        return known[0]
    here = ", ".join(sorted(there.revisions)) or "none of its revisions"
    what = f"its revision {asked!r} is not here" if asked else "no revision of it is current here"
    raise NotFound(
        what,
        there.folder,
        f"There is {here}. Bring it here by fetch-model, name models_dir or the folder that it "
        "is in, or write organisation/name@commit.",
    )


def _proven(there: HostModel, commit: str) -> FoundModel:
    """Return a revision whose files all are what its manifest says."""
    folder = Path(there.folder) / commit
    files = _listed(there, commit, folder)
    held = there.revisions[commit]
    unproven = [file for file in files if held[file.path].sha256 != file.sha256]
    if unproven:
        fresh = [ModelFile(file.path, file.size) for file in unproven]
        hashed = steps.hash_folder(str(folder), fresh, manifest=False).revision.files
        found = {file.path: file.sha256 for file in hashed}
        wrong: list[CrossgapError] = [
            Damaged(
                f"{file.path} is not what it was when it was proven",
                str(folder),
                "Fetch the model again: only that file is fetched.",
            )
            for file in unproven
            if found[file.path] != file.sha256
        ]
        if wrong:
            raise SeveralFailures(wrong, str(folder))
    return FoundModel(_record(there, commit, files), folder)


def _listed(there: HostModel, commit: str, folder: Path) -> tuple[ModelFile, ...]:
    """Return what a revision's manifest lists, with the sizes that the files have."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFound("its manifest is missing", str(path), "Fetch the model again.")
    with local_errors(path):
        text = path.read_text("utf-8", "surrogateescape")
    sums = {match[2]: match[1] for line in text.split("\n") if (match := _SUM.fullmatch(line))}
    held = there.revisions[commit]
    missing = sorted(set(sums) - set(held))
    if missing or not sums:
        raise NotFound(
            f"{missing[0]} is missing" if missing else "its manifest lists nothing",
            str(folder),
            "Fetch the model again: only what is missing is fetched.",
        )
    listed = (ModelFile(path, held[path].size, sha256) for path, sha256 in sums.items())
    return check_files(listed, str(folder))


def _record(there: HostModel, commit: str, files: Sequence[ModelFile]) -> Record:
    """Return what is known of a revision: what a hub said, or only what lies there."""
    folder = Path(there.folder)
    record = read_record(folder, commit)
    if record is None:
        revision = Revision(check_name(there.model), commit, commit, tuple(files))
        return Record(revision, compared=False)
    git = {file.path: file.git_sha1 for file in record.revision.files}
    known = tuple(replace(file, git_sha1=git.get(file.path, "")) for file in files)
    asked = "main" if _is_main(folder, commit) else commit
    return replace(record, revision=replace(record.revision, asked=asked, files=known))


def _is_main(folder: Path, commit: str) -> bool:
    try:
        return recall(folder, "main").revision.commit == commit
    except NotFound:
        return False
