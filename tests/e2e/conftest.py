"""A private Prefect server with everything registered, and a worker, for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from blocks.errors import NotFound
from deployments.browser import chromium_path
from deployments.register import register
from deployments.server import PrivateServer


@pytest.fixture(scope="session")
def server() -> Iterator[PrivateServer]:
    """A server with an empty history; block types and deployments are registered."""
    with PrivateServer("e2e", port=4290, fresh=True) as server:
        with server.connected():
            register()
        yield server


@pytest.fixture(scope="session")
def worker(server: PrivateServer) -> Iterator[PrivateServer]:
    """The same server with a worker; it ships from the engine that DOCKER_HOST names."""
    server.start_worker()
    yield server
    server.stop_worker()


@pytest.fixture
def client(server: PrivateServer) -> Iterator[SyncPrefectClient]:
    """A client of that server; blocks are saved to and loaded from it too."""
    with server.connected(), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Where Chromium is; skips the test, or fails it when CI=true, with the way to get it."""
    try:
        return chromium_path()
    except NotFound as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
