"""Who holds a lock, and when that owner is provably dead."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest

from tasks.common.lock_owner import (
    LockOwner,
    Machine,
    death_of,
    parse_owner,
    process_start,
    this_process,
)

HERE = Machine("worker1", "boot-a", "pid:[1]")
READER = LockOwner("run-2", "ship-images", "ops", HERE, 20, 2000)
OWNER = LockOwner("run-1", "ship-images", "ops", HERE, 10, 1000, "2026-01-01T00:00:00Z")


def nobody_knows(_: str) -> None:
    return None


def alive(start: int | None) -> Callable[[int], int | None]:
    return lambda _: start


def death(owner: LockOwner, start: int | None = None, state: str | None = None) -> str | None:
    return death_of(
        owner, reader=READER, process_start=alive(start), final_state=lambda _run: state
    )


def test_a_record_survives_the_way_to_the_host_and_back() -> None:
    assert parse_owner(OWNER.to_json()) == replace(OWNER, since="")
    assert "\n" not in OWNER.to_json()
    assert replace(OWNER, user="王").to_json().isascii()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '{"run_id": 1}', OWNER.to_json().replace("10,", '"x",')]
)
def test_what_is_no_record_has_no_owner(text: str) -> None:
    assert parse_owner(text) is None


def test_an_owner_whose_process_is_gone_is_dead() -> None:
    assert death(OWNER, None) == "its process 10 on worker1 is gone"


def test_another_process_under_the_old_number_does_not_keep_the_owner_alive() -> None:
    assert death(OWNER, 1001) == "its process 10 on worker1 is gone"


def test_a_living_process_is_not_dead_even_when_prefect_says_so() -> None:
    assert death(OWNER, 1000, "Crashed") is None


def test_what_this_process_does_not_know_of_it_left_behind() -> None:
    own = replace(OWNER, pid=20, started=2000)
    assert death(own, 2000) == "this very process left it behind"


@pytest.mark.parametrize(
    "elsewhere",
    [
        Machine("worker2", "boot-b", "pid:[1]"),
        Machine("worker1", "boot-a", "pid:[2]"),  # another container on this machine
        Machine("worker1", "", ""),
    ],
)
def test_a_process_elsewhere_is_judged_by_prefect_alone(elsewhere: Machine) -> None:
    owner = replace(OWNER, machine=elsewhere)
    assert death(owner, None) is None
    assert death(owner, None, "Cancelled") == "Prefect says that the run is Cancelled"


def test_a_machine_without_ids_shares_no_processes_with_its_like() -> None:
    bare = Machine("mac", "", "")
    assert not bare.shares_processes_with(bare)


def test_an_earlier_attempt_of_the_same_run_elsewhere_is_over() -> None:
    owner = replace(OWNER, run_id="run-2", machine=Machine("worker2", "boot-b", "pid:[1]"))
    assert death(owner) == "an earlier attempt of this same run left it behind"


def test_this_process_is_alive_and_a_dead_one_is_not() -> None:
    own = this_process("run-9", "verify")
    assert own.pid == os.getpid()
    assert process_start(own.pid) == own.started > 0
    child = subprocess.Popen(["true"])
    while process_start(child.pid) is not None:  # a zombie until it is waited for
        pass
    child.wait()
    assert process_start(child.pid) is None


def test_the_owner_reads_well() -> None:
    assert str(OWNER) == (
        "run run-1 of ship-images (user ops, process 10 on worker1, since 2026-01-01T00:00:00Z)"
    )
