"""One SSH connection to one host: opened, checked, kept alive, shared.

Every connection is shared by all blocks of this process with the same address,
user and secrets. A peer that falls silent is noticed within 30 s: it is asked
for a sign of life every few seconds (RFC 4254, section 4: a global request
that wants a reply), and a silence of `SILENCE` seconds ends the connection.
"""

from __future__ import annotations

import errno
import io
import logging
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import paramiko
from paramiko.common import cMSG_GLOBAL_REQUEST

from blocks.cancellation import current_cancellation
from blocks.commands import CommandLine
from blocks.errors import (
    AuthenticationRefused,
    ConnectionLost,
    ConnectionRefused,
    ForwardingForbidden,
    IncompatiblePeer,
    InvalidInput,
    PassphraseNeeded,
    SudoRefused,
    TooManyConnections,
    Unreachable,
)
from blocks.host_keys import KnownHosts

if TYPE_CHECKING:
    from paramiko.channel import Channel

# Its reports of lost connections, with tracebacks, reach the operator as our errors.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

SILENCE = 20.0
PING_EVERY = 5.0

# OpenSSH allows 10 sessions on a connection (MaxSessions); two are left for others.
CHANNELS = 8

# sshd drops connections at random when too many are in their handshake
# (MaxStartups); a few more tries with a random pause get through.
CONNECT_TRIES = 6

# AES-GCM first: with AES instructions it is the fastest that paramiko has.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")


@dataclass(frozen=True)
class Login:
    """Where to connect to and as whom; equal logins share a connection.

    Args:
        label: The host as messages name it.
        address: Name or IP address.
        port: TCP port.
        username: The user.
        private_keys: Private keys as text, in the order to try them.
        passphrase: What unlocks them.
        password: For password and keyboard-interactive authentication.
        known_hosts: Recorded host keys, in known_hosts format.
        connect_timeout: Seconds for each step of making a connection.
        jump: The login on the host in between, if any.
        sudo_password: What sudo is told; a refusal is remembered with the login.
    """

    label: str = field(compare=False)
    address: str
    port: int
    username: str
    private_keys: tuple[str, ...]
    passphrase: str
    password: str
    known_hosts: str
    connect_timeout: float
    jump: Login | None = None
    sudo_password: str = ""

    def __repr__(self) -> str:
        return f"Login({self.username}@{self.address}:{self.port})"


class _ByteStream(Protocol):
    def send(self, data: bytes) -> int: ...
    def recv(self, size: int) -> bytes: ...
    def settimeout(self, timeout: float | None) -> None: ...
    def close(self) -> None: ...


class _WatchedStream:
    """A socket that raises when the peer has been silent for too long.

    paramiko reads and writes with a timeout of 0.1 s in a loop of its own, so
    a look at the clock at each timeout is enough.
    """

    def __init__(self, stream: _ByteStream) -> None:
        self._stream = stream
        self.heard = time.monotonic()
        self.received_anything = False
        self._closed = False  # paramiko looks at it when the interpreter exits

    def recv(self, size: int) -> bytes:
        try:
            data = self._stream.recv(size)
        except TimeoutError:
            self._check_silence()
            raise
        self.heard = time.monotonic()
        self.received_anything = self.received_anything or bool(data)
        return data

    def send(self, data: bytes) -> int:
        try:
            return self._stream.send(data)
        except TimeoutError:
            self._check_silence()
            raise

    def _check_silence(self) -> None:
        if time.monotonic() - self.heard > SILENCE:
            raise ConnectionResetError(errno.ETIMEDOUT, "no sign of life")

    def settimeout(self, timeout: float | None) -> None:
        self._stream.settimeout(timeout)

    def close(self) -> None:
        self._closed = True
        self._stream.close()


class _Transport(paramiko.Transport):
    """paramiko's transport with a ping that does not wait for its reply."""

    def ping(self) -> None:
        message = paramiko.Message()
        message.add_byte(cMSG_GLOBAL_REQUEST)
        message.add_string("keepalive@openssh.com")
        message.add_boolean(True)
        self._send_user_message(message)  # type: ignore[attr-defined]


