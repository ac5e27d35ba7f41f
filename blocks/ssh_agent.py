"""An SSH agent inside this process: it signs, and never shows a key.

So that the OpenSSH client can log in with keys that are in memory only. The protocol
is draft-ietf-sshm-ssh-agent; of its requests two are answered: which keys there are,
and a signature by one of them.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import paramiko

_FAILURE = b"\x05"
_REQUEST_IDENTITIES, _IDENTITIES_ANSWER = 11, b"\x0c"
_SIGN_REQUEST, _SIGN_RESPONSE = 13, b"\x0e"

# Flags of a sign request, and the algorithms that they ask for (RFC 8332).
_RSA_SHA2_256, _RSA_SHA2_512 = 2, 4

# No request that we answer is longer: a key, some hundred bytes to sign, a few numbers.
_LONGEST = 1 << 18


class Agent:
    """Answers on a Unix socket as long as its context lasts.

    Args:
        path: Where the socket is made; who may reach it is up to the folder.
        keys: What it signs with.
    """

    def __init__(self, path: Path, keys: Sequence[paramiko.PKey]) -> None:
        self._path = path
        self._keys = {key.asbytes(): key for key in keys}
        self._listener = socket.socket(socket.AF_UNIX)
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="ssh agent", daemon=True)

    def __enter__(self) -> Self:
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._ended = True
        # Closing a socket does not wake the thread that waits on it; a caller does.
        with suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(self._path))
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._ended:
            client, _ = self._listener.accept()
            threading.Thread(target=self._attend, args=(client,), daemon=True).start()

    def _attend(self, client: socket.socket) -> None:
        """Answer one client until it hangs up."""
        with client, suppress(OSError), client.makefile("rwb") as stream:
            while len(head := stream.read(4)) == 4:
                size = struct.unpack(">I", head)[0]
                if not 0 < size <= _LONGEST:
                    return
                answer = self._answer(stream.read(size))
                stream.write(struct.pack(">I", len(answer)) + answer)
                stream.flush()

    def _answer(self, request: bytes) -> bytes:
        message = paramiko.Message(request[1:])
        if request[0] == _REQUEST_IDENTITIES:
            return self._identities()
        if request[0] == _SIGN_REQUEST:
            return self._signature(message.get_binary(), message.get_binary(), message.get_int())
        return _FAILURE

    def _identities(self) -> bytes:
        keys = b"".join(_string(blob) + _string(b"") for blob in self._keys)
        return _IDENTITIES_ANSWER + struct.pack(">I", len(self._keys)) + keys

    def _signature(self, blob: bytes, data: bytes, flags: int) -> bytes:
        key = self._keys.get(blob)
        algorithm = key and _algorithm(key, flags)
        if key is None or not algorithm:
            return _FAILURE
        return _SIGN_RESPONSE + _string(key.sign_ssh_data(data, algorithm).asbytes())


def _algorithm(key: paramiko.PKey, flags: int) -> str:
    if key.get_name() != "ssh-rsa":
        return key.get_name()
    if flags & _RSA_SHA2_512:
        return "rsa-sha2-512"
    return "rsa-sha2-256" if flags & _RSA_SHA2_256 else ""  # SHA-1 is of no use any more


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
