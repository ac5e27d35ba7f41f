"""Files to and from a host: resumable, verified, and complete or not there.

A file travels under a temporary name that holds the first digits of its SHA-256
(of its identity here, where the hash is not known yet), so that a later run, in
whatever process, goes on where an earlier one stopped. It is hashed on the far side
with the tool that is there, and renamed when right; only its owner can read it, as
servers are shared. Nothing but a POSIX shell and coreutils is asked of the host: no
SFTP.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.content import Content
from blocks.errors import NotFound
from blocks.fetching import Fetching
from blocks.link import link_rate
from blocks.outage import waited_out
from blocks.pouring import local_errors
from blocks.sending import Sending
from blocks.transfer import STALL, Pace, Progress, Transfer

if TYPE_CHECKING:
    from blocks.host import Host

__all__ = ["STALL", "Pace", "Progress", "Transfer", "get", "link_rate", "put"]


def put(
    host: Host,
    local: Path | str | Content,
    remote: str,
    *,
    progress: Progress | None = None,
    pace: Pace | None = None,
    sha256: str = "",
) -> Transfer:
    """Send a file, or other content, to a host.

    Args:
        host: Where to.
        local: The file here, or the bytes.
        remote: Its path there; the folder is made when missing.
        progress: Is told what has arrived, about once a second.
        pace: Limits the rate.
        sha256: The hash where the caller knows it; else it is computed, for large
            files while the far side computes its own.

    Returns:
        What was sent and what had been there.

    Raises:
        NotFound: There is no such local file.
        DiskFull: The host has no room; what was sent is removed again.
        SourceDamaged: What is here is not what `sha256` says, or changes.
        Damaged: The far side's hash was wrong twice.
        PermissionRefused: The user may not write there.
        Unreachable: The host was away for longer than its patience.
    """
    content = local if isinstance(local, Content) else _content_of(Path(local))
    with closing(Sending(host, content, sha256, progress, pace)) as sending:
        return waited_out(host, lambda outage: sending.attempt(remote, outage))


def _content_of(local: Path) -> Content:
    if not local.is_file():
        raise NotFound("there is no such file here", str(local))
    with local_errors(local):
        return Content.of_file(local)


def get(
    host: Host,
    remote: str,
    local: Path,
    *,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> Transfer:
    """Fetch a file from a host.

    Args:
        host: Where from.
        remote: Its path there.
        local: Where it goes here; the folder is made when missing.
        progress: Is told what has arrived.
        pace: Limits the rate.

    Returns:
        What travelled and what had been here from an earlier try.

    Raises:
        NotFound: There is no such file on the host.
        PermissionRefused: The user may not read it.
        DiskFull: There is no room here; what was fetched is removed again.
        Damaged: The file's hash was wrong twice.
        Unreachable: The host was away for longer than its patience.
    """
    fetching = Fetching(host, local, progress, pace)
    return waited_out(host, lambda outage: fetching.attempt(remote, outage))
