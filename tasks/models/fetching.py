"""Files of a model from places that have them, in parallel, proven before they are named.

Large files come in ranges over several connections, and go on where an earlier run, or
another place, stopped. A range that a place does not serve well is asked for again; a
file whose bytes turn out wrong is fetched anew from other places, alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from blocks.cancellation import current_cancellation
from blocks.errors import (
    Cancelled,
    ConnectionLost,
    CrossgapError,
    DiskFull,
    SeveralFailures,
    Unreachable,
)
from blocks.logs import logger
from blocks.pouring import local_errors
from blocks.transfer import Pace
from tasks.common.failures import Collected, collect
from tasks.models.connections import Connections
from tasks.models.files import ModelFile
from tasks.models.hashing import Digest, Follower, is_as_promised
from tasks.models.part_file import PartFile
from tasks.models.places import Place, Watch, other_bytes
from tasks.models.ranges import Piece
from tasks.models.tally import Tally
from tasks.transfer.turns import Turns
from tasks.transfer.web import Throttled

SMALL = 4 << 20
"""Bytes up to which a file is fetched whole, by one connection and into memory."""

_CHUNK = 1 << 18
_STRIKES = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A file to fetch.

    Args:
        file: What it is.
        target: Its final name.
        part: Where it lies until it is whole, on the same disk.
    """

    file: ModelFile
    target: Path
    part: Path


@dataclass(frozen=True)
class Terms:
    """How files are fetched.

    Args:
        connections_per_file: At most.
        files_at_once: How many large ones.
        pace: Limits the rate.
    """

    connections_per_file: int = 8
    files_at_once: int = 4
    pace: Pace | None = None


def fetch_files(
    wanted: Sequence[Wanted],
    places: Sequence[Place],
    terms: Terms,
    tally: Tally,
    on_file: Callable[[ModelFile, Path], None],
) -> None:
    """Fetch files.

    Args:
        wanted: The files; their folders are made when missing.
        places: Who has them, in the order of preference.
        terms: How.
        tally: Counts what arrives.
        on_file: Is given each file, with all its hashes, when it has its final name.

    Raises:
        SeveralFailures: What failed, each file alone; the others are there.
    """
    dead: Counter[str] = Counter()

    def fetch(one: Wanted) -> None:
        fetching = _Fetching(one, places, terms, tally, dead)
        found = fetching.small() if one.file.size <= SMALL else fetching.large()
        tally.done(fetching.givers)
        on_file(found, one.target)

    def fetch_all(group: tuple[Sequence[Wanted], int]) -> Collected[None]:
        files, at_once = group
        return collect(fetch, files, name=lambda one: one.file.path, at_once=at_once)

    small = [one for one in wanted if one.file.size <= SMALL]
    large = [one for one in wanted if one.file.size > SMALL]
    groups = [(small, terms.connections_per_file), (large, terms.files_at_once)]
    done = collect(
        fetch_all,
        [group for group in groups if group[0]],
        name=lambda group: f"{len(group[0])} files",
    )
    failures = [*done.failures, *(error for each in done.results for error in each.failures)]
    current_cancellation().check("fetching")
    if failures:
        # What befalls the folder befalls every file; once is enough.
        raise SeveralFailures(list({str(error): error for error in failures}.values()), "fetching")


