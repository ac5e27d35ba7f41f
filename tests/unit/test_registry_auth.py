"""Challenges of registries, and to whom credentials are shown."""

from __future__ import annotations

import pytest

from blocks.errors import Damaged, Unreachable
from tasks.images.names import parse_reference
from tasks.images.registry.auth import (
    Challenge,
    Credentials,
    check_realm,
    parse_challenge,
    parse_token,
)


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
            Challenge("bearer", "https://a/t", "s", "repository:x:pull,push"),
        ),
        ("bearer realm=https://a/t , service=s", Challenge("bearer", "https://a/t", "s")),
        (
            'Basic realm="a, b", Bearer realm="https://a/t"',
            Challenge("bearer", "https://a/t"),
        ),
        ('Bearer realm="https://a/\\"t"', Challenge("bearer", 'https://a/"t')),
        ('Basic realm="x"', Challenge("basic")),
        ("Negotiate", None),
        ("", None),
    ],
)
def test_a_challenge_is_read(header: str, challenge: Challenge | None) -> None:
    assert parse_challenge(header) == challenge


def test_a_token_is_asked_for_with_a_scope_also_where_none_was_named() -> None:
    url = Challenge("bearer", "https://a/t?x=1", "s 1").token_url("library/ubuntu")
    assert url == "https://a/t?x=1&service=s+1&scope=repository%3Alibrary%2Fubuntu%3Apull"


@pytest.mark.parametrize(
    ("registry", "image", "shown"),
    [
        ("", "quay.io/a/b", True),
        ("", "ubuntu", True),
        ("https://index.docker.io/v1/", "ubuntu", True),
        ("registry-1.docker.io", "ubuntu", True),
        ("docker.io", "quay.io/a/b", False),
        ("HTTP://Quay.io/v2/", "quay.io/a/b", True),
        ("quay.io", "ubuntu", False),
        ("quay.io:5000", "quay.io/a/b", False),
    ],
)
def test_credentials_are_for_the_registry_that_they_name(
    registry: str, image: str, shown: bool
) -> None:
    assert Credentials("u", "p", registry).are_for(parse_reference(image)) is shown


def test_a_password_is_not_shown_by_repr() -> None:
    assert "secret" not in repr(Credentials("u", "secret"))


@pytest.mark.parametrize("realm", ["http://a/t", "file:///etc/passwd", ""])
def test_no_token_is_fetched_in_the_open_for_an_encrypted_registry(realm: str) -> None:
    with pytest.raises(Unreachable, match="not encrypted"):
        check_realm(realm, "https://r.example", "image 'a'")
    check_realm("https://a/t", "https://r.example", "image 'a'")
    check_realm("http://127.0.0.1/t", "http://127.0.0.1:5000", "image 'a'")


def test_a_token_is_read_under_both_its_names() -> None:
    assert parse_token(b'{"token": "t"}', "x") == "t"
    assert parse_token(b'{"access_token": "t", "token": ""}', "x") == "t"


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\r\\nb: c"}']
)
def test_an_answer_without_a_token_is_damage(answer: bytes) -> None:
    with pytest.raises(Damaged, match="without one"):
        parse_token(answer, "x")
