"""What is to be done on a host so that it has a revision; and which ones may go. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

from blocks.errors import Conflict, DiskFull
from tasks.common.units import bytes_text
from tasks.models.files import MANIFEST, OWN_FOLDER, ModelFile, Revision
from tasks.models.remote_facts import Files, HeldFile, HostModel, proven

SMALL = 4 << 20
"""Bytes up to which files travel together, in a pack."""

PACK = 16 << 20
"""Bytes of a pack, which are on the disk twice while it is unpacked."""

STREAMS = 4
"""How much is done at once on one host."""

# File systems give room in blocks of this size.
_BLOCK = 4096


@dataclass(frozen=True)
class Keep:
    """A file that is there and proven.

    Args:
        file: The file, with its SHA-256.
        in_view: Whether it is in the revision's folder, or among what has arrived.
    """

    file: ModelFile
    in_view: bool


@dataclass(frozen=True)
class Prove:
    """A file that is there, but has to be hashed before it counts.

    Args:
        file: The file, with the SHA-256 that it should have.
        folder: The folder of the revision that it lies in, below that of the model.
    """

    file: ModelFile
    folder: str


@dataclass(frozen=True)
class Link:
    """A file whose bytes are there, proven, under another name.

    Args:
        file: The file.
        source: That other name, below the model's folder.
        held: What is proven of it.
    """

    file: ModelFile
    source: str
    held: HeldFile


@dataclass(frozen=True)
class Send:
    """A file that has to travel, unless its hash, once known, says otherwise.

    Args:
        file: The file; its SHA-256 is not known of one that has never been hashed here.
        there: How many bytes of it have arrived in an earlier run.
    """

    file: ModelFile
    there: int = 0


Action = Keep | Prove | Link | Send


@dataclass(frozen=True)
class Placement:
    """Finds out how a host can come to have the files of a revision.

    Args:
        there: What it has.
        commit: The revision.
    """

    there: HostModel
    commit: str

    @property
    def in_view(self) -> Files:
        """The files of this revision that are in view."""
        return self.there.revisions.get(self.commit, {})

    @property
    def incoming(self) -> Files:
        """Those that have arrived and are not."""
        return self.there.incoming.get(self.commit, {})

    @property
    def incoming_folder(self) -> str:
        """Where files of this revision arrive, below the model's folder."""
        return f"{OWN_FOLDER}/incoming/{self.commit}"

    def action(self, file: ModelFile) -> Action:
        """Return what is to be done for one file."""
        places = ((self.in_view, self.commit, True), (self.incoming, self.incoming_folder, False))
        for files, _, in_view in places:
            held = files.get(file.path)
            # The same name in the same revision: whoever proved it knew its hash.
            is_proven = held and held.sha256 and held.size == file.size
            if held and is_proven and held.sha256 == (file.sha256 or held.sha256):
                return Keep(replace(file, sha256=held.sha256), in_view)
        if not file.sha256:
            return Send(file)
        if found := self._sources.get(file.sha256):
            return Link(file, *found)
        for files, folder, _ in places:
            held = files.get(file.path)
            if held and not held.sha256 and held.size == file.size:
                return Prove(file, folder)
        part = self.incoming.get(part_path(file))
        return Send(file, min(part.size, file.size) if part else 0)

    @cached_property
    def _sources(self) -> dict[str, tuple[str, HeldFile]]:
        """What is proven there, by its hash."""
        found: dict[str, tuple[str, HeldFile]] = {}
        folders = {self.incoming_folder: self.incoming, **self.there.revisions}
        for folder, files in folders.items():
            for path, held in proven(files).items():
                found[held.sha256] = (f"{folder}/{path}", held)
        return found


@dataclass(frozen=True)
class Delivery:
    """What is to be done so that a host has a revision.

    Args:
        revision: The revision.
        there: What the host has of the model.
        actions: One per file, in the revision's order.
    """

    revision: Revision
    there: HostModel
    actions: tuple[Action, ...]

    @property
    def placement(self) -> Placement:
        """What finds out what is to be done for a file."""
        return Placement(self.there, self.revision.commit)

    @property
    def sends(self) -> tuple[Send, ...]:
        """What has to travel."""
        return tuple(action for action in self.actions if isinstance(action, Send))

    @property
    def bytes_to_send(self) -> int:
        """Bytes that have to be there in the end and are not, or only as parts."""
        return sum(send.file.size for send in self.sends)

    @property
    def room_needed(self) -> int:
        """Bytes of the disk that are needed at most at any time."""
        small = sum(send.file.size for send in self.sends if send.file.size <= SMALL)
        whole = sum(_blocks(send.file.size) - _blocks(send.there) for send in self.sends)
        return whole + min(small, STREAMS * PACK)

    @property
    def stale(self) -> tuple[str, ...]:
        """Files among what has arrived that must not take the place of others, by path."""
        placement = self.placement
        used = {
            action.file.path
            for action in self.actions
            if (isinstance(action, Keep) and not action.in_view)
            or (isinstance(action, Prove) and action.folder == placement.incoming_folder)
        }
        wanted = {file.path for file in self.revision.files}
        return tuple(path for path in placement.incoming if path in wanted and path not in used)

    @property
    def is_done(self) -> bool:
        """Whether all is as it should be: files, manifest and link."""
        if self.there.current != self.revision.commit:
            return False
        if not all(isinstance(action, Keep) and action.in_view for action in self.actions):
            return False
        held = self.placement.in_view.get(MANIFEST)
        text = manifest_of({action.file.path: action.file.sha256 for action in self.actions}, self)
        return held is not None and held.sha256 == sha256(text.encode()).hexdigest()


