"""One registry, asked over HTTP for what belongs to one image.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md. Weighed before
this was written: oras 0.2 (no ranges, no digests of blobs, no time-outs) and python-dxf
12 (no ranges, leaves redirects to a library with rules of its own); urllib3, which is here
anyway, lacks only what is below.
"""

from __future__ import annotations

import ssl
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from blocks.cancellation import current_cancellation
from blocks.errors import CrossgapError, Damaged, InvalidInput, Unreachable
from tasks.images.registry.answers import explain_exception, explain_status, speaks_no_tls
from tasks.images.registry.auth import (
    Challenge,
    Credentials,
    check_realm,
    parse_challenge,
    parse_token,
)
from tasks.images.registry.places import Place

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_LARGEST_TOKEN = 1 << 20
_LARGEST_COMPLAINT = 1 << 16
_CONNECT_SECONDS = 15.0
_CONNECTIONS_KEPT = 8


class Transport:
    """Sends single requests, with time-outs, and with no proxy unless one is asked for.

    Args:
        ca_bundle: Certificates to trust beside the system's.
        use_proxy: Whether the proxy that the environment names is used.
        stall_seconds: How long a registry may send nothing.

    Raises:
        InvalidInput: The bundle cannot be read.
    """

    def __init__(
        self, ca_bundle: Path | None = None, use_proxy: bool = False, stall_seconds: float = 30.0
    ) -> None:
        self.stall_seconds = stall_seconds
        self._context = _trusting(ca_bundle)
        self._proxies = urllib.request.getproxies_environment() if use_proxy else {}
        self._pools: dict[str, PoolManager] = {}
        self._lock = threading.Lock()

    def request(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Send a GET and return the answer, its body not yet read, no redirect followed."""
        return self._pool(url).request(
            "GET", url, headers=headers, redirect=False, preload_content=False, decode_content=False
        )

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.clear()

    def _pool(self, url: str) -> PoolManager:
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme, "")
        if proxy and urllib.request.proxy_bypass(parts.netloc):
            proxy = ""
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._new_pool(proxy)
            return self._pools[proxy]

    def _new_pool(self, proxy: str) -> PoolManager:
        from urllib3 import PoolManager, ProxyManager, Timeout, make_headers
        from urllib3.util import parse_url

        connect = min(_CONNECT_SECONDS, self.stall_seconds)
        options: dict[str, Any] = {
            "ssl_context": self._context,
            "timeout": Timeout(connect=connect, read=self.stall_seconds),
            "retries": False,
            "maxsize": _CONNECTIONS_KEPT,
        }
        if not proxy:
            return PoolManager(**options)
        user = parse_url(proxy).auth
        shown = make_headers(proxy_basic_auth=user) if user else {}
        return ProxyManager(proxy, proxy_headers=shown, **options)


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
            # Wakes a read that waits for a registry which has gone silent.
            cancellation.on_cancel(response, lambda: _wake(response))
            try:
                self._check(response)
                yield response
            finally:
                cancellation.ended(response)
                # Unread bytes make the connection useless for another request.
                response.close()
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
        origin = _origin(url)
        for _ in range(_MOST_REDIRECTS + 1):
            own = _origin(url) == origin
            headers.pop("Authorization", None)
            if own and self._authorization:
                headers["Authorization"] = self._authorization
            response = self._transport.request(url, headers)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or not target:
                return response, own
            response.close()
            url = self._checked_target(url, target)
        raise Unreachable("it sends us round in circles", self.where, retryable=False)

    def _checked_target(self, url: str, target: str) -> str:
        joined = urljoin(url, target)
        allowed = ("https",) if url.startswith("https:") else ("https", "http")
        if urlsplit(joined).scheme not in allowed:
            raise Unreachable(
                "it sends us on to a place that is not encrypted",
                f"{self.where} (to {urlsplit(joined).hostname})",
                "Have the registry's redirects changed to https, or name another mirror.",
                retryable=False,
            )
        return joined

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


def _trusting(ca_bundle: Path | None) -> ssl.SSLContext:
    import certifi

    context = ssl.create_default_context()
    # A Python that was built elsewhere knows no authorities of this system.
    context.load_verify_locations(certifi.where())
    if ca_bundle is not None:
        try:
            context.load_verify_locations(ca_bundle.expanduser())
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"the CA bundle cannot be used ({error.strerror or error})",
                str(ca_bundle),
                "Give the path of a file with certificates in PEM form on the worker's machine.",
            ) from error
    return context


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _wake(response: BaseHTTPResponse) -> None:
    # It may have ended this very moment.
    with suppress(ValueError, RuntimeError, OSError):
        response.shutdown()
