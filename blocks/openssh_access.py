"""What lets the OpenSSH client in: a private folder that exists while it connects.

In it are the configuration, the host keys, the sockets of our agent and the pipes that
passwords come through. Keys and passwords themselves are never in a file. When the
session has begun, the client needs none of it any more.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from blocks.openssh_config import (
    Hop,
    agent_socket,
    alias,
    answer_pipe,
    askpass_script,
    command_words,
    compose_askpass,
    compose_config,
    compose_known_hosts,
)
from blocks.ssh_agent import Agent

_PREFIX = "crossgap-ssh-"

# Nobody connects for so long: a folder of this age was left by a process that was killed.
_STALE = 3600.0

# What the client needs of our environment; proxies and other agents stay out of it.
_KEPT = ("PATH", "HOME", "USER", "LOGNAME")


class NoAccessError(Exception):
    """The client cannot be given what it needs on this machine."""


@dataclass(frozen=True)
class Credentials:
    """What one hop is entered with.

    Args:
        keys: Private keys, to sign with.
        password: The password, or empty.
    """

    keys: tuple[paramiko.PKey, ...] = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True)
class Access:
    """How to start the client.

    Args:
        argv: The client up to the command that it is to run.
        environment: Its environment.
        log: Where it writes what it has to say itself.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


@contextmanager
def granted(
    program: str, hops: Sequence[Hop], credentials: Sequence[Credentials]
) -> Iterator[Access]:
    """Make the folder, answer the client as long as the context lasts, and remove it.

    Args:
        program: The client.
        hops: The connections, the last host first.
        credentials: What each is entered with.

    Raises:
        NoAccessError: Programs in the folder for temporary files may not be run.
        OSError: There is no room for temporary files.
    """
    base = _base()
    _remove_stale(base)
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=base, ignore_cleanup_errors=True) as name,
        ExitStack() as stack,
    ):
        folder = Path(name)
        _write(folder / "config", compose_config(hops, folder, program))
        _write(folder / "known_hosts", compose_known_hosts(hops))
        _write(folder / "log", "")
        for number, one in enumerate(credentials):
            if one.keys:
                stack.enter_context(Agent(agent_socket(folder, number), one.keys))
            if one.password:
                stack.enter_context(_answering(folder, number, one.password))
        environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
        environment |= {
            "LC_ALL": "C",
            "SSH_ASKPASS": str(askpass_script(folder, 0)),
            "SSH_ASKPASS_REQUIRE": "force",
        }
        argv = (*command_words(folder, program), alias(0))
        yield Access(argv, environment, folder / "log")


@contextmanager
def _answering(folder: Path, number: int, password: str) -> Iterator[None]:
    """Lay a password into a pipe from which the askpass program can take it, once."""
    script = askpass_script(folder, number)
    _write(script, compose_askpass(folder, number), 0o700)
    if not os.access(script, os.X_OK):  # mounted with noexec
        raise NoAccessError(f"programs in {folder.parent} may not be run")
    pipe = answer_pipe(folder, number)
    os.mkfifo(pipe, 0o600)
    # Open for both, so that neither opening it nor writing to it waits for a reader.
    descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(descriptor, password.encode() + b"\n")
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _base() -> str:
    """Return a folder whose path needs no quoting, and leaves room for a socket's name."""
    base = tempfile.gettempdir()
    return base if re.fullmatch(r"/[A-Za-z0-9/._+-]{0,59}", base) else "/tmp"  # noqa: S108


def _remove_stale(base: str) -> None:
    for folder in Path(base).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            stat = folder.lstat()
            if stat.st_uid == os.getuid() and time.time() - stat.st_mtime > _STALE:
                shutil.rmtree(folder, ignore_errors=True)
