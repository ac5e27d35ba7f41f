"""One registry, asked over HTTP for what belongs to one image.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md. Weighed before
this was written: oras 0.2 (no ranges, no digests of blobs, no time-outs) and python-dxf
12 (no ranges, leaves redirects to a library with rules of its own); urllib3, which is here
anyway, lacks only what is below.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError, Damaged, Unreachable
from tasks.images.registry.answers import explain_exception, explain_status
from tasks.images.registry.auth import (
    Challenge,
    Credentials,
    check_realm,
    parse_challenge,
    parse_token,
)
from tasks.images.registry.places import Place
from tasks.transfer.web import Transport, follow, held, origin_of, speaks_no_tls

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_LARGEST_TOKEN = 1 << 20
_LARGEST_COMPLAINT = 1 << 16
_ENCRYPT = "Have the registry's redirects changed to https, or name another mirror."


class Session:
    """Asks one place for one image's things; safe to use from several threads.

    Args:
        place: The registry and the repository.
        transport: Sends the requests.
        image: The image as messages name it.
        credentials: Shown to this registry and its giver of tokens, to nobody else.
    """

    def __init__(
        self, place: Place, transport: Transport, image: str, credentials: Credentials | None = None
    ) -> None:
        self.place = place
        self.where = f"image {image!r} from {place.title}"
        self._transport = transport
        self._credentials = credentials if place.own else None
        self._scheme = place.schemes[0]
        self._lock = threading.Lock()
        self._authorization = ""

    @property
    def name(self) -> str:
        """The registry's host."""
        return self.place.host

    @contextmanager
    def get(self, path: str, accept: str = "", start: int = 0) -> Iterator[BaseHTTPResponse]:
        """Ask for something.

        Args:
            path: What stands behind the repository, as in `manifests/latest`.
            accept: The types that are understood.
            start: From which byte on; a registry may give all of it nevertheless.

        Yields:
            An answer of status 200, or 206 for a part.

        Raises:
            Throttled: It wants to be left alone for a while.
            CrossgapError: It refused, broke off or stalled, now or while the
                answer was being read.
        """
        from urllib3.exceptions import HTTPError

        headers = {"Accept-Encoding": "identity", "User-Agent": "crossgap"}
        if accept:
            headers["Accept"] = accept
        if start:
            headers["Range"] = f"bytes={start}-"
        cancellation = current_cancellation()
        try:
            response = self._authorized(f"/v2/{self.place.repository}/{path}", headers)
            with held(response):
                self._check(response)
                yield response
        except HTTPError as error:
            cancellation.check(self.where)
            raise explain_exception(error, self._transport.stall_seconds, self.where) from error

    def read(self, path: str, most: int, accept: str = "") -> bytes:
        """Ask for something short and return it.

        Args:
            path: What stands behind the repository.
            most: Bytes that it may have.
            accept: The types that are understood.

        Raises:
            Damaged: It is longer.
            CrossgapError: As for `get`.
        """
        with self.get(path, accept) as response:
            return self.body(response, most)

    def body(self, response: BaseHTTPResponse, most: int) -> bytes:
        """Return the body of a short answer.

        Args:
            response: The answer, not yet read.
            most: Bytes that it may have.

        Raises:
            Damaged: It is longer.
        """
        content = response.read(most + 1)
        if len(content) > most:
            raise Damaged(
                f"the answer is longer than the {most} bytes that are sensible", self.where
            )
        return content

    def _authorized(self, path: str, headers: dict[str, str]) -> BaseHTTPResponse:
        response, own = self._first(path, headers)
        # A stranger that we were sent to may not ask who we are.
        if response.status != 401 or not own:
            return response
        challenge = parse_challenge(response.headers.get("WWW-Authenticate", ""))
        if challenge is None or (challenge.scheme == "basic" and self._credentials is None):
            return response
        response.close()
        self._answer(challenge, headers.get("Authorization", ""))
        return self._follow(self._url(path), headers)[0]

    def _first(self, path: str, headers: dict[str, str]) -> tuple[BaseHTTPResponse, bool]:
        """Send the first request, by which also the scheme is found out."""
        from urllib3.exceptions import SSLError

        try:
            return self._follow(self._url(path), headers)
        except SSLError as error:
            if self._scheme == self.place.schemes[-1] or not speaks_no_tls(error):
                raise
            self._scheme = self.place.schemes[-1]
            return self._follow(self._url(path), headers)

    def _url(self, path: str) -> str:
        return f"{self._scheme}://{self.place.host}{path}"

    def _follow(self, url: str, headers: dict[str, str]) -> tuple[BaseHTTPResponse, bool]:
        """Send a request and go where the registry sends us, without its authorization.

        Returns:
            The answer, and whether it is the registry's own.
        """
        origin = origin_of(url)

        def send(url: str) -> BaseHTTPResponse:
            headers.pop("Authorization", None)
            if origin_of(url) == origin and self._authorization:
                headers["Authorization"] = self._authorization
            return self._transport.request(url, headers)

        answer = follow(url, send, self.where, _ENCRYPT)
        return answer.response, origin_of(answer.url) == origin

    def _answer(self, challenge: Challenge, refused: str) -> None:
        """Get what the registry asked for, unless another thread has meanwhile."""
        with self._lock:
            if self._authorization != refused:
                return
            if challenge.scheme == "basic":
                assert self._credentials is not None  # noqa: S101 - checked by the caller
                self._authorization = self._credentials.basic()
            else:
                self._authorization = f"Bearer {self._token(challenge)}"

    def _token(self, challenge: Challenge) -> str:
        check_realm(challenge.realm, self._url(""), self.where)
        headers = {"Accept-Encoding": "identity", "User-Agent": "crossgap"}
        if self._credentials:
            headers["Authorization"] = self._credentials.basic()
        url = challenge.token_url(self.place.repository)
        response = self._transport.request(url, headers)
        try:
            self._check(response)
            return parse_token(self.body(response, _LARGEST_TOKEN), self.where)
        finally:
            response.close()

    def _check(self, response: BaseHTTPResponse) -> None:
        if response.status not in (200, 206):
            raise self._refusal(response)
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise web_page(self.where)

    def _refusal(self, response: BaseHTTPResponse) -> CrossgapError:
        return explain_status(
            response.status,
            response.read(_LARGEST_COMPLAINT),
            response.headers.get("Retry-After", ""),
            self.where,
            with_credentials=self._credentials is not None,
        )


def web_page(where: str) -> Unreachable:
    """Make the error for a web page where an image was expected."""
    return Unreachable(
        "it answered with a web page",
        where,
        "Something stands in for the registry (a login page, a proxy, a mirror that was closed): "
        "open its address in a browser, or name another mirror.",
    )
