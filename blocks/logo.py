"""Logos for the UI that load where no CDN can be reached.

The picture is part of the package. Prefect's client refuses anything but http
addresses when it reads a block type back, so what is registered is an address on
Prefect's own server, beside the UI's files: `deployments.server` puts the
pictures there.
"""

from __future__ import annotations

import base64
from pathlib import Path

from prefect.client.schemas.objects import BlockType
from prefect.settings import get_current_settings
from pydantic import HttpUrl, UrlConstraints

PICTURES = Path(__file__).parent / "logos"
"""The folder that the server publishes as `SERVED_AT`."""

SERVED_AT = "crossgap"


class DataUrl(HttpUrl):
    """A `data:` address where Prefect asks for an `HttpUrl`."""

    _constraints = UrlConstraints(allowed_schemes=["data"])


def logo(name: str) -> DataUrl:
    """Return a picture as an address that holds it.

    Args:
        name: Its file name in `PICTURES`, without `.png`.
    """
    picture = (PICTURES / f"{name}.png").read_bytes()
    return DataUrl(f"data:image/png;base64,{base64.b64encode(picture).decode()}")


def with_served_logo(block_type: BlockType, name: str) -> BlockType:
    """Return a block type whose logo is fetched from the Prefect server in use.

    Args:
        block_type: What is about to be registered.
        name: The picture's file name in `PICTURES`, without `.png`.
    """
    settings = get_current_settings()
    base = settings.ui_url or (settings.api.url or "http://127.0.0.1:4200").removesuffix("/api")
    address = HttpUrl(f"{base.rstrip('/')}/{SERVED_AT}/{name}.png")
    return block_type.model_copy(update={"logo_url": address})
