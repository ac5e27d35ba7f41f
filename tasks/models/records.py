"""What a hub said of a model's revisions, kept beside them.

By these a revision that is here can be delivered when no hub is within reach, and a new
one finds out which of its files an older one has.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from blocks.errors import Damaged, NotFound
from blocks.pouring import local_errors
from tasks.models.files import OWN_FOLDER, ModelFile, Revision, check_commit, check_files


@dataclass(frozen=True)
class Record:
    """A revision that a hub listed, or a folder that was hashed.

    Args:
        revision: With all its files, not only those that were chosen.
        compared: Whether a hub promised the hashes.
    """

    revision: Revision
    compared: bool = True


def save_record(model_folder: Path, record: Record) -> None:
    """Keep what a hub said, and which commit a branch or tag is now.

    Args:
        model_folder: The folder of the model, in which its revisions lie.
        record: What it said.

    Raises:
        DiskFull: There is no room.
        PermissionRefused: The folder cannot be written.
    """
    revision = record.revision
    content = {
        "model": revision.model,
        "commit": revision.commit,
        "endpoint": revision.endpoint,
        "compared": record.compared,
        "files": [asdict(file) for file in revision.files],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    with local_errors(model_folder):
        _write(_record_path(model_folder, revision.commit), text)
        _write(_name_path(model_folder, revision.asked), revision.commit + "\n")


def read_record(model_folder: Path, commit: str, asked: str = "") -> Record | None:
    """Return what is kept of a commit; None where nothing sound is.

    Args:
        model_folder: The folder of the model.
        commit: The commit.
        asked: The branch or tag by which it was found.
    """
    try:
        content: Any = json.loads(_record_path(model_folder, commit).read_text("utf-8"))
        files = [ModelFile(**file) for file in content["files"]]
        revision = Revision(
            model=str(content["model"]),
            asked=asked or commit,
            commit=check_commit(str(content["commit"]), str(model_folder)),
            files=check_files(files, str(model_folder)),
            endpoint=str(content["endpoint"]),
        )
        return Record(revision, bool(content["compared"]))
    except (OSError, ValueError, KeyError, TypeError, Damaged):
        return None


def recall(model_folder: Path, asked: str) -> Record:
    """Return what a branch, tag or commit was when a hub was last within reach.

    Args:
        model_folder: The folder of the model.
        asked: Branch, tag or commit.

    Raises:
        NotFound: No hub has said anything about it here.
    """
    try:
        commit = _name_path(model_folder, asked).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = asked
    record = read_record(model_folder, commit, asked)
    if record is None:
        raise NotFound(
            f"nothing was fetched of its revision {asked!r} yet",
            str(model_folder),
            "Fetch it once while a hub is within reach.",
        )
    return record


def records(model_folder: Path) -> dict[str, Record]:
    """Return all that is kept, by commit."""
    found = {}
    for path in (model_folder / OWN_FOLDER / "revisions").glob("*.json"):
        if record := read_record(model_folder, path.stem):
            found[path.stem] = record
    return found


def forget(model_folder: Path, commit: str) -> None:
    """Remove what is kept of a commit."""
    with local_errors(model_folder):
        _record_path(model_folder, commit).unlink(missing_ok=True)


def _record_path(model_folder: Path, commit: str) -> Path:
    return model_folder / OWN_FOLDER / "revisions" / f"{quote(commit, safe='')}.json"


def _name_path(model_folder: Path, asked: str) -> Path:
    return model_folder / OWN_FOLDER / "names" / quote(asked, safe="")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, "utf-8")
    beside.replace(path)
