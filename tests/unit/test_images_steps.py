"""What the steps show of themselves in a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import ConnectionLost, CrossgapError, TimedOut, Unreachable
from tasks.common import progress as progress_module
from tasks.common.artifact_keys import artifact_key
from tasks.common.progress import HostProgress
from tasks.images import steps
from tasks.images.archive import ArchiveFacts
from tasks.images.facts import ImageFacts

APP = ImageFacts("app:1", "sha256:a", "sha256:a", ("l1",), "amd64")
ARCHIVE = ArchiveFacts(Path("a.tar"), 100, "ab" * 32, "none", (APP,))


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The progress artifacts of a run, by key."""
    shown: dict[str, float] = {}

    def write(progress: HostProgress, percent: float, text: str) -> None:
        shown[progress._key] = percent

    monkeypatch.setattr(HostProgress, "_write_artifact", write)
    monkeypatch.setattr(progress_module, "_current_run_id", lambda: "run-1")
    monkeypatch.setattr(progress_module, "_shown", {})
    return shown


def read_source(monkeypatch: pytest.MonkeyPatch, pulled: bool) -> Any:
    def ensure(names: Any, *, progress: Callable[[int, int], None], **_: Any) -> Any:
        if pulled:
            progress(50, 100)
        return (APP,)

    monkeypatch.setattr("tasks.images.pull.ensure_images", ensure)
    return steps.read_source.fn(["app:1"], "missing", [])


def test_images_that_are_there_show_no_bar(
    bars: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_source(monkeypatch, pulled=False) == (APP,)
    assert bars == {}


def test_the_bar_of_a_pull_ends_at_100(
    bars: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_source(monkeypatch, pulled=True)
    assert list(bars.values()) == [100]


def test_no_host_has_the_bar_of_a_step_on_this_side(
    bars: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(_: Any, *rest: Any) -> Any:
        rest[-1](50, 100)
        return ARCHIVE

    monkeypatch.setattr("tasks.images.archive.read_archives", work)
    monkeypatch.setattr("tasks.images.source.save_images", work)
    read_source(monkeypatch, pulled=True)
    steps.check_archives.fn("a.tar")
    steps.save_images.fn([APP])

    assert len(bars) == 3
    words = {word for key in bars for word in key.split("-")}
    assert bars.keys().isdisjoint(artifact_key("ship-images", "progress", word) for word in words)


class Away:
    """A host that cannot be reached for a while."""

    label = "gpu1"
    patience = 60

    def __init__(self, errors: list[CrossgapError]) -> None:
        self.errors = errors

    def work(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def patiently(host: Away, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(steps, "load_host", lambda _: host)
    monkeypatch.setattr("blocks.cancellation.Cancellation.pause", lambda *_: None)
    return steps._patiently("gpu1", lambda there: there.work())  # type: ignore[attr-defined]


def test_a_step_after_the_transfer_waits_out_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Away([ConnectionLost("it died", "gpu1"), Unreachable("no answer", "gpu1")])
    assert patiently(host, monkeypatch) == "done"


def test_an_engine_that_hangs_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimedOut):
        patiently(Away([TimedOut("docker info did not end", "gpu1")]), monkeypatch)
