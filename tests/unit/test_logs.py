"""What of an error reaches the log."""

from __future__ import annotations

import logging

import pytest

from blocks.errors import CrossgapError, NotFound
from blocks.logs import leave_out_tracebacks


def logged(error: Exception, caplog: pytest.LogCaptureFixture) -> str:
    leave_out_tracebacks()
    leave_out_tracebacks()
    log = logging.getLogger("prefect.flow_runs")
    with caplog.at_level(logging.ERROR, logger=log.name):
        try:
            raise error
        except Exception:
            log.exception("Encountered exception during execution: %r", error)
    return caplog.text


@pytest.fixture(autouse=True)
def propagating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pytest see the records, whatever Prefect's logging settings say."""
    for name in ("prefect", "prefect.flow_runs"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


def test_our_own_errors_are_sentences(caplog: pytest.LogCaptureFixture) -> None:
    text = logged(NotFound("there is no such image", "app:1", "Check the name."), caplog)
    assert "NotFound: app:1: there is no such image. Check the name." in text
    assert "Traceback" not in text


def test_a_defect_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    error = CrossgapError("unexpected KeyError", "ship-images")
    error.__cause__ = KeyError("x")
    assert "Traceback" in logged(error, caplog)


def test_other_errors_keep_their_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert "Traceback" in logged(ValueError("x"), caplog)
