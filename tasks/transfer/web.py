"""Requests over HTTP, for subjects that fetch large things from strangers.

urllib3 does the talking; here is what it leaves to its users: time-outs and proxies that
do not depend on the environment, redirects that never lead out of encryption, ends of a
cancelled run, and sentences for what went wrong.
"""

from __future__ import annotations

import email.utils
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from blocks.cancellation import current_cancellation
from blocks.errors import (
    ConnectionLost,
    ConnectionRefused,
    CrossgapError,
    InvalidInput,
    TimedOut,
    Unreachable,
)

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_CONNECT_SECONDS = 15.0


class Throttled(Unreachable):
    """The other side wants to be left alone for a while."""

    # An attribute, not an argument: errors travel between processes by their arguments.
    seconds = 0.0


@dataclass(frozen=True)
class Remedies:
    """What an operator can do about a connection that fails, in the words of a subject.

    Args:
        unreachable: The other side cannot be reached.
        stalled: It went silent.
        untrusted: Its certificate is not trusted.
        unencrypted: It does not speak TLS.
        broken: The connection broke.
        proxy: The proxy failed.
    """

    unreachable: str
    stalled: str
    untrusted: str
    unencrypted: str
    broken: str = "Start again."
    proxy: str = ""


class Transport:
    """Sends single requests, with time-outs, and with no proxy unless one is asked for.

    Args:
        ca_bundle: Certificates to trust beside the system's.
        use_proxy: Whether the proxy that the environment names is used.
        stall_seconds: How long the other side may send nothing.
        connections: How many to one host are kept for further requests.

    Raises:
        InvalidInput: The bundle cannot be read.
    """

    def __init__(
        self,
        ca_bundle: Path | None = None,
        use_proxy: bool = False,
        stall_seconds: float = 30.0,
        connections: int = 8,
    ) -> None:
        self.stall_seconds = stall_seconds
        self._connections = connections
        self._context = _trusting(ca_bundle)
        self._proxies = urllib.request.getproxies_environment() if use_proxy else {}
        self._pools: dict[str, PoolManager] = {}
        self._lock = threading.Lock()

    def request(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Send a GET and return the answer, its body not yet read, no redirect followed.

        Raises:
            InvalidInput: The proxy is of a kind that is not known here.
        """
        return self._pool(url).request(
            "GET", url, headers=headers, redirect=False, preload_content=False, decode_content=False
        )

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.clear()

    def proxy_of(self, url: str) -> str:
        """Return the proxy that an address is asked through; empty for none.

        Raises:
            InvalidInput: The proxy is of a kind that is not known here.
        """
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme) or self._proxies.get("all", "")
        if not proxy or urllib.request.proxy_bypass(parts.netloc):
            return ""
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        named = urlsplit(proxy)
        if named.scheme.lower() not in ("http", "https"):
            raise InvalidInput(
                f"it is of the kind {named.scheme!r}, and only http proxies are known here",
                # What stands before an @ is a password.
                f"proxy {named.netloc.rpartition('@')[2]!r}",
                "Set http_proxy and https_proxy in the worker's environment to an http port, "
                "which most such proxies have too, or use no proxy.",
            )
        return proxy

    def _pool(self, url: str) -> PoolManager:
        proxy = self.proxy_of(url)
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
            "maxsize": self._connections,
        }
        if not proxy:
            return PoolManager(**options)
        user = parse_url(proxy).auth
        shown = make_headers(proxy_basic_auth=user) if user else {}
        return ProxyManager(proxy, proxy_headers=shown, **options)


@dataclass(frozen=True)
class Answer:
    """An answer that is no redirect.

    Args:
        response: Its body is not yet read.
        url: Where it came from in the end.
    """

    response: BaseHTTPResponse
    url: str


def follow(url: str, send: Callable[[str], BaseHTTPResponse], where: str, remedy: str) -> Answer:
    """Send a request, and again wherever the answers lead.

    Args:
        url: Where to begin.
        send: Sends the request to an address; sees to it that secrets go only where they belong.
        where: What is asked for, and from whom.
        remedy: What to do when a redirect leads out of encryption.

    Raises:
        Unreachable: The redirects lead nowhere, or to a place that is not encrypted.
    """
    for _ in range(_MOST_REDIRECTS + 1):
        response = send(url)
        target = response.headers.get("Location")
        if response.status not in _REDIRECTS or not target:
            return Answer(response, url)
        response.close()
        url = _checked_target(url, target, where, remedy)
    raise Unreachable("it sends us round in circles", where, retryable=False)


def _checked_target(url: str, target: str, where: str, remedy: str) -> str:
    joined = urljoin(url, target)
    allowed = ("https",) if url.startswith("https:") else ("https", "http")
    if urlsplit(joined).scheme not in allowed:
        raise Unreachable(
            "it sends us on to a place that is not encrypted",
            f"{where} (to {urlsplit(joined).hostname})",
            remedy,
            retryable=False,
        )
    return joined


@contextmanager
def held(response: BaseHTTPResponse) -> Iterator[BaseHTTPResponse]:
    """Close an answer in the end; the run's cancellation wakes whoever waits for its bytes."""
    cancellation = current_cancellation()
    # Wakes a read that waits for somebody who has gone silent.
    cancellation.on_cancel(response, lambda: _wake(response))
    try:
        yield response
    finally:
        cancellation.ended(response)
        # Unread bytes make the connection useless for another request.
        response.close()


def origin_of(url: str) -> tuple[str, str]:
    """Return what two addresses of the same server have in common."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def wait_of(retry_after: str) -> float:
    """Return the seconds of a `Retry-After` header, which may hold a date; 0 for nonsense."""
    if re.fullmatch(r"\d{1,9}", retry_after.strip()):
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, moment.timestamp() - time.time())


def explain_exception(
    error: Exception, stall_seconds: float, where: str, remedies: Remedies
) -> CrossgapError:
    """Tell what an exception of urllib3's means.

    Args:
        error: The exception.
        stall_seconds: How long the other side was given.
        where: What was asked for, and from whom.
        remedies: What an operator can do about it.
    """
    # Heavy, and of use only when the network is.
    from urllib3 import exceptions

    if isinstance(error, exceptions.SSLError):
        return _untrusted(error, where, remedies)
    table: tuple[tuple[type[Exception], Callable[[], CrossgapError]], ...] = (
        (
            exceptions.ProxyError,
            lambda: Unreachable(_words("the proxy failed", error), where, remedies.proxy),
        ),
        (
            exceptions.NameResolutionError,
            lambda: Unreachable("its name is unknown to this machine", where, remedies.unreachable),
        ),
        (exceptions.NewConnectionError, lambda: _no_connection(error, where, remedies)),
        (
            exceptions.ConnectTimeoutError,
            lambda: Unreachable("it does not answer", where, remedies.unreachable),
        ),
        (
            exceptions.TimeoutError,
            lambda: TimedOut(f"it sent nothing for {stall_seconds:.0f} s", where, remedies.stalled),
        ),
    )
    for kind, make in table:
        if isinstance(error, kind):
            return make()
    return ConnectionLost(_words("the connection broke", error), where, remedies.broken)


def speaks_no_tls(error: Exception) -> bool:
    """Whether an error of TLS means that the other side does not speak it at all."""
    return bool(re.search(r"WRONG.VERSION.NUMBER|RECORD.LAYER", str(error), re.IGNORECASE))


def _untrusted(error: Exception, where: str, remedies: Remedies) -> CrossgapError:
    text = str(error)
    if speaks_no_tls(error):
        return Unreachable("it does not speak https", where, remedies.unencrypted, retryable=False)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args):
        reason = re.search(r"certificate verify failed: ([^(\]]+)", text)
        return Unreachable(
            f"its certificate is not trusted ({reason[1].strip() if reason else 'unknown reason'})",
            where,
            remedies.untrusted,
            retryable=False,
        )
    return ConnectionLost(_words("the encrypted connection broke", error), where, remedies.broken)


def _no_connection(error: Exception, where: str, remedies: Remedies) -> CrossgapError:
    if "refused" in str(error).lower():
        return ConnectionRefused("nothing listens there", where, remedies.unreachable)
    return Unreachable(_words("no connection can be made", error), where, remedies.unreachable)


def _words(what: str, error: Exception) -> str:
    """Add the last clause of an exception, which begins with objects and their addresses."""
    # A signed address is as good as a password.
    text = re.sub(r"https?://\S+", "…", " ".join(str(error).split()))
    return f"{what} ({text[-120:]})"


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


def _wake(response: BaseHTTPResponse) -> None:
    # It may have ended this very moment.
    with suppress(ValueError, RuntimeError, OSError):
        response.shutdown()
