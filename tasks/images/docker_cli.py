"""The docker command on a host, and what its complaints mean."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from blocks.errors import (
    CommandFailed,
    CrossgapError,
    Damaged,
    DiskFull,
    EngineUnavailable,
    NotFound,
    PermissionRefused,
    WrongArchitecture,
)

if TYPE_CHECKING:
    from blocks.host import CommandResult, Host

# In this order: a later pattern is only tried when no earlier one fits.
_NO_CLIENT = r"docker: (?:command )?not found|docker'?: No such file or directory"
_NO_PERMISSION = (
    r"permission denied while trying to connect|dial unix \S+: connect: permission denied"
)
_NO_ENGINE = (
    r"Cannot connect to the Docker daemon|Is the docker daemon running|error during connect"
    r"|connect: connection refused|docker\.sock: connect:|failed to connect to the docker API"
)
_NO_ROOM = r"no space left on device|disk quota exceeded"
_BROKEN_ARCHIVE = (
    r"unexpected EOF|invalid tar header|archive/tar:|invalid diffID|gzip: invalid|flate: corrupt"
    r"|unrecognized image format|manifest\.json: no such file|invalid character .* JSON"
)
_WRONG_ARCHITECTURE = r"exec format error|does not match the (?:detected|specified|requested) "
_NO_FILE = r"^(?:open|stat) .*: no such file or directory"


def docker(host: Host, *arguments: str, timeout: float) -> CommandResult:
    """Run the docker command on a host, as root where the host's block says how.

    Args:
        host: Where.
        arguments: What follows `docker`.
        timeout: Seconds that it may take.

    Returns:
        How it ended; an exit code other than zero is the caller's to judge.

    Raises:
        EngineUnavailable: Docker is not installed, or does not run.
        PermissionRefused: The user may not use it.
        CrossgapError: As for `Host.run`.
    """
    result = host.run(["docker", *arguments], timeout=timeout, check=False, sudo=True)
    if result.exit_code in (126, 127) and not result.stdout.strip():
        raise _not_installed(host.label)
    if result.exit_code != 0:
        failure = explain_failure(result.stderr, host.label)
        if isinstance(failure, (EngineUnavailable, PermissionRefused)):
            raise failure
    return result


def checked(result: CommandResult, doing: str, where: str) -> str:
    """Return what a docker command printed, or raise what its complaint means.

    Args:
        result: How it ended.
        doing: What was attempted, as in "tag the image".
        where: The host or image concerned.

    Raises:
        CrossgapError: The exit code was not zero.
    """
    if result.exit_code == 0:
        return result.stdout
    text = result.stderr.strip() or result.stdout.strip()
    raise explain_failure(text, where) or unexplained(text, doing, where)


def unexplained(text: str, doing: str, where: str) -> CommandFailed:
    """Make the error for a complaint of Docker's that is not a known one."""
    last = " ".join(text.split("\n")[-2:]).strip()[-400:] or "no message"
    return CommandFailed(
        f"docker could not {doing} ({last})", where, "Look at Docker's log on that host."
    )


def explain_failure(text: str, where: str) -> CrossgapError | None:
    """Tell what a complaint of the docker command means, if it is a known one.

    Args:
        text: What it printed, in the C locale.
        where: The host concerned.
    """

    def says(pattern: str) -> bool:
        return re.search(pattern, text, re.IGNORECASE | re.MULTILINE) is not None

    if says(_NO_CLIENT):
        return _not_installed(where)
    if says(_NO_PERMISSION):
        return PermissionRefused(
            "the user may not use Docker",
            where,
            "Set 'sudo' in the host's block, or have the user added to the group docker "
            "(which amounts to root) and log in anew.",
        )
    if says(_NO_ENGINE):
        return EngineUnavailable(
            "the Docker engine does not answer",
            where,
            "Start it there (systemctl start docker) and look at its log if it does not stay up.",
        )
    if says(_NO_ROOM):
        return DiskFull(
            "the disk is full",
            where,
            "Make room where Docker keeps its data (docker system df shows what takes it).",
        )
    if says(_BROKEN_ARCHIVE):
        return Damaged(
            "Docker found the image archive damaged",
            where,
            "Start again: the archive is sent anew.",
        )
    if says(_WRONG_ARCHITECTURE):
        return WrongArchitecture(
            "the image is built for another processor",
            where,
            "Get the image for this host's architecture (docker pull --platform).",
        )
    if says(_NO_FILE):
        return NotFound("the image archive is not there any more", where, "Start again.")
    return None


def _not_installed(where: str) -> EngineUnavailable:
    return EngineUnavailable(
        "docker is not installed",
        where,
        "Install Docker Engine 17 or later there, or add its folder to the user's PATH.",
    )
