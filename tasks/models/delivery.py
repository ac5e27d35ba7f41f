"""Brings a revision to a host, while its files still become available here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.content import Content, FileRange
from blocks.errors import DiskFull, PermissionRefused, SeveralFailures
from blocks.logs import logger
from blocks.remote_hash import HASH_BY_JOB, remote_sha256, seconds_to_hash
from blocks.transfer import Pace, Progress
from tasks.common.failures import collect
from tasks.models import remote_scripts
from tasks.models.agenda import Agenda
from tasks.models.arrivals import Arrivals, Arrived
from tasks.models.files import ModelFile
from tasks.models.remote_facts import (
    HeldFile,
    HostModel,
    own_folder,
    parse_check,
    stat_lines,
)
from tasks.models.remote_plan import (
    STREAMS,
    Delivery,
    Link,
    Prove,
    Removal,
    plan_removal,
)
from tasks.models.revision_folder import (
    SECONDS,
    bring_into_view,
    in_models_dir,
    prepare,
    run_script,
    waited,
)

if TYPE_CHECKING:
    from blocks.host import CommandResult, Host

_SECONDS_TO_REMOVE = 600.0


@dataclass(frozen=True)
class Delivered:
    """What it took to bring a revision to a host.

    Args:
        bytes_sent: Bytes that travelled, those sent twice included.
        bytes_resumed: Bytes of the same files that were there from an earlier run.
        files_sent: How many files travelled, or the rest of them.
        files_linked: How many were linked to the same bytes in another revision.
        seconds: Duration.
    """

    bytes_sent: int
    bytes_resumed: int
    files_sent: int
    files_linked: int
    seconds: float


def deliver(
    host: Host,
    delivery: Delivery,
    arrivals: Arrivals,
    *,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> Delivered:
    """Bring a revision to a host: all of its files, its manifest, and `current`.

    What has arrived is proven and on record there, file by file: after a kill, read
    the facts and plan again, and only the rest is done. Nothing is in view before all
    is there.

    Args:
        host: The host.
        delivery: What is to be done, planned with facts read just now, by the run
            that holds the host's lock.
        arrivals: Where the files come from; each of the revision is given there sooner
            or later, or a failure.
        progress: Is told the bytes that have arrived, and that are to arrive.
        pace: Limits the rate.

    Raises:
        Conflict: Something else came to stand where the revision belongs.
        DiskFull: The host has no more room; what is proven there stays.
        PermissionRefused: The user may not write there.
        Unreachable: The host was away for longer than its patience.
        Exception: What the arrivals failed with, after all that was given is there.
        CrossgapError: As for `Host.put`.
    """
    begin = time.monotonic()
    if delivery.is_done:
        return Delivered(0, 0, 0, 0, 0.0)
    delivering = _Delivering(host, delivery, arrivals, progress, pace)
    prepare(host, delivery)
    worked = collect(
        lambda _: delivering.work(),
        range(STREAMS),
        name=lambda _: f"{delivery.revision.model} to {host.label}",
        at_once=STREAMS,
    )
    # All streams meet the same failure of the arrivals.
    failures = list(dict.fromkeys(worked.failures))
    if failures:
        raise failures[0] if len(failures) == 1 else SeveralFailures(failures, host.label)
    delivering.finish()
    return delivering.delivered(time.monotonic() - begin)


def remove_revisions(host: Host, there: HostModel, keep: Collection[str]) -> Removal:
    """Remove a model's revisions that nobody needs, and what had arrived of others.

    Args:
        host: The host.
        there: What it has of the model.
        keep: Commits that stay; what `current` points to stays in any case.

    Returns:
        What went and what was left; `remote_plan.plan_removal` tells it beforehand.

    Raises:
        CrossgapError: As for `Host.run`.
    """
    plan = plan_removal(there, keep)
    if plan.commits:
        argv = remote_scripts.remove(there.folder, plan.commits)
        run_script(host, argv, there.folder, timeout=_SECONDS_TO_REMOVE)
    return plan


class _Meter:
    """Makes the progress of all out of that of each.

    Args:
        total: Bytes that are to arrive.
        progress: Is told of them.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._arrived = 0
        self._lock = threading.Lock()

    def part(self) -> Progress:
        """Return what is told the progress of one transfer."""
        before = 0

        def report(arrived: int, _: int) -> None:
            nonlocal before
            with self._lock:
                self._arrived += max(0, arrived - before)
                before = max(before, arrived)
                self._tell()

        return report

    def expect(self, size: int) -> None:
        """Note that so many bytes more are to arrive."""
        with self._lock:
            self._total += size

    def settle(self) -> None:
        """Note that all is there, also what did not have to travel after all."""
        with self._lock:
            self._arrived = max(self._arrived, self._total)
            if self._total:
                self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(min(self._arrived, self._total), self._total)


