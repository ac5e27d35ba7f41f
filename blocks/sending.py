"""One file, or other content, on its way to one host."""

from __future__ import annotations

import posixpath
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blocks import remote_hash
from blocks.cancellation import current_cancellation
from blocks.content import Content, FileRange
from blocks.disk import parse_disk
from blocks.errors import (
    CommandFailed,
    ConnectionLost,
    CrossgapError,
    Damaged,
    DiskFull,
    PermissionRefused,
    SourceDamaged,
)
from blocks.file_scripts import (
    ENDED_BY_SIGNAL,
    FINISH,
    RECEIVE,
    UNDELIVERED,
    UNREADABLE,
    sh,
)
from blocks.logs import logger
from blocks.outage import Outage
from blocks.pouring import local_errors, pour
from blocks.remote_hash import remote_sha256, seconds_to_hash, unreadable
from blocks.transfer import STALL, Pace, Progress, Transfer, is_bulk

if TYPE_CHECKING:
    from pathlib import Path

    from blocks.host import Host, RunningCommand

# Bytes up to which the hash is computed before anything is sent, so that the far side
# can compare it and put the file in its place at once; larger ones are hashed here
# while they are hashed there.
HASH_FIRST = 64 << 20

# Bytes up to which a file that is there already is hashed while we wait for the answer.
HASH_AT_ONCE = 64 << 20


@dataclass
class Heard:
    """What the far side has said in one session.

    Attributes:
        state: What it found: `there`, `whole`, or `part`; empty while it is looking.
        count: The bytes of the part that it has.
        room: df's line about the disk.
        sha256: The hash of what is there; empty where it is for us to find out.
        delivered: Whether the file has come to its place.
    """

    state: str = ""
    count: int = 0
    room: str | None = None
    hashing: bool = False
    sha256: str = ""
    delivered: bool = False

    def hear(self, line: str) -> None:
        """Take one line that RECEIVE prints."""
        word, _, rest = line.partition(" ")
        if line.isdecimal():
            self.count = int(line)
        elif not self.state:
            self.state = word
            if word == "there":
                self.sha256 = rest.strip("-")
            else:
                self.count = int(rest)
        elif self.room is None:
            self.room = line
        elif word == "hashing":
            self.hashing = True
        elif word == "sum":
            self.sha256 = rest
        elif word == "delivered":
            self.delivered = True


class Session:
    """One run of RECEIVE on a host.

    Args:
        host: The host.
        command: The script, started.
    """

    def __init__(self, host: Host, command: RunningCommand) -> None:
        self._host = host
        self._command = command
        self._rest = b""
        self._was_hashing = False
        self.heard = Heard()
        self.said = bytearray()

    def listen(self, timeout: float) -> bool:
        """Take what the far side says within some seconds; False when it has ended."""
        if (pair := self._command.read(timeout)) is None:
            return False
        *lines, self._rest = (self._rest + pair[0]).split(b"\n")
        for line in lines:
            self.heard.hear(line.decode("utf-8", "replace").strip())
        self.said.extend(pair[1])
        return True

    def begin(self) -> Heard:
        """Wait for what the far side found."""
        while self.heard.room is None and self.listen(0.5):
            pass
        return self.heard

    def begins_to_hash(self) -> bool:
        """Whether the far side hashes by now, and did not when this was last asked."""
        before, self._was_hashing = self._was_hashing, self.heard.hashing
        return self.heard.hashing and not before


