"""The shell that files travel by, under each shell that a host may have."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blocks.disk import parse_disk
from blocks.errors import CrossgapError, DiskFull, PermissionRefused
from blocks.files import (
    _APPEND,
    _FINISH,
    _HASH,
    _PREPARE,
    _STAT,
    _writing_failed,
)
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


# Preparing


@names
def test_preparing_makes_folder_and_part_and_tells_the_room(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    part = tmp_path / f"new {name}" / "deeper" / f".{name}.part"

    done = shell.run(_PREPARE, part)

    count, usage = done.stdout.decode().splitlines()
    assert (done.returncode, int(count), part.read_bytes()) == (0, 0, b"")
    # Others write to the same disk meanwhile.
    free = parse_disk(usage, "gpu1").free
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, abs=1e9)


@names
def test_preparing_keeps_what_is_there_and_counts_it(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    part = tmp_path / name
    part.write_bytes(b"x" * 12345)

    done = shell.run(_PREPARE, part)

    assert int(done.stdout.split()[0]) == 12345
    assert part.stat().st_size == 12345


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
    part = tmp_path / name
    old = writer(_APPEND, part)
    note = tmp_path / f"{name}.writer"
    until(lambda: note.exists() and note.read_text().strip() == str(old.pid))

    done = shell.run(_PREPARE, part)

    assert done.returncode == 0
    assert old.poll() is not None


def test_another_process_that_has_the_writers_number_now_is_left_alone(
    shell: Shell, tmp_path: Path, writer: Callable[..., subprocess.Popen[bytes]]
) -> None:
    part = tmp_path / "a.part"
    innocent = writer("read _", f"{part}.other")
    (tmp_path / "a.part.writer").write_text(f"{innocent.pid}\n")

    assert shell.run(_PREPARE, part).returncode == 0

    assert innocent.poll() is None


@pytest.mark.parametrize("note", ["", "\n", "999999999\n", "no number\n", "-1\n"])
def test_a_note_about_no_process_at_all_does_no_harm(
    shell: Shell, tmp_path: Path, note: str
) -> None:
    (tmp_path / "a.part.writer").write_text(note)

    assert shell.run(_PREPARE, tmp_path / "a.part").returncode == 0


def test_where_the_user_may_not_write_preparing_says_so(shell: Shell, open_folder: Path) -> None:
    missing = shell.run(_PREPARE, open_folder / "new" / "a.part", nobody=True)
    present = shell.run(_PREPARE, open_folder / "a.part", nobody=True)

    for done in (missing, present):
        assert done.returncode != 0
        assert isinstance(failure(done.stderr), PermissionRefused)


def test_a_file_where_a_folder_should_be_fails_to_prepare(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert shell.run(_PREPARE, tmp_path / "file" / "a.part").returncode != 0


# Writing


@names
def test_bytes_are_added_at_the_end_and_nothing_else(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    part = tmp_path / name
    part.write_bytes(b"old\0")
    data = b"\r\n\xff\0new" * 50_000

    done = shell.run(_APPEND, part, data=data)

    assert (done.returncode, part.read_bytes()) == (0, b"old\0" + data)
    assert (tmp_path / f"{name}.writer").exists()


def test_progress_is_the_size_that_the_file_has_by_now(shell: Shell, tmp_path: Path) -> None:
    part = tmp_path / "a part"
    part.write_bytes(b"1234")
    process = shell.start(_APPEND, part)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"56789")
    process.stdin.flush()

    count = process.stdout.readline()
    rest, err = process.communicate(timeout=30)  # ends only when no reporter holds the streams

    assert (int(count), err, process.returncode) == (9, b"", 0)
    assert [int(word) for word in rest.split()] == [9] * len(rest.split())


def test_a_full_disk_ends_the_writer_with_an_error_that_is_understood(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "part").symlink_to("/dev/full")

    done = shell.run(_APPEND, tmp_path / "part", data=b"x" * 300_000)

    assert done.returncode != 0
    assert isinstance(failure(done.stderr), DiskFull)


def test_a_folder_that_closed_in_between_ends_the_writer(shell: Shell, open_folder: Path) -> None:
    (open_folder / "a.part").write_bytes(b"")

    done = shell.run(_APPEND, open_folder / "a.part", nobody=True)

    assert done.returncode != 0
    assert isinstance(failure(done.stderr), PermissionRefused)


# Hashing


@names
def test_a_file_is_hashed_under_any_name(shell: Shell, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content\n")

    done = shell.run(_HASH, tmp_path / name)

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

    done = shell.run(_HASH, tmp_path / "-file", path=str(tmp_path / "bin"))

    assert done.stdout.split()[0].decode() == hashlib.sha256(b"content\n").hexdigest()


def test_hashing_what_is_gone_fails(shell: Shell, tmp_path: Path) -> None:
    assert shell.run(_HASH, tmp_path / "gone").returncode != 0


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

    assert shell.run(_FINISH, part, target).returncode == 0

    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_of_the_targets_name_is_an_error_and_not_filled(
    shell: Shell, tmp_path: Path
) -> None:
    part, target = tmp_path / ".models.part", tmp_path / "models"
    part.write_bytes(b"new")
    target.mkdir()

    done = shell.run(_FINISH, part, target)

    assert done.returncode != 0
    assert list(target.iterdir()) == []


# Looking


@names
def test_a_look_gives_the_size(shell: Shell, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 4321)

    done = shell.run(_STAT, tmp_path / name)

    assert (done.returncode, int(done.stdout)) == (0, 4321)


def test_what_is_no_file_is_told_from_what_may_not_be_read(shell: Shell, open_folder: Path) -> None:
    (open_folder / "closed").write_bytes(b"x")
    (open_folder / "closed").chmod(0)
    (open_folder / "folder").mkdir()

    codes = [
        shell.run(_STAT, open_folder / name, nobody=True).returncode
        for name in ("missing", "folder", "closed")
    ]

    assert codes == [3, 3, 4]


# What df and failing writers say


def failure(said: bytes | str) -> CrossgapError:
    text = said.decode() if isinstance(said, bytes) else said
    return _writing_failed(AnsweringHost({}), "/data/a.part", text)


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
