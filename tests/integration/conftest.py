"""Blocks for the lab's hosts, and a store of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.ssh_connection import close_connections
from blocks.ssh_host import SSHHost
from tests.lab import LabHost

Connect = Callable[..., SSHHost]
Block = Callable[..., str]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Give an SSHHost for a host of the lab, with some fields replaced."""

    def block(host: LabHost, **fields: Any) -> SSHHost:
        return SSHHost(**{**host.block_fields(), **fields})

    yield block
    close_connections()


@pytest.fixture
def block() -> Iterator[Block]:
    """Save a block for a host of the lab and return its name."""

    def save(host: LabHost, name: str = "", **fields: Any) -> str:
        name = name or f"test-{host.name}"
        SSHHost(**{**host.block_fields(), **fields}).save(name, overwrite=True)
        return name

    yield save
    close_connections()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> Path:
    """Point the worker at the source engine, and at a store of its own."""
    monkeypatch.setenv("DOCKER_HOST", engine)
    monkeypatch.setenv("CROSSGAP_STORE", str(tmp_path / "store"))
    return tmp_path / "store"
