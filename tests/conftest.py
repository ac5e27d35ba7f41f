"""Fixtures for all tests: pretend servers, a source engine, images; see tests/lab/README.md."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tests.lab import ImageShelf, Lab, LabHost, LabUnavailable, engine_url, release_engine
from tests.prefect_api import prefect_api  # noqa: F401 - the fixture of that name

TESTS = Path(__file__).resolve().parent
# Seconds per test by folder. They only end what hangs, so they are generous.
TIMEOUTS = {"unit": 120, "integration": 300, "e2e": 900}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder and by what it needs; give it that folder's time limit."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if TESTS in item.path.parents else ""
        if folder in TIMEOUTS:
            item.add_marker(folder)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUTS[folder]))
        used = set(getattr(item, "fixturenames", ()))
        if folder == "unit" or ("prefect_api" in used and not used & {"lab", "engine"}):
            item.add_marker("hostless")


def _without(error: LabUnavailable) -> NoReturn:
    """Skip the test on a laptop, fail it where every service must be there."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The session's lab: plain1, plain2, bare, and jump, which bare is behind.

    CROSSGAP_LAB names it; with CROSSGAP_KEEP_LAB=1 it stays up for the next session.
    """
    keep = os.environ.get("CROSSGAP_KEEP_LAB") == "1"
    lab = Lab(os.environ.get("CROSSGAP_LAB") or "tests")
    try:
        lab.up(reuse=keep)
    except LabUnavailable as error:
        _without(error)
    yield lab
    lab.leave() if keep else lab.down()


@contextmanager
def _used(lab: Lab, name: str) -> Iterator[LabHost]:
    host = lab.host(name)
    yield host
    lab.shape_uplink(None)
    if host.jump:
        host.jump.reset()
    host.reset()


@pytest.fixture
def plain(lab: Lab) -> Iterator[LabHost]:
    """A server with Docker, reached as root by key."""
    with _used(lab, "plain1") as host:
        yield host


@pytest.fixture
def plain2(lab: Lab) -> Iterator[LabHost]:
    """Another one, its sshd on a port of its own."""
    with _used(lab, "plain2") as host:
        yield host


@pytest.fixture
def bare(lab: Lab) -> Iterator[LabHost]:
    """An old server: few tools, a password, sudo, noise, and a jump host before it."""
    with _used(lab, "bare") as host:
        yield host


@pytest.fixture
def jump(lab: Lab) -> Iterator[LabHost]:
    """The jump host: sshd and nothing else."""
    with _used(lab, "jump") as host:
        yield host


@pytest.fixture(params=["plain1", "bare"], ids=["plain", "bare"])
def any_host(lab: Lab, request: pytest.FixtureRequest) -> Iterator[LabHost]:
    """Each kind of server in turn."""
    with _used(lab, request.param) as host:
        yield host


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """The URL of the engine that images are shipped from, started where none runs."""
    try:
        url = engine_url()
    except LabUnavailable as error:
        _without(error)
    yield url
    release_engine()


@pytest.fixture
def images(engine: str) -> Iterator[ImageShelf]:
    """Makes images in the source engine; they are removed after the test."""
    shelf = ImageShelf(engine)
    yield shelf
    shelf.clear()
