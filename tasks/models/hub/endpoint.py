"""One address of a hub, asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError, Damaged
from tasks.models.hub.answers import (
    Asked,
    explain_exception,
    explain_status,
    is_web_page,
    web_page,
)
from tasks.transfer.web import Answer, Transport, follow, held, origin_of

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from blocks.model_hub import HubKind

LARGEST_DOCUMENT = 1 << 25
_LARGEST_COMPLAINT = 1 << 16
_ENCRYPT = "Have the mirror's redirects changed to https, or put another mirror first."


@dataclass(frozen=True)
class Document:
    """A document of a hub's API.

    Args:
        value: What it says.
        headers: What came with it.
    """

    value: Any
    headers: Mapping[str, str]


class Endpoint:
    """Sends requests to one endpoint; safe to use from several threads.

    Args:
        url: Its address.
        kind: What it speaks.
        transport: Sends the requests.
        token: Shown to this endpoint itself, if it is of the kind huggingface.
    """

    def __init__(self, url: str, kind: HubKind, transport: Transport, token: str = "") -> None:
        self.url = url
        self.kind = kind
        self.name = url.partition("://")[2]
        self._origin = origin_of(url)
        self._transport = transport
        self._token = token if kind == "huggingface" else ""

    def document(self, path: str, what: str) -> Document:
        """Ask the API for something.

        Args:
            path: With the query, quoted.
            what: The thing as messages name it.

        Raises:
            Damaged: The answer is no document.
            CrossgapError: It refused, broke off or stalled.
        """
        answer = self.send(f"{self.url}{path}", what, {"Accept": "application/json"})
        asked = self.asked(answer.url, what)
        with self.reading(answer.response, asked):
            if answer.response.status != 200:
                raise self.refusal(answer.response, asked)
            content = answer.response.read(LARGEST_DOCUMENT + 1)
        if is_web_page(answer.response.headers):
            raise web_page(content, asked)
        if len(content) > LARGEST_DOCUMENT:
            raise Damaged(f"its answer is longer than {LARGEST_DOCUMENT} bytes", asked.where)
        try:
            return Document(json.loads(content), answer.response.headers)
        except (ValueError, RecursionError) as error:
            raise Damaged(
                "its answer is no JSON",
                asked.where,
                "Open its address in a browser on the worker's machine, or put another endpoint "
                "into the hub's block.",
                retryable=True,
            ) from error

    def send(
        self, url: str, what: str, headers: Mapping[str, str], *, of_file: bool = False
    ) -> Answer:
        """Send a request and follow where it leads.

        Args:
            url: An address here, or one that this endpoint sent us on to before.
            what: What is asked for, as messages name it.
            headers: Those beside the token.
            of_file: Whether it is for a file's bytes.

        Returns:
            An answer of whatever status; to be read within `reading`.

        Raises:
            CrossgapError: There is none.
        """
        plain = {"Accept-Encoding": "identity", "User-Agent": "crossgap", **headers}

        def send(url: str) -> BaseHTTPResponse:
            shown = dict(plain)
            if self._token and origin_of(url) == self._origin:
                shown["Authorization"] = f"Bearer {self._token}"
            with self.explaining(self.asked(url, what, of_file=of_file)):
                return self._transport.request(url, shown)

        return follow(url, send, self.asked(self.url, what).where, _ENCRYPT)

    def asked(self, url: str, what: str, *, of_file: bool = False) -> Asked:
        """Put together what an answer from an address is about."""
        own = origin_of(url) == self._origin
        return Asked(
            what,
            self.name,
            self.kind,
            with_token=bool(self._token) and own,
            of_file=of_file,
            sent_on="" if own else urlsplit(url).netloc,
        )

    @contextmanager
    def reading(self, response: BaseHTTPResponse, asked: Asked) -> Iterator[None]:
        """Read an answer; it is closed in the end, and errors of urllib3 are explained."""
        with held(response), self.explaining(asked):
            yield

    @contextmanager
    def explaining(self, asked: Asked) -> Iterator[None]:
        """Turn errors of urllib3 into ours."""
        from urllib3.exceptions import HTTPError

        try:
            yield
        except HTTPError as error:
            current_cancellation().check(asked.where)
            raise explain_exception(error, self._transport.stall_seconds, asked) from error

    def refusal(self, response: BaseHTTPResponse, asked: Asked) -> CrossgapError:
        """Tell what an answer without success means; within `reading`."""
        content = response.read(_LARGEST_COMPLAINT)
        return explain_status(response.status, response.headers, content, asked)
