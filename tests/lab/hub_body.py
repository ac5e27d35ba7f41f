"""How the lab's hub sends bytes: by the kernel where it can, and no faster than it should."""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.lab.hub_faults import STOPS, Fault

_MOST_AT_ONCE = 4 << 20
_STEPS_PER_SECOND = 50

Source = int | bytes
"""An open file or the bytes themselves."""


class Body:
    """Sends answers' bodies on one connection.

    Args:
        connection: The connection.
        over: Set when the server ends; whoever waits then stops.
        count: Is told of bytes that were sent.
    """

    def __init__(
        self, connection: socket.socket, over: threading.Event, count: Callable[[int], None]
    ) -> None:
        self._connection = connection
        self._over = over
        self._count = count
        self._free_at = 0.0

    def send(
        self, source: Source, begin: int, end: int, rate: float | None, fault: Fault | None
    ) -> None:
        """Send a part of something.

        Args:
            source: What.
            begin: Its first byte.
            end: Behind its last byte.
            rate: Bytes per second, over all that this connection sends.
            fault: What goes wrong.

        Raises:
            ConnectionError: The connection has ended, maybe by the fault.
        """
        kind = fault.kind if fault else ""
        turn = min(end, begin + max(fault.after, 0)) if fault else end
        if fault and kind in STOPS:
            self._pass(source, begin, turn, rate)
            self.stop(fault)
        elif fault and kind == "trickle":
            self._pass(source, begin, turn, rate)
            self._pass(source, turn, end, fault.rate)
        elif fault and kind == "flip":
            self._pass(source, begin, fault.after, rate)
            (right,) = _read(source, fault.after, 1)
            self._pass(bytes([right ^ 1]), 0, 1, rate)
            self._pass(source, fault.after + 1, end, rate)
        else:
            self._pass(source, begin, end, rate)

    def stop(self, fault: Fault) -> None:
        """End the connection as `stall`, `cut` or `reset` do.

        Raises:
            ConnectionAbortedError: Always, so that nothing more is sent.
        """
        if fault.kind == "stall":
            self._over.wait()
        elif fault.kind == "reset":
            abort = struct.pack("ii", 1, 0)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
        with suppress(OSError):
            self._connection.close()
        raise ConnectionAbortedError(fault.kind)

    def _pass(self, source: Source, begin: int, end: int, rate: float | None) -> None:
        step = max(1, min(_MOST_AT_ONCE, int(rate / _STEPS_PER_SECOND))) if rate else _MOST_AT_ONCE
        while begin < end:
            sent, due = 0, min(step, end - begin)
            # Beforehand: whoever has the last byte may look at once.
            self._count(due)
            try:
                sent = self._write(source, begin, due)
            finally:
                self._count(sent - due)
            if not sent:
                raise ConnectionAbortedError("the file has become shorter")
            begin += sent
            if rate:
                self._wait(sent / rate)

    def _write(self, source: Source, begin: int, size: int) -> int:
        if isinstance(source, int) and not isinstance(self._connection, ssl.SSLSocket):
            return os.sendfile(self._connection.fileno(), source, begin, size)
        piece = _read(source, begin, size)
        self._connection.sendall(piece)
        return len(piece)

    def _wait(self, seconds: float) -> None:
        """Wait until this connection may send again; what was idle is saved for one step only."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 1 / _STEPS_PER_SECOND) + seconds
        if self._free_at > now and self._over.wait(self._free_at - now):
            raise ConnectionAbortedError("the hub ends")


def asked_part(header: str, size: int) -> tuple[int, int] | None:
    """Return which part a Range header asks for.

    Args:
        header: Its value, or empty.
        size: Bytes there are.

    Returns:
        The first byte and the one behind the last; equal or the wrong way round where there is no
        such part; None for all, also for several parts, which need not be understood (RFC 9110).
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.replace(" ", ""))
    if not found or found[0] == "bytes=-":
        return None
    if not found[1]:
        return size - min(size, int(found[2])), size
    begin, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    return None if end <= begin < size else (begin, min(end, size))


def _read(source: Source, begin: int, size: int) -> bytes:
    if isinstance(source, bytes):
        return source[begin : begin + size]
    return os.pread(source, size, begin)
