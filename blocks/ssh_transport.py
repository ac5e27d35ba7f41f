"""The wire under SSH: a socket that is watched, and the transport on it.

A peer that falls silent is noticed within 30 s: it is asked for a sign of life
every few seconds, and a silence of `SILENCE` seconds ends the connection.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

import paramiko
from paramiko.common import cMSG_CHANNEL_CLOSE, cMSG_GLOBAL_REQUEST

from blocks.errors import ConnectionRefused, Unreachable
from blocks.ssh_login import Login

if TYPE_CHECKING:
    from paramiko.channel import Channel

# Its reports of lost connections, with tracebacks, reach the operator as our errors.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

SILENCE = 20.0
PING_EVERY = 5.0

# AES-GCM first: with AES instructions it is the fastest that paramiko has.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")


class ByteStream(Protocol):
    """What paramiko asks of a socket."""

    def send(self, data: bytes) -> int:
        """Send some of the data and return how many bytes."""

    def recv(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end."""

    def settimeout(self, timeout: float | None) -> None:
        """Set after how many seconds `send` and `recv` raise `TimeoutError`."""

    def close(self) -> None:
        """End the connection."""


class WatchedStream:
    """A socket that raises when the peer has been silent for too long.

    paramiko reads and writes with a timeout of 0.1 s in a loop of its own, so
    a look at the clock at each timeout is enough.

    Args:
        stream: A socket, or a channel through a jump host.

    Attributes:
        greeted: Whether the peer has sent anything.
        ended: Whether the peer has closed the connection.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.heard = time.monotonic()
        self.greeted = False
        self.ended = False
        self._closed = False  # paramiko looks at it as it does at a socket's

    def recv(self, size: int) -> bytes:
        """Receive, and note that the peer lives."""
        try:
            data = self._stream.recv(size)
        except TimeoutError:
            self._check_silence()
            raise
        except ConnectionResetError:
            self.ended = True
            raise
        self.heard = time.monotonic()
        self.greeted = self.greeted or bool(data)
        self.ended = self.ended or not data
        return data

    def send(self, data: bytes) -> int:
        """Send; a full line of a silent peer ends the connection."""
        try:
            return self._stream.send(data)
        except TimeoutError:
            self._check_silence()
            raise

    def _check_silence(self) -> None:
        if time.monotonic() - self.heard > SILENCE:
            raise ConnectionResetError(errno.ETIMEDOUT, "no sign of life")

    def settimeout(self, timeout: float | None) -> None:
        """Set the time-out of the stream."""
        self._stream.settimeout(timeout)

    def close(self) -> None:
        """Close the stream."""
        self._closed = True
        self._stream.close()


class ChannelSide:
    """What a channel sends through: its transport, and whether it has said its last word.

    paramiko composes a message under the channel's lock and sends it outside, so that
    an end of input that one thread composed may follow a CLOSE that another thread
    sent. sshd has forgotten the channel by then, and answers by ending the connection
    with every command on it.

    Args:
        transport: The channel's transport.

    Attributes:
        closed: Whether the channel's CLOSE has been sent; no message may follow it
            (RFC 4254, section 5.3).
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send_user_message(self, message: paramiko.Message) -> None:
        message.side = self  # type: ignore[attr-defined]
        self._transport._send_user_message(message)  # type: ignore[attr-defined]


class Transport(paramiko.Transport):
    """paramiko's transport, with channels that keep silent after their CLOSE.

    It also has a ping that does not wait for its reply.
    """

    def open_channel(self, *args: Any, **kwargs: Any) -> Channel:
        """Open a channel, as paramiko does."""
        channel = super().open_channel(*args, **kwargs)
        channel.transport = ChannelSide(self)  # type: ignore[assignment]
        return channel

    def _send_message(self, data: paramiko.Message) -> None:
        # Called with the lock held that puts the messages of all threads in order.
        side: ChannelSide | None = getattr(data, "side", None)
        if side is not None:
            if side.closed:
                return
            side.closed = data.asbytes()[:1] == cMSG_CHANNEL_CLOSE
        super()._send_message(data)  # type: ignore[misc]

    def ping(self) -> None:
        """Send a request that is answered by any sshd (RFC 4254, section 4)."""
        message = paramiko.Message()
        message.add_byte(cMSG_GLOBAL_REQUEST)
        message.add_string("keepalive@openssh.com")
        message.add_boolean(True)
        self._send_user_message(message)  # type: ignore[attr-defined]


def is_closed(channel: Channel) -> bool:
    """Say whether a channel of a `Transport` has been closed in good order, by CLOSE."""
    return cast(ChannelSide, channel.transport).closed


def connect_tcp(login: Login) -> socket.socket:
    """Connect to a host's sshd directly.

    Args:
        login: Where to.

    Raises:
        Unreachable: It cannot be reached; `ConnectionRefused` when it answers.
    """
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


def prefer(transport: paramiko.Transport, key_types: Sequence[str]) -> None:
    """Order the algorithms: fast ciphers, and the host keys that are on record.

    Args:
        transport: A transport before its handshake.
        key_types: The algorithms that prove the recorded keys.
    """
    options = transport.get_security_options()
    options.ciphers = [name for name in _CIPHERS if name in options.ciphers] + [
        name for name in options.ciphers if name not in _CIPHERS and "cbc" not in name
    ]
    known = [name for name in key_types if name in options.key_types]
    options.key_types = known + [name for name in options.key_types if name not in known]


def keep_alive(transport: Transport) -> None:
    """Ask for a sign of life every few seconds, until the connection is gone."""
    while transport.is_active():
        time.sleep(PING_EVERY)
        with suppress(paramiko.SSHException, EOFError, OSError):
            transport.ping()