class Sending:
    """One content on its way to one host, across any number of connections.

    Args:
        host: Where to.
        content: What is sent.
        sha256: Its hash, where it is known.
        progress: Is told what has arrived.
        pace: Limits the rate.
    """

    def __init__(
        self,
        host: Host,
        content: Content,
        sha256: str = "",
        progress: Progress | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._host = host
        self._content = content
        self._size = content.size
        self._progress = progress
        self._pace = pace
        self._begin = time.monotonic()
        self._place = _first_path(content)
        self._identity = ""
        self._sha256 = sha256
        if not sha256:
            with local_errors(self._place):
                self._identity = content.identity()
                if self._size <= HASH_FIRST:
                    self._sha256 = content.sha256()
        self._part_name = (self._sha256 or self._identity)[:16]
        self._hashing: _Hashing | None = None
        self._sent = 0
        self._seconds_sending = 0.0
        self._found: int | None = None
        self._arrived = 0
        self._last_count = -1
        self._wrong_hashes = 0

    def attempt(self, remote: str, outage: Outage) -> Transfer:
        """Bring it there, over one connection.

        Raises:
            CrossgapError: As for `blocks.files.put`.
        """
        self._bring(self._host.expand(remote), outage)
        self._report(self._size)
        outage.over()
        seconds = time.monotonic() - self._begin
        found = self._size if self._found is None else self._found
        return Transfer(self._sent, found, self._sha256, seconds, self._seconds_sending)

    def sample(self, remote: str, size: int, outage: Outage) -> tuple[int, float]:
        """Send some bytes behind those that are there, and leave the rest to a later put.

        Args:
            remote: Where the whole of it will be.
            size: How many bytes at most.
            outage: What is told when bytes arrive.

        Returns:
            How many were sent, and in how many seconds.

        Raises:
            CrossgapError: As for `blocks.files.put`.
        """
        target = self._host.expand(remote)
        self._session(self._part(target), target, outage, look=True, most=size)
        return self._sent, self._seconds_sending

    def close(self) -> None:
        """End what still runs beside."""
        if self._hashing:
            self._hashing.stop()

    def _part(self, target: str) -> str:
        folder, name = posixpath.split(target)
        return posixpath.join(folder, f".{name}.{self._part_name}.part")

    def _bring(self, target: str, outage: Outage) -> None:
        part = self._part(target)
        look = True
        while True:
            heard = self._session(part, target, outage, look=look)
            there = heard.state == "there"
            if heard.delivered and heard.sha256 == self._sha256:
                return
            if self._is_right(heard.sha256, target if there else part):
                break
            if there:
                look = False  # another file of the same size
                continue
            self._remove(part)
            self._wrong_hashes += 1
            self._found = 0
            self._explain_wrong_hash(target)
        if not there:
            self._host.run(sh(FINISH, part, target), timeout=60)

    def _is_right(self, found: str, path: str) -> bool:
        """Compare the hash of what is there with that of what is here, as far as known."""
        if not self._sha256:
            self._hash_beside()
        found = found or remote_sha256(self._host, path, self._size)
        if not self._sha256 and self._hashing:
            self._sha256 = self._hashing.result(self._host.label)
        return found == self._sha256

    def _hash_beside(self) -> None:
        if not self._hashing:
            self._hashing = _Hashing(self._content, self._place)

    def _explain_wrong_hash(self, target: str) -> None:
        with local_errors(self._place):
            # A hash that was taken while they travelled says nothing of the time before.
            changed = (
                self._content.identity() != self._identity
                if self._hashing
                else self._content.sha256() != self._sha256
            )
        if changed:
            raise SourceDamaged(
                "the file here is not, or no longer, the one that was to be sent",
                str(self._place),
                "Let whatever writes to it finish, then start again.",
            )
        if self._wrong_hashes > 1:
            raise Damaged(
                f"{target} arrived damaged twice (its SHA-256 is wrong on the host)",
                self._host.label,
                "Its disk or memory may be failing: look at dmesg and smartctl there.",
            )
        logger().warning("%s: %s arrived damaged; sending it again.", self._host.label, target)

    def _session(
        self, part: str, target: str, outage: Outage, *, look: bool, most: int | None = None
    ) -> Heard:
        """Let the far side look, receive what it lacks, hash, and deliver."""
        argv = sh(
            RECEIVE,
            part,
            target,
            str(self._size),
            self._sha256,
            "look" if look else "-",
            str(HASH_AT_ONCE),
            str(remote_hash.HASH_BY_JOB),
        )
        started = self._host.start(argv, timeout=STALL, has_input=True, bulk=is_bulk(self._size))
        with started as command:
            session = Session(self._host, command)
            heard = session.begin()
            if heard.state == "part":
                self._check_room(part, heard)
                self._send(command, session, outage, most)
            command.close_input()
            while session.listen(0.5):
                self._hear(session, command, outage)
            code = command.finish()
        self._check_code(code, part, target, session)
        if heard.state == "there" or heard.hashing or heard.state == "whole" or most is not None:
            return heard
        raise ConnectionLost(
            f"the input of the writer of {part} ended before its time",
            self._host.label,
            "Check the network to it; what has arrived is not sent again.",
        )

    def _send(
        self, command: RunningCommand, session: Session, outage: Outage, most: int | None
    ) -> None:
        start = self._last_count = session.heard.count
        if self._found is None:
            self._found = start
        stop = self._size if most is None else min(self._size, start + most)
        begin = time.monotonic()
        self._report(start)
        with suppress(BrokenPipeError):
            for count in pour(command, self._content.cut(start, stop), self._pace):
                self._sent += count
                session.listen(0)
                self._hear(session, command, outage)
        command.close_input()
        while session.heard.count < stop and session.listen(0.5):
            self._hear(session, command, outage)
        self._seconds_sending += time.monotonic() - begin

    def _hear(self, session: Session, command: RunningCommand, outage: Outage) -> None:
        """Act on what the far side has said: the part grows, or is being hashed."""
        heard = session.heard
        if heard.count > self._last_count:
            outage.over()
            command.extend(STALL)
            self._last_count = heard.count
            self._report(heard.count)
        if session.begins_to_hash():
            command.extend(seconds_to_hash(self._size))
            if not self._sha256:
                self._hash_beside()

    def _check_room(self, part: str, heard: Heard) -> None:
        free = parse_disk(heard.room or "", self._host.label).free
        needed = self._size - heard.count
        if free < needed:
            self._remove(part)
            folder = posixpath.dirname(part)
            raise _no_room(
                f"{folder} needs {needed / 1e9:.2f} GB but has {free / 1e9:.2f} GB free", self._host
            )

    def _check_code(self, code: int, part: str, target: str, session: Session) -> None:
        said = session.said.decode("utf-8", "replace")
        if code in ENDED_BY_SIGNAL:
            raise ConnectionLost(
                f"the writer of {part} was ended from outside",
                self._host.label,
                "The host is shutting down, or somebody ended the user's processes.",
            )
        if code == UNREADABLE:
            raise unreadable(part, self._host, said)
        if code == UNDELIVERED:
            raise _undelivered(self._host, target, said)
        if code != 0:
            where = part if session.heard.state else posixpath.dirname(part)
            error = writing_failed(self._host, where, said)
            if isinstance(error, DiskFull):
                # On a shared server others need the room now; anything else can be gone on with.
                self._remove(part)
            raise error

    def _report(self, arrived: int) -> None:
        self._arrived = max(self._arrived, min(arrived, self._size))
        if self._progress:
            self._progress(self._arrived, self._size)

    def _remove(self, part: str) -> None:
        self._host.run(["rm", "-f", part, f"{part}.writer"], timeout=60)


class _Hashing:
    """Computes a content's hash beside the caller, who waits for the far side meanwhile."""

    def __init__(self, content: Content, place: Path) -> None:
        self._content = content
        self._place = place
        self._sha256 = ""
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with local_errors(self._place):
                self._sha256 = self._content.sha256(lambda: self._stopped)
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error

    def result(self, where: str) -> str:
        cancellation = current_cancellation()
        while self._thread.is_alive():
            cancellation.check(where)
            self._thread.join(0.2)
        if self._error:
            raise self._error
        return self._sha256

    def stop(self) -> None:
        self._stopped = True


def _first_path(content: Content) -> Path:
    """Return the file that an error about content names, though it may lie in several."""
    from pathlib import Path

    ranges = (piece.path for piece in content.pieces if isinstance(piece, FileRange))
    return next(ranges, Path("memory"))


def _undelivered(host: Host, target: str, said: str) -> CrossgapError:
    error = writing_failed(host, target, said)
    if isinstance(error, DiskFull | PermissionRefused):
        return error
    return CommandFailed(
        f"{target} could not be put in its place ({' '.join(said.split())[-200:]})", host.label
    )


def _no_room(what: str, host: Host) -> DiskFull:
    return DiskFull(
        what,
        host.label,
        "Free space there, or set the block's work_dir to a larger disk. "
        "The unfinished file has been removed.",
    )


def writing_failed(host: Host, path: str, said: str) -> CrossgapError:
    """Make the error for a file that could not be written on a host.

    Args:
        host: The host.
        path: The file.
        said: What the far side printed.
    """
    if "No space left" in said or "quota" in said.lower():
        return _no_room(f"the disk filled up while {path} was written", host)
    if "ermission denied" in said or "Read-only" in said:
        return PermissionRefused(
            f"the user may not write to {path}",
            host.label,
            "Set the block's work_dir (or models_dir) to a folder that the user owns.",
        )
    return CrossgapError(
        f"writing {path} failed ({' '.join(said.split())[-200:] or 'no message'})",
        host.label,
        "Look at the disk of the host; then start the run again, which goes on from here.",
        retryable=True,
    )
