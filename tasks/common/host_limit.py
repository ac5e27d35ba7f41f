"""The place in Prefect where one run per host waits for its turn.

A global concurrency limit of 1 per host shows in the UI who waits for what.
It is a lease: after a kill it is free again within a minute, and it is lost
when the server is away for longer. What holds then is the lock on the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from blocks.cancellation import current_cancellation
from blocks.errors import Conflict
from blocks.host import Host
from blocks.logs import logger
from tasks.common.waiting import Waiting, jittered

if TYPE_CHECKING:
    from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError

LEASE = 60.0
"""Seconds until the limit of a killed run is free again; the least that Prefect takes."""

HTTP_LOCKED = 423


def limit_name(lock_name: str) -> str:
    """Name the limit of a host.

    Args:
        lock_name: The `lock_name` of the host's block.
    """
    # Prefect refuses %, which the scope of an IPv6 address brings along.
    return f"host-{re.sub(r'[^A-Za-z0-9.:_-]', '-', lock_name)}"


def ensure_limit(name: str) -> None:
    """Make a limit of 1 when it is missing; two runs may do so at once.

    Args:
        name: The limit's name.

    Raises:
        httpx.HTTPError: The server does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            # Another run may be faster.
            with suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=1)
                )


@contextmanager
def limit_held(host: Host, *, wait: float, poll: float = 5.0) -> Iterator[None]:
    """Hold the limit of a host while the body runs.

    A server that cannot be reached is no reason to stop: the lock on the host
    is there for that. Neither is one that is gone when the limit is given back.

    Args:
        host: The host.
        wait: Seconds to wait for another run at most.
        poll: Seconds between two tries.

    Raises:
        Conflict: Another run held the limit all the time.
    """
    name = limit_name(host.lock_name)
    held = _acquired(host, name, wait=wait, poll=poll)
    try:
        yield
    finally:
        try:
            held.close()
        except Exception as error:  # noqa: BLE001 - whatever the server says, the work is done
            logger().warning(
                "The limit %s could not be given back (%s); it is free again within %.0f s.",
                name, error, LEASE,
            )  # fmt: skip


def _acquired(host: Host, name: str, *, wait: float, poll: float) -> ExitStack:
    from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError

    waiting = Waiting(f"{host.label}: another run holds its Prefect limit {name}")
    while True:
        held = ExitStack()
        try:
            ensure_limit(name)
            held.enter_context(_slot(name))
            return held
        except ConcurrencySlotAcquisitionError as error:
            if not _is_taken(error):
                return _without(name, error)
        except Exception as error:  # noqa: BLE001 - any trouble with the server counts alike
            return _without(name, error)
        if waiting.seconds >= wait:
            raise Conflict(
                f"another flow run holds the Prefect limit {name}",
                host.label,
                "See in the Prefect UI which run is at work there; start this one again when it "
                "has ended. If none is, reset the limit: prefect gcl update "
                f"{name} --active-slots 0.",
            )
        waiting.say()
        current_cancellation().pause(jittered(poll), host.label)


def _slot(name: str) -> AbstractContextManager[None]:
    from prefect.concurrency.sync import concurrency

    # max_retries=0 and a loop of our own, not timeout_seconds: a request that
    # times out on this side may have been granted on the other, and Prefect's
    # own pause between tries (the server's Retry-After) cannot be cancelled.
    return concurrency(
        name,
        occupy=1,
        max_retries=0,
        strict=True,
        lease_duration=LEASE,
        raise_on_lease_renewal_failure=False,
    )


def _is_taken(error: ConcurrencySlotAcquisitionError) -> bool:
    response = getattr(error.__cause__, "response", None)
    return getattr(response, "status_code", None) == HTTP_LOCKED


def _without(name: str, error: Exception) -> ExitStack:
    logger().warning(
        "The Prefect limit %s could not be had (%s); the lock on the host alone keeps "
        "other runs away.",
        name, error,
    )  # fmt: skip
    return ExitStack()
