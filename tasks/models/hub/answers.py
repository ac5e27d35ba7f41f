"""What a hub's refusals mean, and what an operator can do about them."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    CrossgapError,
    NotFound,
    Unreachable,
)
from tasks.transfer import web
from tasks.transfer.web import Remedies, Throttled, wait_of

if TYPE_CHECKING:
    from blocks.model_hub import HubKind

_OTHERS = "or put another endpoint into the hub's block"
_SPELLING = "Check how its name is spelt (organisation/name, as in the address of its page)"
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_GATED = re.compile(r"\bgated\b|\bis restricted\b|\bauthorized list\b", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What was asked for, and whom.

    Args:
        what: As in `model 'Qwen/Qwen3-8B'`.
        endpoint: The endpoint's name.
        kind: What it speaks.
        with_token: Whether a token was shown.
        of_file: Whether it was for a file's bytes.
        sent_on: The host that the endpoint sent us on to; empty for itself.
    """

    what: str
    endpoint: str
    kind: HubKind = "huggingface"
    with_token: bool = False
    of_file: bool = False
    sent_on: str = ""

    @property
    def where(self) -> str:
        """All this as messages name it."""
        on = f", which sends on to {self.sent_on}" if self.sent_on else ""
        return f"{self.what} from {self.endpoint}{on}"


def explain_status(
    status: int, headers: Mapping[str, str], content: bytes, asked: Asked
) -> CrossgapError:
    """Tell what a status other than success means.

    Args:
        status: The HTTP status.
        headers: Those of the answer.
        content: The beginning of the answer.
        asked: What was asked for.
    """
    code = headers.get("X-Error-Code", "")
    said = _said(headers, content)
    if status == 429 or (status == 503 and "Retry-After" in headers):
        return _throttled(headers, said, asked)
    if status >= 500 or status == 408:
        return Unreachable(
            f"the hub answered with error {status}{said}",
            asked.where,
            f"Start again later, {_OTHERS}.",
        )
    if not code and status != 401 and is_web_page(headers):
        return web_page(content, asked, status)
    if asked.sent_on and not code and status in (400, 401, 403, 404, 410):
        return _link_refused(status, said, asked)
    if status in (401, 403):
        return _refused(status, code, said, asked)
    if status == 404:
        return _unknown(code, said, asked)
    return CommandFailed(
        f"the hub answered with status {status}{said}",
        asked.where,
        f"Open its address in a browser on the worker's machine, {_OTHERS}.",
    )


def explain_exception(error: Exception, stall_seconds: float, asked: Asked) -> CrossgapError:
    """Tell what an exception of urllib3's means.

    Args:
        error: The exception.
        stall_seconds: How long the hub was given.
        asked: What was asked for.
    """
    return web.explain_exception(error, stall_seconds, asked.where, _remedies(asked))


def is_web_page(headers: Mapping[str, str]) -> bool:
    """Whether an answer is for a browser."""
    return headers.get("Content-Type", "").lower().startswith("text/html")


def web_page(content: bytes, asked: Asked, status: int = 200) -> Unreachable:
    """Make the error for a web page where a document or a file was expected.

    Args:
        content: The beginning of the page.
        asked: What was asked for.
        status: The status that it came with.
    """
    found = _TITLE.search(content.decode(errors="replace"))
    title = _printable(html.unescape(found[1]), 80) if found else ""
    details = [f"titled {title!r}"] if title else []
    details += [f"status {status}"] if status != 200 else []
    return Unreachable(
        f"it answered with a web page{' (' + ', '.join(details) + ')' if details else ''}",
        asked.where,
        "Something stands in for the hub (a login page, a proxy, a mirror that was closed): "
        f"open its address in a browser on the worker's machine, {_OTHERS}.",
    )


def _throttled(headers: Mapping[str, str], said: str, asked: Asked) -> Throttled:
    seconds = wait_of(headers.get("Retry-After", ""))
    if not seconds and (reset := re.search(r"\bt=(\d{1,6})\b", headers.get("RateLimit", ""))):
        seconds = float(reset[1])
    when = f" for {seconds:.0f} s" if seconds else ""
    error = Throttled(
        f"the hub wants no more requests{when}{said}",
        asked.where,
        "Wait, put a token into the hub's block (who is known may ask more), lower its "
        f"connections, {_OTHERS}.",
    )
    error.seconds = seconds
    return error


def _link_refused(status: int, said: str, asked: Asked) -> Unreachable:
    return Unreachable(
        f"the link that it gives is refused there (status {status}){said}",
        asked.where,
        f"Start again; if it stays so, have {asked.sent_on} opened in the firewall or the proxy, "
        f"{_OTHERS}.",
    )


