"""A hub of models, and its mirrors, as a block."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from prefect.blocks.core import Block
from prefect.client.schemas.objects import BlockType
from pydantic import BaseModel, Field, HttpUrl, SecretStr, field_validator

from blocks.logo import logo, with_served_logo

HubKind = Literal["huggingface", "modelscope"]


class HubEndpoint(BaseModel):
    """One address where models can be had."""

    url: str = Field(
        title="Address",
        description="Where the hub or mirror is, as a browser would be told.",
        examples=["https://hf-mirror.com", "https://www.modelscope.cn"],
    )
    kind: HubKind = Field(
        default="huggingface",
        title="Kind",
        description=(
            "What it speaks. Files of ModelScope are taken only where they have the hashes "
            "that an endpoint of the kind huggingface names."
        ),
    )

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        url = value.strip().rstrip("/")
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            sound = False
        if "@" in url:
            # Not shown: what stands before the @ is a secret.
            raise ValueError(
                "the address of a hub has a user name in it: leave it out, and put a token "
                "into the field for it"
            )
        if not sound or any(character.isspace() for character in url):
            raise ValueError(
                f"{value!r} is no address of a hub: it looks like https://hf-mirror.com"
            )
        if parts.query or parts.fragment:
            raise ValueError(f"{value!r} has a query: leave out what stands behind ? or #")
        return url


class ModelHub(Block):
    """Where models come from: a mirror of the Hugging Face hub, and others to turn to.

    The first endpoint of the kind huggingface that answers says what a model consists of;
    the bytes come from any of them, in their order. Proxy variables of the worker are not
    looked at unless `use_proxy` is set.

    Examples:
        Ask a saved hub what a model consists of:
        ```python
        from blocks.model_hub import ModelHub
        from tasks.models.hub.hub import Hub

        block = ModelHub.load("BLOCK_NAME")
        with Hub.of(block) as hub:
            print(hub.resolve("Qwen/Qwen3-8B", "main").commit)
        ```
    """

    _block_type_name = "Model Hub"
    _block_type_slug = "model-hub"
    _logo_url = logo("hub")
    _documentation_url = HttpUrl("https://github.com/crossgap/crossgap")
    _description = "Where models come from: mirrors of the Hugging Face hub, in order."

    endpoints: list[HubEndpoint] = Field(
        min_length=1,
        title="Endpoints",
        description="The hub's addresses, in the order in which they are asked.",
    )
    token: SecretStr = Field(
        default=SecretStr(""),
        title="Token",
        description=(
            "For gated and private models: a read token, shown to every endpoint of the kind "
            "huggingface and to no place that these redirect to."
        ),
    )
    use_proxy: bool = Field(
        default=False,
        title="Use the proxy",
        description="Whether the http proxy that the worker's environment names is used.",
    )
    ca_bundle: str = Field(
        default="",
        title="CA bundle",
        description=(
            "The path, on the worker's machine, of certificates (PEM) to trust beside the "
            "system's: those of the site's own proxy or mirror."
        ),
        examples=["/etc/ssl/site-ca.pem"],
    )
    connections_per_file: int = Field(
        default=8,
        ge=1,
        le=16,
        title="Connections per file",
        description="How many ranges of one large file are fetched side by side.",
    )
    files_at_once: int = Field(
        default=4,
        ge=1,
        le=16,
        title="Files at once",
        description="How many files are fetched side by side.",
    )
    rate_limit_mbit: float | None = Field(
        default=None,
        gt=0,
        title="Rate limit (Mbit/s)",
        description="For all connections together; empty for no limit.",
    )

    @field_validator("token", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        """Take None for empty: in the UI, a field that allows null is no password field."""
        return "" if value is None else value

    @classmethod
    def _to_block_type(cls) -> BlockType:
        return with_served_logo(super()._to_block_type(), "hub")
