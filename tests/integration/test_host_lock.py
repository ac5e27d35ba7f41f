"""The lock's scripts for real, under every shell that a host may have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from blocks.errors import CrossgapError, PermissionRefused
from blocks.host import CommandResult, Host
from tasks.common.host_lock import Holder, HostLock, parse_state, take_command
from tasks.common.lock_owner import LockOwner, Machine, this_process

OWNER = LockOwner("run-1", "ship-images", "ops", Machine("w", "b", "p"), 10, 1000)

SHELLS = {
    "dash": ["dash"],
    "bash": ["bash"],
    "busybox": ["busybox", "sh"],
}


class ShellHost:
    """As much of a host as a lock needs: this machine, under a shell of choice."""

    label = "gpu1"
    lock_name = "gpu1-22"
    sudo_mode = "no"

    def __init__(self, shell: Sequence[str], prefix: Sequence[str] = (), path: str = "") -> None:
        self._shell = shell
        self._prefix = prefix
        self._env = {**os.environ, "LC_ALL": "C"} | ({"PATH": path} if path else {})

    def run(
        self, argv: Sequence[str], *, timeout: float, sudo: bool = False, check: bool = True
    ) -> CommandResult:
        """Run it with this shell in the place of sh."""
        command = [*self._shell, *argv[1:]] if argv[0] == "sh" else list(argv)
        prefix = [] if sudo else self._prefix
        done = subprocess.run(
            [*prefix, *command],
            check=False,
            timeout=timeout,
            env=self._env,
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, done.stderr
        return CommandResult(done.returncode, done.stdout, done.stderr, 0.0)


@pytest.fixture(params=SHELLS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    shell = SHELLS[request.param]
    if shutil.which(shell[0]) is None:
        text = f"{shell[0]} is missing: apt-get install -y dash bash busybox-static"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(text)
    if shell[0] != "busybox":
        return cast("Host", ShellHost(shell))
    # On such a host the commands are busybox's too, not only the shell.
    applets = tmp_path / "applets"
    applets.mkdir()
    for applet in ["mkdir", "rmdir", "rm", "date", "stat", "head", "tr"]:
        (applets / applet).symlink_to(cast("str", shutil.which("busybox")))
    return cast("Host", ShellHost([cast("str", shutil.which("busybox")), "sh"], path=str(applets)))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "the lock $(id)'")


def alive(_: Holder) -> None:
    return None


def dead(_: Holder) -> str:
    return "it is dead"


def test_a_free_host_is_taken_and_given_back(host: Host, path: str) -> None:
    lock = HostLock(host, OWNER, path)
    state = lock.try_take(alive)
    assert state.outcome == "taken"
    [holder] = state.holders
    assert holder.token == lock.token
    assert holder.owner is not None
    assert holder.owner.run_id == "run-1"
    assert holder.owner.since.startswith("20")
    lock.release()
    assert not Path(path).exists()
    lock.release()


def test_the_record_is_json_with_the_host_s_time(host: Host, path: str) -> None:
    HostLock(host, OWNER, path).try_take(alive)
    [file] = Path(path).iterdir()
    record = json.loads(file.read_text())
    assert set(record) == {"since", "run_id", "flow", "user", "machine", "pid", "started"}


def test_a_living_owner_keeps_others_out(host: Host, path: str) -> None:
    first, second = HostLock(host, OWNER, path), HostLock(host, OWNER, path)
    first.try_take(alive)
    state = second.try_take(alive)
    assert state.outcome == "busy"
    assert [holder.token for holder in state.holders] == [first.token]
    second.release()  # whoever does not hold it gives nothing back
    assert second.try_take(alive).outcome == "busy"
    first.release()
    assert second.try_take(alive).outcome == "taken"


def test_a_dead_owner_s_lock_is_taken_over_and_said_so(
    host: Host, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    HostLock(host, OWNER, path).try_take(alive)
    second = HostLock(host, OWNER, path)
    with caplog.at_level("WARNING", "crossgap"):
        assert second.try_take(dead).outcome == "taken"
    assert [file.name for file in Path(path).iterdir()] == [f"owner.{second.token}"]
    [record] = caplog.records
    assert "took over the stale lock of run run-1" in record.getMessage()
    assert record.getMessage().endswith("it is dead.")


def test_of_two_that_saw_the_same_dead_owner_the_slower_one_loses(host: Host, path: str) -> None:
    old, first, second = (HostLock(host, OWNER, path) for _ in range(3))
    old.try_take(alive)
    command = take_command(path, second.token, OWNER.to_json(), [old.token])
    assert first.try_take(dead).outcome == "taken"
    state = parse_state(host.run(command, timeout=20).stdout)
    assert state.outcome == "busy"
    assert [holder.token for holder in state.holders] == [first.token]


def test_a_folder_without_an_owner_is_left_alone_for_a_minute(host: Host, path: str) -> None:
    Path(path).mkdir()
    lock = HostLock(host, OWNER, path)
    assert lock.try_take(dead).outcome == "busy"
    os.utime(path, (time.time() - 61, time.time() - 61))
    assert lock.try_take(alive).outcome == "taken"


def test_a_half_written_record_is_nobody_s_and_its_age_is_known(host: Host, path: str) -> None:
    Path(path).mkdir()
    file = Path(path, "owner.aa")
    file.write_text('{"run_id": "ru')
    os.utime(file, (time.time() - 90, time.time() - 90))
    [holder] = HostLock(host, OWNER, path).try_take(alive).holders
    assert holder.owner is None
    assert 89 <= holder.age <= 120


def test_another_file_in_the_folder_or_a_link_in_its_place_is_no_way_in(
    host: Host, path: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.utime(elsewhere, (0, 0))
    Path(path).symlink_to(elsewhere)
    with pytest.raises(PermissionRefused):
        HostLock(host, OWNER, path).try_take(dead)
    assert list(elsewhere.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error_with_the_remedy(host: Host) -> None:
    with pytest.raises(PermissionRefused) as caught:
        HostLock(host, OWNER, "/proc/crossgap-lock").try_take(alive)
    assert "rm -r /proc/crossgap-lock" in str(caught.value)


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=20", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with (folder / "fill").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_half_lock(host: Host, tmp_path: Path) -> None:
    with full_disk(tmp_path / "disk") as disk:
        lock = HostLock(host, OWNER, str(disk / "lock"))
        with pytest.raises(PermissionRefused, match="make room"):
            lock.try_take(alive)
        assert [file.name for file in disk.iterdir()] == ["fill"]


@pytest.fixture
def as_nobody() -> list[str]:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("becoming another user needs root and setpriv (package util-linux)")
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture
def sticky() -> Iterator[Path]:
    folder = Path("/tmp", f"crossgap-test-{os.getpid()}")
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def test_a_stale_lock_of_another_user_stays_and_the_error_says_who_can_remove_it(
    as_nobody: list[str], sticky: Path
) -> None:
    path = str(sticky / "lock")
    root = cast("Host", ShellHost(["sh"]))
    nobody = cast("Host", ShellHost(["sh"], as_nobody))
    old = HostLock(root, OWNER, path)
    old.try_take(alive)
    with pytest.raises(PermissionRefused) as caught:
        HostLock(nobody, OWNER, path).try_take(dead)
    assert f"as root on gpu1: rm -r {path}" in str(caught.value)
    assert [file.name for file in Path(path).iterdir()] == [f"owner.{old.token}"]


def test_with_sudo_a_stale_lock_of_another_user_is_taken_over_and_given_back(
    as_nobody: list[str], sticky: Path
) -> None:
    path = sticky / "lock"
    HostLock(cast("Host", ShellHost(["sh"])), OWNER, str(path)).try_take(alive)
    nobody = ShellHost(["sh"], as_nobody)
    nobody.sudo_mode = "passwordless"
    lock = HostLock(cast("Host", nobody), OWNER, str(path))
    assert lock.try_take(dead).outcome == "taken"
    lock.release()
    assert not path.exists()


RACER = """
import sys, time
from tests.integration.test_host_lock import OWNER, SHELLS, HostLock, ShellHost
shell, path, rounds, stale = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "stale"
host = ShellHost(SHELLS[shell])
for n in range(rounds):
    sys.stdin.readline()
    lock = HostLock(host, OWNER, f"{path}-{n}")
    print(lock.try_take(lambda holder: "dead" if holder.token == "old" else None).outcome)
    sys.stdout.flush()
