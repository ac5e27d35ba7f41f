"""Logos that load without any network but Prefect's own."""

from __future__ import annotations

from urllib.request import urlopen

import pytest
from prefect.client.schemas.objects import BlockType
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from pydantic import HttpUrl

from blocks.local_host import LocalHost
from blocks.logo import PICTURES, SERVED_AT, logo, with_served_logo
from blocks.ssh_host import JumpHost, SSHHost

PICTURE_NAMES = [picture.stem for picture in PICTURES.glob("*.png")]


def test_there_are_pictures() -> None:
    assert "host" in PICTURE_NAMES


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_a_logo_holds_its_picture(name: str) -> None:
    address = logo(name)

    assert str(address).startswith("data:image/png;base64,")
    with urlopen(str(address)) as shown:
        assert shown.read() == (PICTURES / f"{name}.png").read_bytes()


def test_a_picture_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        logo("no-such-picture")


@pytest.mark.parametrize(
    ("ui", "api", "base"),
    [
        (None, "http://10.0.0.5:4200/api", "http://10.0.0.5:4200"),
        ("http://ui.lan/", "http://10.0.0.5:4200/api", "http://ui.lan"),
        ("https://ui.lan:8443", None, "https://ui.lan:8443"),
        (None, None, "http://127.0.0.1:4200"),
    ],
)
def test_what_is_registered_is_an_address_on_the_server_in_use(
    ui: str | None, api: str | None, base: str
) -> None:
    block_type = BlockType(name="X", slug="x", logo_url=None, documentation_url=None)

    with temporary_settings({PREFECT_UI_URL: ui, PREFECT_API_URL: api}):
        served = with_served_logo(block_type, "host")

    assert str(served.logo_url) == f"{base}/{SERVED_AT}/host.png"
    assert (served.name, served.slug, block_type.logo_url) == ("X", "x", None)


@pytest.mark.parametrize("block", [JumpHost, SSHHost, LocalHost])
def test_blocks_are_registered_with_an_address_that_clients_read_back(
    block: type[JumpHost | LocalHost],
) -> None:
    with temporary_settings({PREFECT_UI_URL: None, PREFECT_API_URL: "http://10.0.0.5:4200/api"}):
        block_type = block._to_block_type()

    assert HttpUrl(str(block_type.logo_url)).host == "10.0.0.5"
    BlockType.model_validate_json(block_type.model_dump_json())
