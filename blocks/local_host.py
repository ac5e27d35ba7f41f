"""This machine, as a host: what `SSHHost` does, without SSH."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.blocks.core import Block
from prefect.client.schemas.objects import BlockType
from pydantic import Field, HttpUrl

from blocks.commands import CommandLine, SudoMode
from blocks.errors import InvalidInput
from blocks.host import Host
from blocks.local_process import LocalProcess
from blocks.logo import logo, with_served_logo


class LocalHost(Host, Block):
    """The machine that the worker runs on.

    Examples:
        Run a command here:
        ```python
        from blocks.local_host import LocalHost

        host = LocalHost.load("BLOCK_NAME")
        print(host.run(["uname", "-m"], timeout=10).stdout)
        ```
    """

    _block_type_name = "Local Host"
    _block_type_slug = "local-host"
    _logo_url = logo("host")
    _documentation_url = HttpUrl("https://github.com/crossgap/crossgap")
    _description = "The machine that the worker runs on, used like any other host."

    work_dir: str = Field(
        default="~/.crossgap",
        title="Work folder",
        description="Where files are staged and jobs keep their logs.",
    )
    models_dir: str = Field(
        default="~/models", title="Models folder", description="Where models are kept."
    )
    patience: int = Field(
        default=28800,
        ge=0,
        title="Patience (seconds)",
        description="For uniformity with SSH hosts; this machine is always within reach.",
    )

    @classmethod
    def _to_block_type(cls) -> BlockType:
        return with_served_logo(super()._to_block_type(), "host")

    @property
    def name(self) -> str:
        """The block's name."""
        return self._block_document_name or "this machine"

    @property
    def label(self) -> str:
        """The host as messages name it."""
        return f"{self.name} (local)"

    @property
    def lock_name(self) -> str:
        """What all blocks for this machine have in common, told apart from other workers'."""
        return f"{socket.gethostname()}-local"

    @property
    def sudo_mode(self) -> SudoMode:
        """Commands run as the worker's own user."""
        return "no"

    def open_process(self, line: CommandLine) -> LocalProcess:
        """Start one line of shell here."""
        return LocalProcess(["/bin/sh", "-c", line.line], line.preamble)

    @contextmanager
    def forward(self, host: str, port: int) -> Iterator[int]:
        """Give a local port as it is; other machines are reached directly.

        Args:
            host: `localhost` or an address of this machine.
            port: The port.

        Yields:
            The same port.

        Raises:
            InvalidInput: The address is not this machine's loopback.
        """
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise InvalidInput(
                f"{host}:{port} is not on this machine",
                self.label,
                "Connect to it directly, or name the SSH host that reaches it.",
            )
        yield port
