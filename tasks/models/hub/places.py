"""Where the bytes of a revision's files come from."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError, Damaged
from tasks.models.files import ModelFile, Revision
from tasks.models.hub.answers import Asked, is_web_page, web_page
from tasks.models.hub.endpoint import Endpoint
from tasks.transfer.web import Answer

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_LARGEST_COMPLAINT = 1 << 16
# A signed link has a limited life; stores do not agree on what to say after it.
_EXPIRED = (400, 401, 403, 404, 410)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII | re.IGNORECASE)


class Body:
    """The bytes of an answer, as they arrive.

    Args:
        endpoint: Who was asked.
        response: Its answer.
        asked: What it is about.
        first: The byte of the file with which it begins.
        count: How many bytes belong to it.
        whole: Whether it is the whole file, though a part was asked for.

    Attributes:
        host: Who sends them: the endpoint, or the host that it sent us on to.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        response: BaseHTTPResponse,
        asked: Asked,
        first: int,
        count: int,
        whole: bool,
    ) -> None:
        self.first = first
        self.whole = whole
        self.host = asked.sent_on or asked.endpoint
        self._endpoint = endpoint
        self._response = response
        self._asked = asked
        self._left = count
        self._cancellation = current_cancellation()

    def read(self, most: int) -> bytes:
        """Return what has come, waiting only when nothing has.

        Args:
            most: Bytes that are wanted at the most.

        Returns:
            Bytes of the file; none at the end, also when it comes too early.

        Raises:
            CrossgapError: The connection broke or stalled, or the run was cancelled.
        """
        if self._left == 0:
            return b""
        with self._endpoint.explaining(self._asked):
            chunk = self._response.read1(min(most, self._left))
        self._cancellation.check(self._asked.where)
        self._left -= len(chunk)
        return chunk


class Place:
    """One endpoint, asked for files of one revision; safe to use from several threads.

    Args:
        endpoint: The endpoint.
        revision: The model, pinned.

    Attributes:
        name: The endpoint as operators know it.
    """

    def __init__(self, endpoint: Endpoint, revision: Revision) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint
        self._revision = revision
        self._targets: dict[str, str] = {}
        self._lock = threading.Lock()

    @contextmanager
    def open(self, file: ModelFile, start: int, stop: int) -> Iterator[Body]:
        """Ask for a range of a file.

        Args:
            file: One of the revision's.
            start: The first byte.
            stop: The byte behind the last one.

        Yields:
            The bytes. An endpoint may send the whole file instead: see `Body.first`.

        Raises:
            Throttled: It wants to be left alone for a while.
            NotFound: It does not have the file.
            AuthenticationRefused: The model is gated, or the token is refused.
            Damaged: It answers with another file, or with another part of it.
            CrossgapError: It refused, broke off or stalled, now or while the
                body was being read.
        """
        known = self._targets.get(file.path, "")
        try:
            answer = self._answer(known, file, start, stop)
            response = answer.response
            asked = self._asked(answer, file)
            with self._endpoint.reading(response, asked):
                first, count = self._checked(response, file, start, stop, asked)
                self._remember(answer, file)
                whole = response.status == 200 and count > stop - start
                yield Body(self._endpoint, response, asked, first, count, whole)
        except CrossgapError:
            # The next one asks anew where the file is: perhaps somewhere better.
            self._forget(known, file)
            raise

    def _answer(self, known: str, file: ModelFile, start: int, stop: int) -> Answer:
        """Ask where the file was found before, and here when that is of no more use."""
        own = self._url(file)
        if known and known != own:
            answer = self._send(known, file, start, stop)
            if answer.response.status not in _EXPIRED:
                return answer
            answer.response.close()
        return self._send(own, file, start, stop)

    def _checked(
        self, response: BaseHTTPResponse, file: ModelFile, start: int, stop: int, asked: Asked
    ) -> tuple[int, int]:
        """Return with which byte an answer begins and how many come."""
        if response.status == 416:
            raise _too_short(response, file, asked)
        if response.status not in (200, 206):
            raise self._endpoint.refusal(response, asked)
        # A file of that kind is a page itself.
        if is_web_page(response.headers) and not file.path.endswith((".html", ".htm")):
            raise web_page(response.read(_LARGEST_COMPLAINT), asked)
        return _extent(response, file, start, stop, asked)

    def _send(self, url: str, file: ModelFile, start: int, stop: int) -> Answer:
        # There is no range of nothing.
        headers = {"Range": f"bytes={start}-{stop - 1}"} if stop > start else {}
        return self._endpoint.send(url, self._what(file), headers, of_file=True)

    def _url(self, file: ModelFile) -> str:
        model = quote(self._revision.model)
        if self._endpoint.kind == "modelscope":
            # It has commits of its own; what it gives is known by its hash alone.
            query = urlencode({"Revision": "master", "FilePath": file.path}, quote_via=quote)
            return f"{self._endpoint.url}/api/v1/models/{model}/repo?{query}"
        return f"{self._endpoint.url}/{model}/resolve/{self._revision.commit}/{quote(file.path)}"

    def _what(self, file: ModelFile) -> str:
        return f"{file.path} of {self._revision.model!r}"

    def _asked(self, answer: Answer, file: ModelFile) -> Asked:
        return self._endpoint.asked(answer.url, self._what(file), of_file=True)

    def _remember(self, answer: Answer, file: ModelFile) -> None:
        with self._lock:
            self._targets[file.path] = answer.url

    def _forget(self, known: str, file: ModelFile) -> None:
        with self._lock:
            # Unless another thread has a newer one.
            if self._targets.get(file.path) == known:
                del self._targets[file.path]


def _extent(
    response: BaseHTTPResponse, file: ModelFile, start: int, stop: int, asked: Asked
) -> tuple[int, int]:
    """Return with which byte an answer begins and how many come, if it is about this file."""
    headers = response.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _another("the file comes compressed, which was not asked for", asked)
    if response.status == 206:
        told = headers.get("Content-Range", "")
        found = _RANGE.fullmatch(told.strip())
        first, last, size = map(int, found.groups()) if found else (-1, -1, -1)
        if first != start or not start <= last < stop or size != file.size:
            raise _another(
                f"it answers with {told[:60] or 'an unnamed part'!r} where bytes "
                f"{start}-{stop - 1} of {file.size} were asked for",
                asked,
            )
        return start, last + 1 - start
    length = headers.get("Content-Length", str(file.size))
    if length != str(file.size):
        raise _another(f"it answers with {length[:20]} bytes where the file has {file.size}", asked)
    return 0, file.size


def _too_short(response: BaseHTTPResponse, file: ModelFile, asked: Asked) -> Damaged:
    told = re.fullmatch(r"bytes \*/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    size = f"is one of {told[1]} bytes" if told else "is shorter"
    return _another(f"its copy of the file {size}, where the hub lists {file.size}", asked)


def _another(what: str, asked: Asked) -> Damaged:
    return Damaged(
        what,
        asked.where,
        "It has another file than the hub lists: start again, or put another endpoint first.",
        retryable=True,
    )
