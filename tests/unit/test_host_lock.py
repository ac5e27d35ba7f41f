"""The lock's commands and answers, without a host."""

import pytest

from tasks.common.host_lock import HostLock, parse_state, release_command, take_command
from tasks.common.lock_owner import LockOwner, Machine

OWNER = LockOwner("run-1", "ship-images", "ops", Machine("w", "b", "p"), 10, 1000)


def test_names_are_arguments_and_never_part_of_the_script() -> None:
    nasty = "/tmp/x'; rm -rf /"
    record = '{"user": "$(id)"}'
    for command in (
        take_command(nasty, "t", record, ["old"]),
        release_command(nasty, "t"),
    ):
        assert command[:2] == ["sh", "-c"]
        assert nasty not in command[2]
        assert nasty in command[4:]
    assert take_command(nasty, "t", record, ["old"])[-4:] == ["t", record, "60", "old"]


def test_the_answer_names_everybody_in_the_lock() -> None:
    record = OWNER.to_json().replace("{", '{"since": "2026-01-01T00:00:00Z", ', 1)
    state = parse_state(f"outcome busy\nfolder 7 alice\nowner aa 7 {record}\nowner bb 90 \n")
    assert (state.outcome, state.age, state.folder_user) == ("busy", 7, "alice")
    assert [holder.token for holder in state.holders] == ["aa", "bb"]
    assert state.holders[0].owner is not None
    assert state.holders[0].owner.since == "2026-01-01T00:00:00Z"
    assert state.holders[1].owner is None


def test_noise_around_the_answer_does_no_harm() -> None:
    assert parse_state("Welcome!\noutcome released\nBye\n").outcome == "released"


def test_an_answer_without_an_outcome_is_an_error() -> None:
    with pytest.raises(ValueError, match="no outcome"):
        parse_state("sh: stat: not found\n")


def test_the_folder_is_the_same_for_all_users() -> None:
    assert HostLock.PATH == "/tmp/.crossgap-lock"
