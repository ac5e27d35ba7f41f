"""What a registry's refusals mean, and what an operator can do about them."""

from __future__ import annotations

import email.utils
import json
import re
import ssl
import time
from collections.abc import Callable

from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    ConnectionLost,
    ConnectionRefused,
    CrossgapError,
    NotFound,
    TimedOut,
    Unreachable,
)

_ELSEWHERE = (
    "Check the network, name a mirror that is within reach, or bring the image as an archive "
    "(docker save) and ship that."
)


class Throttled(Unreachable):
    """The registry wants to be left alone for a while."""

    # An attribute, not an argument: errors travel between processes by their arguments.
    seconds = 0.0


def explain_status(
    status: int, content: bytes, retry_after: str, where: str, *, with_credentials: bool
) -> CrossgapError:
    """Tell what a status other than success means.

    Args:
        status: The HTTP status.
        content: The beginning of the answer.
        retry_after: Its header of that name, or empty.
        where: The image and the registry.
        with_credentials: Whether it was asked with a user name and a password.
    """
    said = _said(content)
    if status in (401, 403):
        return _refused(said, where, with_credentials)
    if status == 404:
        return NotFound(
            f"the registry has no such image{said}", where, "Check the name and the tag."
        )
    if status == 429 or (status == 503 and retry_after):
        return _throttled(said, wait_of(retry_after), where)
    if status >= 500 or status == 408:
        return Unreachable(f"the registry answered with error {status}{said}", where, _ELSEWHERE)
    return CommandFailed(
        f"the registry answered with status {status}{said}", where, "Look at the registry's log."
    )


def explain_exception(error: Exception, stall_seconds: float, where: str) -> CrossgapError:
    """Tell what an exception of urllib3's means.

    Args:
        error: The exception.
        stall_seconds: How long the registry was given.
        where: The image and the registry.
    """
    # Heavy, and of use only when the network is.
    from urllib3 import exceptions

    if isinstance(error, exceptions.SSLError):
        return _untrusted(error, where)
    table: tuple[tuple[type[Exception], Callable[[], CrossgapError]], ...] = (
        (exceptions.ProxyError, lambda: Unreachable(_words("the proxy failed", error), where)),
        (
            exceptions.NameResolutionError,
            lambda: Unreachable("its name is unknown to this machine", where, _ELSEWHERE),
        ),
        (exceptions.NewConnectionError, lambda: _no_connection(error, where)),
        (
            exceptions.ConnectTimeoutError,
            lambda: Unreachable("it does not answer", where, _ELSEWHERE),
        ),
        (
            exceptions.TimeoutError,
            lambda: TimedOut(
                f"it sent nothing for {stall_seconds:.0f} s", where, "Start again, or name mirrors."
            ),
        ),
    )
    for kind, make in table:
        if isinstance(error, kind):
            return make()
    return ConnectionLost(_words("the connection broke", error), where, "Start again.")


def speaks_no_tls(error: Exception) -> bool:
    """Whether an error of TLS means that the other side does not speak it at all."""
    return bool(re.search(r"WRONG.VERSION.NUMBER|RECORD.LAYER", str(error), re.IGNORECASE))


def wait_of(retry_after: str) -> float:
    """Return the seconds of a `Retry-After` header, which may hold a date; 0 for nonsense."""
    if re.fullmatch(r"\d{1,9}", retry_after.strip()):
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, moment.timestamp() - time.time())


def _refused(said: str, where: str, with_credentials: bool) -> CrossgapError:
    if with_credentials:
        return AuthenticationRefused(
            f"the registry refused the credentials{said}",
            where,
            "Check the user name, the password, and that this user may pull the image.",
        )
    # Docker Hub answers so for names that do not exist, lest anybody find out which do.
    return AuthenticationRefused(
        f"the registry has no such image, or not for everybody{said}",
        where,
        "Check the name; if the image is private, give the registry's credentials.",
    )


def _throttled(said: str, seconds: float, where: str) -> Throttled:
    when = f" for {seconds:.0f} s" if seconds else ""
    error = Throttled(
        f"the registry wants no more requests{when}{said}",
        where,
        "Wait, log in (a user may pull more), or name a mirror.",
    )
    error.seconds = seconds
    return error


def _untrusted(error: Exception, where: str) -> CrossgapError:
    text = str(error)
    if speaks_no_tls(error):
        return Unreachable(
            "it does not speak https",
            where,
            "A mirror without encryption is named http://HOST:PORT; a registry of your own "
            "needs a certificate, or has to be pulled from by an engine that knows it as insecure.",
            retryable=False,
        )
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args):
        reason = re.search(r"certificate verify failed: ([^(\]]+)", text)
        return Unreachable(
            f"its certificate is not trusted ({reason[1].strip() if reason else 'unknown reason'})",
            where,
            "Give the certificate of the authority that signed it as the CA bundle.",
            retryable=False,
        )
    return ConnectionLost(_words("the encrypted connection broke", error), where, "Start again.")


def _no_connection(error: Exception, where: str) -> CrossgapError:
    if "refused" in str(error).lower():
        return ConnectionRefused("nothing listens there", where, _ELSEWHERE)
    return Unreachable(_words("no connection can be made", error), where, _ELSEWHERE)


def _words(what: str, error: Exception) -> str:
    """Add the last clause of an exception, which begins with objects and their addresses."""
    # A signed address is as good as a password.
    text = re.sub(r"https?://\S+", "…", " ".join(str(error).split()))
    return f"{what} ({text[-120:]})"


def _said(content: bytes) -> str:
    """Return the registry's own words in brackets, if there are any."""
    try:
        first = json.loads(content)["errors"][0]
        text = str(first.get("message") or first.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    text = "".join(c if c.isprintable() else " " for c in text)
    return f" ({' '.join(text.split())[:150]})" if text.strip() else ""
