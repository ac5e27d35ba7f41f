"""The shell that starts, watches and ends jobs, under each shell that a host may have."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from blocks.local_host import LocalHost
from blocks.remote_job import _CANCEL, _IDENTITY, _LOOK, _RUNNER, _START, PIECE, RemoteJob
from tests.unit.conftest import Shell

FOLDERS = ["job", "a b  c", 'it\'s "x"', "任务", "-rf", "$(touch x)", "*", "\\n"]
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Job:
    """A job under one of the shells.

    Args:
        shell: What runs it.
        folder: Its folder.
    """

    shell: Shell
    folder: Path

    def start(self, *argv: str) -> subprocess.CompletedProcess[bytes]:
        return self.shell.run(_START, self.folder, "the command", _RUNNER, *argv)

    def look(self, offset: int = 0, most: int = PIECE) -> tuple[str, int, int, bytes]:
        done = self.shell.run(_LOOK, self.folder, str(offset), str(most))
        assert (done.returncode, done.stderr) == (0, b"")
        head, _, piece = done.stdout.partition(b"\n")
        state, code, size = head.decode().split()
        return state, int(code), int(size), piece

    def ended(self) -> tuple[str, int, int, bytes]:
        until(lambda: self.look()[0] != "running")
        return self.look()

    def cancel(self) -> int:
        return self.shell.run(_CANCEL, self.folder).returncode

    @property
    def group(self) -> int:
        return int((self.folder / "pid").read_text().split()[0])


def until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to be")


def runs(group: int) -> bool:
    """Whether any process of a group is at work; what only waits to be reaped is not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(number) == group and state != "Z":
                return True
    return False


@pytest.fixture
def job(shell: Shell, tmp_path: Path) -> Iterator[Job]:
    """A job that has not been started."""
    job = Job(shell, tmp_path / "a b" / "任务")
    job.folder.parent.mkdir()
    yield job
    with suppress(OSError, ValueError, IndexError):
        os.killpg(job.group, signal.SIGKILL)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_job_leaves_its_output_and_exit_code(shell: Shell, tmp_path: Path, name: str) -> None:
    job = Job(shell, tmp_path / name)

    done = job.start("sh", "-c", 'echo "$1" >&2; exit 4', "sh", "出 错")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert job.ended() == ("ended", 4, 8, "出 错\n".encode())
    assert (job.folder / "command").read_text() == "the command\n"


def test_arguments_reach_the_job_unchanged(job: Job) -> None:
    arguments = ["a b", "'", '"', "$(id)", "*", "\\n", "-n", "换\n行", ""]

    job.start("printf", "%s|", *arguments)

    assert job.ended()[3].decode() == "".join(f"{argument}|" for argument in arguments)


def test_a_job_finds_no_input_and_leads_its_own_session(job: Job) -> None:
    job.start("sh", "-c", "cat; cut -d' ' -f5,6 /proc/$$/stat")

    state, code, _, text = job.ended()

    assert (state, code) == ("ended", 0)
    assert text.split() == [str(job.group).encode()] * 2


def test_a_command_that_does_not_exist_ends_the_job_with_127(job: Job) -> None:
    job.start("no-such-program-here")

    state, code, _, text = job.ended()

    assert (state, code) == ("ended", 127)
    assert b"not found" in text


def test_a_command_that_a_signal_ends_leaves_128_and_its_number(job: Job) -> None:
    job.start("sh", "-c", "kill -9 $$")

    assert job.ended()[:2] == ("ended", 137)


def test_a_running_job_is_seen_and_keeps_its_name(job: Job) -> None:
    job.start("sh", "-c", "echo begun; exec sleep 600")
    until(lambda: job.look()[2] == 6)

    assert job.look() == ("running", -1, 6, b"begun\n")
    assert job.start("true").returncode == 9
    assert job.look()[0] == "running"


def test_the_name_of_an_ended_job_is_free_and_nothing_of_it_stays(job: Job) -> None:
    job.start("sh", "-c", "echo first; exit 4")
    job.ended()

    assert job.start("echo", "2").returncode == 0

    assert job.ended() == ("ended", 0, 2, b"2\n")


def test_a_job_that_never_was_is_absent(job: Job) -> None:
    assert job.look() == ("absent", 0, 0, b"")
    assert job.cancel() == 0
    assert not job.folder.exists()


def test_a_log_is_read_in_pieces_from_any_offset(job: Job) -> None:
    job.start("printf", "0123456789")
    job.ended()

    pieces = [job.look(offset, 4)[3] for offset in (0, 4, 8, 10, 11)]

    assert pieces == [b"0123", b"4567", b"89", b"", b""]


def test_cancelling_ends_the_whole_group(job: Job) -> None:
    job.start("sh", "-c", "sleep 600 & (sleep 601; echo never) & sleep 602")
    group = job.group
    assert runs(group)

    assert job.cancel() == 0

    assert not runs(group)
    assert job.look() == ("ended", 143, 0, b"")


def test_cancelling_an_ended_job_changes_nothing(job: Job) -> None:
    job.start("sh", "-c", "exit 4")
    job.ended()

    assert job.cancel() == 0

    assert job.look()[:2] == ("ended", 4)


