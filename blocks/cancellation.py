"""How a cancelled run reaches the threads that wait for a host.

Prefect cancels a run by SIGTERM, which raises in the main thread only. Tasks
run in other threads, in loops that wait for bytes, jobs or links. Each such
loop asks the `Cancellation` of its run whether to go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

from blocks.errors import Cancelled
from blocks.logs import logger


class Cancellation:
    """The stop signal of one run, and what has to be ended on the far side."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._endings: dict[object, Callable[[], None]] = {}

    @property
    def requested(self) -> bool:
        """Whether the run has been cancelled."""
        return self._event.is_set()

    def check(self, where: str) -> None:
        """Raise when the run has been cancelled.

        Args:
            where: The host that the caller is working on.

        Raises:
            Cancelled: The run was cancelled.
        """
        if self._event.is_set():
            raise Cancelled("the run was cancelled while working here", where)

    def pause(self, seconds: float, where: str) -> None:
        """Sleep, but wake at once when the run is cancelled.

        Args:
            seconds: How long to sleep.
            where: The host that the caller is working on.

        Raises:
            Cancelled: The run was cancelled before or during the sleep.
        """
        end = time.monotonic() + seconds
        # In slices: a signal that comes just before a wait is seen only after it.
        while not self._event.is_set() and (left := end - time.monotonic()) > 0:
            self._event.wait(min(left, 1.0))
        self.check(where)

    def on_cancel(self, key: object, end: Callable[[], None]) -> None:
        """Remember how to end something that would outlive this process.

        Args:
            key: Names it; what was remembered under an equal key is replaced.
            end: Ends it; called at once when the run has been cancelled already.
        """
        with self._lock:
            if not self._event.is_set():
                self._endings[key] = end
                return
        self._attempt(end)

    def ended(self, key: object) -> None:
        """Forget what `on_cancel` remembered under this key."""
        with self._lock:
            self._endings.pop(key, None)

    def cancel(self) -> None:
        """Wake every waiting thread and end everything remembered, side by side.

        What cannot be ended is named in the log.
        """
        with self._lock:
            # Before the waiting threads wake, and forget what they waited for.
            endings = list(self._endings.values())
            self._endings.clear()
            self._event.set()
        with ThreadPoolExecutor(max_workers=max(1, len(endings))) as pool:
            contexts = [copy_context() for _ in endings]
            list(pool.map(lambda context, end: context.run(self._attempt, end), contexts, endings))

    @staticmethod
    def _attempt(end: Callable[[], None]) -> None:
        try:
            with cancellation_scope(Cancellation()):
                end()
        except Exception as error:  # noqa: BLE001 - each ending gets its chance
            logger().warning("Something that this run started may still be at work: %s", error)


_current: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


def current_cancellation() -> Cancellation:
    """Return the stop signal of the run that the caller belongs to.

    Returns:
        The innermost one of `cancellation_scope`; outside of any, one that is
        never set.
    """
    return _current.get() or Cancellation()


@contextmanager
def cancellation_scope(cancellation: Cancellation) -> Iterator[Cancellation]:
    """Make a stop signal the current one for this context and its copies."""
    token = _current.set(cancellation)
    try:
        yield cancellation
    finally:
        _current.reset(token)


@contextmanager
def ends_remote_work() -> Iterator[Cancellation]:
    """Cancel what the body started on hosts when the body is interrupted.

    Interrupted means SIGTERM (Prefect's cancel) or Ctrl-C, that is, any
    exception that is not an `Exception`. Ordinary errors pass untouched:
    jobs that go on then are found again by the next run.
    """
    with cancellation_scope(Cancellation()) as cancellation:
        try:
            yield cancellation
        except Exception:
            raise
        except BaseException:
            cancellation.cancel()
            raise