class _Fetching:
    """One file on its way."""

    def __init__(
        self,
        wanted: Wanted,
        places: Sequence[Place],
        terms: Terms,
        tally: Tally,
        dead: Counter[str],
    ) -> None:
        self._wanted = wanted
        self._file = wanted.file
        self._places = places
        self._terms = terms
        self._tally = tally
        self._dead = dead
        # What failed for this file says nothing of the others, but for places that are away.
        self._turns = Turns(places, Counter(dead))
        self._strikes: Counter[str] = Counter()
        self.givers: set[str] = set()

    def small(self) -> ModelFile:
        """Fetch the file into memory, and write it when it is right."""
        found, content = self._turns.ask(self._noting(self._whole_in_memory))
        beside = self._wanted.part
        with self._folders():
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fdatasync(file.fileno())
            beside.replace(self._wanted.target)
        return found

    def _whole_in_memory(self, place: Place) -> tuple[ModelFile, bytes]:
        content = bytearray()
        if self._file.size:
            with place.open(self._file, 0, self._file.size) as body:
                watch = Watch(self._file, place)
                while len(content) < self._file.size:
                    chunk = body.read(min(_CHUNK, self._file.size - len(content)))
                    watch.came(chunk, len(content))
                    if self._terms.pace:
                        self._terms.pace(len(chunk))
                    content += chunk
                    self._tally.came(place.name, len(chunk))
        digest = Digest(self._file)
        digest.update(bytes(content))
        found = digest.result()
        if not is_as_promised(found, self._file):
            self._tally.there(-len(content))
            raise other_bytes(self._file, place.name)
        self.givers = {place.name}
        return found, bytes(content)

    def large(self) -> ModelFile:
        """Fetch the file in ranges, and give it its name when it is right."""
        while True:
            with ExitStack() as opened:
                with self._folders():
                    part = opened.enter_context(PartFile(self._wanted.part, self._file.size))
                begun = part.count
                self._tally.there(begun)
                with Follower(part, self._file) as follower:
                    self._fill(part)
                    found = follower.result()
                with local_errors(self._wanted.target):
                    if is_as_promised(found, self._file):
                        part.become(self._wanted.target)
                        return found
                    part.clear()
            self._tally.there(-self._file.size)
            self._blame(self.givers, begun)

    def _fill(self, part: PartFile) -> None:
        """Fetch what a part lacks."""
        connections = Connections(
            self._file, part, self._terms.connections_per_file, self._terms.pace, self._tally
        )
        try:
            while missing := part.missing():
                connections.begin(missing)
                while piece := connections.take():
                    self._lead(connections, piece)
                connections.wait()
        finally:
            connections.end()
            self.givers = connections.givers

    def _lead(self, connections: Connections, piece: Piece) -> None:
        self._turns.ask(
            self._noting(lambda place: connections.lead(place, piece)),
            moved=lambda: piece.at,
            without=self._struck(),
        )

    def _struck(self) -> set[str]:
        """Name the places that are not asked, as they gave wrong bytes more often than others."""
        least = min(self._strikes[place.name] for place in self._places)
        return {place.name for place in self._places if self._strikes[place.name] > least}

    def _blame(self, givers: Collection[str], begun: int) -> None:
        """Note who gave wrong bytes; raise when nobody is left who may give right ones."""
        self._strikes.update(givers)
        error = other_bytes(self._file, " and ".join(sorted(givers)) or "an earlier run")
        hopeless = all(self._strikes[place.name] >= _STRIKES for place in self._places)
        # Without givers the bytes are an earlier run's, and nobody is to blame yet.
        if hopeless or not (givers or begun):
            raise error
        logger().warning("%s: %s. It is fetched again, alone.", error.where, error.what)
        self._tally.retried(self._file.path, error.where.rpartition(" from ")[2], error.what)

    @contextmanager
    def _folders(self) -> Iterator[None]:
        """Make the folders that are needed, and explain what the disk says."""
        with local_errors(self._wanted.part):
            self._wanted.part.parent.mkdir(parents=True, exist_ok=True)
            self._wanted.target.parent.mkdir(parents=True, exist_ok=True)
            yield

    def _noting(self, work: Callable[[Place], T]) -> Callable[[Place], T]:
        """Have failures of a place noted before the next one is asked."""

        def noted(place: Place) -> T:
            try:
                return work(place)
            except (Cancelled, DiskFull):
                raise
            except CrossgapError as error:
                away = isinstance(error, Unreachable)
                if away and not isinstance(error, ConnectionLost | Throttled):
                    self._dead[place.name] += 1
                self._tally.retried(self._file.path, place.name, error.what)
                raise

        return noted
