"""The OpenSSH client for streams that are large: three times as fast as paramiko.

It is only ever a faster way. Where it is missing, too old, or cannot log in, our own
connection is used, which also has the last word on what is wrong with a host.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from blocks.cancellation import current_cancellation
from blocks.commands import CommandLine
from blocks.errors import PassphraseNeeded
from blocks.host_keys import KnownHosts
from blocks.local_process import LocalProcess
from blocks.logs import logger
from blocks.openssh_access import Access, Credentials, NoAccessError, granted
from blocks.openssh_config import Hop
from blocks.ssh_login import Login, connection_lost, load_private_key

if TYPE_CHECKING:
    import paramiko

# Set to "no", it leaves every stream to our own connections.
SWITCH = "CROSSGAP_OPENSSH"

# IdentityAgent came with 7.3; SSH_ASKPASS_REQUIRE, without which nothing but a
# terminal is asked for a password, with 8.4.
_OLDEST = (7, 6)
_OLDEST_WITH_PASSWORD = (8, 4)

# As for our own connections: sshd drops some when many come at once.
_TRIES = 6

# Bytes of the client's log that are looked at, from its end.
_LOG = 1 << 16

# So often in a row, where our own connection works, it is not the line that is to blame.
_FAILURES = 3

# What says that the line or the moment is to blame, and not the client.
_PASSING = re.compile(
    r"kex_exchange_identification|banner exchange|[Cc]onnection (closed|reset|timed out|refused)|"
    r"[Oo]peration timed out|No route to host|unreachable|Broken pipe|Timeout, server|"
    r"Connection to .* closed|Could not resolve|connect failed"
)
_LASTING = re.compile(
    r"Permission denied|verification failed|no matching|administratively prohibited|"
    r"Bad |[Uu]nsupported|Too many authentication"
)
# What the client's log says when the command has ended, and not the connection.
_ENDED = re.compile(r"client_input_channel_req: .*rtype exit-(status|signal)")

# What else it says: of itself, of what went well, and of the hop that ends with it.
_CHATTER = re.compile(r"debug|Authenticated to|Transferred:|Bytes per second|Killed by signal")

_DROPPED = re.compile(r"kex_exchange_identification: .*(closed|reset)")


class OpenSSHClient:
    """Starts commands on one host by way of the OpenSSH client.

    Args:
        login: Where to and as whom.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._unusable = False
        self._failures = 0
        self._prepared: tuple[list[Hop], list[Credentials]] | None = None

    def open_process(self, line: CommandLine) -> OpenSSHProcess | None:
        """Start one line of shell, and wait until it has begun.

        Args:
            line: The line.

        Returns:
            The process; None where the client cannot be used, now or at all.

        Raises:
            Cancelled: The run was cancelled.
        """
        program = find_program(bool(_passwords(self._login)))
        if self._unusable or program is None:
            return None
        said = ""
        for number in range(_TRIES):
            if number:
                pause = random.uniform(0.3, 2.5)  # noqa: S311 - no secret
                current_cancellation().pause(pause, self._login.label)
            try:
                process, said = self._try(program, line)
            except (NoAccessError, OSError) as error:
                process, said = None, str(error)
            if process or _LASTING.search(said) or not _DROPPED.search(said):
                break
        self._judge(process is not None, said)
        return process

    def _judge(self, opened: bool, said: str) -> None:
        """Leave this login to our own connection when the client will fail again; say so once."""
        passing = _PASSING.search(said) and not _LASTING.search(said)
        with self._lock:
            self._failures = 0 if opened else self._failures + 1
            if opened or self._unusable or (passing and self._failures < _FAILURES):
                return
            self._unusable = True
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        logger().warning(
            "%s: the OpenSSH client cannot be used (%s); files go through our own connection, "
            "which is slower.",
            self._login.label,
            lines[-1] if lines else "it ended without a word",
        )

    def _try(self, program: str, line: CommandLine) -> tuple[OpenSSHProcess | None, str]:
        """Start the client; return the process, or else what the client said."""
        hops, credentials = self._prepare()
        with granted(program, hops, credentials) as access:
            process = OpenSSHProcess(self._login, access, line)
            said = process.wait_for_beginning(line.mark, _patience(hops))
        return (process, "") if said is None else (None, said)

    def _prepare(self) -> tuple[list[Hop], list[Credentials]]:
        with self._lock:
            if self._prepared is None:
                logins = list(_chain(self._login))
                credentials = [Credentials(tuple(_keys(it)), it.password) for it in logins]
                hops = [_hop(it, one) for it, one in zip(logins, credentials, strict=True)]
                for hop in hops:
                    if not hop.is_plain:
                        raise NoAccessError("its address or user name has unusual characters")
                self._prepared = hops, credentials
            return self._prepared


