"""Progress that moves, never goes back, and never gets in the way."""

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest

from tasks.common import progress as module
from tasks.common.progress import HostProgress, Meter, Standing


def test_the_sentence_has_bytes_rate_and_time_left() -> None:
    standing = Standing(1_410_000_000, 4_210_000_000, 14_000_000)
    assert standing.sentence("gpu1") == (
        "gpu1: 1.41 GB of 4.21 GB arrived, 14.0 MB/s, about 3 min 20 s left."
    )


def test_only_done_brings_it_to_100() -> None:
    assert Standing(5, 5, 1.0).percent == 99.9
    assert Standing(7, 5, 1.0).percent == 99.9
    assert Standing(5, 5, 1.0, done=True).percent == 100
    assert Standing(0, 0).percent == 0
    assert Standing(0, 0, done=True).percent == 100


def test_a_stalled_transfer_names_no_time() -> None:
    assert Standing(1, 10, 0.0).sentence("gpu1").endswith("nothing just now.")


def test_a_lower_number_changes_nothing() -> None:
    meter = Meter()
    meter.update(80, 100)
    meter.update(10, 90)
    assert meter.standing().arrived == 80


def test_the_total_may_become_less_as_when_layers_turn_out_to_pack_well() -> None:
    meter = Meter()
    meter.update(10, 100)
    meter.update(20, 40)
    assert (meter.standing().arrived, meter.standing().total) == (20, 40)


def test_the_bar_does_not_go_back_when_the_total_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = FakeArtifacts(monkeypatch)
    with HostProgress("ship-images", "gpu1", every=0.01) as progress:
        progress(50, 100)
        artifacts.wait(lambda percent: percent == 50)
        progress(60, 1000)
        progress(900, 1000)
        artifacts.wait(lambda percent: percent == 90)
    assert artifacts.percents == sorted(artifacts.percents)


def test_the_rate_is_that_of_the_last_seconds_and_what_was_resumed_does_not_count() -> None:
    now = [0.0]
    meter = Meter(lambda: now[0])
    meter.update(1_000_000, 9_000_000)  # resumed: these came in an earlier run
    now[0] = 2.0
    meter.update(1_000_400, 9_000_000)
    assert meter.standing().rate == 200
    for _ in range(20):
        now[0] += 3
        last = meter.standing().rate
    assert last == 0


def test_updates_from_many_threads_end_at_the_largest() -> None:
    meter = Meter()

    def feed(start: int) -> None:
        for arrived in range(start, 20_000, 7):
            meter.update(arrived, 20_000)

    threads = [threading.Thread(target=feed, args=(n,)) for n in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.standing().arrived == 19_999


class FakeArtifacts:
    """Takes the place of the API and remembers what was shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: bool = False) -> None:
        self.percents: list[float] = []
        self.texts: list[str] = []
        self.changed = threading.Condition()
        outer = self

        def write(progress: HostProgress, percent: float, text: str) -> None:
            with outer.changed:
                outer.percents.append(percent)
                outer.texts.append(text)
                outer.changed.notify_all()
            if fail:
                raise ConnectionError("no API")

        monkeypatch.setattr(HostProgress, "_write_artifact", write)
        monkeypatch.setattr(module, "_current_run_id", lambda: "run-1")
        monkeypatch.setattr(module, "_shown", {})

    def wait(self, shown: Callable[[float], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: any(map(shown, self.percents)), timeout=20)


def test_the_bar_moves_while_the_work_runs_and_ends_at_100(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = FakeArtifacts(monkeypatch)
    with HostProgress("ship-images", "gpu1", every=0.01) as progress:
        progress(50, 100)
        artifacts.wait(lambda percent: percent == 50)
        progress.done()
    assert artifacts.percents[-1] == 100
    assert artifacts.texts[-1] == "gpu1: all 100 B arrived."


def test_work_that_failed_leaves_the_bar_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = FakeArtifacts(monkeypatch)

    def work() -> None:
        with HostProgress("ship-images", "gpu1", every=0.01) as progress:
            progress(50, 100)
            raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        work()
    assert artifacts.percents[-1] == 50


def test_the_bar_does_not_go_back_when_the_task_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = FakeArtifacts(monkeypatch)
    for arrived in (80, 10, 90):
        with HostProgress("ship-images", "gpu1", every=0.01) as progress:
            progress(arrived, 100)
    assert all(before <= after for before, after in pairwise(artifacts.percents))
    assert artifacts.percents[-1] == 90


def test_two_hosts_have_bars_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = FakeArtifacts(monkeypatch)
    with HostProgress("ship-images", "gpu1", every=0.01) as progress:
        progress(80, 100)
    with HostProgress("ship-images", "gpu2", every=0.01) as progress:
        progress(10, 100)
    assert artifacts.percents[-1] == 10


def test_work_with_nothing_to_do_shows_no_bar(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts = FakeArtifacts(monkeypatch)
    with (
        caplog.at_level("INFO", "crossgap"),
        HostProgress("ship-images", "gpu1", every=0.01) as progress,
    ):
        progress.done()
    assert (artifacts.percents, caplog.records) == ([], [])


def test_numbers_from_many_threads_begin_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = FakeArtifacts(monkeypatch)
    with HostProgress("ship-images", "gpu1", every=60) as progress:
        threads = [threading.Thread(target=progress, args=(n, 100)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.done()
    progress(100, 100)
    assert artifacts.percents == [0, 100]


def test_a_host_that_is_called_like_a_step_has_a_bar_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifacts = FakeArtifacts(monkeypatch)
    with HostProgress("ship-images", "spool", kind="save", every=0.01) as progress:
        progress(80, 100)
    with HostProgress("ship-images", "spool", every=0.01) as progress:
        progress(10, 100)
    assert artifacts.percents[-1] == 10


def test_an_api_that_fails_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts = FakeArtifacts(monkeypatch, fail=True)
    with (
        caplog.at_level("WARNING", "crossgap"),
        HostProgress("ship-images", "gpu1", every=0.01) as progress,
    ):
        progress(50, 100)
        artifacts.wait(lambda percent: percent == 50)
    assert len(caplog.records) == 1


def test_outside_of_a_run_there_is_only_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", "crossgap"),
        HostProgress("ship-images", "gpu1", every=60) as progress,
    ):
        progress(1, 2)
        progress.done()
    assert [record.getMessage() for record in caplog.records] == ["gpu1: all 2 B arrived."]
