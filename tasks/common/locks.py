"""One flow run works on a host at a time.

Two locks, because neither is enough alone: a limit in Prefect, where runs wait
for their turn in sight of everybody, and a lock on the host itself, which also
holds when the server is out of reach or when two servers know the host.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TypeVar

from blocks.cancellation import Cancellation, cancellation_scope, current_cancellation
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
from tasks.common.failures import collect
from tasks.common.host_limit import limit_held
from tasks.common.host_lock import Holder, HostLock, LockState
from tasks.common.lock_owner import (
    UNFINISHED_AFTER,
    LockOwner,
    death_of,
    process_start,
    this_process,
)
from tasks.common.run_states import final_state
from tasks.common.units import duration_text
from tasks.common.waiting import Waiting, jittered

LONGEST_WAIT = 3600.0
"""Seconds to wait for another run before giving up on a host."""

T = TypeVar("T")


@dataclass(frozen=True)
class LockedHosts:
    """Which hosts a run may work on.

    Args:
        hosts: Those that it holds, in the order of their lock names; of two
            blocks for one machine the first.
        failures: Why the others are not held.
    """

    hosts: tuple[Host, ...]
    failures: tuple[CrossgapError, ...]


@dataclass(frozen=True)
class _Holding:
    """What the code of this context holds: nested calls and subflows see it."""

    owner: LockOwner
    names: frozenset[str] = frozenset()


_holding: ContextVar[_Holding | None] = ContextVar("holding", default=None)

# The tokens of all locks of this process, also those of other runs in it.
_tokens: set[str] = set()


@contextmanager
def hosts_locked(
    hosts: Sequence[Host],
    *,
    wait: float = LONGEST_WAIT,
    poll: float = 5.0,
    path: str = HostLock.PATH,
) -> Iterator[LockedHosts]:
    """Hold hosts for this run while the body runs.

    Hosts are taken one after the other in the order of their names, as every
    run does, so that two runs never wait for each other. Those that do not
    answer are found out side by side before. What the surrounding code holds
    already, also the parent of a subflow, is not taken again.

    Use it around `blocks.cancellation.ends_remote_work`, so that a cancelled
    run ends its work before it lets others in.

    Args:
        hosts: The hosts; two blocks of one machine count once.
        wait: Seconds to wait at most for another run to give a host back.
        poll: Seconds between two looks at a lock that is held.
        path: The lock's folder on the host.

    Yields:
        The hosts that are held, and why the others are not: unreachable, held
        by another run for longer than `wait` (Conflict), a lock that the user
        may not change (PermissionRefused).

    Raises:
        Cancelled: The run was cancelled while it waited.
    """
    machines = {host.lock_name: host for host in reversed(hosts)}
    reached = collect(
        _reach, [machines[name] for name in sorted(machines)], name=_label, at_once=50
    )
    outer = _holding.get() or _Holding(_new_owner())
    held: list[Host] = []
    failures = list(reached.failures)
    with ExitStack() as limits, _released_together() as locks:
        for host in reached.results:
            if host.lock_name not in outer.names:
                lock = HostLock(host, outer.owner, path)
                try:
                    _hold(lock, limits, locks, wait=wait, poll=poll)
                except Cancelled:
                    raise
                except CrossgapError as error:
                    failures.append(error)
                    continue
            held.append(host)
        names = outer.names | {host.lock_name for host in held}
        before = _holding.set(replace(outer, names=names))
        try:
            yield LockedHosts(tuple(held), tuple(failures))
        finally:
            _holding.reset(before)


def _hold(
    lock: HostLock, limits: ExitStack, locks: list[HostLock], *, wait: float, poll: float
) -> None:
    with ExitStack() as limit:
        limit.enter_context(_limit(lock.host, wait, poll))
        # Noted before it is tried: the answer may get lost on the way back.
        locks.append(lock)
        _tokens.add(lock.token)
        try:
            _take(lock, wait=wait, poll=poll)
        except CrossgapError:
            locks.remove(lock)
            _release(lock)
            raise
        limits.enter_context(limit.pop_all())


def _limit(host: Host, wait: float, poll: float) -> AbstractContextManager[None]:
    from prefect.runtime import flow_run

    # Without a run there is nobody to show the limit to, and maybe no server.
    return limit_held(host, wait=wait, poll=poll) if flow_run.id else nullcontext()


def _take(lock: HostLock, *, wait: float, poll: float) -> None:
    def death(holder: Holder) -> str | None:
        return _death(holder, lock.owner)

    waiting = Waiting(f"{lock.host.label}: another run is at work there")
    state = _insisting(lock.host, lambda: lock.try_take(death))
    while state.outcome != "taken":
        if waiting.seconds >= wait:
            raise _conflict(lock, state, waiting.seconds)
        if state.holders:
            waiting.say(f"It is held by {_whose(state)}.")
        # Without a holder somebody comes or goes at this very moment.
        pause = poll if state.holders else min(poll, 1.0)
        current_cancellation().pause(jittered(pause), lock.host.label)
        try:
            state = lock.try_take(death)
        except Unreachable as error:
            if waiting.seconds >= wait:
                raise
            logger().warning("%s Still waiting for its lock.", error)


def _death(holder: Holder, reader: LockOwner) -> str | None:
    if holder.token in _tokens:
        return None
    if holder.owner is None:
        old = holder.age >= UNFINISHED_AFTER
        return "its record was never written to the end" if old else None
    return death_of(
        holder.owner, reader=reader, process_start=process_start, final_state=final_state
    )


@contextmanager
def _released_together() -> Iterator[list[HostLock]]:
    locks: list[HostLock] = []
    try:
        yield locks
    finally:
        # A cancelled run gives its locks back too, so its stop signal must not count here.
        with cancellation_scope(Cancellation()):
            collect(_release, locks, name=lambda lock: lock.host.label, at_once=16)


def _release(lock: HostLock) -> None:
    _tokens.discard(lock.token)
    try:
        lock.release()
    except CrossgapError as error:
        logger().warning(
            "The lock on %s could not be given back (%s) The next run will recognise it as "
            "stale when this process has ended.",
            lock.host.label, error,
        )  # fmt: skip


def _label(host: Host) -> str:
    return host.label


def _reach(host: Host) -> Host:
    _insisting(host, lambda: host.run(["true"], timeout=60))
    return host


def _insisting(host: Host, attempt: Callable[[], T]) -> T:
    """Try three times where a host answers, but drops the connection."""
    for pause in (1.0, 3.0):
        try:
            return attempt()
        except (ConnectionLost, TooManyConnections):
            current_cancellation().pause(jittered(pause), host.label)
    return attempt()


def _new_owner() -> LockOwner:
    from prefect.runtime import flow_run

    run_id = str(flow_run.id or uuid.uuid4())
    return this_process(run_id, str(flow_run.flow_name or "a script"))


def _whose(state: LockState) -> str:
    return " and ".join(
        str(holder.owner or "somebody whose record cannot be read") for holder in state.holders
    )


def _conflict(lock: HostLock, state: LockState, waited: float) -> Conflict:
    whose = _whose(state) or "somebody who left no record"
    return Conflict(
        f"{whose} still held it after {duration_text(waited)}",
        lock.host.label,
        "Wait until that run ends or cancel it in Prefect, then start again. If you are sure "
        f"that it is dead, remove its lock {lock.removal_hint(state)}",
    )
