"""This machine as a host: the same promises as over SSH."""

from __future__ import annotations

import concurrent.futures
import os
import socket
import threading
from pathlib import Path

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import (
    Cancelled,
    CommandFailed,
    CrossgapError,
    Damaged,
    InvalidInput,
    NotFound,
    PermissionRefused,
    TimedOut,
)
from blocks.local_host import LocalHost
from blocks.local_process import LocalProcess


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    return LocalHost(work_dir=str(tmp_path / "work"))


def running(words: str) -> bool:
    """Whether a process with these words runs, other than this test."""
    found = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    return any(words.encode() in line.replace(b"\0", b" ") for line in found)


def test_it_is_named_by_its_block_and_locked_by_its_machine(host: LocalHost) -> None:
    assert (host.name, host.label) == ("this machine", "this machine (local)")
    assert host.lock_name == f"{socket.gethostname()}-local"
    assert host.sudo_mode == "no"


def test_output_and_exit_code_are_the_commands(host: LocalHost) -> None:
    result = host.run(["sh", "-c", "echo 你好; echo 出错 >&2; exit 3"], timeout=20, check=False)

    assert (result.exit_code, result.stdout, result.stderr) == (3, "你好\n", "出错\n")


def test_arguments_reach_the_command_unchanged(host: LocalHost) -> None:
    arguments = ["$(touch /tmp/pwned)", "a b", "'", '"', ";", "*", "\\", "!", "换\n行", ""]

    result = host.run(["printf", "%s|", *arguments], timeout=20)

    assert result.stdout == "".join(f"{argument}|" for argument in arguments)


def test_a_failing_command_is_named_with_what_it_said(host: LocalHost) -> None:
    with pytest.raises(CommandFailed, match=r"'ls /nowhere'.*exit code \d.*No such file"):
        host.run(["ls", "/nowhere"], timeout=20)


def test_a_command_that_is_not_there_ends_with_127(host: LocalHost) -> None:
    assert host.run(["no-such-program-here"], timeout=20, check=False).exit_code == 127


def test_a_signal_that_ends_a_command_shows_in_its_exit_code(host: LocalHost) -> None:
    assert host.run(["sh", "-c", "kill -9 $$"], timeout=20, check=False).exit_code == 137


def test_output_that_is_not_text_does_no_harm(host: LocalHost) -> None:
    assert host.run(["printf", r"\377\376ok"], timeout=20).stdout.endswith("ok")
    assert host.capture(["printf", r"\377\376ok"], timeout=20).stdout == b"\xff\xfeok"


def test_input_larger_than_every_buffer_comes_through(host: LocalHost) -> None:
    data = b"0123456789abcde\n" * 100_000

    for sudo in (False, True):
        assert host.run(["cat"], timeout=60, input=data, sudo=sudo).stdout.encode() == data


def test_input_that_nobody_reads_is_no_error(host: LocalHost) -> None:
    for _ in range(20):
        assert host.run(["true"], timeout=20, input=b"x" * 1_000_000).exit_code == 0


def test_a_command_finds_its_input_ended(host: LocalHost) -> None:
    assert host.run(["cat"], timeout=20).stdout == ""


def test_writing_to_a_command_that_is_gone_is_a_broken_pipe() -> None:
    process = LocalProcess(["true"])
    process.close()
    process.close()

    # The thread that feeds a command may come late.
    with pytest.raises(BrokenPipeError):
        process.write(b"x")


def test_a_deadline_ends_the_command(host: LocalHost) -> None:
    with pytest.raises(TimedOut, match="did not end within 0 s"):
        host.run(["sh", "-c", "sleep 4731 & sleep 4731"], timeout=0.3)

    assert not running("sleep 4731")


def test_a_deadline_counts_for_a_command_that_has_closed_its_output(
    host: LocalHost, tmp_path: Path
) -> None:
    script = 'exec >&- 2>&-; sleep 4; touch "$1"'

    with pytest.raises(TimedOut):
        host.run(["sh", "-c", script, "sh", str(tmp_path / "late")], timeout=0.3)

    assert not (tmp_path / "late").exists()


