"""A Prefect server for tests that need an engine, started once per session.

Made known to pytest by `pytest_plugins` in `tests/conftest.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A private server with an empty database; runs and artifacts go there."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