def _refused(status: int, code: str, said: str, asked: Asked) -> CrossgapError:
    gated = code == "GatedRepo" or bool(_GATED.search(said))
    if gated and asked.sent_on:
        return AuthenticationRefused(
            f"the model is gated, and a token is not shown where we are sent on to{said}",
            asked.where,
            f"Make {asked.sent_on} itself the first endpoint of the hub's block.",
        )
    if gated and not asked.with_token:
        return AuthenticationRefused(
            f"the model is gated, and no token was given{said}",
            asked.where,
            "Accept its conditions on its page, make a read token in the settings of that "
            "account, and put it into the hub's block.",
        )
    if status == 401 and asked.with_token:
        return AuthenticationRefused(
            f"the hub refused the token{said}",
            asked.where,
            "It may have expired or been revoked: make a new read token and put it into the "
            "hub's block, or empty the field for models that need none.",
        )
    if gated:
        return AuthenticationRefused(
            f"the model is gated, and the token's account has no access to it{said}",
            asked.where,
            "Accept its conditions on its page with that account (some are granted by hand, "
            "which takes days); a fine-grained token must be allowed to read gated models.",
        )
    if status == 401:
        # So the hub answers for names that do not exist, lest anybody find out which do; its
        # words are of a password that nobody gave.
        return NotFound(
            "the hub has no such model, or not for everybody",
            asked.where,
            f"{_SPELLING}; a private model looks the same without a token, which goes into the "
            "hub's block.",
        )
    return AuthenticationRefused(
        f"the hub refuses it{said}",
        asked.where,
        "The token may not read it: give it the right to, or take another account's."
        if asked.with_token
        else f"Put a token into the hub's block, {_OTHERS}.",
    )


def _unknown(code: str, said: str, asked: Asked) -> NotFound:
    if code == "RevisionNotFound":
        return NotFound("the model has no such revision", asked.where, "Check how it is spelt.")
    if asked.kind == "modelscope":
        return NotFound(
            f"it does not have this file{said}",
            asked.where,
            "ModelScope has no copy of every model: let the other endpoints give it.",
        )
    if code == "EntryNotFound" or (asked.of_file and code != "RepoNotFound"):
        return NotFound(
            f"it does not have this file, though the hub lists it{said}",
            asked.where,
            f"The mirror's copy may be incomplete: start again, {_OTHERS}.",
        )
    hint = "a private model is shown only to a token that may read it"
    return NotFound(
        f"the hub has no such model{said}",
        asked.where,
        f"{_SPELLING}; {hint}." if asked.with_token else f"{_SPELLING}; {hint}, in its block.",
    )


def _remedies(asked: Asked) -> Remedies:
    proxy = "The proxy is the one that the worker's environment names: check it, or unset use_proxy"
    stalled = f"Start again, which goes on where this stopped, {_OTHERS}."
    unreachable = (
        "Check the network and the address, set use_proxy in the hub's block if only a proxy "
        f"gets there, {_OTHERS}."
    )
    if asked.sent_on:
        unreachable = (
            f"{asked.endpoint} leaves the sending of files to {asked.sent_on}: have that host "
            "opened in the firewall, set use_proxy in the hub's block if only a proxy gets "
            "there, or put another mirror first."
        )
    return Remedies(
        unreachable=unreachable,
        stalled=stalled,
        untrusted=(
            "A proxy on the way, or a mirror of the site's own, has a certificate of its own: "
            "put the path of its authority's certificate (PEM) as ca_bundle into the hub's block."
        ),
        unencrypted="If it really is not encrypted, write its address with http://.",
        broken=stalled,
        proxy=f"{proxy}.",
    )


def _said(headers: Mapping[str, str], content: bytes) -> str:
    """Return the hub's own words in brackets, if there are any."""
    text = headers.get("X-Error-Message", "")
    if not text and not is_web_page(headers):
        try:
            document = json.loads(content)
        except ValueError:
            # Stores complain at length, and in XML.
            short = len(content) < 300 and not content.lstrip().startswith(b"<")
            text = content.decode(errors="replace") if short else ""
        else:
            known = document if isinstance(document, dict) else {}
            words = (known.get(name) for name in ("error", "message", "Message"))
            text = next((word for word in words if isinstance(word, str)), "")
    shown = _printable(text, 150)
    return f" ({shown})" if shown else ""


def _printable(text: str, most: int) -> str:
    """Return text fit for a message, without addresses: a signed one is as good as a password."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"https?://\S+", "…", " ".join(clean.split()))[:most].rstrip(". ")
