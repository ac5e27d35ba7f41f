"""Progress of bytes to one host or place, for an operator who looks at it now and then."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import UUID

from blocks.logs import logger
from tasks.common.artifact_keys import artifact_key
from tasks.common.units import bytes_text, duration_text, rate_text

RATE_WINDOW = 15.0
"""Seconds over which the rate is measured: long enough to be calm, short enough to be true."""


@dataclass(frozen=True)
class Standing:
    """How far a transfer has come.

    Args:
        arrived: Bytes on the host.
        total: Bytes in all.
        rate: Bytes per second lately; 0 when nothing came.
        done: Whether the work was said to be done.
    """

    arrived: int
    total: int
    rate: float = 0.0
    done: bool = False

    @property
    def percent(self) -> float:
        """The share that arrived, 100 only when the work is done."""
        if self.done:
            return 100.0
        share = 100 * self.arrived / self.total if self.total > 0 else 0.0
        return round(min(max(share, 0.0), 99.9), 1)

    def sentence(self, host: str) -> str:
        """Say it in one sentence.

        Args:
            host: The host's name.

        Returns:
            Bytes, rate and time left.
        """
        if self.done:
            return f"{host}: all {bytes_text(max(self.total, self.arrived))} arrived."
        came = f"{host}: {bytes_text(self.arrived)} of {bytes_text(self.total)} arrived"
        if self.arrived >= self.total:
            return f"{came}; being finished there."
        if self.rate <= 0:
            return f"{came}, nothing just now."
        left = duration_text((self.total - self.arrived) / self.rate)
        return f"{came}, {rate_text(self.rate)}, about {left} left."


class Meter:
    """Keeps numbers that only ever grow, and their rate, safe from any thread.

    Args:
        clock: Seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._arrived = 0
        self._total = 0
        self._done = False
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, arrived: int, total: int) -> None:
        """Note how many bytes arrived, of how many; less than before arrived changes nothing."""
        with self._lock:
            if not self._samples:
                self._samples.append((self._clock(), arrived))
            self._arrived = max(self._arrived, arrived)
            self._total = total

    def done(self) -> None:
        """Note that all of the work is done."""
        with self._lock:
            self._done = True

    def standing(self) -> Standing:
        """Return where it stands now; the rate is that since the last few calls."""
        with self._lock:
            now = self._clock()
            while len(self._samples) > 1 and now - self._samples[0][0] > RATE_WINDOW:
                self._samples.popleft()
            rate = 0.0
            if self._samples and now > self._samples[0][0]:
                since, before = self._samples[0]
                rate = max(0.0, (self._arrived - before) / (now - since))
            self._samples.append((now, self._arrived))
            return Standing(self._arrived, self._total, rate, self._done)


@dataclass
class _Shown:
    """What the operator has seen for one host in one run, kept over a task's retries."""

    percent: float = 0.0
    artifact: UUID | None = None


_shown: dict[tuple[str, str], _Shown] = {}
_shown_lock = threading.Lock()


class HostProgress:
    """Shows a transfer to one host: a progress artifact and a sentence every few seconds.

    Used around the work, and passed to it as its `progress` callback:

        with HostProgress("ship-images", "gpu1") as progress:
            host.put(archive, path, progress=progress)
            progress.done()

    The bar appears with the first numbers, so that work with nothing to do shows
    none. It never goes back, also when the task is retried in the same run. An
    API that does not answer costs the work nothing. Outside of a run there is
    only the log.

    Args:
        flow: The flow's name, for the artifact's key.
        host: The host's name, for the key and the sentences; or another place.
        kind: What makes the key of another place differ from that of every host.
        every: Seconds between two updates.

    Attributes:
        counting: Says what is counted beside bytes, as in `3 of 12 files`.
    """

    def __init__(self, flow: str, host: str, *, kind: str = "progress", every: float = 3.0) -> None:
        self.counting: Callable[[], str] | None = None
        self._host = host
        self._every = every
        self._key = artifact_key(flow, kind, host)
        self._meter = Meter()
        self._begin_lock = threading.Lock()
        self._stop = threading.Event()
        self._log: logging.Logger | logging.LoggerAdapter[logging.Logger] = logger()
        self._run_id = _current_run_id()
        self._api_failed = False
        with _shown_lock:
            self._shown = _shown.setdefault((self._run_id, self._key), _Shown())
        # A thread starts with an empty context: it would not know its run.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._tick,), name=self._key, daemon=True
        )

    def __call__(self, arrived: int, total: int) -> None:
        """Take new numbers, at any rate and from any thread.

        Args:
            arrived: Bytes that arrived so far.
            total: Bytes in all.
        """
        self._meter.update(arrived, total)
        with self._begin_lock:
            if not self._begun and not self._stop.is_set():
                self._thread.start()

    def done(self) -> None:
        """Say that the work is done: only this brings the bar to 100."""
        self._meter.done()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._begin_lock:
            self._stop.set()
        if self._begun:
            # The last update may meet a server that hangs; the work is not held up by it.
            self._thread.join(10)

    @property
    def _begun(self) -> bool:
        return self._thread.ident is not None

    def _tick(self) -> None:
        self._publish(Standing(0, 0))
        before: Standing | None = None
        while not self._stop.wait(self._every):
            before = self._show(before)
        self._show(before)
        if self._run_id == "":
            with _shown_lock:
                _shown.pop((self._run_id, self._key), None)

    def _show(self, before: Standing | None) -> Standing:
        standing = self._meter.standing()
        moved = before is None or (standing.arrived, standing.done) != (
            before.arrived,
            before.done,
        )
        # A line that is down for hours gets one sentence, not one every three seconds.
        if (standing.total or standing.done) and (moved or (before and before.rate > 0)):
            self._log.info(self._sentence(standing))
        self._publish(standing)
        return standing

    def _sentence(self, standing: Standing) -> str:
        sentence = standing.sentence(self._host)
        if self.counting is None:
            return sentence
        return f"{sentence.removesuffix('.')} ({self.counting()})."

    def _publish(self, standing: Standing) -> None:
        percent = max(standing.percent, self._shown.percent)
        self._shown.percent = percent
        if not self._run_id:
            return
        text = self._sentence(standing) if standing.total or standing.done else self._host
        try:
            self._write_artifact(percent, text)
        except Exception as error:  # noqa: BLE001 - whatever the API says, the bytes matter more
            # One warning is enough.
            level = logging.DEBUG if self._api_failed else logging.WARNING
            self._api_failed = True
            self._log.log(
                level, "The progress of %s cannot be shown (%s); going on.", self._host, error
            )

    def _write_artifact(self, percent: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._shown.artifact is None:
            created = create_progress_artifact(percent, key=self._key, description=text)
            # Prefect's functions answer with a coroutine in an event loop only.
            self._shown.artifact = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(self._shown.artifact, percent, description=text)


def _current_run_id() -> str:
    from prefect.runtime import flow_run

    return str(flow_run.id or "")
