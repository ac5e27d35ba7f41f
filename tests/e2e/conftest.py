"""A private Prefect server with everything registered, for the session; a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from blocks.errors import NotFound
from deployments.browser import chromium_path
from deployments.register import register
from deployments.server import PrivateServer
from tests.lab import LabUnavailable
from tests.lab.packages import install_packages
from tests.packages import BROWSER


@pytest.fixture(scope="session")
def server() -> Iterator[PrivateServer]:
    """A server with an empty history; block types and deployments are registered."""
    with PrivateServer("e2e", port=4290, fresh=True) as server:
        with server.connected():
            register()
        yield server


@pytest.fixture
def client(server: PrivateServer) -> Iterator[SyncPrefectClient]:
    """A client of that server; blocks are saved to and loaded from it too."""
    with server.connected(), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Where Chromium is, installed if this user may; skips else, or fails when CI=true."""
    try:
        install_packages(BROWSER)
    except LabUnavailable as error:
        if not shutil.which("apt-get"):  # another system has other names and places
            with suppress(NotFound):
                return chromium_path()
        message = f"no browser here: {error.reason}. {error.remedy}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return chromium_path()
