"""A wait is spoken of at once and then every half minute."""

import pytest

from tasks.common.waiting import Waiting, jittered


def test_it_says_so_at_once_and_then_every_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    waiting = Waiting("gpu1: another run is at work there", lambda: now[0])
    with caplog.at_level("INFO", "crossgap"):
        for seconds in (0, 10, 29.9, 30, 31, 65):
            now[0] = 100 + seconds
            waiting.say("It is run 7.")
    assert [record.getMessage() for record in caplog.records] == [
        f"Waiting for gpu1: another run is at work there; {waited} so far. It is run 7."
        for waited in ("0.0 s", "30 s", "1 min 05 s")
    ]


def test_a_pause_varies_by_a_third_at_most() -> None:
    pauses = {jittered(3.0) for _ in range(100)}
    assert len(pauses) > 1
    assert all(2.0 <= pause <= 4.0 for pause in pauses)