def test_a_killed_job_has_vanished_and_its_name_is_free(job: Job) -> None:
    job.start("sh", "-c", "echo so far; exec sleep 600")
    until(lambda: job.look()[2] == 7)
    os.killpg(job.group, signal.SIGKILL)

    assert job.ended() == ("vanished", -1, 7, b"so far\n")
    assert job.start("true").returncode == 0
    assert job.ended()[0] == "ended"


@pytest.mark.parametrize("other", ["start", "boot"])
def test_a_number_that_means_another_process_now_is_not_the_job(job: Job, other: str) -> None:
    job.start("sleep", "600")
    pid, start, boot = (job.folder / "pid").read_text().split()
    start, boot = (start, "0" * 36) if other == "boot" else (str(int(start) - 1), boot)
    (job.folder / "pid").write_text(f"{pid} {start} {boot}\n")

    assert job.look()[0] == "vanished"
    assert job.cancel() == 0

    assert runs(int(pid))


@pytest.mark.parametrize("content", ["", "\n", "garbage\n", "999999999 1 x\n"])
def test_a_damaged_note_of_the_process_is_no_running_job(job: Job, content: str) -> None:
    job.start("true")
    job.ended()
    (job.folder / "exit").unlink()
    (job.folder / "pid").write_text(content)

    assert job.look()[0] == "vanished"
    assert job.cancel() == 0


@pytest.mark.parametrize("name", ["sleep", "a) S 1 2 (b", "a b c"])
def test_a_process_is_identified_whatever_its_program_is_called(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).symlink_to("/bin/sleep")
    process = subprocess.Popen([tmp_path / name, "600"])
    try:
        # Of the child after its exec; the field numbers are those of proc(5).
        until(lambda: f"({name})" in Path(f"/proc/{process.pid}/stat").read_text())
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()

        done = shell.run(f'{_IDENTITY}identity "$1"', str(process.pid))
    finally:
        process.kill()
        process.wait()

    expected = f"{process.pid} {fields[22 - 3]} {BOOT.read_text()}"
    assert done.stdout.decode() == expected
    assert shell.run(f'{_IDENTITY}identity "$1"', str(process.pid)).returncode == 1


def test_a_process_that_is_dead_but_not_reaped_does_not_run(shell: Shell) -> None:
    process = subprocess.Popen(["true"])
    try:
        stat = Path(f"/proc/{process.pid}/stat")
        until(lambda: stat.read_text().rpartition(") ")[2].startswith("Z"))

        done = shell.run(f'{_IDENTITY}identity "$1"', str(process.pid))
    finally:
        process.wait()

    assert (done.returncode, done.stdout) == (1, b"")


def test_a_host_that_cannot_keep_the_jobs_folder_does_not_run_it(job: Job) -> None:
    job.folder.parent.rmdir()
    job.folder.parent.touch()

    done = job.start("touch", str(job.folder.parent.parent / "ran"))

    assert done.returncode not in (0, 9)
    assert done.stderr
    assert not (job.folder.parent.parent / "ran").exists()


# What is made of a look


def given(tmp_path: Path, log: bytes, exit_code: str = "") -> RemoteJob:
    """Make a job's folder by hand; without an exit code it runs as long as this process."""
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "command").write_text("x\n")
    (folder / "log").write_bytes(log)
    start = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    (folder / "pid").write_text(f"{os.getpid()} {start} {BOOT.read_text()}")
    if exit_code:
        (folder / "exit").write_text(f"{exit_code}\n")
    return RemoteJob(LocalHost(), "job", str(folder), sudo=False)


def whole(job: RemoteJob) -> str:
    text, offset, more = "", 0, True
    while more:
        status = job.look(offset)
        text, offset, more = text + status.text, status.offset, status.more
    return text


@pytest.mark.parametrize("exit_code", ["0", ""], ids=["ended", "running"])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_no_character_of_a_long_log_is_cut_in_two(
    tmp_path: Path, exit_code: str, shift: int
) -> None:
    line = "已装载镜像层" * 5 + "\n"
    text = "x" * shift + line * (2 * PIECE // len(line.encode()) + 10)

    assert whole(given(tmp_path, text.encode(), exit_code)) == text


def test_the_unfinished_line_of_a_running_job_waits_for_its_end(tmp_path: Path) -> None:
    job = given(tmp_path, "完\n10%\r20%\r3".encode())

    assert job.look().text == "完\n10%\r20%\r"
    assert job.look(4).text == "10%\r20%\r"
    assert not job.look(12).more


def test_the_unfinished_line_of_an_ended_job_is_its_last(tmp_path: Path) -> None:
    job = given(tmp_path, b"one\ntwo \xe5\xae", "0")

    status = job.look()

    assert (status.state, status.exit_code, status.more) == ("ended", 0, False)
    assert status.text == "one\ntwo \ufffd"


def test_a_line_longer_than_one_look_comes_whole(tmp_path: Path) -> None:
    text = "x" * (2 * PIECE + 7) + "\n"

    assert whole(given(tmp_path, text.encode())) == text


def test_output_that_is_not_text_does_no_harm(tmp_path: Path) -> None:
    job = given(tmp_path, b"\xff\xfe\0ok\n", "3")

    assert job.look().text.endswith("ok\n")
    assert job.wait(timeout=5).exit_code == 3
