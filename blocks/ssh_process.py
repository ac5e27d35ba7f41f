"""A command on a host, in a channel of an SSH connection."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import paramiko

from blocks.commands import CommandLine
from blocks.ssh_login import Login, connection_lost
from blocks.ssh_transport import is_closed

if TYPE_CHECKING:
    from paramiko.channel import Channel


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
            raise connection_lost(login, error) from error

    def write(self, data: bytes) -> int:
        """Write some of the data; raise `TimeoutError` when none is taken for 5 s."""
        try:
            # sshd takes, and drops, what is sent to a command that has ended.
            sent = 0 if self._channel.exit_status_ready() else self._channel.send(data)
        except TimeoutError:
            raise
        except OSError as error:
            sent = 0
            self._check_alive(error)
        except (paramiko.SSHException, EOFError) as error:
            # What was written is unknown, so the connection is of no more use.
            self._channel.get_transport().close()
            raise connection_lost(self._login, error) from error
        if not sent:
            raise BrokenPipeError(errno.EPIPE, "the command has ended")
        return sent

    def write_file(self, descriptor: int, offset: int, size: int) -> int:
        """Write some bytes of an open file, as `write` does."""
        data = os.pread(descriptor, min(size, 1 << 17), offset)
        if not data:
            raise EOFError
        return self.write(data)

    def close_input(self) -> None:
        """End standard input."""
        try:
            with suppress(OSError):
                self._channel.shutdown_write()
        except (paramiko.SSHException, EOFError):
            # The command would wait for the end of its input for ever.
            self._channel.get_transport().close()

    def read(self, timeout: float) -> tuple[bytes, bytes] | None:
        """Return what came on both streams, or None when the command has ended."""
        channel = self._channel
        ended = channel.exit_status_ready() and (channel.eof_received or channel.closed)
        if not (channel.recv_ready() or channel.recv_stderr_ready() or ended):
            with suppress(ValueError):  # closed in between
                select.select([channel.fileno()], [], [], timeout)
        try:
            out = channel.recv(1 << 18) if channel.recv_ready() else b""
            err = channel.recv_stderr(1 << 18) if channel.recv_stderr_ready() else b""
        except (paramiko.SSHException, EOFError, OSError) as error:
            # It tells the host how much has been read.
            raise connection_lost(self._login, error) from error
        if out or err:
            return out, err
        if ended and channel.exit_status >= 0:
            return None
        if channel.closed or channel.eof_received:
            if is_closed(channel):
                # Ended by a signal; RFC 4254 6.10: exit-signal in place of exit-status.
                return None
            self._check_alive(None)
            time.sleep(0.01)
        return b"", b""

    def _check_alive(self, error: BaseException | None) -> None:
        transport = self._channel.get_transport()
        if not transport.is_active():
            raise connection_lost(self._login, error or transport.saved_exception) from error

    def exit_code(self) -> int:
        """Return the exit code; 255 for a command that was ended by a signal."""
        code = self._channel.exit_status
        return code if code >= 0 else 255

    def close(self) -> None:
        """Close the channel and give its place to the next one."""
        with suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.close()
        release, self._release = self._release, lambda: None
        release()