class OpenSSHProcess(LocalProcess):
    """A command on a host, by way of an OpenSSH client.

    Args:
        login: Where it is.
        access: How the client is started.
        line: What it runs.
    """

    def __init__(self, login: Login, access: Access, line: CommandLine) -> None:
        self._login = login
        self._early_out, self._early_err = b"", b""
        self._log = access.log.open("rb", buffering=0)
        try:
            super().__init__([*access.argv, line.line], line.preamble, access.environment)
        except BaseException:
            self._log.close()
            raise

    def wait_for_beginning(self, mark: str, seconds: float) -> str | None:
        """Wait until the command begins, or another one in its place has ended.

        Args:
            mark: What it prints first.
            seconds: How long to wait at most.

        Returns:
            None; or what the client said when it failed, which closes the process.
        """
        cancellation = current_cancellation()
        deadline = time.monotonic() + seconds
        try:
            while mark.encode() not in self._early_out:
                cancellation.check(self._login.label)
                if time.monotonic() > deadline:
                    return self._failed("Operation timed out")
                if (pair := super().read(0.2)) is None:
                    if not self._command_ended():
                        return self._failed("")
                    break  # a login shell or sudo that did not start it
                self._early_out = (self._early_out + pair[0])[-(1 << 20) :]
                self._early_err = (self._early_err + pair[1])[-(1 << 20) :]
        except BaseException:
            self.close()
            raise
        return None

    def _failed(self, reason: str) -> str:
        said = "\n".join([self._told(), self._early_err[-4096:].decode("utf-8", "replace"), reason])
        self.close()
        return said.strip()

    def _command_ended(self) -> bool:
        """Whether what has ended is the command: exit code 255 may be its own or the client's."""
        return 0 <= super().exit_code() < 128 or bool(_ENDED.search(self._read_log()))

    def _told(self) -> str:
        """Return what the client said that is meant for people."""
        lines = self._read_log().splitlines()
        return "\n".join(line.strip() for line in lines if not _CHATTER.match(line))

    def _read_log(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        log = os.pread(self._log.fileno(), _LOG, max(0, size - _LOG))
        return log.decode("utf-8", "replace")

    def read(self, timeout: float) -> tuple[bytes, bytes] | None:
        """Return what came on both streams, or None when the command has ended.

        Raises:
            ConnectionLost: The client ended, and not the command.
        """
        if self._early_out or self._early_err:
            early = self._early_out, self._early_err
            self._early_out, self._early_err = b"", b""
            return early
        if (pair := super().read(timeout)) is None and not self._command_ended():
            reason = self._told().rpartition("\n")[2].rstrip(".")
            raise connection_lost(self._login, OSError(reason) if reason else None)
        return pair

    def close(self) -> None:
        """End the client if it still runs, and close the streams."""
        super().close()
        self._log.close()


def find_program(with_password: bool) -> str | None:
    """Return the path of an OpenSSH client that is new enough, if one may be used.

    Args:
        with_password: Whether a password may have to be told to it.
    """
    if os.environ.get(SWITCH, "").lower() in ("no", "0", "false", "off"):
        return None
    program = shutil.which("ssh")
    if program is None:
        return None
    needed = _OLDEST_WITH_PASSWORD if with_password else _OLDEST
    return program if _version(program) >= needed else None


@functools.cache
def _version(program: str) -> tuple[int, ...]:
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            [program, "-V"], capture_output=True, stdin=subprocess.DEVNULL, timeout=10, check=False
        )
        return parse_version((told.stderr + told.stdout).decode("utf-8", "replace"))
    return ()


def parse_version(text: str) -> tuple[int, ...]:
    """Read what `ssh -V` prints; empty for a client of another make."""
    match = re.search(r"OpenSSH\D*_(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else ()


def _chain(login: Login | None) -> Iterator[Login]:
    while login is not None:
        yield login
        login = login.jump


def _passwords(login: Login) -> list[str]:
    return [one.password for one in _chain(login) if one.password]


def _keys(login: Login) -> Iterator[paramiko.PKey]:
    for text in login.private_keys:
        with suppress(PassphraseNeeded):  # the password may do
            yield load_private_key(text, login.passphrase, login.label)


def _hop(login: Login, credentials: Credentials) -> Hop:
    known = KnownHosts(login.known_hosts, login.label).keys(login.address, login.port)
    return Hop(
        address=login.address,
        port=login.port,
        username=login.username,
        host_keys=tuple(f"{key.get_name()} {key.get_base64()}" for key in known),
        timeout=login.connect_timeout,
        has_keys=bool(credentials.keys),
        has_password=bool(credentials.password),
    )


def _patience(hops: Sequence[Hop]) -> float:
    """Return how long all the handshakes may take; a login may be slow for half a minute."""
    return sum(hop.timeout + max(30.0, hop.timeout) for hop in hops)
