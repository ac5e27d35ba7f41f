"""What came from where in one run, and what had to be asked for again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from blocks.transfer import Progress


@dataclass(frozen=True)
class Retry:
    """Something that had to be asked for again.

    Args:
        path: The file.
        place: Who failed.
        why: In a clause.
    """

    path: str
    place: str
    why: str


@dataclass
class Tally:
    """Counts what arrives, from all connections of a run, over all its tries.

    Args:
        total: Bytes that are to arrive.
        files: How many files.
        progress: Is told how far it has come.

    Attributes:
        by_place: Bytes that each place gave.
        retries: What was asked for again, in the order in which it happened.
        files_done: How many files are there.
        files_from: How many files each place gave, or a part of.
    """

    total: int = 0
    files: int = 0
    progress: Progress | None = None
    by_place: Counter[str] = field(default_factory=Counter)
    retries: list[Retry] = field(default_factory=list)
    files_done: int = 0
    files_from: Counter[str] = field(default_factory=Counter)
    _arrived: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def fetched(self) -> int:
        """Bytes that travelled, also those that came twice."""
        return sum(self.by_place.values())

    def begin(self, total: int, files: int) -> None:
        """Note what a new try has to bring.

        Args:
            total: Bytes.
            files: How many files.
        """
        with self._lock:
            self.total, self.files, self.files_done, self._arrived = total, files, 0, 0

    def came(self, place: str, count: int) -> None:
        """Note bytes that a place gave."""
        with self._lock:
            self.by_place[place] += count
        self.there(count)

    def there(self, count: int) -> None:
        """Note bytes that are there, or (below zero) are of no use after all."""
        with self._lock:
            self._arrived += count
            arrived = min(max(0, self._arrived), self.total)
        if self.progress:
            self.progress(arrived, self.total)

    def done(self, places: Collection[str] = ()) -> None:
        """Note that one more file is there.

        Args:
            places: Who gave it.
        """
        with self._lock:
            self.files_done += 1
            self.files_from.update(set(places))

    def retried(self, path: str, place: str, why: str) -> None:
        """Note that something is asked for again."""
        with self._lock:
            self.retries.append(Retry(path, place, why))
