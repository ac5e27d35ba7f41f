"""SHA-256 of a stream, computed beside the work on the stream."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

# Few enough that memory stays flat when hashing is the slower side.
_CHUNKS_AHEAD = 8


class StreamDigest:
    """Hashes chunks in a thread of its own, in order.

    hashlib lets go of the interpreter lock, so a second processor does the
    work while the caller reads, writes or hashes something else.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def update(self, chunk: bytes) -> None:
        """Take the next bytes; waits when hashing is far behind."""
        self._pending.append(self._thread.submit(self._hash.update, chunk))
        if len(self._pending) > _CHUNKS_AHEAD:
            self._pending.popleft().result()

    def hexdigest(self) -> str:
        """Return the hash of everything taken so far."""
        while self._pending:
            self._pending.popleft().result()
        return self._hash.hexdigest()
