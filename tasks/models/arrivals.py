"""Files of a model as they become available here, one by one, for all who wait for them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from blocks.cancellation import current_cancellation
from blocks.content import Content
from tasks.models.files import ModelFile

# A cancelled run wakes nobody who waits for a file, so they look now and then.
_LOOK_EVERY = 0.2


class Arrived(NamedTuple):
    """A file that is here, whole and proven.

    Args:
        file: The file, with its SHA-256.
        path: Where it lies here, or its bytes where they lie in parts.
    """

    file: ModelFile
    path: Path | Content


class Arrivals:
    """The files of one revision, given by one side and taken by any number of others."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._given: list[Arrived] = []
        self._paths: set[str] = set()
        self._error: Exception | None = None

    def give(self, file: ModelFile, path: Path | Content) -> None:
        """Make a file available.

        Args:
            file: The file, with its SHA-256.
            path: Where it lies here, or its bytes where they lie in parts.
        """
        with self._changed:
            if file.path in self._paths:
                return  # a try before this one gave it
            self._paths.add(file.path)
            self._given.append(Arrived(file, path))
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Say that no more files will come.

        Args:
            error: Why; raised where somebody waits for one. The first one counts.
        """
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def since(self, count: int) -> list[Arrived]:
        """Return the files that were given after the first so many, in their order."""
        with self._changed:
            return self._given[count:]

    def wait_beyond(self, count: int, where: str) -> None:
        """Wait a moment, or until more than so many files have been given.

        Args:
            count: How many the caller knows of.
            where: Who waits, for the error of a cancelled run.

        Raises:
            Cancelled: The run was cancelled.
            Exception: What `fail` was told, when there are no more files.
        """
        current_cancellation().check(where)
        with self._changed:
            if len(self._given) > count:
                return
            if self._error:
                raise self._error
            self._changed.wait(_LOOK_EVERY)