class _Delivering:
    """One delivery at work, by a few threads."""

    def __init__(
        self,
        host: Host,
        delivery: Delivery,
        arrivals: Arrivals,
        progress: Progress | None,
        pace: Pace | None,
    ) -> None:
        self._host = host
        self._delivery = delivery
        self._pace = pace
        self._agenda = Agenda(delivery, arrivals)
        self._meter = _Meter(delivery.bytes_to_send, progress)
        there, commit = delivery.there, delivery.revision.commit
        self._commit = commit
        self._folder = there.folder
        self._incoming = f"{there.folder}/{delivery.placement.incoming_folder}"
        self._proof = f"{own_folder(there)}/proofs/{commit}"
        self._lock = threading.Lock()
        self._packs = 0
        self._sent = self._resumed = self._files_sent = self._files_linked = 0

    def work(self) -> None:
        """Do what is to be done next until nothing is left."""
        try:
            while batch := self._agenda.next():
                match batch[0]:
                    case Link():
                        self._link([it for it in batch if isinstance(it, Link)])
                        self._agenda.settled()
                    case Prove():
                        self._prove([it for it in batch if isinstance(it, Prove)])
                        self._agenda.settled()
                    case Arrived():
                        self._send([it for it in batch if isinstance(it, Arrived)])
        except BaseException:
            self._agenda.stop()
            raise

    def finish(self) -> None:
        """Bring all of it into view."""
        bring_into_view(self._host, self._delivery, self._agenda.proven)
        self._meter.settle()

    def delivered(self, seconds: float) -> Delivered:
        """Return what it took."""
        return Delivered(self._sent, self._resumed, self._files_sent, self._files_linked, seconds)

    def _link(self, links: Sequence[Link]) -> None:
        lines = "".join(f"{link.source}\t{link.file.path}\n" for link in links)
        argv = remote_scripts.link(self._folder, self._incoming)
        made = {
            held.path: held
            for held in stat_lines(self._run(argv, data=lines.encode()).stdout.split("\n"))
        }
        done: list[HeldFile] = []
        for link in links:
            held = made.get(link.file.path)
            if held and held.is_as(link.held):
                done.append(_proven(held, link.file.sha256))
            else:
                self._send_instead(link.file)
        self._record(done)
        with self._lock:
            self._files_linked += len(done)

    def _prove(self, proves: Sequence[Prove]) -> None:
        done: list[HeldFile] = []
        for folder in sorted({prove.folder for prove in proves}):
            files = [prove.file for prove in proves if prove.folder == folder]
            found = self._hashed(f"{self._folder}/{folder}", files)
            for file in files:
                held = found.get(file.path)
                if held and held.sha256 == file.sha256:
                    done.append(held)
                else:
                    logger().warning(
                        "%s: %s of %s is damaged or not what it should be; it is sent again.",
                        self._host.label,
                        file.path,
                        self._delivery.revision.model,
                    )
                    self._send_instead(file)
        self._record(done)

    def _hashed(self, folder: str, files: Sequence[ModelFile]) -> dict[str, HeldFile]:
        """Hash files on the host; a large one by a job, which outlives a connection."""
        size = sum(file.size for file in files)
        if size < HASH_BY_JOB:
            return self._checked(remote_scripts.check(folder), files, size)
        found: dict[str, HeldFile] = {}
        for file in files:
            look = remote_scripts.check(folder, hashed=False)
            before = self._checked(look, [file])
            digest = waited(self._host, self._hash_of(f"{folder}/{file.path}", file.size))
            after = self._checked(look, [file])
            if before == after and file.path in after:
                found[file.path] = _proven(after[file.path], digest)
        return found

    def _hash_of(self, path: str, size: int) -> Callable[[], str]:
        return lambda: remote_sha256(self._host, path, size)

    def _checked(
        self, argv: Sequence[str], files: Sequence[ModelFile], size: int = 0
    ) -> dict[str, HeldFile]:
        names = "".join(f"{file.path}\n" for file in files)
        result = self._run(argv, data=names.encode(), timeout=seconds_to_hash(size))
        return parse_check(result.stdout)

    def _send(self, batch: Sequence[Arrived]) -> None:
        if len(batch) == 1:
            self._send_one(batch[0], self._meter.part())
        else:
            self._send_pack(batch)

    def _send_one(self, arrived: Arrived, progress: Progress | None) -> None:
        file, path = arrived
        self._put(path, file.path, file.sha256, 1, progress)
        self._run(remote_scripts.note(self._proof, self._incoming, file.sha256, file.path))
        self._agenda.note(file.path, file.sha256)

    def _send_pack(self, batch: Sequence[Arrived]) -> None:
        """Send small files as one, as each alone would take several round trips."""
        with self._lock:
            self._packs += 1
            name = f".pack-{self._packs}"
        pieces = tuple(piece for arrived in batch for piece in _pieces(arrived))
        self._put(Content(pieces), name, "", len(batch), self._meter.part())
        size = sum(file.size for file, _ in batch)
        lines = "".join(f"{file.size} {file.path}\n" for file, _ in batch)
        argv = remote_scripts.split(self._incoming, name)
        result = self._run(argv, data=lines.encode(), timeout=seconds_to_hash(2 * size))
        found = parse_check(result.stdout)
        right = [
            found[file.path]
            for file, _ in batch
            if file.path in found and found[file.path].sha256 == file.sha256
        ]
        self._record(right, done_with=f"{self._incoming}/{name}")
        for arrived in batch:
            if arrived.file.path not in self._agenda.proven:
                # Alone it is found out which side has damaged it.
                self._send_one(arrived, None)

    def _put(
        self, what: Path | Content, name: str, digest: str, files: int, progress: Progress | None
    ) -> None:
        try:
            transfer = self._host.put(
                what,
                f"{self._incoming}/{name}",
                progress=progress,
                pace=self._pace,
                sha256=digest,
            )
        except (DiskFull, PermissionRefused) as error:
            if error.where != self._host.label:
                raise
            raise in_models_dir(error) from None
        with self._lock:
            self._sent += transfer.bytes_sent
            self._resumed += transfer.bytes_resumed
            self._files_sent += files

    def _send_instead(self, file: ModelFile) -> None:
        self._meter.expect(file.size)
        self._agenda.send_instead(file)

    def _record(self, files: Sequence[HeldFile], done_with: str = "") -> None:
        """Put on record on the host what is proven there."""
        lines = "".join(held.proof_line for held in files)
        if lines or done_with:
            self._run(remote_scripts.record(self._proof, done_with), data=lines.encode())
        for held in files:
            self._agenda.note(held.path, held.sha256)

    def _run(
        self, argv: Sequence[str], data: bytes = b"", timeout: float = SECONDS
    ) -> CommandResult:
        return run_script(self._host, argv, self._folder, data=data, timeout=timeout)


def _pieces(arrived: Arrived) -> Sequence[FileRange | bytes]:
    file, path = arrived
    return path.pieces if isinstance(path, Content) else (FileRange(path, 0, file.size),)


def _proven(held: HeldFile, digest: str) -> HeldFile:
    return replace(held, sha256=digest)