def plan_delivery(revision: Revision, there: HostModel) -> Delivery:
    """Plan what has to be done so that a host has a revision, in view and current.

    Args:
        revision: The revision with the files that are wanted there.
        there: What the host has of its model.

    Raises:
        Conflict: Something else stands where the revision belongs.
        DiskFull: There is not room enough for what has to be sent.
    """
    _check_way(revision, there)
    placement = Placement(there, revision.commit)
    delivery = Delivery(revision, there, tuple(placement.action(file) for file in revision.files))
    needed, free = delivery.room_needed, there.disk.free
    if delivery.sends and needed > free:
        raise DiskFull(
            f"{there.folder} needs {bytes_text(needed)} but {there.disk.mount} has "
            f"{bytes_text(free)} free",
            there.host,
            "Free space there, remove old revisions ('prune_revisions'), or set the block's "
            "models_dir to a larger disk.",
        )
    return delivery


def manifest_of(sums: Mapping[str, str], delivery: Delivery) -> str:
    """Return the manifest of a revision as it will be.

    Args:
        sums: The SHA-256 of the files that were delivered, by path.
        delivery: What else is proven there, from an earlier choice of files, stays in it.
    """
    others = {path: held.sha256 for path, held in proven(delivery.placement.in_view).items()}
    every = {path: found for path, found in {**others, **sums}.items() if path != MANIFEST}
    return "".join(f"{every[path]}  {path}\n" for path in sorted(every))


def part_path(file: ModelFile) -> str:
    """Return where `Host.put` keeps what has arrived of a file, beside it."""
    folder, name = posixpath.split(file.path)
    return posixpath.join(folder, f".{name}.{file.sha256[:16]}.part")


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _check_way(revision: Revision, there: HostModel) -> None:
    folder = there.folder
    ways = {f"{folder}/{name}" for name in ("current", OWN_FOLDER, revision.commit)}
    for path, what in there.occupied.items():
        if path in ways or folder == path or folder.startswith(f"{path}/"):
            raise Conflict(
                f"{path} is {what}, and stands where {revision.model} belongs",
                there.host,
                "Move it away by hand, or choose another destination; it is not overwritten.",
            )


@dataclass(frozen=True)
class Removal:
    """Which revisions of a model go from a host, and which stay though nobody asked for them.

    Args:
        commits: Those that go, with what had arrived of others.
        freed: Bytes that this frees.
        left: Why the others stay, by commit.
    """

    commits: tuple[str, ...]
    freed: int
    left: Mapping[str, str]


def plan_removal(there: HostModel, keep: Collection[str]) -> Removal:
    """Choose the revisions that can go: ours, complete with all that lies in them.

    Args:
        there: What the host has of the model.
        keep: Commits that stay; what `current` points to stays in any case.
    """
    left: dict[str, str] = {}
    going: dict[str, list[HeldFile]] = {}
    for commit in sorted({*there.revisions, *there.incoming} - {*keep, there.current}):
        files = there.revisions.get(commit, {})
        strange = [held.path for held in files.values() if not held.ours]
        if strange:
            left[commit] = f"it has files that crossgap did not bring, such as {strange[0]}"
        elif f"{there.folder}/{commit}" in there.occupied:
            left[commit] = "its name is that of something else"
        else:
            going[commit] = [*files.values(), *there.incoming.get(commit, {}).values()]
    staying = {
        held.inode
        for held_by in (there.revisions, there.incoming)
        for commit, files in held_by.items()
        if commit not in going
        for held in files.values()
    }
    freed = {held.inode: held.size for files in going.values() for held in files}
    return Removal(
        tuple(going), sum(size for inode, size in freed.items() if inode not in staying), left
    )