def test_a_command_that_ignores_its_end_is_killed(
    host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.local_process.GRACE", 0.2)
    script = "trap '' TERM; sleep 8; touch \"$1\""

    with pytest.raises(TimedOut):
        host.run(["sh", "-c", script, "sh", str(tmp_path / "late")], timeout=0.3)

    assert not (tmp_path / "late").exists()


def test_a_cancelled_run_ends_its_command(host: LocalHost) -> None:
    cancellation = Cancellation()
    timer = threading.Timer(0.3, cancellation.cancel)

    timer.start()
    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        host.run(["sleep", "4732"], timeout=60)

    assert not running("sleep 4732")


def test_lines_stream_while_the_command_runs(host: LocalHost) -> None:
    lines = host.stream(["sh", "-c", "echo 一; exec sleep 4733"], timeout=20)

    assert next(lines) == "一"
    lines.close()  # type: ignore[attr-defined]
    assert not running("sleep 4733")


def test_lines_come_without_their_breaks_and_the_last_one_may_lack_it(host: LocalHost) -> None:
    assert list(host.stream(["printf", r"one\r\n\ntwo"], timeout=20)) == ["one", "", "two"]


def test_a_stream_that_fails_says_so_after_its_last_line(host: LocalHost) -> None:
    lines = host.stream(["sh", "-c", "echo one; echo why >&2; exit 4"], timeout=20)

    assert next(lines) == "one"
    with pytest.raises(CommandFailed, match=r"exit code 4 \(why\)"):
        next(lines)


def test_many_commands_run_at_once(host: LocalHost) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        results = pool.map(lambda n: host.run(["echo", str(n)], timeout=60).stdout, range(40))

        assert [int(text) for text in results] == list(range(40))


def test_no_descriptor_stays_open(host: LocalHost) -> None:
    host.run(["true"], timeout=20)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the listing itself is open, too

    for _ in range(10):
        host.run(["cat"], timeout=20, input=b"x")
        host.run(["false"], timeout=20, check=False)

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_home_is_found(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/操作 员/")

    assert host.expand("~") == "/home/操作 员"
    assert host.expand("~/a b") == "/home/操作 员/a b"
    assert host.expand("/data/~/x") == "/data/~/x"
    assert host.expand("~root/x") == "~root/x"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_a_port_here_needs_no_forwarding(host: LocalHost, name: str) -> None:
    with host.forward(name, 8080) as port:
        assert port == 8080


def test_a_port_elsewhere_is_not_this_machines(host: LocalHost) -> None:
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.9:80 is not on this machine"):
        host.forward("10.0.0.9", 80).__enter__()


def test_a_file_goes_and_comes_back(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content" * 100_000)
    there = tmp_path / "new 文件夹" / "-a b'"
    seen: list[tuple[int, int]] = []

    sent = host.put(tmp_path / "a", str(there), progress=lambda *pair: seen.append(pair))
    again = host.put(tmp_path / "a", str(there))
    got = host.get(str(there), tmp_path / "other" / "b")

    assert (sent.bytes_sent, sent.bytes_resumed) == (700_000, 0)
    assert (again.bytes_sent, again.bytes_resumed) == (0, 700_000)
    assert (got.bytes_sent, got.sha256) == (700_000, sent.sha256)
    assert (tmp_path / "other" / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert [path.name for path in there.parent.iterdir()] == ["-a b'"]
    assert seen[-1] == (700_000, 700_000)


def test_a_part_that_is_there_is_gone_on_with(host: LocalHost, tmp_path: Path) -> None:
    data = bytes(range(256)) * 12_000
    (tmp_path / "a").write_bytes(data)
    sha256 = host.put(tmp_path / "a", str(tmp_path / "first")).sha256
    for name in ("b", "c"):
        (tmp_path / f".{name}.{sha256[:16]}.part").write_bytes(data[:2_000_001])

    sent = host.put(tmp_path / "a", str(tmp_path / "b"))
    got = host.get(str(tmp_path / "a"), tmp_path / "c")

    assert (sent.bytes_sent, sent.bytes_resumed) == (len(data) - 2_000_001, 2_000_001)
    assert got.bytes_sent + got.bytes_resumed == len(data)
    assert 1_000_000 < got.bytes_resumed <= 2_000_001
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes() == data


def test_a_part_that_is_damaged_is_sent_again(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"right" * 1000)
    sha256 = host.put(tmp_path / "a", str(tmp_path / "first")).sha256
    for name, rest in (("b", b"wrong" * 10), ("c", b"too long" * 5000)):
        (tmp_path / f".{name}.{sha256[:16]}.part").write_bytes(rest)

        sent = host.put(tmp_path / "a", str(tmp_path / name))

        assert (tmp_path / name).read_bytes() == b"right" * 1000
        assert sent.bytes_resumed == 0


def test_a_file_that_is_not_the_promised_one_never_arrives(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")

    with pytest.raises(Damaged, match="not, or no longer"):
        host.put(tmp_path / "a", str(tmp_path / "b"), sha256="0" * 64)

    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_missing_files_are_named_on_both_sides(host: LocalHost, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file here"):
        host.put(tmp_path / "none", str(tmp_path / "b"))
    with pytest.raises(NotFound, match="there is no file /nowhere"):
        host.get("/nowhere", tmp_path / "b")


def test_a_folder_in_the_place_of_the_file_is_said_to_be_one(
    host: LocalHost, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "folder").mkdir()

    with pytest.raises(CrossgapError):
        host.put(tmp_path / "a", str(tmp_path / "folder"))
    with pytest.raises(CrossgapError):
        host.get(str(tmp_path / "a"), tmp_path / "folder")

    assert list((tmp_path / "folder").iterdir()) == []


def test_a_place_here_that_cannot_be_made_is_named(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")

    with pytest.raises(PermissionRefused) as refused:
        host.get(str(tmp_path / "a"), tmp_path / "a" / "b")

    assert refused.value.where == str(tmp_path / "a" / "b")
    assert refused.value.remedy


def test_the_rate_is_asked_for_before_bytes_are_sent(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 600_000)
    asked: list[int] = []

    host.put(tmp_path / "a", str(tmp_path / "b"), pace=asked.append)
    assert sum(asked) == 600_000
    host.get(str(tmp_path / "a"), tmp_path / "c", pace=asked.append)
    assert sum(asked) == 1_200_000
