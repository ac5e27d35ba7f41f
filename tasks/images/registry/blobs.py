"""Fetches blobs: each goes on where it was broken off, wherever the rest of it comes from."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blocks.cancellation import current_cancellation
from blocks.errors import ConnectionLost, Damaged, DiskFull
from tasks.images.blobs import Blob, Descriptor
from tasks.images.registry.web import Session
from tasks.transfer.turns import Turns

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from tasks.images.store import Store

_CHUNK = 1 << 18
_STRIKES = 2
_LOOK_EVERY = 0.2
_KEPT_SECONDS = 7 * 24 * 3600.0

Report = Callable[[int], None]


def fetch_blob(turns: Turns[Session], blob: Descriptor, store: Store, report: Report) -> Blob:
    """Get a blob into the store.

    Args:
        turns: The places that may have it.
        blob: What to fetch.
        store: Where it goes. What has arrived of it lies in the store's folder
            `partial` until it is whole, also from run to run.
        report: Called with the bytes that have arrived.

    Returns:
        The blob; its digest has been checked.

    Raises:
        Damaged: Every place gives other bytes than it should.
        DiskFull: There is no room for it.
        CrossgapError: No place gives it.
    """
    if held := _stored(blob, store):
        return held
    store.make_room(blob.size)
    with _writable(store.folder), _partial(store.folder / "partial" / blob.hex) as file:
        # Another run may have fetched it while this one waited for the file.
        if held := _stored(blob, store):
            _remove(file)
            return held
        return _complete(turns, blob, file, store, report)


def _stored(blob: Descriptor, store: Store) -> Blob | None:
    """Return what the store has of a blob, if it is sound: no layer is known to be in it yet."""
    held = store.blob(blob.digest)
    if held is not None:
        try:
            deque(store.read(held), maxlen=0)
        except Damaged:
            return None
    return held


def sweep_partials(folder: Path) -> None:
    """Remove blobs that were broken off and that nobody came back for.

    Args:
        folder: The store's.
    """
    oldest = time.time() - _KEPT_SECONDS
    for path in (folder / "partial").glob("[0-9a-f]" * 64):
        with suppress(FileNotFoundError), path.open("rb") as file:
            if path.stat().st_mtime < oldest and _lock(file):
                _remove(file)


def _complete(
    turns: Turns[Session], blob: Descriptor, file: BinaryIO, store: Store, report: Report
) -> Blob:
    strikes: Counter[str] = Counter()
    while True:
        givers: set[str] = set()

        def go_on(session: Session, givers: set[str] = givers) -> None:
            _receive(session, blob, file, report, givers)

        if _length(file) > blob.size:
            file.truncate(0)
        had = _length(file)
        worn_out = {host for host, count in strikes.items() if count >= _STRIKES}
        if had < blob.size:
            turns.ask(go_on, moved=lambda: _length(file), without=worn_out)
        try:
            stored = _keep(file, blob, store)
        except Damaged as error:
            file.truncate(0)
            strikes.update(givers)
            hosts = {session.place.host for session in turns.places}
            # Without givers the bytes are an earlier run's, and nobody is to blame yet.
            hopeless = not had and not givers
            if hopeless or all(strikes[host] >= _STRIKES for host in hosts):
                raise _corrupt(turns, blob) from error
        else:
            _remove(file)
            return stored


def _receive(
    session: Session, blob: Descriptor, file: BinaryIO, report: Report, givers: set[str]
) -> None:
    """Append what is missing, or as much of it as comes."""
    cancellation = current_cancellation()
    have = _length(file)
    with session.get(f"blobs/{blob.digest}", start=have) as response:
        begin = _begin(response, have, blob, session.where)
        for chunk in _chunks(response, have - begin, blob.size - have):
            cancellation.check(session.where)
            file.write(chunk)
            givers.add(session.place.host)
            have += len(chunk)
            report(have)
    cancellation.check(session.where)
    if have < blob.size:
        raise ConnectionLost(
            f"the connection broke after {have} of {blob.size} bytes of a layer",
            session.where,
            "Start again.",
        )


def _begin(response: BaseHTTPResponse, have: int, blob: Descriptor, where: str) -> int:
    """Return at which byte of the blob an answer begins, if it is one about this blob."""
    if response.status == 206:
        found = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
        )
        if not found or int(found[1]) != have or found[2] not in ("*", str(blob.size)):
            raise Damaged("it answers with another part of a layer than was asked for", where)
        return have
    length = response.headers.get("Content-Length", str(blob.size))
    if length != str(blob.size):
        raise Damaged(
            f"it answers with {length} bytes where a layer has {blob.size}", where, retryable=True
        )
    return 0


def _chunks(response: BaseHTTPResponse, skip: int, most: int) -> Iterator[bytes]:
    """Yield what arrives, without bytes that are here already, and no more than belongs there."""
    while most > 0:
        chunk = response.read1(_CHUNK)
        if not chunk:
            return
        if skip:
            chunk, skip = chunk[skip:], max(0, skip - len(chunk))
        if chunk:
            yield chunk[:most]
            most -= len(chunk)


def _keep(file: BinaryIO, blob: Descriptor, store: Store) -> Blob:
    """Move a whole blob into the store, which checks its digest."""
    file.seek(0)
    with store.writer(blob.digest, size=blob.size) as writer:
        while chunk := file.read(_CHUNK):
            writer.write(chunk)
        return writer.commit()


def _corrupt(turns: Turns[Session], blob: Descriptor) -> Damaged:
    first = turns.places[0]
    return Damaged(
        f"the bytes of {blob.digest[:19]}… are others than the registry promises, "
        "however often they are fetched",
        first.where if len(turns.places) == 1 else first.where.rpartition(" from ")[0],
        "Have the image pushed again, or name another mirror; a proxy on the way may be the cause.",
        retryable=True,
    )


@contextmanager
def _partial(path: Path) -> Iterator[BinaryIO]:
    """Open what has arrived of a blob, for one run at a time."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    cancellation = current_cancellation()
    while True:
        with path.open("a+b", buffering=0) as file:
            while not _lock(file):
                cancellation.pause(_LOOK_EVERY, str(path))
            # Whoever had it before may have finished and removed it.
            if os.fstat(file.fileno()).st_nlink:
                yield file
                return


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(file: BinaryIO) -> None:
    Path(file.name).unlink(missing_ok=True)


def _length(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            "the disk became full while fetching a layer",
            str(folder),
            "Make room there, or name a folder on a larger disk in CROSSGAP_STORE.",
        ) from error
