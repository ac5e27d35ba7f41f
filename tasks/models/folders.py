"""Folders with a model that somebody else fetched: hashed, and given a manifest.

No hub has promised anything about them: what is proven is that what arrives on hosts is
what lies here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from blocks.errors import Conflict, Damaged, InvalidInput, NotFound, SeveralFailures
from blocks.pouring import local_errors
from tasks.common.failures import collect
from tasks.models.files import MANIFEST, ModelFile, Revision, chosen_files
from tasks.models.hashing import hash_file
from tasks.models.local import HASHES_AT_ONCE, held_here
from tasks.models.records import Record
from tasks.models.tally import Tally

# What downloaders call a file that is not whole yet.
_UNFINISHED = (".aria2", ".incomplete", ".part", ".crdownload", ".tmp", ".download")


def list_folder(
    folder: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[ModelFile, ...]:
    """List the files of a folder, hidden ones and our own manifest left out.

    Args:
        folder: The folder.
        include: Patterns of files; none for all.
        exclude: Patterns of files to leave out.

    Raises:
        NotFound: There is no such folder, or nothing is in it.
        InvalidInput: Nothing fits the patterns, or a name cannot be kept in a manifest.
        Conflict: A download into it has not ended.
    """
    if not folder.is_dir():
        raise NotFound(
            "there is no such folder on the worker's machine",
            str(folder),
            "Give a folder with a model's files, or a name such as Qwen/Qwen3-8B.",
        )
    with local_errors(folder):
        files = tuple(_files_in(folder))
    return check_names(files, include, exclude, str(folder))


def check_names(
    files: Sequence[ModelFile], include: Sequence[str], exclude: Sequence[str], where: str
) -> tuple[ModelFile, ...]:
    """Choose files of a folder, if all of them are whole and can be kept in a manifest.

    Args:
        files: All its files.
        include: Patterns of files; none for all.
        exclude: Patterns of files to leave out.
        where: The folder.

    Raises:
        NotFound: There are none.
        InvalidInput: Nothing fits the patterns, or a name cannot be kept in a manifest.
        Conflict: A download into it has not ended.
    """
    if not files:
        raise NotFound("there is no file in it", where, "Give the folder with the files.")
    for file in files:
        if file.path.endswith(_UNFINISHED):
            raise Conflict(
                f"{file.path} is a download that has not ended",
                where,
                "Let it end, or remove that file.",
            )
        if not file.path.isprintable() or "\\" in file.path:
            raise InvalidInput(
                f"the name {file.path!r} has control characters or backslashes",
                where,
                "Rename it: such names cannot be kept in a manifest.",
            )
    return chosen_files(files, include, exclude, where)


def _files_in(folder: Path) -> Iterator[ModelFile]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not hidden and inside.as_posix() != MANIFEST:
            yield ModelFile(inside.as_posix(), path.stat().st_size)


def hash_folder(
    folder: Path, files: Sequence[ModelFile], tally: Tally, *, manifest: bool = True
) -> Record:
    """Hash the files of a folder, and write their manifest into it.

    Args:
        folder: The folder.
        files: The files.
        tally: Is told how far it has come.
        manifest: Whether to write it.

    Returns:
        What there is: its name is made of the folder's, its commit of the hashes.

    Raises:
        SeveralFailures: Files that could not be read, or that changed meanwhile.
        PermissionRefused: The manifest cannot be written.
    """

    def hashed(file: ModelFile) -> ModelFile:
        path = folder / file.path
        with local_errors(path):
            before = held_here(path, file)
            found = hash_file(path, file)
            after = held_here(path, file)
        if not before.is_as(after):
            raise Damaged(
                "it changed while it was hashed",
                str(path),
                "Let whatever writes to it finish, then start again.",
            )
        tally.there(file.size)
        tally.done()
        return found

    done = collect(hashed, files, name=lambda file: file.path, at_once=HASHES_AT_ONCE)
    if done.failures:
        raise SeveralFailures(done.failures, str(folder))
    record, text = named_by_content(folder.resolve().name, str(folder), done.results)
    if manifest:
        _write(folder / MANIFEST, text)
    return record


def named_by_content(name: str, asked: str, files: Sequence[ModelFile]) -> tuple[Record, bytes]:
    """Make a revision of files that no hub knows.

    Args:
        name: The folder's.
        asked: The folder as it was asked for.
        files: Its files, with their SHA-256.

    Returns:
        The revision, whose commit is made of the hashes, and its manifest.
    """
    text = "".join(f"{file.sha256}  {file.path}\n" for file in files).encode()
    commit = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    revision = Revision(f"local/{name}", asked, commit, tuple(files))
    return Record(revision, compared=False), text


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    with local_errors(path):
        if path.is_file() and path.read_bytes() == content:
            return
        beside.write_bytes(content)
        beside.replace(path)
