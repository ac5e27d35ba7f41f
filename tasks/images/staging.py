"""Where archives lie on a host between sending and loading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blocks.cancellation import current_cancellation

if TYPE_CHECKING:
    from blocks.host import Host

# Parts of cancelled and killed runs are kept this long, for a run that goes on.
_KEPT_DAYS = 7

_REMOVE = """\
folder=$1; days=$2; shift 2
[ $# -eq 0 ] || rm -f "$@"
[ ! -d "$folder" ] || find "$folder" -type f -mtime "+$days" -exec rm -f {} \\;
rmdir "$folder" 2>/dev/null
exit 0"""


def staged_path(host: Host, sha256: str) -> str:
    """Return where an archive is staged on a host.

    Args:
        host: The host.
        sha256: The archive's hash in hex, so that equal archives are sent once.
    """
    return f"{_folder(host)}/{sha256[:32]}.tar"


@contextmanager
def removed_when_cancelled(host: Host, staged: str) -> Iterator[None]:
    """Have a staged archive removed when the run is cancelled in the body.

    Unfinished parts stay: the next run goes on with them.

    Args:
        host: Where it is staged.
        staged: Its path.
    """
    cancellation = current_cancellation()
    key = (host.label, staged)
    cancellation.on_cancel(key, lambda: remove(host, [staged]))
    try:
        yield
    finally:
        cancellation.ended(key)


def remove(host: Host, staged: Sequence[str]) -> None:
    """Remove staged archives, and parts that nobody came back for.

    Args:
        host: Where.
        staged: Paths from `staged_path`.

    Raises:
        CrossgapError: As for `Host.run`.
    """
    paths = [host.expand(path) for path in (_folder(host), *staged)]
    argv = ["sh", "-c", _REMOVE, "sh", paths[0], str(_KEPT_DAYS), *paths[1:]]
    host.run(argv, timeout=120)


def _folder(host: Host) -> str:
    return f"{host.work_dir.rstrip('/')}/staging"
