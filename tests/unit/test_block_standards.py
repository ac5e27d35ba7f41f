"""What Prefect asks of every block: words, an example, a picture."""

from __future__ import annotations

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite

from blocks.local_host import LocalHost
from blocks.model_hub import HubEndpoint, ModelHub
from blocks.ssh_host import JumpHost, SSHHost


@pytest.mark.parametrize("block", [JumpHost, SSHHost, LocalHost, ModelHub])
class TestBlocks(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        kind: type[Block] = request.param
        return kind


@pytest.mark.parametrize("block", [JumpHost, SSHHost, LocalHost, ModelHub])
def test_every_field_of_the_form_has_a_title(block: type[Block]) -> None:
    fields = block.model_json_schema()["properties"]

    assert [name for name in fields if not block.model_fields[name].title] == []


@pytest.mark.parametrize("name", ["private_key", "passphrase", "password", "sudo_password"])
def test_secrets_are_shown_nowhere(name: str) -> None:
    host = SSHHost(address="10.0.0.1", **{name: "hush-hush"})

    for shown in (repr(host), str(host), str(host.model_dump()), host.model_dump_json()):
        assert "hush-hush" not in shown
    assert "hush-hush" not in repr(host.login())


def test_a_jump_hosts_secrets_are_shown_nowhere_either() -> None:
    host = SSHHost(address="10.0.0.1", jump_host=JumpHost(address="10.0.0.2", password="hush-hush"))

    assert "hush-hush" not in repr(host) + str(host.model_dump()) + repr(host.login())


def test_the_token_of_a_hub_is_shown_nowhere() -> None:
    hub = ModelHub(endpoints=[HubEndpoint(url="https://hub.lan")], token="hush-hush")

    for shown in (repr(hub), str(hub), str(hub.model_dump()), hub.model_dump_json()):
        assert "hush-hush" not in shown