class Connection:
    """A connection that is made when first needed and made again when it has died.

    Args:
        login: Where to and as whom.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._channels = threading.BoundedSemaphore(CHANNELS)
        self._transport: _Transport | None = None
        self._refused: AuthenticationRefused | None = None
        self.sudo_refused: SudoRefused | None = None

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
        try:
            return transport.open_session(timeout=self._login.connect_timeout)
        except paramiko.ChannelException as error:
            raise TooManyConnections(
                f"sshd opens no further session ({error.text})",
                self._login.label,
                "Raise MaxSessions in its sshd_config to at least 10.",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException | None = None) -> ConnectionLost:
        """Make the error for a connection that has died."""
        return _lost(self._login, error)

    def transport(self) -> _Transport:
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
                try:
                    self._transport = self._connect()
                except AuthenticationRefused as error:
                    self._refused = error
                    raise
            return self._transport

    def _connect(self) -> _Transport:
        for tries_left in reversed(range(CONNECT_TRIES)):
            try:
                return self._connect_once()
            except TooManyConnections:
                if not tries_left:
                    raise
                pause = random.uniform(0.3, 2.5)  # noqa: S311 - no secret
                current_cancellation().pause(pause, self._login.label)
        raise AssertionError("unreachable")

    def _connect_once(self) -> _Transport:
        login = self._login
        known_hosts = KnownHosts(login.known_hosts, login.label)
        stream = _WatchedStream(self._stream())
        transport = _Transport(stream)  # type: ignore[arg-type]
        try:
            _prefer(transport, known_hosts.algorithms(login.address, login.port))
            self._shake_hands(transport, stream)
            known_hosts.check(login.address, login.port, transport.get_remote_server_key())
            authenticate(transport, login)
        except BaseException:
            transport.close()
            raise
        threading.Thread(
            target=_keep_alive, args=(transport,), name=f"ping {login.label}", daemon=True
        ).start()
        return transport

    def _shake_hands(self, transport: _Transport, stream: _WatchedStream) -> None:
        login = self._login
        transport.banner_timeout = login.connect_timeout
        transport.handshake_timeout = login.connect_timeout
        transport.auth_timeout = max(30.0, login.connect_timeout)
        try:
            transport.start_client(timeout=login.connect_timeout)
        except paramiko.ssh_exception.IncompatiblePeer as error:
            raise IncompatiblePeer(
                f"its sshd shares no algorithm with us ({error})",
                login.label,
                "It is too old: update its OpenSSH, or reach it through a newer jump host.",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not stream.received_anything:
                raise TooManyConnections(
                    "sshd closed the connection before its greeting",
                    login.label,
                    "Too many connections at once (MaxStartups in its sshd_config), or a "
                    "firewall or fail2ban that has blocked this machine.",
                ) from error
            raise Unreachable(
                f"the SSH handshake failed ({error})",
                login.label,
                "Check that the port is sshd's, and look at the host's auth log.",
            ) from error

    def _stream(self) -> _ByteStream:
        login = self._login
        if login.jump is None:
            return _tcp(login)
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
            raise _lost(login.jump, error) from error

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            if self._transport:
                self._transport.close()
            self._transport = None


class SSHProcess:
    """A command in a channel, with the three streams that `Host` works with."""

    def __init__(
        self, login: Login, channel: Channel, line: CommandLine, release: Callable[[], None]
    ) -> None:
        self._login = login
        self._channel = channel
        self._release = release
        try:
            channel.settimeout(5)
            channel.exec_command(line.line)
            if line.preamble:
                channel.sendall(line.preamble)
        except (paramiko.SSHException, EOFError, OSError) as error:
            channel.close()
            raise _lost(login, error) from error

    def write(self, data: bytes) -> int:
        """Write some of the data; raise `TimeoutError` when none is taken for 5 s."""
        try:
            sent = self._channel.send(data)
        except TimeoutError:
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            sent = 0
            self._check_alive(error)
        if not sent:
            raise BrokenPipeError(errno.EPIPE, "the command has ended")
        return sent

    def close_input(self) -> None:
        """End standard input."""
        with suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.shutdown_write()

    def read(self, timeout: float) -> tuple[bytes, bytes] | None:
        """Return what came on both streams, or None when the command has ended."""
        channel = self._channel
        ended = channel.exit_status_ready() and (channel.eof_received or channel.closed)
        if not (channel.recv_ready() or channel.recv_stderr_ready() or ended):
            with suppress(ValueError):  # closed in between
                select.select([channel.fileno()], [], [], timeout)
        out = channel.recv(1 << 18) if channel.recv_ready() else b""
        err = channel.recv_stderr(1 << 18) if channel.recv_stderr_ready() else b""
        if out or err:
            return out, err
        if ended:
            return None
        if channel.closed or channel.eof_received:
            self._check_alive(None)
            if channel.closed and not channel.exit_status_ready():
                # Ended by a signal; RFC 4254 6.10: exit-signal in place of exit-status.
                return None
            time.sleep(0.01)
        return b"", b""

    def _check_alive(self, error: BaseException | None) -> None:
        transport = self._channel.get_transport()
        if not transport.is_active():
            raise _lost(self._login, error or transport.saved_exception) from error

    def exit_code(self) -> int:
        """Return the exit code; 255 for a command that was ended by a signal."""
        if not self._channel.exit_status_ready():
            return 255
        return self._channel.recv_exit_status()

    def close(self) -> None:
        """Close the channel and give its place to the next one."""
        with suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.close()
        release, self._release = self._release, lambda: None
        release()


def authenticate(transport: paramiko.Transport, login: Login) -> None:
    """Log in with what the login has and the server accepts, each at most once.

    Args:
        transport: A transport after its handshake and host key check.
        login: The user, keys and password.

    Raises:
        AuthenticationRefused: Nothing was accepted.
        PassphraseNeeded: A key is locked and there is nothing else to try.
        ConnectionLost: The server hung up.
    """
    try:
        accepted = _accepted_methods(transport, login.username)
        for method, attempt in _attempts(login, accepted):
            try:
                if not attempt(transport):
                    return
            except paramiko.BadAuthenticationType as error:
                accepted = error.allowed_types
            except paramiko.AuthenticationException as error:
                if method == "password":
                    raise _refused(login, accepted) from error
            if transport.is_authenticated():
                return
    except paramiko.AuthenticationException as error:
        raise _refused(login, []) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _lost(login, error) from error
    if not transport.is_authenticated():
        raise _refused(login, accepted)


_Attempt = Callable[[paramiko.Transport], Sequence[str]]


def _accepted_methods(transport: paramiko.Transport, username: str) -> list[str]:
    try:
        transport.auth_none(username)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    return []


def _attempts(login: Login, accepted: list[str]) -> Iterator[tuple[str, _Attempt]]:
    """Yield keys first, then the password, by the one method that the server takes."""
    if "publickey" in accepted or not accepted:
        locked: PassphraseNeeded | None = None
        for text in login.private_keys:
            try:
                key = load_private_key(text, login.passphrase, login.label)
            except PassphraseNeeded as error:
                locked = error
                continue
            yield (
                "publickey",
                lambda transport, key=key: transport.auth_publickey(  # type: ignore[misc]
                    login.username, key
                ),
            )
        if locked and not login.password:
            raise locked
    if not login.password:
        return
    if "password" in accepted:
        yield (
            "password",
            lambda transport: transport.auth_password(
                login.username, login.password, fallback=False
            ),
        )
    else:
        yield (
            "password",
            lambda transport: transport.auth_interactive(login.username, _answers(login.password)),
        )


def _answers(password: str) -> Callable[[str, str, Any], list[str]]:
    asked = False

    def answer(_: str, __: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
        nonlocal asked
        if prompts and asked:
            # The server asks again because it refused: no second try.
            raise paramiko.AuthenticationException("asked for the password again")
        asked = asked or bool(prompts)
        return [password for _ in prompts]

    return answer


def _refused(login: Login, accepted: Sequence[str]) -> AuthenticationRefused:
    tried = " and ".join(
        ["the private key"] * bool(login.private_keys) + ["the password"] * bool(login.password)
    )
    takes = f"; it takes {', '.join(accepted)}" if accepted else ""
    return AuthenticationRefused(
        f"user {login.username!r} was refused with {tried or 'neither key nor password'}{takes}",
        login.label,
        "Correct username, private_key or password in the host's block. It is not tried again, "
        "so that the account is not locked.",
    )


def load_private_key(text: str, passphrase: str, where: str) -> paramiko.PKey:
    """Read a private key in OpenSSH or PEM format.

    Args:
        text: The key file's content.
        passphrase: What unlocks it, or empty.
        where: The host as messages name it.

    Raises:
        PassphraseNeeded: It is locked, and the passphrase is missing or wrong.
        InvalidInput: It is not a private key of a kind that SSH uses.
    """
    # Pasting into a form loses the last line break, and adds others.
    clean = text.replace("\r\n", "\n").strip() + "\n"
    try:
        if key := _parsed(clean, None):
            return key
    except paramiko.PasswordRequiredException as error:
        if passphrase and (key := _parsed(clean, passphrase)):
            return key
        raise PassphraseNeeded(
            f"the private key is locked and its passphrase is "
            f"{'wrong' if passphrase else 'missing'}",
            where,
            "Set 'passphrase' in the host's block.",
        ) from error
    raise InvalidInput(
        "the private key cannot be read",
        where,
        "Paste the whole file, from BEGIN to END; the public half (.pub) or a PuTTY key "
        "(.ppk) will not do.",
    )


def _parsed(text: str, passphrase: str | None) -> paramiko.PKey | None:
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(text), passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError, IndexError, TypeError):
            continue
    return None


def _tcp(login: Login) -> socket.socket:
    try:
        stream = socket.create_connection((login.address, login.port), login.connect_timeout)
    except socket.gaierror as error:
        raise Unreachable(
            f"the name {login.address!r} is not known here ({error.strerror})",
            login.label,
            "Correct the address in the host's block, or use its IP address.",
        ) from error
    except ConnectionRefusedError as error:
        raise ConnectionRefused(
            "nothing listens on the port",
            login.label,
            "Start sshd there, or correct the port in the host's block.",
        ) from error
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror
        raise Unreachable(
            f"it cannot be reached ({reason})",
            login.label,
            "Check that it is up, the network or VPN to it, and the address in its block.",
        ) from error
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        timeout_ms = int(SILENCE * 1000)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    return stream


def _prefer(transport: paramiko.Transport, key_types: Sequence[str]) -> None:
    """Order the algorithms: fast ciphers, and the host keys that are on record."""
    options = transport.get_security_options()
    options.ciphers = [name for name in _CIPHERS if name in options.ciphers] + [
        name for name in options.ciphers if name not in _CIPHERS and "cbc" not in name
    ]
    known = [name for name in key_types if name in options.key_types]
    options.key_types = known + [name for name in options.key_types if name not in known]


def _keep_alive(transport: _Transport) -> None:
    while transport.is_active():
        time.sleep(PING_EVERY)
        with suppress(paramiko.SSHException, EOFError, OSError):
            transport.ping()


def _lost(login: Login, error: BaseException | None) -> ConnectionLost:
    reason = str(error) if error and str(error) else "closed by the other side"
    return ConnectionLost(
        f"the connection has died ({reason})",
        login.label,
        "Check the network to it and that it is up.",
    )


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


@contextmanager
def shown_host_key(login: Login) -> Iterator[paramiko.PKey]:
    """Connect without logging in, and give the key that the host shows.

    Args:
        login: Where to; its user and secrets are not used, but its jump host's are.
    """
    connection = Connection(login)
    stream = _WatchedStream(connection._stream())
    transport = _Transport(stream)  # type: ignore[arg-type]
    try:
        connection._shake_hands(transport, stream)
        yield transport.get_remote_server_key()
    finally:
        transport.close()
