"""Proxies, redirects and waits of HTTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from urllib3 import HTTPHeaderDict

from blocks.errors import InvalidInput, Unreachable
from tasks.transfer.web import Transport, follow, wait_of

VARIABLES = [
    name
    for lower in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for name in (lower, lower.upper())
]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({"https_proxy": "http://p:3128"}, "https://hub.lan", "http://p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, "https://hub.lan", "http://p:3128"),
        ({"http_proxy": "http://p:3128"}, "https://hub.lan", ""),
        ({"ALL_PROXY": "http://p:3128"}, "https://hub.lan", "http://p:3128"),
        ({"ALL_PROXY": "socks5://s", "https_proxy": "http://p"}, "https://hub.lan", "http://p"),
        ({"https_proxy": "http://p:3128", "no_proxy": ".lan"}, "https://hub.lan", ""),
        ({"all_proxy": "socks5://s:1080", "no_proxy": "hub.lan"}, "https://hub.lan", ""),
        ({}, "https://hub.lan", ""),
    ],
)
def test_the_proxy_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Transport(use_proxy=True).proxy_of(url) == proxy
    assert Transport().proxy_of(url) == ""


@pytest.mark.parametrize("name", ["https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "SOCKS4"])
def test_a_proxy_of_an_unknown_kind_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    monkeypatch.setenv(name, f"{scheme}://me:secret@127.0.0.1:1080")
    with pytest.raises(InvalidInput, match="only http proxies are known") as failed:
        Transport(use_proxy=True).proxy_of("https://hub.lan")
    assert failed.value.where == "proxy '127.0.0.1:1080'"
    assert "secret" not in str(failed.value)


def test_a_ca_bundle_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.pem: the CA bundle cannot be used"):
        Transport(tmp_path / "absent.pem")
    (tmp_path / "empty.pem").write_text("no certificate")
    with pytest.raises(InvalidInput, match="in PEM form"):
        Transport(tmp_path / "empty.pem")


class Redirect:
    """An answer that only leads elsewhere, or nowhere."""

    def __init__(self, target: str) -> None:
        self.status = 302 if target else 200
        self.headers = HTTPHeaderDict({"Location": target} if target else {})
        self.closed = False

    def close(self) -> None:
        self.closed = True


def leading(targets: dict[str, str]) -> tuple[list[Redirect], Callable[[str], Any]]:
    given: list[Redirect] = []

    def send(url: str) -> Any:
        given.append(Redirect(targets.get(url, "")))
        return given[-1]

    return given, send


def test_a_redirect_may_be_relative_and_leaves_nothing_open() -> None:
    given, send = leading({"https://a/x": "/y", "https://a/y": "https://b/z"})
    assert follow("https://a/x", send, "here", "mend it").url == "https://b/z"
    assert [one.closed for one in given] == [True, True, False]


def test_redirects_that_lead_nowhere_end() -> None:
    given, send = leading({"https://a/x": "/y", "https://a/y": "/x"})
    with pytest.raises(Unreachable, match="round in circles"):
        follow("https://a/x", send, "here", "mend it")
    assert all(one.closed for one in given)


@pytest.mark.parametrize("target", ["http://a/y", "file:///etc/passwd", "ftp://a/y"])
def test_no_redirect_leads_out_of_encryption(target: str) -> None:
    given, send = leading({"https://a/x": target})
    with pytest.raises(Unreachable, match=r"not encrypted\. mend it"):
        follow("https://a/x", send, "here", "mend it")
    assert len(given) == 1


def test_a_wait_may_be_given_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < wait_of(later) <= 100
    assert wait_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert wait_of("soon") == wait_of("-1") == wait_of("") == 0
