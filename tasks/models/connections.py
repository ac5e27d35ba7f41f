"""The connections that fetch one large file."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence

from blocks.cancellation import current_cancellation
from blocks.errors import ConnectionLost, CrossgapError, DiskFull, TimedOut
from blocks.logs import logger
from blocks.pouring import local_errors
from blocks.transfer import Pace
from tasks.models.files import ModelFile
from tasks.models.part_file import BLOCK, PartFile
from tasks.models.places import Body, Place, Watch
from tasks.models.ranges import SHORTEST, Piece, Ranges
from tasks.models.tally import Tally

_CHUNK = 1 << 18
# A connection that is this fast needs no others beside it.
_FAST = 80e6
_WARM_UP = 0.25
# A connection that gave so much before it broke is worth another one to the same place.
_WORTHWHILE = 4 << 20
_FAILURES_OF_HELP = 2
_LOOK_EVERY = 0.2


class Connections:
    """One that leads, on the caller's thread, and others that help where it is slow.

    What goes wrong with the leading one is the caller's business. One that helps goes
    home instead, and what it did not fetch is left to the others: a place that wants
    fewer connections gets fewer.

    Args:
        file: The file.
        part: What has arrived of it.
        most: How many connections there may be.
        pace: Limits the rate.
        tally: Counts what arrives.

    Attributes:
        givers: The places that bytes came from.
    """

    def __init__(
        self, file: ModelFile, part: PartFile, most: int, pace: Pace | None, tally: Tally
    ) -> None:
        self.givers: set[str] = set()
        self._file = file
        self._part = part
        self._most = most
        self._pace = pace
        self._tally = tally
        self._ranges = Ranges(())
        self._place: Place | None = None
        self._helpers: list[threading.Thread] = []
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._rate = 0.0

    def begin(self, missing: Sequence[tuple[int, int]]) -> None:
        """Take up what the file lacks.

        Args:
            missing: Pairs of first byte and end.
        """
        self._ranges = Ranges(missing)
        self._stop.clear()

    def take(self) -> Piece | None:
        """Return the next piece for the leading connection; none when all are taken."""
        return self._ranges.take(1 if self._rate > _FAST else self._most, self._rate)

    def lead(self, place: Place, piece: Piece) -> None:
        """Fetch a piece, on the caller's thread; what has come of it is kept on failure.

        Raises:
            DiskFull: There is no room here.
            CrossgapError: The place does not give it.
        """
        self._place = place
        # One that helps and finds the disk full ends all; `wait` says so.
        while piece.at < piece.stop and not self._stop.is_set():
            before = piece.at
            try:
                self._fetch(place, piece, self._call_for_help)
            except (ConnectionLost, TimedOut) as error:
                if piece.at - before < _WORTHWHILE:
                    raise
                self._tally.retried(self._file.path, place.name, error.what)

    def wait(self) -> None:
        """Wait until those that help have ended.

        Raises:
            DiskFull: One of them found no room here.
            CrossgapError: One of them could not write.
        """
        cancellation = current_cancellation()
        for helper in self._helpers:
            while helper.is_alive():
                cancellation.check(self._file.path)
                helper.join(_LOOK_EVERY)
        self._helpers = []
        if self._failed is not None:
            raise self._failed

    def end(self) -> None:
        """Have those that help stop, and wait for it."""
        self._stop.set()
        for helper in self._helpers:
            helper.join()
        self._helpers = []

    def _fetch(
        self, place: Place, piece: Piece, on_rate: Callable[[float, float], None] | None = None
    ) -> None:
        """Fetch a piece; only the leading connection has somebody to tell its rate."""
        with place.open(self._file, piece.at, piece.stop) as body:
            if not body.whole:
                self._receive(place, body, piece, on_rate)
            elif on_rate:
                self._fetch_whole(place, body, piece)
            else:
                raise ConnectionLost(
                    "it gives no part of a file", f"{self._file.path} from {place.name}"
                )

    def _fetch_whole(self, place: Place, body: Body, piece: Piece) -> None:
        """Take a file from a place that knows no ranges: over one connection, all of it."""
        self.end()
        self.begin(())
        self._tally.there(-self._part.count)
        everything = Piece(0, self._file.size)
        try:
            self._receive(place, body, everything)
        finally:
            # What was there before counts also behind the point where this broke.
            self._tally.there(max(0, self._part.count - everything.at))
            piece.at = max(piece.at, min(everything.at, piece.stop))

    def _receive(
        self,
        place: Place,
        body: Body,
        piece: Piece,
        on_rate: Callable[[float, float], None] | None = None,
    ) -> None:
        cancellation = current_cancellation()
        watch = Watch(self._file, place)
        begin, start, marked = time.monotonic(), piece.at, piece.at
        self.givers.add(place.name)
        while piece.at < piece.stop and not self._stop.is_set():
            chunk = body.read(min(_CHUNK, piece.stop - piece.at))
            cancellation.check(self._file.path)
            watch.came(chunk, piece.at)
            if self._pace:
                self._pace(len(chunk))
            with local_errors(self._part.path):
                self._part.write(piece.at, chunk)
                piece.at += len(chunk)
                marked = self._part.mark(marked, piece.at)
            self._tally.came(place.name, len(chunk))
            seconds = time.monotonic() - begin
            if on_rate:
                on_rate((piece.at - start) / max(seconds, 1e-3), seconds)

    def _call_for_help(self, rate: float, seconds: float) -> None:
        """Open further connections once the leading one turns out to be slow."""
        self._rate = rate
        if self._helpers or seconds < _WARM_UP or rate > _FAST:
            return
        count = min(self._most - 1, self._ranges.remaining // SHORTEST)
        for number in range(count):
            context = contextvars.copy_context()
            helper = threading.Thread(
                target=context.run, args=(self._help,), name=f"range-{number}", daemon=True
            )
            self._helpers.append(helper)
            helper.start()

    def _help(self) -> None:
        failures, rate = 0, self._rate
        while not self._stop.is_set() and failures < _FAILURES_OF_HELP:
            piece = self._ranges.take(self._most, rate)
            if piece is None or self._place is None:
                return
            start, begin = piece.at, time.monotonic()
            try:
                self._fetch(self._place, piece)
                failures = 0
            except DiskFull as error:
                self._failed = error
                self._stop.set()
            except CrossgapError as error:
                failures = 1 if piece.at > start else failures + 1
                logger().debug("A range of %s ended: %s", self._file.path, error)
                self._tally.retried(self._file.path, self._place.name, error.what)
            except BaseException as error:  # noqa: BLE001 - a defect is the caller's to report
                self._failed = error
                self._stop.set()
            finally:
                if piece.at < piece.stop:
                    self._ranges.give_back(piece.at // BLOCK * BLOCK, piece.stop)
            rate = (piece.at - start) / max(time.monotonic() - begin, 1e-3)
