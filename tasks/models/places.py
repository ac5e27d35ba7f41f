"""Who has the files of a revision, as far as fetching them is concerned."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Protocol

from blocks.errors import ConnectionLost, Damaged, TimedOut
from tasks.models.files import ModelFile

# Less than this in a minute is no transfer.
_TRICKLE_BYTES = 60_000
_TRICKLE_SECONDS = 60.0


class Body(Protocol):
    """The bytes of an answer."""

    @property
    def first(self) -> int:
        """At which byte of the file they begin."""

    @property
    def host(self) -> str:
        """Who sends them: the place, or where it sends us on to."""

    @property
    def whole(self) -> bool:
        """Whether all of the file comes, though a part was asked for."""

    def read(self, most: int) -> bytes:
        """Return what has come, at most so many bytes; none at the end."""


class Place(Protocol):
    """Somebody who has the files of a revision."""

    @property
    def name(self) -> str:
        """What operators call it."""

    def open(self, file: ModelFile, start: int, stop: int) -> AbstractContextManager[Body]:
        """Ask for a range of a file.

        Raises:
            CrossgapError: It does not give it, now or while it is being read.
        """


def probe(place: Place, file: ModelFile) -> str:
    """Find out, before anything is fetched, whether a place gives the bytes of a file.

    Args:
        place: The place.
        file: One with real weights, which many mirrors leave to other hosts.

    Returns:
        The host that sends the bytes: the place, or where it sends us on to.

    Raises:
        CrossgapError: It does not; where it sends us on to is named.
    """
    with place.open(file, 0, min(1, file.size)) as body:
        body.read(1)
        return body.host


class Watch:
    """Notices a connection that ends too early, or has all but stopped.

    Args:
        file: What comes.
        place: Where from.
    """

    def __init__(self, file: ModelFile, place: Place) -> None:
        self._file = file
        self._where = f"{file.path} from {place.name}"
        self._since = time.monotonic()
        self._count = 0

    def came(self, chunk: bytes, have: int) -> None:
        """Look at what has come.

        Args:
            chunk: The bytes; none when the connection has ended.
            have: How much of the file was there before.

        Raises:
            ConnectionLost: It ended, though more is to come.
            TimedOut: It has given next to nothing for a minute.
        """
        if not chunk:
            raise ConnectionLost(
                f"the connection ended after {have} of {self._file.size} bytes",
                self._where,
                "Start again; what has arrived is not fetched again.",
            )
        self._count += len(chunk)
        now = time.monotonic()
        if now - self._since > _TRICKLE_SECONDS:
            if self._count < _TRICKLE_BYTES:
                raise TimedOut(
                    f"it gave only {self._count} bytes in {now - self._since:.0f} s",
                    self._where,
                    "Start again later, or add another endpoint to the hub's block.",
                )
            self._since, self._count = now, 0


def other_bytes(file: ModelFile, giver: str) -> Damaged:
    """Make the error for bytes that do not have the hash that the hub promised.

    Args:
        file: The file.
        giver: Who gave them.
    """
    return Damaged(
        "the bytes are not those that the hub promises (their hash differs)",
        f"{file.path} from {giver}",
        "Start again, or take another mirror; a proxy on the way may be the cause.",
        retryable=True,
    )
