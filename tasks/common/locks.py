"""One flow run works on a host at a time.

Two locks, because neither is enough alone: a limit in Prefect, where runs wait
for their turn in sight of everybody, and a lock on the host itself, which also
holds when the server is out of reach or when two servers know the host.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError
from blocks.host import Host
from blocks.logs import logger
from tasks.common.failures import collect
from tasks.common.host_hold import insisting
from tasks.common.host_holds import HostHolds
from tasks.common.host_lock import HostLock
from tasks.common.lock_owner import LockOwner, this_process

LONGEST_WAIT = 3600.0
"""Seconds to wait for other runs before giving up on the hosts that they hold."""


@dataclass(frozen=True)
class LockedHosts:
    """Which hosts a run may work on.

    Args:
        hosts: Those that it holds, in the order of their lock names; of two
            blocks for one machine only one.
        failures: Why the others are not held.
    """

    hosts: tuple[Host, ...]
    failures: tuple[CrossgapError, ...]


@dataclass(frozen=True)
class _Holding:
    """What the code of this context holds: nested calls and subflows see it.

    Args:
        owner: The run.
        tokens: By lock name, the token that marks the host as held.
    """

    owner: LockOwner
    tokens: Mapping[str, str] = field(default_factory=dict)


_holding: ContextVar[_Holding | None] = ContextVar("holding", default=None)


@contextmanager
def hosts_locked(
    hosts: Sequence[Host],
    *,
    wait: float = LONGEST_WAIT,
    poll: float = 5.0,
    path: str = HostLock.PATH,
) -> Iterator[LockedHosts]:
    """Hold hosts for this run while the body runs.

    All that are free are taken at once; `HostHolds` says how a run waits for the
    others. Those that do not answer are found out side by side before. What the
    surrounding code holds already, also the parent of a subflow, is not taken again.

    Use it around `blocks.cancellation.ends_remote_work`, so that a cancelled
    run ends its work before it lets others in.

    Args:
        hosts: The hosts. Two blocks of one machine count once, and the log says so,
            whether they name it alike (`lock_name`) or turn out to be the same.
        wait: Seconds to wait at most for other runs, for all hosts together.
        poll: Seconds between two looks at a lock that is held.
        path: The lock's folder on the host.

    Yields:
        The hosts that are held, and why the others are not: unreachable, held
        by another run at the end of `wait` (Conflict), a lock that the user
        may not change (PermissionRefused).

    Raises:
        Cancelled: The run was cancelled while it waited.
    """
    reached = collect(_reach, _in_order(hosts), name=lambda host: host.label, at_once=50)
    # To `collect`, a host that was not asked because the run is cancelled is a failed one.
    current_cancellation().check("taking the hosts")
    outer = _holding.get() or _Holding(_new_owner())
    with HostHolds(outer.owner, outer.tokens, path=path, poll=poll) as holds:
        holds.take(reached.results, wait)
        before = _holding.set(_Holding(outer.owner, {**outer.tokens, **holds.tokens}))
        try:
            yield LockedHosts(holds.hosts, (*reached.failures, *holds.failures))
        finally:
            _holding.reset(before)


def _in_order(hosts: Sequence[Host]) -> list[Host]:
    """Order hosts as every run does, and keep the first of those of one name."""
    machines: dict[str, Host] = {}
    for host in hosts:
        first = machines.setdefault(host.lock_name, host)
        if first.label != host.label:
            logger().warning(
                "%s is the same machine as %s: the run works there once, as %s.",
                host.label, first.label, first.label,
            )  # fmt: skip
    return [machines[name] for name in sorted(machines)]


def _reach(host: Host) -> Host:
    insisting(host, lambda: host.run(["true"], timeout=60))
    return host


def _new_owner() -> LockOwner:
    from prefect.runtime import flow_run

    run_id = str(flow_run.id or uuid.uuid4())
    return this_process(run_id, str(flow_run.flow_name or "a script"))
