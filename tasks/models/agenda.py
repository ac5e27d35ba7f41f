"""What is still to be done for one host, while files become available here."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from tasks.models.arrivals import Arrivals, Arrived
from tasks.models.files import ModelFile
from tasks.models.remote_plan import PACK, SMALL, Action, Delivery, Keep, Link, Prove, Send

# Files of a pack, and others that one command deals with.
_PACK_FILES = 256
_BATCH_FILES = 1000
# Bytes that are hashed by one command.
_HASH_BATCH = 256 << 20

# Nobody wakes those who wait in a run that is cancelled, or for a file that is here.
_LOOK_EVERY = 0.2

T = TypeVar("T")

Batch = Sequence[Link] | Sequence[Prove] | Sequence[Arrived]
"""What is done together: all of one kind, and at most so much as one command should do."""


class Agenda:
    """What is still to be done for one host, handed out to whoever is free.

    Args:
        delivery: All that is to be done.
        arrivals: Where the files come from.
    """

    def __init__(self, delivery: Delivery, arrivals: Arrivals) -> None:
        self.proven: dict[str, str] = {}
        self._placement = delivery.placement
        self._where = delivery.there.host
        self._arrivals = arrivals
        self._changed = threading.Condition()
        self._stopped = False
        self._taken = 0
        self._here: dict[str, Arrived] = {}
        # By path; whether a hash was known when it was planned to send them.
        self._awaited: dict[str, bool] = {}
        self._links: deque[Link] = deque()
        self._proves: deque[Prove] = deque()
        self._large: deque[Arrived] = deque()
        self._small: deque[Arrived] = deque()
        # Batches at work that may end in files to send.
        self._unsure = 0
        for action in delivery.actions:
            self._sort(action)

    def stop(self) -> None:
        """Hand out nothing more, as something has failed."""
        self._stopped = True

    def next(self) -> Batch:
        """Return what to do next, all of one kind; nothing when all is handed out.

        Files are handed out in the order in which they become available, the small ones
        together: the slower the host answers, the more of them.

        Raises:
            Cancelled: The run was cancelled.
            Exception: What the arrivals failed with.
        """
        while True:
            with self._changed:
                self._take_arrivals()
                found: Batch = () if self._stopped else self._pick()
                if found or self._stopped or not (self._awaited or self._unsure):
                    self._unsure += bool(found) and not isinstance(found[0], Arrived)
                    return found
                if not self._awaited:
                    self._changed.wait(_LOOK_EVERY)
                    continue
                count = self._taken
            self._arrivals.wait_beyond(count, self._where)

    def settled(self) -> None:
        """Note that a batch of links or proofs is done; what failed of it is to be sent."""
        with self._changed:
            self._unsure -= 1
            self._changed.notify_all()

    def note(self, path: str, sha256: str) -> None:
        """Note that a file is there and proven."""
        with self._changed:
            self.proven[path] = sha256

    def send_instead(self, file: ModelFile) -> None:
        """Have a file sent that could not be linked, or is not what it should be."""
        with self._changed:
            self._sort(Send(file))

    def _sort(self, action: Action) -> None:
        match action:
            case Keep():
                self.proven[action.file.path] = action.file.sha256
            case Prove():
                self._proves.append(action)
            case Link():
                self._links.append(action)
            case Send():
                if arrived := self._here.get(action.file.path):
                    self._queue(arrived)
                else:
                    self._awaited[action.file.path] = bool(action.file.sha256)

    def _take_arrivals(self) -> None:
        for arrived in self._arrivals.since(self._taken):
            self._taken += 1
            path = arrived.file.path
            self._here[path] = arrived
            if (was_known := self._awaited.pop(path, None)) is None:
                continue
            # Of a file whose hash was not known, more can be said now.
            known = Send(arrived.file)
            self._sort(known if was_known else self._placement.action(arrived.file))

    def _queue(self, arrived: Arrived) -> None:
        (self._small if arrived.file.size <= SMALL else self._large).append(arrived)

    def _pick(self) -> Batch:
        if self._links:
            return _batch(self._links, _BATCH_FILES, lambda _: 0, 0)
        if self._proves:
            return _batch(self._proves, _BATCH_FILES, lambda it: it.file.size, _HASH_BATCH)
        if self._large and not len(self._small) >= _PACK_FILES:
            return [self._large.popleft()]
        return _batch(self._small, _PACK_FILES, lambda it: it.file.size, PACK)


def _batch(queue: deque[T], most: int, size: Callable[[T], int], room: int) -> list[T]:
    """Take from the front of a queue what goes together, at least one if there is any."""
    batch: list[T] = []
    while queue and len(batch) < most and (not batch or size(queue[0]) <= room):
        room -= size(queue[0])
        batch.append(queue.popleft())
    return batch
