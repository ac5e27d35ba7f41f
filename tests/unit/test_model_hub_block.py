"""The block of a hub: what it takes for an address."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from blocks.model_hub import HubEndpoint, ModelHub
from deployments.register import block_types, ready_made_blocks


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://hf-mirror.com", "https://hf-mirror.com"),
        (" https://hf-mirror.com/ ", "https://hf-mirror.com"),
        ("http://10.0.0.5:8080/hub//", "http://10.0.0.5:8080/hub"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_an_address_is_kept_without_a_slash_at_its_end(given: str, kept: str) -> None:
    assert HubEndpoint(url=given).url == kept


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hf-mirror.com",
        "ftp://hf-mirror.com",
        "https://",
        "https://hf-mirror.com:port",
        "https://hf mirror.com",
        "https://hf-mirror.com/?a=b",
        "https://hf-mirror.com/#models",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        HubEndpoint(url=url)


def test_a_password_in_an_address_is_refused() -> None:
    with pytest.raises(ValidationError, match="user name in it"):
        HubEndpoint(url="https://me:secret@hf-mirror.com")


@pytest.mark.parametrize(
    "values",
    [
        {"endpoints": []},
        {"connections_per_file": 0},
        {"connections_per_file": 17},
        {"files_at_once": 0},
        {"files_at_once": 17},
        {"rate_limit_mbit": 0},
        {"endpoints": [{"url": "https://hub.lan", "kind": "git"}]},
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelHub(**{"endpoints": [{"url": "https://hub.lan"}], **values})


def test_a_token_that_a_form_leaves_out_is_empty() -> None:
    hub = ModelHub.model_validate({"endpoints": [{"url": "https://hub.lan"}], "token": None})
    assert hub.token.get_secret_value() == ""
    assert (hub.connections_per_file, hub.files_at_once, hub.rate_limit_mbit) == (8, 4, None)
    assert not hub.use_proxy


def test_a_mirror_is_there_from_the_beginning() -> None:
    hub = ready_made_blocks()["hf-mirror"]
    assert isinstance(hub, ModelHub)
    assert [(one.url, one.kind) for one in hub.endpoints] == [
        ("https://hf-mirror.com", "huggingface"),
        ("https://www.modelscope.cn", "modelscope"),
    ]
    assert ModelHub in block_types()
