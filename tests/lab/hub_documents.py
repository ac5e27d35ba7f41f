"""What the hub's and ModelScope's interfaces say of a model, as JSON has it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from tests.lab.hub_files import Commit, HubFile, HubModel

_DATE = "2026-01-02T03:04:05.000Z"


def model_info(model: HubModel, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    """Return what `/api/models/…` says.

    Args:
        model: Which.
        commit: As it is there.
        blobs: Whether its files come with sizes and hashes.
    """
    return {
        "_id": commit.id[:24],
        "id": model.name,
        "modelId": model.name,
        "author": model.name.split("/")[0],
        "sha": commit.id,
        "lastModified": _DATE,
        "createdAt": _DATE,
        "private": model.private,
        "gated": "manual" if model.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": ["safetensors"],
        "siblings": [
            {"rfilename": file.path, **(_sizes(file) if blobs else {})}
            for file in commit.files.values()
        ],
        "usedStorage": sum(file.size for file in commit.files.values()),
    }


def refs(model: HubModel) -> dict[str, Any]:
    """Return what `/api/models/…/refs` says."""
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.id}
        for name, commit in sorted(model.branches.items())
    ]
    return {"tags": [], "branches": branches, "converts": [], "pullRequests": []}


def tree(
    commit: Commit, folder: str, *, recursive: bool, expand: bool
) -> list[dict[str, Any]] | None:
    """Return the entries of `/api/models/…/tree/…`, or None for a folder that is not there."""
    folders, files = _below(commit, folder, recursive)
    entries = [*map(_folder_entry, folders), *map(_file_entry, files)]
    if expand:
        last = {"id": commit.id, "title": "Upload folder", "date": _DATE}
        entries = [{**entry, "lastCommit": last} for entry in entries]
    return entries if entries or not folder else None


def modelscope_files(commit: Commit, folder: str, *, recursive: bool) -> dict[str, Any]:
    """Return what ModelScope's `/repo/files` says."""
    folders, files = _below(commit, folder, recursive)
    entries = [
        *(_modelscope_entry(commit, path, None) for path in folders),
        *(_modelscope_entry(commit, file.path, file) for file in files),
    ]
    return modelscope_answer(200, "", {"Files": entries})


def modelscope_answer(code: int, message: str, data: object = None) -> dict[str, Any]:
    """Return an answer in ModelScope's envelope."""
    success = code == 200
    return {
        "Code": code,
        "Data": data,
        "Message": message or "success",
        "RequestId": "lab",
        "Success": success,
    }


def _below(commit: Commit, folder: str, recursive: bool) -> tuple[list[str], list[HubFile]]:
    prefix = f"{folder}/" if folder else ""
    files = [file for path, file in commit.files.items() if path.startswith(prefix)]
    folders = sorted({above for file in files for above in _folders_of(file.path, prefix)})
    if recursive:
        return folders, files
    depth = prefix.count("/")
    return (
        [path for path in folders if path.count("/") == depth],
        [file for file in files if file.path.count("/") == depth],
    )


def _folders_of(path: str, prefix: str) -> Iterator[str]:
    parts = path[len(prefix) :].split("/")
    return (prefix + "/".join(parts[:depth]) for depth in range(1, len(parts)))


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": _name_hash(path), "size": 0, "path": path}


def _file_entry(file: HubFile) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "oid": file.git_sha1,
        "size": file.size,
        "path": file.path,
    }
    if file.lfs:
        entry["lfs"] = {
            "oid": file.sha256,
            "size": file.size,
            "pointerSize": file.pointer_size,
        }
    return entry


def _sizes(file: HubFile) -> dict[str, Any]:
    sizes: dict[str, Any] = {"size": file.size, "blobId": file.git_sha1}
    if file.lfs:
        sizes["lfs"] = {
            "sha256": file.sha256,
            "size": file.size,
            "pointerSize": file.pointer_size,
        }
    return sizes


def _modelscope_entry(commit: Commit, path: str, file: HubFile | None) -> dict[str, Any]:
    return {
        "Name": path.rpartition("/")[2],
        "Path": path,
        "Type": "blob" if file else "tree",
        "Mode": "33188" if file else "16384",
        "Size": file.size if file else 0,
        "Sha256": file.sha256 if file else "",
        "IsLFS": bool(file and file.lfs),
        "InCheck": False,
        "Revision": commit.modelscope_id,
        "CommittedDate": 1767323045,
        "CommitMessage": "Upload folder",
        "CommitterName": "lab",
    }


def _name_hash(path: str) -> str:
    return hashlib.sha1(f"tree {path}".encode()).hexdigest()
