"""Holds: many share one, nobody claims what is held, and death lets go."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import Cancelled
from tasks.images.holds import Holds, alone, claims


def free(path: Path, key: str) -> bool:
    with claims(path) as claimed, claimed.attempt(key) as ours:
        return ours


def test_what_anybody_holds_cannot_be_claimed_until_all_have_let_go(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    one, other = Holds(path), Holds(path)
    one.add("a")
    one.add("a")
    other.add("a")
    assert not free(path, "a")
    assert free(path, "b")
    one.drop("a")
    other.drop("a")
    assert not free(path, "a")
    one.drop("a")
    assert free(path, "a")


def test_holds_end_with_the_object_that_has_them(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    holds = Holds(path)
    holds.add("a")
    assert not free(path, "a")
    del holds
    assert free(path, "a")


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    script = (
        "import sys, time; from pathlib import Path; from tasks.images.holds import Holds\n"
        "holds = Holds(Path(sys.argv[1])); holds.add('a'); print('held', flush=True)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert not free(path, "a")
        process.kill()
        process.wait()
    assert free(path, "a")


def test_a_thousand_things_take_one_file(tmp_path: Path) -> None:
    holds = Holds(tmp_path / "locks")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(1000):
        holds.add(f"thing {number}")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert not any(free(tmp_path / "locks", f"thing {number}") for number in range(0, 1000, 100))


def test_threads_that_want_one_thing_alone_take_turns(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(3):
            with alone(tmp_path / "locks", "a"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12


def test_waiting_for_a_thing_ends_when_the_run_is_cancelled(tmp_path: Path) -> None:
    cancellation = Cancellation()
    path = tmp_path / "locks"
    with alone(path, "a"), cancellation_scope(cancellation):
        cancellation.cancel()
        with pytest.raises(Cancelled), alone(path, "a"):
            pass
