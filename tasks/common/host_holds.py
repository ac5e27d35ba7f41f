"""Several hosts for one run: how it waits without runs waiting for each other for ever.

Every run tries all its hosts first, without waiting. Waiting follows the order of
the hosts' lock names: a run waits for the first host that is held by another, and
meanwhile keeps only hosts that come before it, so that no ring of runs can arise in
which each waits for the next. What it gave back for that it tries again afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import Cancelled, Conflict, CrossgapError
from blocks.host import Host
from blocks.logs import logger
from tasks.common.failures import collect
from tasks.common.host_hold import HostHold
from tasks.common.lock_owner import LockOwner
from tasks.common.units import duration_text


class HostHolds:
    """A run's holds on several hosts; all are given back at the end of the `with`.

    Args:
        owner: The run.
        outer: By lock name, the tokens of hosts that surrounding code holds.
        path: The lock's folder on each host.
        poll: Seconds between two looks at what another run holds.
    """

    def __init__(
        self, owner: LockOwner, outer: Mapping[str, str], *, path: str, poll: float
    ) -> None:
        self.failures: list[CrossgapError] = []
        self._owner = owner
        self._outer = outer
        self._path = path
        self._poll = poll
        self._holds: list[HostHold] = []
        self._hosts: dict[str, Host] = {}  # by the token that marks each

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts that the run may work on, in the order of their lock names."""
        return tuple(sorted(self._hosts.values(), key=lambda host: host.lock_name))

    @property
    def tokens(self) -> dict[str, str]:
        """The tokens of these hosts by lock name."""
        return {host.lock_name: token for token, host in self._hosts.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A cancelled run gives its hosts back too, so its stop signal must not count here.
        with cancellation_scope(Cancellation()):
            self._give_back(self._holds)

    def take(self, hosts: Sequence[Host], wait: float) -> None:
        """Take hosts; those that cannot be had are among the failures afterwards.

        Args:
            hosts: The hosts in the order of their lock names, no name twice.
            wait: Seconds to wait for other runs, for all hosts together.

        Raises:
            Cancelled: The run was cancelled while it waited.
        """
        began = time.monotonic()
        pending = list(hosts)
        while pending:
            busy = [(host, error) for host in pending if (error := self._try(host))]
            waited = time.monotonic() - began
            if waited >= wait or not busy:
                self.failures += [_gave_up(error, waited) for _, error in busy]
                return
            first, *others = [host for host, _ in busy]
            for _, error in busy:
                logger().info("%s: %s.", error.where, error.what)
            pending = [*self._given_back_behind(first), *others]
            pending.sort(key=lambda host: host.lock_name)
            if error := self._try(first, wait - waited):
                self.failures.append(_gave_up(error, time.monotonic() - began))

    def _try(self, host: Host, wait: float = 0) -> Conflict | None:
        """Take one host, and return what another run's hold on it says."""
        token = self._outer.get(host.lock_name)
        if token is None:
            hold = HostHold(host, self._owner, self._path)
            self._holds.append(hold)  # before it is tried: an interruption may come between
            own = [*self._outer.values(), *self._hosts]
            try:
                token = hold.take(own, wait=wait, poll=self._poll)
            except Cancelled:
                raise
            except CrossgapError as error:
                self._holds.remove(hold)
                if isinstance(error, Conflict):
                    return error
                self.failures.append(error)
                return None
            if token != hold.token:
                self._holds.remove(hold)
        first = self._hosts.setdefault(token, host)
        if first is not host:
            logger().warning(
                "%s is the same machine as %s: the run works there once, as %s.",
                host.label, first.label, first.label,
            )  # fmt: skip
        return None

    def _given_back_behind(self, first: Host) -> list[Host]:
        behind = [hold for hold in self._holds if hold.host.lock_name > first.lock_name]
        self._give_back(behind)
        return [self._hosts.pop(hold.token) for hold in behind]

    def _give_back(self, holds: Sequence[HostHold]) -> None:
        given = list(holds)
        collect(HostHold.give_back_lock, given, name=lambda hold: hold.host.label, at_once=16)
        for hold in given:
            hold.give_back_turn()
        self._holds = [hold for hold in self._holds if hold not in given]


def _gave_up(error: Conflict, waited: float) -> Conflict:
    return Conflict(f"{error.what}; waited {duration_text(waited)}", error.where, error.remedy)
