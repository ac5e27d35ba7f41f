"""One SSH connection to one host: opened, checked, and shared.

Every connection is shared by all blocks of this process with the same address,
user and secrets.
"""

from __future__ import annotations

import atexit
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import paramiko
from paramiko.common import OPEN_FAILED_RESOURCE_SHORTAGE

from blocks.cancellation import current_cancellation
from blocks.commands import CommandLine
from blocks.errors import (
    AuthenticationRefused,
    ForwardingForbidden,
    IncompatiblePeer,
    SudoRefused,
    TooManyConnections,
    Unreachable,
)
from blocks.host_keys import KnownHosts
from blocks.openssh import OpenSSHClient
from blocks.ssh_login import Login, authenticate, connection_lost
from blocks.ssh_process import SSHProcess
from blocks.ssh_transport import (
    ByteStream,
    Transport,
    WatchedStream,
    connect_tcp,
    keep_alive,
    prefer,
)

if TYPE_CHECKING:
    from paramiko.channel import Channel

# OpenSSH allows 10 sessions on a connection (MaxSessions); two are left for others.
CHANNELS = 8

# sshd drops connections at random when too many are in their handshake
# (MaxStartups); a few more tries with a random pause get through.
CONNECT_TRIES = 6

# sshd frees the place of a closed session a moment after it has read what follows the
# CLOSE; seconds to wait before a session that found no place is asked for again.
SESSION_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)


