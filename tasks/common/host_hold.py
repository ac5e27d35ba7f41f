"""One run's hold on one host: its turn in Prefect, and the lock on the host itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import TypeVar

from blocks.cancellation import current_cancellation
from blocks.errors import (
    Cancelled,
    Conflict,
    ConnectionLost,
    CrossgapError,
    TooManyConnections,
    Unreachable,
)
from blocks.host import Host
from blocks.logs import logger
from tasks.common.host_limit import limit_held
from tasks.common.host_lock import Holder, HostLock, LockState
from tasks.common.lock_owner import UNFINISHED_AFTER, LockOwner, death_of, process_start
from tasks.common.run_states import final_state
from tasks.common.waiting import Waiting, jittered

T = TypeVar("T")

# The tokens of all locks of this process, also those of other runs in it.
_tokens: set[str] = set()


class HostHold:
    """One run's hold on one host.

    Args:
        host: The host.
        owner: The run.
        path: The lock's folder on the host.
    """

    def __init__(self, host: Host, owner: LockOwner, path: str) -> None:
        self.host = host
        self._lock = HostLock(host, owner, path)
        self._limit = ExitStack()

    @property
    def token(self) -> str:
        """What marks the host as held by this hold."""
        return self._lock.token

    def take(self, own: Collection[str], *, wait: float, poll: float) -> str:
        """Take the host, waiting for another run if need be.

        Args:
            own: The tokens by which this run holds hosts already.
            wait: Seconds to wait at most; 0 for one try.
            poll: Seconds between two looks at what another run holds.

        Returns:
            The token that marks the host now: this one, or the one of `own` by which the
            run holds the same machine under another name. Nothing was taken then.

        Raises:
            Conflict: Another run holds the host.
            Cancelled: The run was cancelled while it waited; there may be something to
                give back.
            CrossgapError: The host cannot be asked, or its lock not be changed.
        """
        ends = time.monotonic() + wait
        try:
            self._take_turn(wait, poll)
            # Noted before it is tried: the answer may get lost on the way back.
            _tokens.add(self.token)
            token = self._take_lock(own, ends, poll)
        except Cancelled:
            raise  # nothing can be given back before the caller has set the stop signal aside
        except CrossgapError:
            self.give_back()
            raise
        if token != self.token:
            self.give_back()
        return token

    def give_back(self) -> None:
        """Give back what is held; safe to call twice and without holding anything."""
        self.give_back_lock()
        self.give_back_turn()

    def give_back_lock(self) -> None:
        """Give back the lock on the host; what goes wrong is a warning."""
        if self.token not in _tokens:
            return
        try:
            self._lock.release()
        except CrossgapError as error:
            logger().warning(
                "The lock on %s could not be given back (%s) The next run will recognise it as "
                "stale when this process has ended.",
                self.host.label, error,
            )  # fmt: skip
        # Last, so that a call that was interrupted is made good by the next.
        _tokens.discard(self.token)

    def give_back_turn(self) -> None:
        """Give back the turn in Prefect."""
        self._limit.close()

    def _take_turn(self, wait: float, poll: float) -> None:
        from prefect.runtime import flow_run

        # Without a run there is nobody to show the limit to, and maybe no server.
        if flow_run.id:
            self._limit.enter_context(limit_held(self.host, wait=wait, poll=poll))

    def _take_lock(self, own: Collection[str], ends: float, poll: float) -> str:
        host = self.host
        waiting = Waiting(f"{host.label}: another run is at work there")
        state = insisting(host, lambda: self._lock.try_take(self._death))
        while state.outcome != "taken":
            if ours := {holder.token for holder in state.holders}.intersection(own):
                return ours.pop()
            if time.monotonic() >= ends:
                raise self._conflict(state)
            if state.holders:
                waiting.say(f"It is held by {_whose(state)}.")
            # Without a holder somebody comes or goes at this very moment.
            pause = poll if state.holders else min(poll, 1.0)
            current_cancellation().pause(jittered(pause), host.label)
            try:
                state = self._lock.try_take(self._death)
            except Unreachable as error:
                if time.monotonic() >= ends:
                    raise
                logger().warning("%s Still waiting for its lock.", error)
        return self.token

    def _death(self, holder: Holder) -> str | None:
        if holder.token in _tokens:
            return None
        if holder.owner is None:
            old = holder.age >= UNFINISHED_AFTER
            return "its record was never written to the end" if old else None
        return death_of(
            holder.owner,
            reader=self._lock.owner,
            process_start=process_start,
            final_state=final_state,
        )

    def _conflict(self, state: LockState) -> Conflict:
        return Conflict(
            f"{_whose(state) or 'somebody who left no record'} holds it",
            self.host.label,
            "Wait until that run ends or cancel it in Prefect, then start again. If you are "
            f"sure that it is dead, remove its lock {self._lock.removal_hint(state)}",
        )


def insisting(host: Host, attempt: Callable[[], T]) -> T:
    """Try three times where a host answers, but drops the connection.

    Args:
        host: The host.
        attempt: What to try.
    """
    for pause in (1.0, 3.0):
        try:
            return attempt()
        except (ConnectionLost, TooManyConnections):
            current_cancellation().pause(jittered(pause), host.label)
    return attempt()


def _whose(state: LockState) -> str:
    return " and ".join(
        str(holder.owner or "somebody whose record cannot be read") for holder in state.holders
    )
