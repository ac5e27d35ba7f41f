"""The folder of one revision on a host: made, and brought into view when all is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from blocks.errors import Conflict, ConnectionLost, CrossgapError, DiskFull, PermissionRefused
from blocks.file_scripts import ENDED_BY_SIGNAL
from blocks.logs import logger
from blocks.outage import waited_out
from tasks.models import remote_scripts
from tasks.models.remote_facts import not_written
from tasks.models.remote_plan import Delivery, manifest_of

if TYPE_CHECKING:
    from blocks.host import CommandResult, Host

SECONDS = 120.0
"""How long a script has that neither hashes nor removes much."""

_SECONDS_TO_FINISH = 600.0

T = TypeVar("T")


def prepare(host: Host, plan: Delivery) -> None:
    """Make the folders that a revision arrives in, and take away what must not come into view.

    Args:
        host: The host.
        plan: What is to be done there.

    Raises:
        CrossgapError: As for `run_script`.
    """
    argv = remote_scripts.prepare(plan.there.folder, plan.revision.commit)
    names = "".join(f"{path}\n" for path in plan.stale)
    run_script(host, argv, plan.there.folder, data=names.encode())


def bring_into_view(host: Host, plan: Delivery, sums: Mapping[str, str]) -> None:
    """Write the manifest, give the folder its name, and let `current` point to it.

    Args:
        host: The host.
        plan: What was to be done there.
        sums: The SHA-256 of each of the revision's files, by path.

    Raises:
        Conflict: Something else came to stand in its place.
        CrossgapError: As for `run_script`.
    """
    text = manifest_of(sums, plan).encode()
    is_new = plan.revision.commit not in plan.there.revisions
    digest = sha256(text).hexdigest()
    argv = remote_scripts.finish(plan.there.folder, plan.revision.commit, digest, new=is_new)
    result = run_script(host, argv, plan.there.folder, data=text, timeout=_SECONDS_TO_FINISH)
    if result.stdout.strip():
        logger().warning(
            "%s: 'current' of %s was removed and made anew, as nothing there can replace a "
            "link at once; a server that started in this very moment may have missed it.",
            host.label,
            plan.revision.model,
        )


def run_script(
    host: Host,
    argv: Sequence[str],
    folder: str,
    *,
    data: bytes = b"",
    timeout: float = SECONDS,
) -> CommandResult:
    """Run one of our scripts, over again when the connection is lost: all of them can be.

    Args:
        host: Where.
        argv: The script.
        folder: What it works on, for errors.
        data: What it reads.
        timeout: Its deadline in seconds.

    Raises:
        Conflict: Something that is not ours is in the way.
        DiskFull: There is no room.
        PermissionRefused: The user may not write there.
        CrossgapError: As for `Host.run`.
    """

    def attempt() -> CommandResult:
        result = host.run(argv, timeout=timeout, input=data, check=False)
        if result.exit_code in ENDED_BY_SIGNAL:
            raise ConnectionLost(
                "a script there was ended from outside",
                host.label,
                "The host is shutting down, or somebody ended the user's processes.",
            )
        return result

    result = waited(host, attempt)
    _check(host, folder, result)
    return result


def waited(host: Host, attempt: Callable[[], T]) -> T:
    """Do something on a host, waiting out the times when it is away."""
    return waited_out(host, lambda _: attempt())


def _check(host: Host, folder: str, result: CommandResult) -> None:
    said = result.stderr.strip()
    match result.exit_code:
        case 0:
            return
        case remote_scripts.OCCUPIED:
            raise Conflict(
                f"{said} is something that crossgap did not make, and stands where the model "
                "belongs",
                host.label,
                "Move it away by hand, or choose another destination; it is not overwritten.",
            )
        case remote_scripts.MISSING:
            raise CrossgapError(
                f"{said or 'a file'} in {folder} was proven and is gone again",
                host.label,
                "Somebody works on that folder. Start again; what is there is kept.",
                retryable=True,
            )
    error = not_written(host, folder, said)
    raise in_models_dir(error) if isinstance(error, DiskFull) else error


def in_models_dir(error: DiskFull | PermissionRefused) -> CrossgapError:
    """Name the remedy that fits a model, where that of any file was named.

    Args:
        error: What came of writing there.
    """
    if isinstance(error, DiskFull):
        remedy = (
            "Free space there, remove old revisions ('prune_revisions'), or set the block's "
            "models_dir to a larger disk. What is proven there already is kept."
        )
    else:
        remedy = "Set the block's models_dir to a folder that the user owns."
    return type(error)(error.what, error.where, remedy)
