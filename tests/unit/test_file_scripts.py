"""The shell that files travel by, under each shell that a host may have."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blocks.disk import parse_disk
from blocks.errors import CrossgapError, DiskFull, PermissionRefused
from blocks.file_scripts import FINISH, HASH, RECEIVE, STAT, UNDELIVERED
from blocks.sending import Heard, writing_failed
from tests.unit.conftest import Shell
from tests.unit.images_doubles import AnsweringHost

NAMES = [
    "a.tar",
    "a b  c",
    'it\'s "x"',
    "镜像 包.tar",
    "-rf",
    "a\nb",
    "$(touch x)",
    "*",
    "\\n",
    "~",
]
names = pytest.mark.parametrize("name", NAMES)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to be")


# Receiving

AT_ONCE, NO_JOB = str(10**6), str(10**12)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Received:
    """How the script ended, and what it said."""

    code: int
    heard: Heard
    stderr: bytes


def receive(
    shell: Shell,
    part: Path,
    data: bytes,
    whole: bytes | None = None,
    *,
    target: Path | None = None,
    look: str = "look",
    at_once: str = AT_ONCE,
    job_from: str = NO_JOB,
    nobody: bool = False,
) -> Received:
    """Send `data` as the end of `whole`, and listen."""
    whole = data if whole is None else whole
    arguments = (part, target or part.with_name("target"), str(len(whole)), sha256(whole))
    done = shell.run(RECEIVE, *arguments, look, at_once, job_from, data=data, nobody=nobody)
    heard = Heard()
    for line in done.stdout.decode().splitlines():
        heard.hear(line)
    return Received(done.returncode, heard, done.stderr)


@names
def test_what_is_received_is_put_in_its_place_when_its_hash_is_right(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / f"new {name}" / "deeper"
    data = b"\r\n\xff\0new" * 50_000

    done = receive(shell, folder / f".{name}.part", data, target=folder / name)

    assert (done.code, done.heard.state, done.heard.delivered) == (0, "part", True)
    assert (done.heard.count, done.heard.sha256) == (len(data), sha256(data))
    assert (folder / name).read_bytes() == data
    assert [path.name for path in folder.iterdir()] == [name]


def test_the_room_is_told_before_anything_is_sent(shell: Shell, tmp_path: Path) -> None:
    done = receive(shell, tmp_path / "new" / "a.part", b"x")

    # Others write to the same disk meanwhile.
    free = parse_disk(done.heard.room or "", "gpu1").free
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, abs=1e9)


@names
def test_bytes_are_added_behind_those_that_are_there(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    part = tmp_path / f".{name}.part"
    part.write_bytes(b"old\0")

    done = receive(shell, part, b"\0new", b"old\0\0new", target=tmp_path / name)

    assert done.heard.delivered
    assert (tmp_path / name).read_bytes() == b"old\0\0new"


def test_a_part_that_is_too_long_is_begun_anew(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"much too long")

    done = receive(shell, tmp_path / "a.part", b"short")

    assert (done.heard.count, done.heard.delivered) == (5, True)


def test_what_came_before_a_cut_stays_and_is_not_hashed(shell: Shell, tmp_path: Path) -> None:
    done = receive(shell, tmp_path / "a.part", b"the begin", b"the beginning")

    assert (done.code, done.heard.count, done.heard.hashing) == (0, 9, False)
    assert (tmp_path / "a.part").read_bytes() == b"the begin"


def test_what_has_another_hash_is_not_delivered(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"OLD")

    done = receive(shell, tmp_path / "a.part", b"new", b"oldnew")

    assert (done.code, done.heard.sha256, done.heard.delivered) == (0, sha256(b"OLDnew"), False)
    assert not (tmp_path / "target").exists()


def test_a_whole_part_that_is_large_is_left_to_a_job(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"whole")

    left = receive(shell, tmp_path / "a.part", b"", b"whole", job_from="5")
    done = receive(shell, tmp_path / "a.part", b"", b"whole", job_from="6")

    assert (left.heard.state, left.heard.sha256, left.heard.delivered) == ("whole", "", False)
    assert (done.heard.state, done.heard.delivered) == ("part", True)


@names
def test_a_file_that_is_there_is_hashed_and_nothing_is_read(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"there")

    found = receive(shell, tmp_path / ".part", b"other", target=tmp_path / name)
    done = receive(shell, tmp_path / ".part", b"other", target=tmp_path / name, look="-")

    assert (found.heard.state, found.heard.sha256) == ("there", sha256(b"there"))
    assert (done.heard.state, done.heard.delivered) == ("part", True)
    assert (tmp_path / name).read_bytes() == b"other"


def test_a_large_file_that_is_there_is_left_to_be_hashed_later(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "target").write_bytes(b"there")

    done = receive(shell, tmp_path / "a.part", b"there", at_once="4")

    assert (done.code, done.heard.state, done.heard.sha256) == (0, "there", "")


def test_an_empty_file_is_received(shell: Shell, tmp_path: Path) -> None:
    assert receive(shell, tmp_path / "a.part", b"").heard.delivered
    assert (tmp_path / "target").read_bytes() == b""


def test_a_folder_in_its_place_keeps_the_part(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()

    done = receive(shell, tmp_path / "a.part", b"data")

    assert (done.code, done.heard.delivered) == (UNDELIVERED, False)
    assert b"is a folder" in done.stderr
    assert (tmp_path / "a.part").read_bytes() == b"data"


def test_a_link_in_place_of_the_part_is_not_written_through(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "a.part").symlink_to(tmp_path / "victim")

    done = receive(shell, tmp_path / "a.part", b"data data")

    assert isinstance(failure(done.stderr), PermissionRefused)
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.fixture
def writer(shell: Shell) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start writers as cut-off connections leave them, reaped as sshd does."""
    started: list[tuple[subprocess.Popen[bytes], threading.Thread]] = []

    def start(script: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        process = shell.start(script, *arguments)
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        started.append((process, reaper))
        return process

    yield start
    for process, reaper in started:
        process.kill()
        reaper.join()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


@names
def test_a_writer_that_a_cut_line_left_behind_is_ended_first(
    shell: Shell, tmp_path: Path, writer: Callable[..., subprocess.Popen[bytes]], name: str
) -> None:
    part, target = tmp_path / f".{name}.part", tmp_path / name
    old = writer(RECEIVE, part, target, "9", "", "-", AT_ONCE, NO_JOB)
    note = tmp_path / f".{name}.part.writer"
    until(lambda: note.exists() and note.read_text().strip() == str(old.pid))

    done = receive(shell, part, b"data", target=target)

    assert done.heard.delivered
    assert old.poll() is not None


def test_another_process_that_has_the_writers_number_now_is_left_alone(
    shell: Shell, tmp_path: Path, writer: Callable[..., subprocess.Popen[bytes]]
) -> None:
    part = tmp_path / "a.part"
    innocent = writer("read _", f"{part}.other")
    (tmp_path / "a.part.writer").write_text(f"{innocent.pid}\n")

    assert receive(shell, part, b"data").heard.delivered

    assert innocent.poll() is None


@pytest.mark.parametrize("note", ["", "\n", "999999999\n", "no number\n", "-1\n"])
def test_a_note_about_no_process_at_all_does_no_harm(
    shell: Shell, tmp_path: Path, note: str
) -> None:
    (tmp_path / "a.part.writer").write_text(note)

    assert receive(shell, tmp_path / "a.part", b"data").heard.delivered


def test_where_the_user_may_not_write_it_is_said(shell: Shell, open_folder: Path) -> None:
    missing = receive(shell, open_folder / "new" / "a.part", b"x", nobody=True)
    present = receive(shell, open_folder / "a.part", b"x", nobody=True)

    for done in (missing, present):
        assert done.code != 0
        assert isinstance(failure(done.stderr), PermissionRefused)


def test_a_file_where_a_folder_should_be_is_an_error(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert receive(shell, tmp_path / "file" / "a.part", b"x").code != 0


def test_progress_is_the_size_that_the_file_has_by_now(shell: Shell, tmp_path: Path) -> None:
    part = tmp_path / "a part"
    part.write_bytes(b"1234")
    process = shell.start(RECEIVE, part, tmp_path / "a", "99", "", "-", AT_ONCE, NO_JOB)
    assert process.stdin
    assert process.stdout
    process.stdout.readline()
    process.stdout.readline()
    process.stdin.write(b"56789")
    process.stdin.flush()

    count = process.stdout.readline()
    rest, err = process.communicate(timeout=30)  # ends only when no reporter holds the streams

    assert (int(count), err, process.returncode) == (9, b"", 0)
    assert [int(word) for word in rest.split()] == [9] * len(rest.split())


def test_a_full_disk_ends_the_writer_with_an_error_that_is_understood(
    shell: Shell, tmp_path: Path
) -> None:
    # A disk that is full only for what is appended.
    full = RECEIVE.replace('cat >>"$part"', "cat >/dev/full")

    done = shell.run(
        full, tmp_path / "part", "x", "300000", "", "-", AT_ONCE, NO_JOB, data=b"x" * 300_000
    )

    assert done.returncode != 0
    assert isinstance(failure(done.stderr), DiskFull)


def test_a_folder_that_closed_in_between_ends_the_writer(shell: Shell, open_folder: Path) -> None:
    (open_folder / "a.part").write_bytes(b"")

    done = receive(shell, open_folder / "a.part", b"x", nobody=True)

    assert done.code != 0
    assert isinstance(failure(done.stderr), PermissionRefused)


# Hashing


@names
def test_a_file_is_hashed_under_any_name(shell: Shell, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content\n")

    done = shell.run(HASH, tmp_path / name)

    assert done.stdout.split()[0].decode() == hashlib.sha256(b"content\n").hexdigest()


# A busybox never does without its own sha256sum.
@pytest.mark.parametrize("shell", ["dash", "bash"], indirect=True)
@pytest.mark.parametrize("tool", ["sha256sum", "openssl", "shasum"])
def test_any_tool_that_a_host_has_gives_the_hash(shell: Shell, tmp_path: Path, tool: str) -> None:
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"no {tool} here: apt-get install coreutils openssl perl")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / tool).symlink_to(program)
    (tmp_path / "-file").write_bytes(b"content\n")

    done = shell.run(HASH, tmp_path / "-file", path=str(tmp_path / "bin"))

    assert done.stdout.split()[0].decode() == hashlib.sha256(b"content\n").hexdigest()


@pytest.mark.parametrize("shell", ["dash", "bash"], indirect=True)
def test_a_tool_that_does_not_work_does_not_stand_in_the_way(shell: Shell, tmp_path: Path) -> None:
    broken = tmp_path / "openssl"
    broken.write_text("#!/bin/sh\nread -r _\necho what?\n")
    broken.chmod(0o755)
    (tmp_path / "file").write_bytes(b"line\nline\n")

    done = shell.run(HASH, tmp_path / "file", path=f"{tmp_path}:/usr/bin:/bin")

    assert done.stdout.decode().strip() == sha256(b"line\nline\n")


def test_hashing_what_is_gone_fails(shell: Shell, tmp_path: Path) -> None:
    assert shell.run(HASH, tmp_path / "gone").returncode != 0


# Finishing


@names
def test_a_finished_part_takes_the_place_of_what_was_there(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    part, target = tmp_path / f".{name}.part", tmp_path / name
    part.write_bytes(b"new")
    target.write_bytes(b"old")
    target.chmod(0o444)
    (tmp_path / f".{name}.part.writer").write_text("1\n")

    assert shell.run(FINISH, part, target).returncode == 0

    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_of_the_targets_name_is_an_error_and_not_filled(
    shell: Shell, tmp_path: Path
) -> None:
    part, target = tmp_path / ".models.part", tmp_path / "models"
    part.write_bytes(b"new")
    target.mkdir()

    done = shell.run(FINISH, part, target)

    assert done.returncode != 0
    assert list(target.iterdir()) == []


# Looking


@names
def test_a_look_gives_the_size(shell: Shell, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 4321)

    done = shell.run(STAT, tmp_path / name)

    assert (done.returncode, int(done.stdout)) == (0, 4321)


def test_what_is_no_file_is_told_from_what_may_not_be_read(shell: Shell, open_folder: Path) -> None:
    (open_folder / "closed").write_bytes(b"x")
    (open_folder / "closed").chmod(0)
    (open_folder / "folder").mkdir()

    codes = [
        shell.run(STAT, open_folder / name, nobody=True).returncode
        for name in ("missing", "folder", "closed")
    ]

    assert codes == [3, 3, 4]


# What df and failing writers say


def failure(said: bytes | str) -> CrossgapError:
    text = said.decode() if isinstance(said, bytes) else said
    return writing_failed(AnsweringHost({}), "/data/a.part", text)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("cat: write error: No space left on device", DiskFull),
        ("cat: standard output: Disk quota exceeded", DiskFull),
        ("mkdir: cannot create directory '/x': Permission denied", PermissionRefused),
        ("sh: 1: cannot create /x: Permission denied", PermissionRefused),
        ("mkdir: cannot create directory '/x': Read-only file system", PermissionRefused),
    ],
)
def test_a_failed_write_is_named_by_its_reason_and_not_tried_again(
    said: str, kind: type[CrossgapError]
) -> None:
    error = failure(said)

    assert type(error) is kind
    assert (error.where, error.retryable) == ("gpu1 (10.0.0.1:22)", False)
    assert error.remedy


def test_a_write_that_failed_for_an_odd_reason_may_be_tried_again() -> None:
    assert failure("cat: Input/output error").retryable
    assert "no message" in str(failure(" \n"))
