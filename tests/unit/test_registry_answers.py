"""What a registry's refusals mean."""

from __future__ import annotations

import json
import pickle

import pytest
from urllib3 import exceptions

from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    ConnectionLost,
    CrossgapError,
    NotFound,
    Unreachable,
)
from tasks.images.registry.answers import explain_exception, explain_status
from tasks.transfer.web import Throttled


def explained(status: int, content: bytes = b"", retry_after: str = "") -> CrossgapError:
    return explain_status(status, content, retry_after, "image 'a'", with_credentials=False)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (401, AuthenticationRefused, False),
        (403, AuthenticationRefused, False),
        (404, NotFound, False),
        (408, Unreachable, True),
        (416, CommandFailed, False),
        (429, Throttled, True),
        (500, Unreachable, True),
        (503, Unreachable, True),
    ],
)
def test_a_status_becomes_its_own_error(
    status: int, kind: type[CrossgapError], retryable: bool
) -> None:
    error = explained(status)
    assert type(error) is kind
    assert error.retryable is retryable


def test_the_registrys_own_words_are_passed_on_without_control_characters() -> None:
    content = json.dumps({"errors": [{"code": "X", "message": "拒绝\x1b[31m\nyou"}]}).encode()
    assert "(拒绝 [31m you)" in explained(500, content).what


@pytest.mark.parametrize("content", [b"[]", b"<html>", b'{"errors": []}', b'{"errors": [1]}'])
def test_words_that_are_none_are_left_out(content: bytes) -> None:
    assert explained(500, content).what == "the registry answered with error 500"


def test_how_long_to_wait_survives_the_way_between_processes() -> None:
    error = explained(503, retry_after="7")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, Throttled)
    assert again.seconds == 7
    assert str(again) == str(error)


def test_a_signed_address_does_not_reach_a_message() -> None:
    broken = exceptions.ProtocolError("cut off at https://store/blob?signature=secret")
    error = explain_exception(broken, 5, "image 'a'")
    assert type(error) is ConnectionLost
    assert "secret" not in str(error)


def test_a_registry_without_encryption_is_told_from_one_that_is_not_trusted() -> None:
    plain = exceptions.SSLError("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:992)")
    error = explain_exception(plain, 5, "image 'a'")
    assert (error.what, error.retryable) == ("it does not speak https", False)
