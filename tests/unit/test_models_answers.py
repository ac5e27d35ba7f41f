"""What a hub's refusals mean."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping

import pytest
from urllib3 import HTTPHeaderDict, exceptions

from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    ConnectionLost,
    CrossgapError,
    NotFound,
    Unreachable,
)
from tasks.models.hub.answers import Asked, explain_exception, explain_status, web_page
from tasks.transfer.web import Throttled

PLAIN = Asked("model 'a/b'", "m.lan")
KNOWN = Asked("model 'a/b'", "m.lan", with_token=True)
FILE = Asked("w.bin of 'a/b'", "m.lan", of_file=True)
SCOPE = Asked("w.bin of 'a/b'", "s.lan", "modelscope", of_file=True)
AWAY = Asked("w.bin of 'a/b'", "m.lan", of_file=True, sent_on="cdn.example:8443")


def explained(
    status: int,
    asked: Asked = PLAIN,
    content: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> CrossgapError:
    return explain_status(status, HTTPHeaderDict(headers or {}), content, asked)


@pytest.mark.parametrize(
    ("status", "code", "asked", "kind", "what", "remedy"),
    [
        (401, "", PLAIN, NotFound, "no such model, or not for everybody", "private model looks"),
        (401, "RepoNotFound", PLAIN, NotFound, "no such model, or not", "spelt"),
        (404, "RepoNotFound", PLAIN, NotFound, "no such model", "spelt"),
        (404, "RepoNotFound", KNOWN, NotFound, "no such model", "only to a token that may"),
        (404, "", PLAIN, NotFound, "no such model", "spelt"),
        (404, "RevisionNotFound", PLAIN, NotFound, "no such revision", "spelt"),
        (404, "EntryNotFound", FILE, NotFound, "does not have this file", "incomplete"),
        (404, "", FILE, NotFound, "does not have this file", "incomplete"),
        (404, "", SCOPE, NotFound, "does not have this file", "ModelScope has no copy"),
        (401, "GatedRepo", PLAIN, AuthenticationRefused, "gated, and no token", "make a read"),
        (403, "GatedRepo", PLAIN, AuthenticationRefused, "gated, and no token", "make a read"),
        (403, "GatedRepo", KNOWN, AuthenticationRefused, "has no access", "Accept its conditions"),
        (401, "GatedRepo", KNOWN, AuthenticationRefused, "refused the token", "expired"),
        (401, "", KNOWN, AuthenticationRefused, "refused the token", "expired"),
        (401, "GatedRepo", AWAY, AuthenticationRefused, "not shown where", "Make cdn.example:8443"),
        (403, "", KNOWN, AuthenticationRefused, "refuses it", "may not read it"),
        (403, "", PLAIN, AuthenticationRefused, "refuses it", "Put a token"),
        (403, "", AWAY, Unreachable, "link that it gives is refused", "cdn.example:8443 opened"),
        (404, "", AWAY, Unreachable, "link that it gives is refused", "cdn.example:8443 opened"),
        (500, "", PLAIN, Unreachable, "error 500", "another endpoint"),
        (502, "", AWAY, Unreachable, "error 502", "another endpoint"),
        (503, "", PLAIN, Unreachable, "error 503", "another endpoint"),
        (429, "", PLAIN, Throttled, "no more requests", "lower its connections"),
        (451, "", PLAIN, CommandFailed, "status 451", "in a browser"),
    ],
)
def test_each_refusal_has_its_own_sentence_and_remedy(
    status: int, code: str, asked: Asked, kind: type[CrossgapError], what: str, remedy: str
) -> None:
    error = explained(status, asked, headers={"X-Error-Code": code} if code else {})
    assert type(error) is kind
    assert what in error.what
    assert remedy in error.remedy
    assert error.retryable is issubclass(kind, Unreachable)


def test_a_gated_model_is_known_by_the_words_too() -> None:
    words = b'{"error": "Access to model a/b is restricted. You must be authenticated."}'
    assert "the model is gated, and no token" in explained(401, content=words).what
    words = b'{"error": "Access to model a/b is restricted and you are not in the authorized list"}'
    assert "has no access to it" in explained(403, KNOWN, words).what


def test_nobody_is_told_of_a_password_that_was_never_given() -> None:
    words = b'{"error": "Invalid username or password."}'
    assert "password" not in str(explained(401, content=words))


def test_where_the_bytes_should_have_come_from_is_named_beside_the_mirror() -> None:
    assert (
        explained(403, AWAY).where
        == "w.bin of 'a/b' from m.lan, which sends on to cdn.example:8443"
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "3"}, 3),
        ({}, 0),
    ],
)
def test_how_long_to_wait_is_read_from_either_header(
    headers: dict[str, str], seconds: float
) -> None:
    error = explained(429, headers=headers)
    assert isinstance(error, Throttled)
    assert error.seconds == seconds


def test_a_hub_that_is_busy_for_a_while_is_throttled_too() -> None:
    assert isinstance(explained(503, headers={"Retry-After": "5"}), Throttled)


@pytest.mark.parametrize(
    ("content", "headers", "shown"),
    [
        (json.dumps({"error": "拒绝\x1b[31m\nyou"}).encode(), {}, "(拒绝 [31m you)"),
        (b'{"Code": 1, "Message": "no such"}', {}, "(no such)"),
        (b"Entry not found", {}, "(Entry not found)"),
        (b"{}", {"X-Error-Message": "because"}, "(because)"),
        (b'{"error": "see https://x/y?token=secret now"}', {}, "(see … now)"),
    ],
)
def test_the_hubs_own_words_are_passed_on(
    content: bytes, headers: dict[str, str], shown: str
) -> None:
    assert explained(500, content=content, headers=headers).what.endswith(f"error 500 {shown}")


@pytest.mark.parametrize(
    "content", [b"[]", b"", b'{"error": 1}', b"\xff" * 400, b"<?xml version='1.0'?><Error/>"]
)
def test_words_that_are_none_are_left_out(content: bytes) -> None:
    assert explained(500, content=content).what == "the hub answered with error 500"


@pytest.mark.parametrize("status", [302, 403, 404])
def test_a_web_page_is_called_one_with_its_title(status: int) -> None:
    page = b"<html><title>Log&nbsp;in \n here</title>"
    error = explained(status, content=page, headers={"Content-Type": "text/html; charset=utf-8"})
    assert type(error) is Unreachable
    assert error.what == f"it answered with a web page (titled 'Log in here', status {status})"


def test_a_page_without_a_title_is_one_too() -> None:
    assert web_page(b"hello", PLAIN).what == "it answered with a web page"


def test_a_hub_that_says_what_it_means_may_do_so_in_a_page() -> None:
    error = explained(404, headers={"Content-Type": "text/html", "X-Error-Code": "RepoNotFound"})
    assert type(error) is NotFound


def test_a_certificate_that_a_proxy_broke_names_the_field_that_mends_it() -> None:
    cause = ssl.SSLCertVerificationError(
        1, "[SSL] certificate verify failed: self-signed certificate in chain (_ssl.c:1)"
    )
    error = explain_exception(exceptions.SSLError(cause), 5, PLAIN)
    assert "its certificate is not trusted (self-signed certificate in chain)" in error.what
    assert "as ca_bundle into the hub's block" in error.remedy
    assert not error.retryable


def test_a_host_that_we_are_sent_on_to_has_a_remedy_of_its_own() -> None:
    unknown = exceptions.NameResolutionError("cdn.example", None, OSError("no"))  # type: ignore[arg-type]
    error = explain_exception(unknown, 5, AWAY)
    assert "have that host opened in the firewall" in error.remedy
    assert "m.lan leaves the sending of files to cdn.example:8443" in error.remedy


def test_a_signed_address_does_not_reach_a_message() -> None:
    broken = exceptions.ProtocolError("cut off at https://store/blob?signature=secret")
    error = explain_exception(broken, 5, PLAIN)
    assert type(error) is ConnectionLost
    assert "secret" not in str(error)


def test_a_failing_proxy_is_called_one() -> None:
    error = explain_exception(exceptions.ProxyError("no", OSError("refused")), 5, PLAIN)
    assert "the proxy failed" in error.what
    assert "use_proxy" in error.remedy
