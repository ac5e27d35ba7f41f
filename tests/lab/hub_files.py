"""Models as the lab's hub keeps them: commits made of folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

LFS_NAMES = ("*.safetensors", "*.bin", "*.gguf", "*tokenizer.model")


@dataclass(frozen=True)
class HubFile:
    """One file of a commit.

    Attributes:
        path: Where it is in the model's folder.
        size: Bytes.
        sha256: Of its content.
        git_sha1: What git calls it, or the pointer that git has in place of a large file.
        pointer_size: Bytes of that pointer; None for a file that git has itself.
        content: Where its bytes are.
    """

    path: str
    size: int
    sha256: str
    git_sha1: str
    pointer_size: int | None
    content: Path

    @property
    def lfs(self) -> bool:
        """Whether git has only a pointer to it."""
        return self.pointer_size is not None

    @property
    def etag(self) -> str:
        """What the hub calls its content."""
        return f'"{self.sha256 if self.lfs else self.git_sha1}"'

    @property
    def quoted(self) -> str:
        """Its path as it is written in a URL."""
        return quote(self.path)


@dataclass(frozen=True)
class Commit:
    """A model at one moment.

    Attributes:
        id: 40 hexadecimal digits; the same files give the same.
        files: By their paths, in their order.
    """

    id: str
    files: Mapping[str, HubFile]

    @property
    def modelscope_id(self) -> str:
        """Another id: ModelScope keeps repositories of its own."""
        return hashlib.sha1(f"modelscope {self.id}".encode()).hexdigest()


@dataclass
class HubModel:
    """A model with its history.

    Attributes:
        name: `organisation/name`, or a name alone.
        gated: Whether its files are for those only whom its owners let in.
        private: Whether others do not even see it.
        branches: What each stands at.
        commits: All that ever were.
    """

    name: str
    gated: bool = False
    private: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a ref or a commit's id stands for."""
        name = revision.removeprefix("refs/heads/")
        return self.branches.get(name) or self.commits.get(revision)

    def find_on_modelscope(self, revision: str) -> Commit | None:
        """Return a commit as ModelScope names it: its main branch is `master`."""
        if commit := self.branches.get("main" if revision == "master" else revision):
            return commit
        own = {commit.modelscope_id: commit for commit in self.commits.values()}
        return own.get(revision)


def make_commit(
    folder: Path, *, lfs_above: int, hashes: Mapping[str, str], store: Path | None
) -> Commit:
    """Make a commit of a folder's files.

    Args:
        folder: The files.
        lfs_above: Files larger than this many bytes are not kept by git itself, nor are those
            that have the names of weights.
        hashes: SHA-256 of large files by their paths, where they are known.
        store: Where copies of the files go; without it they have to stay as they are.
    """
    files = {}
    for content in sorted(path for path in folder.rglob("*") if path.is_file()):
        path = content.relative_to(folder).as_posix()
        files[path] = _make_file(path, content, lfs_above, hashes.get(path, ""), store)
    listing = [[file.path, file.git_sha1] for file in files.values()]
    return Commit(hashlib.sha1(json.dumps(listing).encode()).hexdigest(), files)


def _make_file(path: str, content: Path, lfs_above: int, known: str, store: Path | None) -> HubFile:
    size = content.stat().st_size
    sha256 = known or _sha256(content)
    lfs = size > lfs_above or any(fnmatchcase(path, name) for name in LFS_NAMES)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    kept = pointer.encode() if lfs else content.read_bytes()
    git_sha1 = hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()
    if store:
        copy = store / sha256
        if not copy.exists():
            shutil.copyfile(content, copy)
        content = copy
    return HubFile(path, size, sha256, git_sha1, len(kept) if lfs else None, content)


def _sha256(content: Path) -> str:
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
