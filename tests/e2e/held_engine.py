"""A socket before an engine, which stops handing on what the engine says for as long as told."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK = 1 << 18
# Short answers pass also while it is held; an image does not.
_PASSES = 1_000_000


class HeldEngine:
    """Stands for an engine that is slow to save, while the context lasts.

    Args:
        engine_url: The engine's DOCKER_HOST URL, a socket of this machine.
        path: Where the socket goes.

    Attributes:
        reached: Whether something waits for the rest of a long answer.
    """

    def __init__(self, engine_url: str, path: Path) -> None:
        self.url = f"unix://{path}"
        self.reached = threading.Event()
        self._engine = engine_url.removeprefix("unix://")
        self._free = threading.Event()
        self._free.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))

    def __enter__(self) -> Self:
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()

    def hold(self) -> None:
        """From now on, only the beginning of an answer passes."""
        self.reached.clear()
        self._free.clear()

    def release(self) -> None:
        """Let the rest pass."""
        self._free.set()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with ExitStack() as opened:
            opened.enter_context(client)
            engine = opened.enter_context(socket.socket(socket.AF_UNIX))
            engine.connect(self._engine)
            asking = threading.Thread(target=self._ask, args=(client, engine), daemon=True)
            asking.start()
            with suppress(OSError):
                self._answer(engine, client)
                client.shutdown(socket.SHUT_RDWR)
            asking.join()

    def _ask(self, client: socket.socket, engine: socket.socket) -> None:
        with suppress(OSError):
            while chunk := client.recv(_CHUNK):
                engine.sendall(chunk)
            engine.shutdown(socket.SHUT_WR)

    def _answer(self, engine: socket.socket, client: socket.socket) -> None:
        passed = 0
        while chunk := engine.recv(_CHUNK):
            passed += len(chunk)
            if passed > _PASSES and not self._free.is_set():
                self.reached.set()
                self._free.wait()
            client.sendall(chunk)
