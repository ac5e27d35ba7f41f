"""What shipping needs on a host between sending and loading, and how it goes away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.images.blobs import Compression, Layer

if TYPE_CHECKING:
    from blocks.host import Host

# What cancelled and killed runs left is kept this long, for a run that goes on.
_KEPT_DAYS = 7

_LOAD_JOBS = "load-images-"

_SUFFIXES: dict[Compression, str] = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}

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
    for kept do case $name in "$kept"|".$kept".*) continue 2 ;; esac; done
    case $name in .*) old "$file" && rm -f "$file" ;; *) rm -f "$file" ;; esac
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
    """Return the folder on a host that layers are sent to."""
    return f"{host.work_dir.rstrip('/')}/staging"


def staged_name(layer: Layer) -> str:
    """Return the file name of a staged layer: what it is, and how it is compressed."""
    return layer.diff_id.removeprefix("sha256:") + _SUFFIXES[layer.compression]


def staged_forms(diff_id: str) -> list[str]:
    """Return the file names that a staged layer may have, in any form."""
    return [diff_id.removeprefix("sha256:") + suffix for suffix in _SUFFIXES.values()]


def staged_path(host: Host, layer: Layer) -> str:
    """Return where a layer is staged on a host."""
    return f"{staging_folder(host)}/{staged_name(layer)}"


def glue_name(key: str) -> str:
    """Return the file name of what is around the layers of an archive."""
    return f"{key}.glue"


def load_job_name(key: str) -> str:
    """Return the name of the remote job that loads the archive with this key."""
    return f"{_LOAD_JOBS}{key}"


def clear(host: Host, keep: Sequence[str] = ()) -> None:
    """Remove what shipping left on a host, in this run or one that was killed.

    That is: staged layers, the records of loads that have ended, and after a
    week parts of layers that nobody came back for. Only for a run that holds
    the host's lock, as nobody else is sending anything there then.

    Args:
        host: Where.
        keep: Names of files that are still to be sent or loaded.

    Raises:
        CrossgapError: As for `Host.run`.
    """
    argv = ["sh", "-c", _CLEAR, "sh", host.work_dir.rstrip("/"), str(_KEPT_DAYS), _LOAD_JOBS, *keep]
    jobs = host.run(argv, timeout=120).stdout.splitlines()
    if jobs:
        argv = ["sh", "-c", _FORGET, "sh", str(_KEPT_DAYS), *jobs]
        host.run(argv, timeout=120, sudo=True)