class Connection:
    """A connection that is made when first needed and made again when it has died.

    Args:
        login: Where to and as whom.

    Attributes:
        sudo_refused: How sudo refused the password, so that it is not tried again.
        openssh: The faster way for large streams.
        home: The user's home folder there, once somebody has asked.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._channels = threading.BoundedSemaphore(CHANNELS)
        self._transport: Transport | None = None
        self._refused: AuthenticationRefused | None = None
        self._worked = False
        self.sudo_refused: SudoRefused | None = None
        self.openssh = OpenSSHClient(login)
        self.home = ""

    def open_process(self, line: CommandLine) -> SSHProcess:
        """Start one line of shell in a channel of its own.

        Raises:
            CrossgapError: No connection could be made, or no channel opened.
        """
        while not self._channels.acquire(timeout=0.5):
            current_cancellation().check(self._login.label)
        try:
            return SSHProcess(self._login, self._open_session(), line, self._channels.release)
        except BaseException:
            self._channels.release()
            raise

    def _open_session(self) -> Channel:
        transport = self.transport()
        for pause in SESSION_PAUSES:
            with suppress(paramiko.ChannelException):
                return self._try_session(transport)
            current_cancellation().pause(pause, self._login.label)
        try:
            return self._try_session(transport)
        except paramiko.ChannelException as error:
            raise TooManyConnections(
                f"sshd opens no further session ({error.text})",
                self._login.label,
                "Raise MaxSessions in its sshd_config to at least 10.",
            ) from error

    def _try_session(self, transport: Transport) -> Channel:
        try:
            return transport.open_session(timeout=self._login.connect_timeout)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            # Of two refusals at once, paramiko tells only one thread the reason.
            if transport.is_active() and str(error) == "Unable to open channel.":
                raise paramiko.ChannelException(
                    OPEN_FAILED_RESOURCE_SHORTAGE, "no reason given"
                ) from error
            raise connection_lost(self._login, error) from error

    def transport(self) -> Transport:
        """Return the live transport, connecting when there is none.

        Raises:
            CrossgapError: No connection could be made.
        """
        with self._lock:
            if self._refused:
                # Trying a refused password again locks accounts.
                raise self._refused
            if self._transport is None or not self._transport.is_active():
                self._transport = None
                self._transport = self._connect_or_remember()
            return self._transport

    def _connect_or_remember(self) -> Transport:
        try:
            transport = self._connect()
        except AuthenticationRefused as error:
            if self._worked and not self._login.password:
                # It let us in before: a host that is starting or stopping refuses for a
                # while (pam_nologin, home not mounted), and keys lock no account.
                raise Unreachable(error.what, error.where, error.remedy) from error
            self._refused = error
            raise
        self._worked = True
        return transport

    def _connect(self) -> Transport:
        for tries_left in reversed(range(CONNECT_TRIES)):
            try:
                return self._connect_once()
            except TooManyConnections:
                if not tries_left:
                    raise
                pause = random.uniform(0.3, 2.5)  # noqa: S311 - no secret
                current_cancellation().pause(pause, self._login.label)
        raise AssertionError("unreachable")

    def _connect_once(self) -> Transport:
        login = self._login
        known_hosts = KnownHosts(login.known_hosts, login.label)
        stream = WatchedStream(self._stream())
        transport = Transport(stream)  # type: ignore[arg-type]
        try:
            prefer(transport, known_hosts.algorithms(login.address, login.port))
            self._shake_hands(transport, stream)
            known_hosts.check(login.address, login.port, transport.get_remote_server_key())
            authenticate(transport, login)
        except BaseException:
            transport.close()
            raise
        threading.Thread(
            target=keep_alive, args=(transport,), name=f"ping {login.label}", daemon=True
        ).start()
        return transport

    def _shake_hands(self, transport: Transport, stream: WatchedStream) -> None:
        login = self._login
        transport.banner_timeout = login.connect_timeout
        transport.handshake_timeout = login.connect_timeout
        transport.auth_timeout = max(30.0, login.connect_timeout)
        # A line that is full keeps a new key exchange waiting, every 512 MiB.
        transport.clear_to_send_timeout = 300.0
        try:
            transport.start_client(timeout=login.connect_timeout)
        except paramiko.ssh_exception.IncompatiblePeer as error:
            raise IncompatiblePeer(
                f"its sshd shares no algorithm with us ({error})",
                login.label,
                "It is too old: update its OpenSSH, or reach it through a newer jump host.",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._handshake_failed(stream, str(error)) from error
        if not transport.initial_kex_done:
            # paramiko returns at its time-out as if all were well.
            raise self._handshake_failed(stream, f"not done in {login.connect_timeout:.0f} s")

    def _handshake_failed(self, stream: WatchedStream, reason: str) -> Unreachable:
        where = self._login.label
        if stream.greeted:
            return Unreachable(
                f"the SSH handshake failed ({reason})",
                where,
                "Check that the port is sshd's, and look at the host's auth log.",
            )
        if stream.ended:
            return TooManyConnections(
                "sshd closed the connection before its greeting",
                where,
                "Too many connections at once (MaxStartups in its sshd_config), or a "
                "firewall or fail2ban that has blocked this machine.",
            )
        return Unreachable(
            f"the port is open, but nothing greets there ({reason})",
            where,
            "Check that the port is sshd's; a host that is starting, or short of memory, "
            "needs some time.",
        )

    def _stream(self) -> ByteStream:
        login = self._login
        if login.jump is None:
            return connect_tcp(login)
        transport = connection_to(login.jump).transport()
        try:
            return transport.open_channel(
                "direct-tcpip",
                (login.address, login.port),
                ("127.0.0.1", 0),
                timeout=login.connect_timeout,
            )
        except paramiko.ChannelException as error:
            if error.code == 1:  # RFC 4254: SSH_OPEN_ADMINISTRATIVELY_PROHIBITED
                raise ForwardingForbidden(
                    f"the jump host forbids forwarding to {login.address}:{login.port}",
                    login.jump.label,
                    "Set AllowTcpForwarding yes (and PermitOpen) in its sshd_config.",
                ) from error
            raise Unreachable(
                f"the jump host {login.jump.label} cannot connect to it ({error.text})",
                login.label,
                "Check that the host is up, and its address as the jump host sees it.",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not transport.is_active():
                raise connection_lost(login.jump, error) from error
            raise Unreachable(
                f"it does not answer through the jump host {login.jump.label} ({error})",
                login.label,
                "Check that the host is up, and its address as the jump host sees it.",
            ) from error

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            if self._transport:
                self._transport.close()
            self._transport = None


_pool: dict[Login, Connection] = {}
_pool_lock = threading.Lock()


def connection_to(login: Login) -> Connection:
    """Return this process's connection for a login; it may not be open yet."""
    with _pool_lock:
        return _pool.setdefault(login, Connection(login))


def close_connections() -> None:
    """Close all connections of this process; they open again when needed."""
    with _pool_lock:
        connections = list(_pool.values())
        _pool.clear()
    for connection in connections:
        connection.close()


atexit.register(close_connections)


@contextmanager
def shown_host_key(login: Login) -> Iterator[paramiko.PKey]:
    """Connect without logging in, and give the key that the host shows.

    Args:
        login: Where to; its user and secrets are not used, but its jump host's are.
    """
    connection = Connection(login)
    stream = WatchedStream(connection._stream())
    transport = Transport(stream)  # type: ignore[arg-type]
    try:
        connection._shake_hands(transport, stream)
        yield transport.get_remote_server_key()
    finally:
        transport.close()