"""


@pytest.mark.parametrize("kind", ["free", "stale", "empty"])
@pytest.mark.parametrize("shell", SHELLS)
def test_of_several_that_race_for_one_host_at_most_one_wins(
    shell: str, kind: str, tmp_path: Path
) -> None:
    rounds, path = 25, str(tmp_path / "lock")
    for n in range(rounds if kind != "free" else 0):
        folder = Path(f"{path}-{n}")
        folder.mkdir()
        if kind == "stale":
            (folder / "owner.old").write_text(OWNER.to_json())
        os.utime(folder, (time.time() - 100, time.time() - 100))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, shell, path, str(rounds), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        wins = [_round(racers) for _ in range(rounds)]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert max(wins) == 1
    # Without an owner to remove, those that meet give way to each other and try again later.
    assert kind == "empty" or min(wins) == 1


def _round(racers: Sequence[subprocess.Popen[str]]) -> int:
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    assert set(answers) <= {"taken", "busy"}
    return answers.count("taken")


def test_a_host_that_answers_nonsense_is_an_error(path: str) -> None:
    mute = ShellHost(["true"])
    with pytest.raises(CrossgapError, match="did not answer as expected"):
        HostLock(cast("Host", mute), OWNER, path).try_take(alive)


def test_the_record_of_this_process_can_be_read_back(host: Host, path: str) -> None:
    owner = this_process("run-7", "verify")
    [holder] = HostLock(host, owner, path).try_take(alive).holders
    assert holder.owner is not None
    assert holder.owner.machine == owner.machine
    assert (holder.owner.pid, holder.owner.started) == (owner.pid, owner.started)
