"""The task that sends one file to one host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.files import Transfer
from blocks.hosts import load_host
from tasks.common.progress import HostProgress
from tasks.common.retry import retrying
from tasks.transfer.rate import RateLimit, pace_of


@dataclass(frozen=True)
class Delivery:
    """A file and where it goes.

    Args:
        local: The file here.
        remote: Its path on the host.
        sha256: Its hash in hex, or empty when not known.
        title: What it is, for the name of the task run.
    """

    local: Path
    remote: str
    sha256: str
    title: str


@task(task_run_name="send {delivery.title} to {host}", cache_policy=NO_CACHE, **retrying())
def send_file(
    host: str,
    delivery: Delivery,
    flow: str,
    rate_limit_mbit: float | None = None,
    total_limit: RateLimit | None = None,
) -> Transfer:
    """Send a file to a host, going on where an earlier try or run stopped.

    Args:
        host: Name of the host's block.
        delivery: The file and where it goes.
        flow: Name of the flow, for the key of the progress artifact.
        rate_limit_mbit: Limit of this transfer in Mbit/s.
        total_limit: A limit that is shared with other transfers.

    Returns:
        What was sent and what had been there.

    Raises:
        CrossgapError: As for `blocks.files.put`.
    """
    own = RateLimit(rate_limit_mbit) if rate_limit_mbit is not None else None
    with HostProgress(flow, host) as progress:
        sent = load_host(host).put(
            delivery.local,
            delivery.remote,
            progress=progress,
            pace=pace_of(own, total_limit),
            sha256=delivery.sha256,
        )
        progress.done()
    return sent
