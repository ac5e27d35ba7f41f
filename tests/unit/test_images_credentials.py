"""The user of a registry, from a saved block."""

from __future__ import annotations

from typing import Any

import pytest
from prefect_docker import DockerRegistryCredentials
from pydantic import SecretStr

from blocks.errors import InvalidInput
from tasks.images.credentials import load_credentials


def test_a_block_gives_the_user_and_keeps_the_password_out_of_sight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = DockerRegistryCredentials(
        username="anna", password=SecretStr("geheim"), registry_url="reg.lan:5000"
    )
    monkeypatch.setattr(DockerRegistryCredentials, "load", lambda _: block)
    found = load_credentials("our-registry")
    assert (found.username, found.password) == ("anna", "geheim")
    assert "geheim" not in repr(found)
    assert "geheim" not in str(found)


def test_a_block_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise ValueError(f"Unable to find block document named {name}")

    monkeypatch.setattr(DockerRegistryCredentials, "load", load)
    with pytest.raises(InvalidInput, match="no Docker Registry Credentials block") as refused:
        load_credentials("nobody")
    assert refused.value.where == "block 'nobody'"
    assert refused.value.remedy
