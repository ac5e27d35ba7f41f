"""Running this machine's own commands and saying which one failed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from tests.lab.errors import LabError

CLEAN_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}


def execute(
    *argv: str,
    input: bytes | None = None,  # noqa: A002  (as subprocess.run calls it)
    check: bool = True,
    timeout: float = 120,
) -> str:
    """Run a command to its end and return its stdout.

    Args:
        argv: Program and arguments; no shell is involved.
        input: Bytes for its stdin; nothing when left out.
        check: Whether an exit status other than 0 is an error.
        timeout: Seconds after which it is killed.

    Raises:
        LabError: The command failed or took too long; carries its stderr.
    """
    try:
        done = subprocess.run(
            argv,
            check=False,
            input=b"" if input is None else input,
            capture_output=True,
            env=CLEAN_ENVIRONMENT,
            cwd="/",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{_shown(argv)}: no end after {timeout:.0f} s") from error
    if check and done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(f"{_shown(argv)}: exit status {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")


def _shown(argv: Sequence[str]) -> str:
    words = " ".join(argv)
    return words if len(words) < 300 else f"{words[:300]} …"
