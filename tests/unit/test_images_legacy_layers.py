"""Folders of old archives tell by their name which layer they hold."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tasks.images.layout import chain_ids
from tasks.images.legacy_layers import layer_beside

_EMPTY: dict[str, Any] = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}
_BASE = "4d39f0adf831b6c3b1b4640e2c0a1d9efd6b2892c6a550d9c28ba6ed40b432db"
_MIDDLE = "e9e5372023acd9ef538d6f38073269013d27307360c30b2be8c27c1c2c57a1a0"
_TOP = "601ecd2f33597d73475d04c041a7c0b6d5edb5156bc9c80d0640b4a5a219ad2e"
# What dockerd 20.10.24 wrote for the three layers of an image, and their chain ids.
CHAINS = {
    "sha256:f734cce15c27fb1e17b6e3b25e858d9140a6f4934cc1703dc38a7c73e35abf00": "base",
    "sha256:e6d75a302d482e0c8f239ec568b89303e2902c52956e55cbbde120d3992f91ac": "middle",
    "sha256:f2a4e0cff02eb46633228f7ae9110a0165175eaf5efb1fd515fed1b8d11507d2": "top",
}
_LOWER = {"created": "1970-01-01T00:00:00Z", "container_config": _EMPTY, "os": "linux"}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "base": {"id": _BASE, **_LOWER},
    "middle": {"id": _MIDDLE, "parent": _BASE, **_LOWER},
    "top": {
        "id": _TOP,
        "parent": _MIDDLE,
        "created": "0001-01-01T00:00:00Z",
        "container_config": _EMPTY,
        "config": _EMPTY | {"Cmd": ["/bin/busybox", "sleep", "99"]},
        "architecture": "amd64",
        "os": "linux",
    },
}


def encoded(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


@pytest.mark.parametrize("which", list(DOCUMENTS))
def test_the_layer_that_an_engine_wrote_is_recognised(which: str) -> None:
    assert layer_beside(encoded(DOCUMENTS[which]), CHAINS) == which


@pytest.mark.parametrize("which", list(DOCUMENTS))
def test_nothing_is_claimed_that_is_not_proven(which: str) -> None:
    document = DOCUMENTS[which]
    others = {chain: diff_id for chain, diff_id in CHAINS.items() if diff_id != which}
    assert layer_beside(encoded(document), others) == ""
    assert layer_beside(encoded(document | {"created": "2024-01-01T00:00:00Z"}), CHAINS) == ""
    assert layer_beside(encoded(document | {"id": "ab" * 32}), CHAINS) == ""


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"1", b"{}", b'{"id":"x"}', b'{"id":1}'])
def test_what_is_no_such_document_tells_nothing(document: bytes) -> None:
    assert layer_beside(document, CHAINS) == ""


def test_settings_with_every_kind_of_character_are_hashed_as_go_writes_them() -> None:
    (chain,) = chain_ids(["sha256:" + "0" * 64])
    label = '<中文> & "quotes" \u2028 \\ é'
    go = (
        '{"config":{"Labels":{"a":"\\u003c中文\\u003e \\u0026 \\"quotes\\" \\u2028 \\\\ é"}},'
        f'"layer_id":"{chain}","os":"linux"}}'
    )
    document = {
        "id": hashlib.sha256(go.encode()).hexdigest(),
        "config": {"Labels": {"a": label}},
        "os": "linux",
    }
    assert layer_beside(encoded(document), {chain: "found"}) == "found"
