"""A revision's files onto this machine: linked, hashed or fetched, and put on record.

The folder here is laid out as those on hosts are (`tasks.models.remote_scripts`), and
brought into view by the same script.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from blocks.cancellation import current_cancellation
from blocks.errors import DiskFull, SeveralFailures
from blocks.local_host import LocalHost
from blocks.logs import logger
from blocks.pouring import local_errors
from tasks.common.failures import collect
from tasks.common.waiting import Waiting
from tasks.models import revision_folder
from tasks.models.arrivals import Arrivals
from tasks.models.fetching import Terms, Wanted, fetch_files
from tasks.models.files import OWN_FOLDER, ModelFile, Revision
from tasks.models.hashing import hash_file, is_as_promised
from tasks.models.part_file import bytes_there
from tasks.models.places import Place
from tasks.models.remote_facts import HeldFile, HostModel, read_host_model
from tasks.models.remote_plan import Delivery, Keep, Link, Prove, Send, plan_delivery
from tasks.models.tally import Tally

_LOOK_EVERY = 0.5
_PARTS = "parts"
HASHES_AT_ONCE = max(2, os.cpu_count() or 2)
"""How many files are hashed side by side: hashing keeps a processor busy each."""


def read_here(destination: Path, model: str) -> HostModel:
    """Read what this machine has of a model.

    Args:
        destination: The folder of models.
        model: `organisation/name`.

    Raises:
        CrossgapError: As for `read_host_model`.
    """
    return read_host_model(LocalHost(), str(destination), model)


def plan_here(revision: Revision, there: HostModel) -> Delivery:
    """Plan what has to be done so that this machine has a revision.

    Args:
        revision: The revision with the files that are wanted.
        there: What this machine has of its model.

    Raises:
        Conflict: Something else stands where the revision belongs.
        DiskFull: There is no room for what has not arrived yet.
    """
    parts = Path(there.folder) / OWN_FOLDER / _PARTS
    sizes = {file.key: file.size for file in revision.files}
    arrived = sum(bytes_there(parts / key, size) for key, size in sizes.items())
    # A part grows in its own place.
    disk = replace(there.disk, free=there.disk.free + arrived)
    try:
        return plan_delivery(revision, replace(there, disk=disk))
    except DiskFull as error:
        remedy = (
            "Free space, remove old revisions ('prune_revisions'), or take another destination."
        )
        raise DiskFull(error.what, error.where, remedy) from None


@contextmanager
def held_alone(model_folder: Path) -> Iterator[None]:
    """Keep other runs away from a model here; the second one waits.

    Args:
        model_folder: The model's; made when missing.

    Raises:
        PermissionRefused: It cannot be made.
        Cancelled: The run was cancelled while it waited.
    """
    path = model_folder / OWN_FOLDER / "lock"
    waiting = Waiting(f"another run that works on {model_folder}")
    cancellation = current_cancellation()
    with local_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting.say("It goes on when that one has ended.")
                cancellation.pause(_LOOK_EVERY, str(model_folder))
            else:
                break
        yield


@dataclass(frozen=True)
class Brought:
    """A revision that is here, whether it is in view yet or not.

    Args:
        plan: What was to be done.
        files: All its files, with all their hashes.
        fetched: How many of them were fetched.
        linked: How many had the same bytes as a file of another revision.
    """

    plan: Delivery
    files: tuple[ModelFile, ...]
    fetched: int
    linked: int


def bring_here(
    plan: Delivery, places: Sequence[Place], terms: Terms, tally: Tally, arrivals: Arrivals
) -> Brought:
    """Bring all of a revision's files here, each proven before it counts.

    Args:
        plan: What is to be done here, planned with facts read just now.
        places: Who has the files that are to be fetched.
        terms: How they are fetched.
        tally: Counts what is fetched.
        arrivals: Is given each file when it is proven.

    Raises:
        SeveralFailures: What failed; all else is here.
        CrossgapError: The folder cannot be used.
    """
    bringing = _Bringing(plan, arrivals)
    fetched = bringing.run(places, terms, tally)
    files = tuple(bringing.files[path] for path in sorted(bringing.files))
    return Brought(plan, files, fetched, bringing.linked)


def bring_into_view(brought: Brought) -> None:
    """Give a revision's folder its name, once nobody reads its files any more.

    Args:
        brought: The revision.

    Raises:
        Conflict: Something else came to stand in its place.
        CrossgapError: A file has vanished.
    """
    if not brought.plan.is_done:
        sums = {file.path: file.sha256 for file in brought.files}
        revision_folder.bring_into_view(LocalHost(), brought.plan, sums)


def remove_parts(model_folder: Path) -> None:
    """Remove what has arrived of files that are not wanted any more.

    Args:
        model_folder: The model's, held by the run, which has all that it wants.

    Raises:
        PermissionRefused: One cannot be removed.
    """
    parts = model_folder / OWN_FOLDER / _PARTS
    with local_errors(parts):
        for path in parts.glob("*"):
            path.unlink()


class _Bringing:
    """A revision's files on their way here."""

    def __init__(self, plan: Delivery, arrivals: Arrivals) -> None:
        self.files: dict[str, ModelFile] = {}
        self.linked = 0
        self._plan = plan
        self._arrivals = arrivals
        self._model = Path(plan.there.folder)
        self._incoming = self._model / plan.placement.incoming_folder
        self._proof = self._model / OWN_FOLDER / "proofs" / plan.revision.commit
        self._lock = threading.Lock()

    def run(self, places: Sequence[Place], terms: Terms, tally: Tally) -> int:
        if not self._plan.is_done:
            revision_folder.prepare(LocalHost(), self._plan)
        actions = self._plan.actions
        for keep in (action for action in actions if isinstance(action, Keep)):
            self._have(keep.file, self._path_of(keep))
        missing = [action.file for action in actions if isinstance(action, Send)]
        missing += self._link([action for action in actions if isinstance(action, Link)])
        missing += self._prove([action for action in actions if isinstance(action, Prove)])
        return self._fetch(missing, places, terms, tally)

    def _fetch(
        self, missing: Sequence[ModelFile], places: Sequence[Place], terms: Terms, tally: Tally
    ) -> int:
        """Fetch files, one of those with the same bytes; return how many that were."""
        same: dict[str, list[ModelFile]] = {}
        for file in missing:
            same.setdefault(file.key, []).append(file)
        twins = {first.path: others for first, *others in same.values()}
        wanted = [self._wanted(first) for first, *_ in same.values()]
        tally.begin(sum(one.file.size for one in wanted), len(wanted))
        left: list[ModelFile] = []

        def have(file: ModelFile, path: Path) -> None:
            self._proven(file, path)
            source, held = str(path.relative_to(self._model)), held_here(path, file)
            named = [replace(twin, sha256=file.sha256) for twin in twins[file.path]]
            left.extend(self._link([Link(twin, source, held) for twin in named]))

        if wanted:
            fetch_files(wanted, places, terms, tally, have)
        return len(wanted) + (self._fetch(left, places, terms, tally) if left else 0)

    def _wanted(self, file: ModelFile) -> Wanted:
        part = self._model / OWN_FOLDER / _PARTS / file.key
        return Wanted(file, self._incoming / file.path, part)

    def _path_of(self, keep: Keep) -> Path:
        folder = self._model / self._plan.revision.commit if keep.in_view else self._incoming
        return folder / keep.file.path

    def _link(self, links: Sequence[Link]) -> list[ModelFile]:
        """Link files that another revision has; return those that could not be."""
        left = []
        for link in links:
            target = self._incoming / link.file.path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                os.link(self._model / link.source, target)
            except OSError as error:
                logger().info("%s cannot be linked (%s); it is fetched.", link.file.path, error)
                left.append(link.file)
                continue
            if held_here(target, link.file).is_as(link.held):
                self._proven(link.file, target)
                with self._lock:
                    self.linked += 1
            else:
                left.append(link.file)
        return left

    def _prove(self, proves: Sequence[Prove]) -> list[ModelFile]:
        """Hash files that lie here unproven; return those that are not what they should be."""

        def hashed(prove: Prove) -> ModelFile | None:
            path = self._model / prove.folder / prove.file.path
            before = held_here(path, prove.file)
            found = hash_file(path, prove.file)
            if not is_as_promised(found, prove.file) or not before.is_as(
                held_here(path, prove.file)
            ):
                logger().warning("%s is not what it should be; it is fetched anew.", path)
                return prove.file
            self._proven(found, path)
            return None

        done = collect(hashed, proves, name=lambda prove: prove.file.path, at_once=HASHES_AT_ONCE)
        if done.failures:
            raise SeveralFailures(done.failures, str(self._model))
        return [file for file in done.results if file is not None]

    def _proven(self, file: ModelFile, path: Path) -> None:
        """Put a file on record, and hand it to whoever waits for it."""
        with self._lock, local_errors(self._proof), self._proof.open("a+b") as proof:
            # A line that a kill has torn must not spoil this one.
            end = proof.seek(0, os.SEEK_END)
            torn = end and os.pread(proof.fileno(), 1, end - 1) != b"\n"
            line = held_here(path, file).proof_line
            proof.write((b"\n" if torn else b"") + line.encode("utf-8", "surrogateescape"))
        self._have(file, path)

    def _have(self, file: ModelFile, path: Path) -> None:
        with self._lock:
            self.files[file.path] = file
        self._arrivals.give(file, path)


def held_here(path: Path, file: ModelFile) -> HeldFile:
    """Return a file on this machine as `stat` on hosts tells of it.

    Args:
        path: Where it lies.
        file: What it is, with its SHA-256 where that is proven.

    Raises:
        OSError: It cannot be looked at.
    """
    found = path.stat()
    seconds, fraction = divmod(found.st_mtime_ns, 10**9)
    moment = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{fraction:09d} +0000"
    return HeldFile(file.path, found.st_size, moment, found.st_ino, file.sha256, ours=True)
