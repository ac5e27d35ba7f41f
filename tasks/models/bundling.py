"""Models in a bundle: which files go in, under which names, and back again. Pure.

Files lie in a bundle by their SHA-256, each once, however many models have it. For
`load.sh` there is a list of the models in `load/models`, and the manifest of each in
`load/model-NNN.sums`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.content import Content, FileRange
from blocks.errors import CrossgapError, Damaged, InvalidInput, NotFound
from tasks.common.units import bytes_text
from tasks.models.files import OWN_FOLDER, ModelFile, Revision, check_commit, check_files
from tasks.models.records import Record
from tasks.models.remote_plan import Delivery

KIND = "models"
"""The kind of content that models are in a bundle's manifest."""

_TABLE = "load/models"
_NAMED = 3
_LONGEST_NAME = 200


@dataclass(frozen=True)
class BundledModel:
    """What a bundle, or a site's inventory, says of a model.

    Args:
        record: The revision, every file with its SHA-256.
        carried: The hashes of those whose bytes are in the bundle.
    """

    record: Record
    carried: frozenset[str] = frozenset()

    @property
    def revision(self) -> Revision:
        """The revision."""
        return self.record.revision

    def item(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        revision = self.revision
        return {
            "name": revision.model,
            "commit": revision.commit,
            "asked": revision.asked,
            "endpoint": revision.endpoint,
            "compared": self.record.compared,
            "files": [
                {
                    "path": file.path,
                    "size": file.size,
                    "sha256": file.sha256,
                    "git_sha1": file.git_sha1,
                    "carried": file.sha256 in self.carried,
                }
                for file in revision.files
            ],
        }


@dataclass(frozen=True)
class FoundModel:
    """A model on this machine, every file proven.

    Args:
        record: The revision, every file with its SHA-256.
        folder: Where its files lie.
    """

    record: Record
    folder: Path


@dataclass(frozen=True)
class PackedModel:
    """What of a model goes into a bundle.

    Args:
        found: The model.
        carried: The hashes of the files that are in the bundle, for this or another model.
    """

    found: FoundModel
    carried: frozenset[str]

    @property
    def revision(self) -> Revision:
        """The revision."""
        return self.found.record.revision


@dataclass(frozen=True)
class CarriedModel:
    """A model of a bundle, ready to be delivered from it.

    Args:
        record: The revision.
        folder: The bundle.
        contents: The files whose bytes are in the bundle, by their SHA-256.
    """

    record: Record
    folder: Path
    contents: Mapping[str, Content]

    @property
    def revision(self) -> Revision:
        """The revision."""
        return self.record.revision


def label_of(revision: Revision) -> str:
    """Name a revision in tables and sentences."""
    return f"{revision.model}@{revision.commit[:12]}"


def check_name(name: str) -> str:
    """Return the name of a model if it can be that of folders everywhere.

    Args:
        name: `organisation/name`, or one of the old names without an organisation; that
            of a folder may be in any language.

    Raises:
        InvalidInput: It leads elsewhere, or cannot be written.
    """
    parts = name.split("/")
    sound = len(parts) in (1, 2) and all(
        part not in ("", ".", "..", OWN_FOLDER)
        and part.isprintable()
        and part.strip() == part
        and "\\" not in part
        and len(part.encode("utf-8", "surrogateescape")) <= _LONGEST_NAME
        for part in parts
    )
    if not sound:
        raise InvalidInput(
            "it cannot be the name of a model's folder",
            f"model {name[:_LONGEST_NAME]!r}",
            "Rename the folder: no blanks around it, no control characters, no backslashes.",
        )
    return name


def parse_items(items: Iterable[Mapping[str, Any]], where: str) -> tuple[BundledModel, ...]:
    """Read what a bundle or an inventory says of models.

    Args:
        items: As JSON has them.
        where: The file, for errors.

    Raises:
        Damaged: They are not what this module writes.
    """
    try:
        return tuple(_parse_item(item, where) for item in items)
    except (KeyError, TypeError, ValueError, AttributeError, CrossgapError) as error:
        raise Damaged(
            "what it says of its models cannot be read",
            where,
            "Take another copy of it, or make it anew.",
        ) from error


def plan_packing(
    models: Sequence[FoundModel], known: Sequence[BundledModel]
) -> tuple[PackedModel, ...]:
    """Decide which files go into a bundle.

    A file may be left out where the far side has its bytes in a revision of the same
    model: there they are linked, which they are not from one model to another.

    Args:
        models: What is wanted.
        known: What the far side has.
    """
    there: dict[str, set[str]] = {}
    for one in known:
        hashes = {file.sha256 for file in one.revision.files}
        there.setdefault(one.revision.model, set()).update(hashes)
    carried = frozenset(
        file.sha256
        for model in models
        for file in model.record.revision.files
        if file.sha256 not in there.get(model.record.revision.model, ())
    )
    return tuple(PackedModel(model, carried & _hashes(model)) for model in models)


def rows_of(plan: Sequence[PackedModel]) -> list[dict[str, Any]]:
    """Say model by model what goes into a bundle, for tables.

    Args:
        plan: What goes in.

    Returns:
        Per model its name, how many of its files are carried and how many left out, and
        the bytes of those that no model before it brings.
    """
    seen: set[str] = set()
    rows = []
    for packed in plan:
        files = [file for file in packed.revision.files if file.sha256 in packed.carried]
        new = {file.sha256: file.size for file in files if file.sha256 not in seen}
        rows.append(
            {
                "name": label_of(packed.revision),
                "carried": len(files),
                "left_out": len(packed.revision.files) - len(files),
                "size": sum(new.values()),
            }
        )
        seen.update(new)
    return rows


def lines_of(plan: Sequence[PackedModel]) -> tuple[str, ...]:
    """Say model by model what is in a bundle, for its table of contents."""
    if not plan:
        return ()
    lines = []
    for packed, row in zip(plan, rows_of(plan), strict=True):
        lines += [packed.revision.model, f"    commit {packed.revision.commit}"]
        text = f"    {row['carried']} files, {bytes_text(row['size'])}"
        if row["left_out"]:
            text += f"; {row['left_out']} files are left out, as the far side has them"
        lines.append(text)
    return (*lines, "Without crossgap they are written by: sh load.sh models FOLDER")


def items_of(plan: Sequence[PackedModel]) -> list[dict[str, Any]]:
    """Return what a bundle's manifest says of its models."""
    return [BundledModel(packed.found.record, packed.carried).item() for packed in plan]


def files_of(plan: Sequence[PackedModel]) -> dict[str, Content]:
    """Return the files of a bundle that holds some models, by path."""
    files: dict[str, Content] = {}
    table = []
    for number, packed in enumerate(plan, 1):
        revision = packed.revision
        table.append(f"{number:03d} {revision.commit} {revision.model}\n")
        sums = "".join(f"{file.sha256}  {file.path}\n" for file in revision.files)
        files[_sums_path(number)] = Content((sums.encode("utf-8", "surrogateescape"),))
        for file in revision.files:
            if file.sha256 in packed.carried:
                place = FileRange(packed.found.folder / file.path, 0, file.size)
                files[content_path(file.sha256)] = Content((place,))
    if table:
        files[_TABLE] = Content(("".join(table).encode(),))
    return files


def describe_files(models: Sequence[BundledModel]) -> dict[str, str]:
    """Say what the files of a bundle are, by path, for errors that name them."""
    about: dict[str, str] = {}
    for number, model in enumerate(models, 1):
        about[_sums_path(number)] = f"manifest of {model.revision.model}"
        for file in model.revision.files:
            about.setdefault(
                content_path(file.sha256), f"{file.path} of {label_of(model.revision)}"
            )
    return about


def content_path(sha256: str) -> str:
    """Return where a bundle has the file of this hash."""
    return f"models/sha256/{sha256}"


def open_models(
    models: Sequence[BundledModel], content: Callable[[str], Content | None], folder: Path
) -> tuple[CarriedModel, ...]:
    """Find the models in a bundle that was verified.

    Args:
        models: What its manifest says of them.
        content: Gives a file of the bundle by path, None where there is none.
        folder: The bundle.

    Raises:
        Damaged: The manifest contradicts the files.
    """
    opened = []
    for model in models:
        contents: dict[str, Content] = {}
        for file in model.revision.files:
            if file.sha256 not in model.carried:
                continue
            found = content(content_path(file.sha256))
            if found is None or found.size != file.size:
                raise Damaged(
                    f"its manifest lists no file {content_path(file.sha256)} of {file.size:,} "
                    f"bytes, which has to hold {file.path} of {label_of(model.revision)}",
                    str(folder),
                    "Do not use this bundle: it was not made by crossgap, or was altered.",
                )
            contents[file.sha256] = found
        opened.append(CarriedModel(model.record, folder, contents))
    return tuple(opened)


def lacking_base(model: CarriedModel, plan: Delivery, base: str) -> CrossgapError | None:
    """Return what is wrong when neither a host nor the bundle has a file; None if all is there.

    Args:
        model: A model of the bundle.
        plan: What is to be done on the host.
        base: What the bundle builds on, in words.
    """
    absent = [send.file.path for send in plan.sends if send.file.sha256 not in model.contents]
    if not absent:
        return None
    shown = ", ".join(absent[:_NAMED])
    more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    return NotFound(
        f"{label_of(model.revision)} needs the files {shown}{more}, which are neither in "
        f"{plan.there.folder}, proven, nor in the bundle",
        plan.there.host,
        f"The bundle only carries what is new since {base or 'an earlier one'}: bring that and "
        "unpack it first, or have a bundle packed with the inventory of this host, or without "
        "since. Nothing of this model was sent.",
    )


def _hashes(model: FoundModel) -> frozenset[str]:
    return frozenset(file.sha256 for file in model.record.revision.files)


def _sums_path(number: int) -> str:
    return f"load/model-{number:03d}.sums"


def _parse_item(item: Mapping[str, Any], where: str) -> BundledModel:
    files = [
        ModelFile(
            _text(one["path"]), int(one["size"]), _text(one["sha256"]), _text(one["git_sha1"])
        )
        for one in item["files"]
    ]
    if not all(file.sha256 for file in files):
        raise ValueError(item["name"])
    revision = Revision(
        model=check_name(_text(item["name"])),
        asked=_text(item["asked"]),
        commit=check_commit(_text(item["commit"]), where),
        files=check_files(files, where),
        endpoint=_text(item["endpoint"]),
    )
    carried = frozenset(one["sha256"] for one in item["files"] if one["carried"] is True)
    return BundledModel(Record(revision, item["compared"] is True), carried)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
