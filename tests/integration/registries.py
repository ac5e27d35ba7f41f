"""Registries for tests, which are skipped or fail where there can be none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.lab import LabUnavailable
from tests.lab.registry import LabRegistry


@contextmanager
def running_registry(**settings: Any) -> Iterator[LabRegistry]:
    """Run a registry; see LabRegistry."""
    with ExitStack() as running:
        try:
            registry = running.enter_context(LabRegistry(**settings))
        except LabUnavailable as error:
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))
        yield registry
