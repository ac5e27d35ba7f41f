"""The shells that a host may have, each with the tools that come with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

NOBODY = 65534
PACKAGES = {"dash": "dash", "bash": "bash", "busybox": "busybox-static"}


@dataclass(frozen=True)
class Shell:
    """A shell under the name `sh`.

    Args:
        name: dash, bash or busybox.
        program: What stands for /bin/sh.
        path: The PATH: with busybox nothing but its applets.
    """

    name: str
    program: Path
    path: str

    def start(
        self, script: str, *arguments: str | Path, nobody: bool = False, path: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a script as a host would: leading a session, with three pipes.

        Args:
            script: What goes behind `sh -c`.
            arguments: Its $1 and so on.
            nobody: Whether a user without any rights runs it.
            path: The PATH, where it is not to be the shell's own.
        """
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if nobody and is_root() else {}
        return subprocess.Popen(  # type: ignore[call-overload]
            [self.program, "-c", _hurried(script), "sh", *map(str, arguments)],
            env=self.environment({"PATH": path} if path else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **user,
        )

    def run(
        self,
        script: str,
        *arguments: str | Path,
        data: bytes = b"",
        nobody: bool = False,
        path: str = "",
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a script to its end and return its outcome."""
        process = self.start(script, *arguments, nobody=nobody, path=path)
        try:
            out, err = process.communicate(data, timeout=30)
        finally:
            process.kill()
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Give the little that a login without a terminal has."""
        return {"PATH": self.path, "HOME": "/nowhere", "LC_ALL": "C", **more}


def _hurried(script: str) -> str:
    """Shorten the pauses of a second, so that many scripts can be tried."""
    return re.sub(r"\bsleep 1\b", "sleep 0.02", script)


def is_root() -> bool:
    return os.geteuid() == 0


@pytest.fixture(scope="session")
def shells() -> Iterator[Path]:
    """A folder for links to shells, open to every user."""
    folder = Path(tempfile.mkdtemp(prefix="crossgap-shells-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=sorted(PACKAGES))
def shell(shells: Path, request: pytest.FixtureRequest) -> Shell:
    """Each of the shells that hosts have for /bin/sh, in turn."""
    name: str = request.param
    program = shutil.which(name)
    if program is None:
        message = f"no {name} here: apt-get install {PACKAGES[name]}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    folder = shells / name
    links = folder / "sh"
    if not links.exists():
        folder.mkdir()
        applets = _applets(program) if name == "busybox" else ["sh"]
        for applet in applets:
            (folder / applet).symlink_to(program)
    path = str(folder) if name == "busybox" else f"{folder}:/usr/bin:/bin"
    return Shell(name, links, path)


def _applets(busybox: str) -> list[str]:
    listing = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    return listing.stdout.split()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that users without rights can look into."""
    folder = Path(tempfile.mkdtemp(prefix="crossgap-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
