"""Blocks for the lab's hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blocks.ssh_connection import close_connections
from blocks.ssh_host import SSHHost
from tests.lab import LabHost

Connect = Callable[..., SSHHost]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Give an SSHHost for a host of the lab, with some fields replaced."""

    def block(host: LabHost, **fields: Any) -> SSHHost:
        return SSHHost(**{**host.block_fields(), **fields})

    yield block
    close_connections()
