"""What a registry's refusals mean, and what an operator can do about them."""

from __future__ import annotations

import json

from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    CrossgapError,
    NotFound,
    Unreachable,
)
from tasks.transfer import web
from tasks.transfer.web import Remedies, Throttled, wait_of

_ELSEWHERE = (
    "Check the network, name a mirror that is within reach, or bring the image as an archive "
    "(docker save) and ship that."
)
_REMEDIES = Remedies(
    unreachable=_ELSEWHERE,
    stalled="Start again, or name mirrors.",
    untrusted="Give the certificate of the authority that signed it as the CA bundle.",
    unencrypted=(
        "A mirror without encryption is named http://HOST:PORT; a registry of your own "
        "needs a certificate, or has to be pulled from by an engine that knows it as insecure."
    ),
)


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
    return web.explain_exception(error, stall_seconds, where, _REMEDIES)


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


def _said(content: bytes) -> str:
    """Return the registry's own words in brackets, if there are any."""
    try:
        first = json.loads(content)["errors"][0]
        text = str(first.get("message") or first.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    text = "".join(c if c.isprintable() else " " for c in text)
    return f" ({' '.join(text.split())[:150]})" if text.strip() else ""
