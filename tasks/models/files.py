"""What a revision of a model consists of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from blocks.errors import Damaged, InvalidInput

MANIFEST = "SHA256SUMS"
"""The file of a model's folder that `sha256sum -c` reads."""

OWN_FOLDER = ".crossgap"
"""Where we keep, beside a model's revisions, what is ours."""

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True)
class ModelFile:
    """One file of a revision.

    Args:
        path: Where it is in the model's folder, its parts parted by "/".
        size: Bytes.
        sha256: In hexadecimal; empty for a small file that the hub knows by git only.
        git_sha1: Of the file as a git blob, in hexadecimal; empty for a large file.
    """

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def key(self) -> str:
        """What two files of the same bytes have in common, also in two revisions."""
        return f"sha256-{self.sha256}" if self.sha256 else f"git-{self.git_sha1}"


@dataclass(frozen=True)
class Revision:
    """A model as it was at one commit.

    Args:
        model: `organisation/name`.
        asked: The branch, tag or commit that was asked for.
        commit: 40 hexadecimal digits.
        files: All its files, or those that were chosen.
        endpoint: Who said so; empty for what was proven here before.
    """

    model: str
    asked: str
    commit: str
    files: tuple[ModelFile, ...]
    endpoint: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def check_commit(commit: str, where: str) -> str:
    """Return a commit if it is one.

    Raises:
        Damaged: It is not 40 hexadecimal digits.
    """
    if not _COMMIT.fullmatch(commit):
        raise Damaged(f"it names {commit[:50]!r} as the commit, which is none", where)
    return commit


def check_files(files: Iterable[ModelFile], where: str) -> tuple[ModelFile, ...]:
    """Return a hub's files if all can be fetched, proven and kept inside a folder.

    Args:
        files: What a hub lists.
        where: The model and the hub.

    Raises:
        Damaged: A name leaves the folder or cannot be written, two files have one name,
            or a file comes without size or without hash.
    """
    checked = tuple(sorted(files, key=lambda file: file.path))
    names: set[str] = set()
    for file in checked:
        if problem := _problem(file, names):
            raise Damaged(
                f"{problem} ({file.path[:200]!r})",
                where,
                "The repository, or what the mirror makes of it, cannot be trusted: look at its "
                "file list in a browser, or take another mirror.",
            )
        names.add(file.path)
    return checked


def _problem(file: ModelFile, before: set[str]) -> str:
    parts = file.path.split("/")
    if not file.path or any(part in ("", ".", "..") for part in parts):
        return "it lists a file whose name leads out of the folder"
    if any(not character.isprintable() or character == "\\" for character in file.path):
        return "it lists a file whose name has control characters or backslashes"
    if any(len(part.encode("utf-8", "surrogateescape")) > 200 for part in parts):
        return "it lists a file whose name is longer than a disk takes"
    if parts[0] in (OWN_FOLDER, MANIFEST):
        return "it lists a file by a name that is used for the proof"
    if file.path in before:
        return "it lists a file twice"
    if file.size < 0 or not (
        re.fullmatch("[0-9a-f]{64}", file.sha256) or re.fullmatch("[0-9a-f]{40}", file.git_sha1)
    ):
        return "it lists a file without size or hash, which cannot be proven"
    return ""


def chosen_files(
    files: Sequence[ModelFile], include: Sequence[str], exclude: Sequence[str], where: str
) -> tuple[ModelFile, ...]:
    """Choose files as `hf download --include --exclude` does.

    Args:
        files: All files of a revision.
        include: Patterns such as `*.safetensors`, or folders ending in "/"; none for all files.
        exclude: Patterns of files to leave out.
        where: The model, for errors.

    Raises:
        InvalidInput: Nothing is left.
    """
    chosen = tuple(
        file
        for file in files
        if (not include or _fits(file.path, include)) and not _fits(file.path, exclude)
    )
    if not chosen:
        raise InvalidInput(
            f"none of its {len(files)} files fits 'include' and 'exclude'",
            where,
            f"It has {_some(files)}.",
        )
    return chosen


def _fits(path: str, patterns: Sequence[str]) -> bool:
    whole = (pattern + "*" if pattern.endswith("/") else pattern for pattern in patterns)
    return any(fnmatchcase(path, pattern) for pattern in whole)


def _some(files: Sequence[ModelFile], most: int = 12) -> str:
    shown = ", ".join(file.path for file in files[:most])
    return f"{shown} and {len(files) - most} more" if len(files) > most else shown or "no files"
