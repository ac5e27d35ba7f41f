"""What shipping needs on a host between sending and loading, and how it goes away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blocks.cancellation import current_cancellation
from tasks.images.facts import staged_key

if TYPE_CHECKING:
    from blocks.host import Host

# Parts of cancelled and killed runs are kept this long, for a run that goes on.
_KEPT_DAYS = 7

_LOAD_JOBS = "load-images-"

_OLD = """\
old() { [ -n "$(find "$1" -prune -mtime "+$days" 2>/dev/null)" ]; }
"""

# Run as the user, whose home is meant; prints the folders of jobs.
_CLEAR = (
    _OLD
    + """\
case $1 in "~"|"~/"*) work=$HOME${1#"~"} ;; *) work=$1 ;; esac
days=$2 jobs=$3; shift 3
for file in "$work/staging"/* "$work/staging"/.*; do
    [ -f "$file" ] || continue
    name=${file##*/}
    for kept do case $name in "$kept".*|".$kept".*) continue 2 ;; esac; done
    case $name in [!.]*.tar) rm -f "$file" ;; *) old "$file" && rm -f "$file" ;; esac
done
rmdir "$work/staging" 2>/dev/null
for job in "$work/jobs/$jobs"*; do [ ! -d "$job" ] || printf '%s\\n' "$job"; done"""
)

# Run as root where loads are: nobody else can look into the folders of their jobs.
_FORGET = (
    _OLD
    + """\
days=$1; shift
for job do
    if [ -f "$job/exit" ] || old "$job"; then rm -rf "$job"; fi
done"""
)


def staging_folder(host: Host) -> str:
    """Return the folder on a host that archives are sent to."""
    return f"{host.work_dir.rstrip('/')}/staging"


def staged_path(host: Host, sha256: str) -> str:
    """Return where an archive is staged on a host.

    Args:
        host: The host.
        sha256: The archive's hash in hex, so that equal archives are sent once.
    """
    return f"{staging_folder(host)}/{staged_key(sha256)}.tar"


def load_job_name(sha256: str) -> str:
    """Return the name of the remote job that loads an archive with this hash."""
    return f"{_LOAD_JOBS}{sha256[:16]}"


@contextmanager
def cleared_when_cancelled(host: Host, keep: Sequence[str] = ()) -> Iterator[None]:
    """Have `clear` called when the run is cancelled in the body.

    Args:
        host: Where.
        keep: As for `clear`.
    """
    cancellation = current_cancellation()
    key = (host.label, "staging")
    cancellation.on_cancel(key, lambda: clear(host, keep))
    try:
        yield
    finally:
        cancellation.ended(key)


def clear(host: Host, keep: Sequence[str] = ()) -> None:
    """Remove what shipping left on a host, in this run or one that was killed.

    That is: staged archives, the records of loads that have ended, and after a
    week parts of archives that nobody came back for. Only for a run that holds
    the host's lock, as nobody else is sending anything there then.

    Args:
        host: Where.
        keep: Hashes of archives that are still to be sent or loaded.

    Raises:
        CrossgapError: As for `Host.run`.
    """
    kept = [staged_key(sha256) for sha256 in keep]
    argv = ["sh", "-c", _CLEAR, "sh", host.work_dir.rstrip("/"), str(_KEPT_DAYS), _LOAD_JOBS, *kept]
    jobs = host.run(argv, timeout=120).stdout.splitlines()
    if jobs:
        argv = ["sh", "-c", _FORGET, "sh", str(_KEPT_DAYS), *jobs]
        host.run(argv, timeout=120, sudo=True)
