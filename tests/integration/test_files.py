"""Files to and from real hosts, with links cut, disks filled and bytes damaged."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blocks import fetching, remote_hash, sending, transfer
from blocks.cancellation import Cancellation, cancellation_scope
from blocks.content import Content, FileRange
from blocks.errors import (
    Cancelled,
    DiskFull,
    NotFound,
    PermissionRefused,
    SourceDamaged,
    Unreachable,
)
from blocks.file_scripts import RECEIVE
from blocks.link import SAMPLE, link_rate
from blocks.local_host import LocalHost
from tests.integration.conftest import Connect
from tests.lab import LabHost

MB = 1_000_000


@pytest.fixture(autouse=True)
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of 24 MB travel as large ones do, through OpenSSH unless told otherwise."""
    monkeypatch.setattr(transfer, "BULK", MB)
    if getattr(request, "param", "openssh") == "paramiko":
        monkeypatch.setenv("CROSSGAP_OPENSSH", "no")


both_ways = pytest.mark.parametrize("wire", ["openssh", "paramiko"], indirect=True)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """Give a file of 24 MB that does not compress, with a Chinese name."""
    path = tmp_path / "镜像 包.tar"
    path.write_bytes(os.urandom(24 * MB))
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _remote_sha256(host: LabHost, path: str) -> str:
    return host.run(["sha256sum", path]).split()[0].lstrip("\\")


@both_ways
def test_a_file_arrives_whole_under_its_name(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    seen: list[int] = []

    sent = connect(any_host).put(big, "~/到 达/a.tar", progress=lambda done, _: seen.append(done))

    assert (sent.bytes_sent, sent.bytes_resumed, sent.sha256) == (24 * MB, 0, _sha256(big))
    assert _remote_sha256(any_host, f"{any_host.home}/到 达/a.tar") == sent.sha256
    assert any_host.run(["ls", "-A", f"{any_host.home}/到 达"]) == "a.tar\n"
    assert seen == sorted(seen)
    assert seen[-1] == 24 * MB


def test_a_file_that_is_there_is_not_sent_again(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    host = connect(any_host)
    host.put(big, "~/a.tar")

    again = host.put(big, "~/a.tar")

    assert (again.bytes_sent, again.bytes_resumed) == (0, 24 * MB)


def test_an_empty_file_arrives(any_host: LabHost, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    connect(any_host).put(tmp_path / "empty", "~/empty")

    assert any_host.run(["wc", "-c", f"{any_host.home}/empty"]).startswith("0 ")


def test_another_file_takes_the_place_of_an_older_one(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    host = connect(any_host)
    host.put(big, "~/a.tar")
    big.write_bytes(os.urandom(MB))

    host.put(big, "~/a.tar")

    assert _remote_sha256(any_host, f"{any_host.home}/a.tar") == _sha256(big)


@both_ways
def test_a_file_comes_back_as_it_went(
    any_host: LabHost, connect: Connect, big: Path, tmp_path: Path
) -> None:
    host = connect(any_host)
    host.put(big, "~/a.tar")

    fetched = host.get("~/a.tar", tmp_path / "new" / "b.tar")

    assert fetched.sha256 == _sha256(big) == _sha256(tmp_path / "new" / "b.tar")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b.tar"]


def test_a_fetch_goes_on_where_an_earlier_one_stopped(
    plain: LabHost, connect: Connect, big: Path, tmp_path: Path
) -> None:
    host = connect(plain)
    host.put(big, "~/a.tar")
    part = tmp_path / f".b.tar.{_sha256(big)[:16]}.part"
    part.write_bytes(big.read_bytes()[: 10 * MB])

    fetched = host.get("~/a.tar", tmp_path / "b.tar")

    whole_blocks = 10 * MB // fetching.BLOCK * fetching.BLOCK
    assert fetched.bytes_resumed == whole_blocks
    assert fetched.bytes_sent == 24 * MB - whole_blocks
    assert _sha256(tmp_path / "b.tar") == _sha256(big)


def test_a_cut_link_is_waited_out_and_nothing_that_arrived_is_sent_again(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    any_host.slow(40)
    host = connect(any_host)
    arrived_at_cut: list[int] = []

    def cut_once(arrived: int, _: int) -> None:
        if arrived > 4 * MB and not arrived_at_cut:
            arrived_at_cut.append(arrived)
            any_host.cut()
            threading.Timer(5, any_host.mend).start()

    before = any_host.bytes_received()
    sent = host.put(big, "~/a.tar", progress=cut_once)
    received = any_host.bytes_received() - before

    assert arrived_at_cut
    assert _remote_sha256(any_host, f"{any_host.home}/a.tar") == _sha256(big)
    # What was on the way when the link went is lost: an SSH window of 2 MiB, and
    # on the wire the headers of SSH and TCP, twice behind a jump host.
    assert sent.bytes_sent <= 24 * MB + 4 * MB
    assert received <= 24 * MB * 1.15 + 4 * MB


@pytest.mark.parametrize("wire", ["paramiko"], indirect=True)
def test_a_killed_sshd_costs_nothing_that_had_arrived(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    any_host.slow(80)
    killed: list[int] = []

    def kill_once(arrived: int, _: int) -> None:
        if arrived > 4 * MB and not killed:
            killed.append(arrived)
            any_host.stop_sshd()
            threading.Timer(2, any_host.start_sshd).start()

    sent = connect(any_host).put(big, "~/a.tar", progress=kill_once)

    assert killed
    assert sent.bytes_sent <= 24 * MB + 4 * MB
    assert _remote_sha256(any_host, f"{any_host.home}/a.tar") == _sha256(big)


def test_patience_has_an_end(plain: LabHost, connect: Connect, big: Path) -> None:
    host = connect(plain, patience=3, connect_timeout=1)
    plain.cut()

    with pytest.raises(Unreachable):
        host.put(big, "~/a.tar")


@both_ways
def test_a_killed_process_leaves_a_part_that_the_next_one_uses(
    any_host: LabHost, connect: Connect, big: Path, tmp_path: Path
) -> None:
    any_host.slow(40)
    host = connect(any_host)
    (tmp_path / "block.json").write_text(host.model_dump_json(context={"include_secrets": True}))
    script = textwrap.dedent("""
        import json, pathlib, sys
        from blocks.ssh_host import SSHHost
        host = SSHHost.model_validate(json.loads(pathlib.Path(sys.argv[1]).read_text()))
        host.put(sys.argv[2], "~/a.tar", progress=lambda done, _: print(done, flush=True))
    """)
    sender = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "block.json"), str(big)],
        stdout=subprocess.PIPE,
        text=True,
    )
    before = any_host.bytes_received()
    with sender:
        assert sender.stdout
        for line in sender.stdout:
            if int(line) > 4 * MB:
                break
        sender.kill()
    any_host.slow(None)

    sent = host.put(big, "~/a.tar")

    # Headers of SSH and TCP, twice behind a jump host; and what was on the way.
    assert any_host.bytes_received() - before <= 24 * MB * 1.12 + (8 << 20)
    assert sent.bytes_resumed > 4 * MB
    assert sent.bytes_sent == 24 * MB - sent.bytes_resumed
    assert _remote_sha256(any_host, f"{any_host.home}/a.tar") == _sha256(big)


def test_a_part_that_was_damaged_on_the_host_is_sent_anew(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    part = f"{any_host.home}/.a.tar.{_sha256(big)[:16]}.part"
    any_host.write_file(part, b"x" * MB, 0o666)

    sent = connect(any_host).put(big, "~/a.tar")

    assert (sent.bytes_sent, sent.bytes_resumed) == (47 * MB, 0)
    assert _remote_sha256(any_host, f"{any_host.home}/a.tar") == _sha256(big)


def test_a_file_that_is_not_what_it_should_be_is_never_delivered(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    with pytest.raises(SourceDamaged, match="not, or no longer, the one"):
        connect(any_host).put(big, "~/a.tar", sha256="0" * 64)

    assert "a.tar" not in any_host.run(["ls", "-A", any_host.home])


def test_a_disk_without_room_is_found_before_anything_is_sent(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    host = connect(any_host)
    host.run(["true"], timeout=20)
    any_host.fill_disk(8 * MB)
    before = any_host.bytes_received()

    with pytest.raises(DiskFull, match=r"needs 0\.02 GB but has"):
        host.put(big, "~/a.tar")

    assert any_host.bytes_received() - before < MB
    assert "a.tar" not in any_host.run(["ls", "-A", any_host.home])


@both_ways
def test_a_disk_that_fills_up_on_the_way_leaves_nothing_behind(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    any_host.slow(80)
    filled: list[int] = []

    def fill_once(arrived: int, _: int) -> None:
        if arrived > 2 * MB and not filled:
            filled.append(arrived)
            any_host.fill_disk(0)

    with pytest.raises(DiskFull, match="filled up"):
        connect(any_host).put(big, "~/a.tar", progress=fill_once)

    assert filled
    assert "a.tar" not in any_host.run(["ls", "-A", any_host.home])


def test_a_folder_that_the_user_may_not_write_is_named(
    bare: LabHost, connect: Connect, big: Path
) -> None:
    with pytest.raises(PermissionRefused, match="may not write to /usr/lib"):
        connect(bare).put(big, "/usr/lib/a.tar")


def test_missing_files_are_named_on_both_sides(
    plain: LabHost, connect: Connect, tmp_path: Path
) -> None:
    host = connect(plain)

    with pytest.raises(NotFound, match="no such file here"):
        host.put(tmp_path / "none", "~/none")
    with pytest.raises(NotFound, match="there is no file /nowhere"):
        host.get("/nowhere", tmp_path / "none")


def test_a_cancelled_transfer_stops_at_once_and_shows_nothing(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    any_host.slow(20)
    cancellation = Cancellation()

    def cancel(arrived: int, _: int) -> None:
        if arrived > MB:
            cancellation.cancel()

    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        connect(any_host).put(big, "~/a.tar", progress=cancel)

    names = any_host.run(["ls", "-A", any_host.home]).splitlines()
    assert "a.tar" not in names
    _wait_until(lambda: not any(".part" in line for _, line in any_host.processes()))


def test_a_writer_left_by_a_cut_link_is_ended_before_the_next_one_begins(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    part = f"{any_host.home}/.a.tar.{_sha256(big)[:16]}.part"
    # As the cut-off writer: a group leader that names the part, writing as the user.
    writer = 'echo $$ >"$1.writer"; sleep 4719 | cat >>"$1"'
    start = f"setsid sh -c '{writer}' sh {part} </dev/null >/dev/null 2>&1 &"
    connect(any_host).run(["sh", "-c", start], timeout=20)
    _wait_until(lambda: any("sleep 4719" in line for _, line in any_host.processes()))

    connect(any_host).put(big, "~/a.tar")

    assert not any("sleep 4719" in line for _, line in any_host.processes())
    assert _remote_sha256(any_host, f"{any_host.home}/a.tar") == _sha256(big)


def test_a_writer_that_is_ended_from_outside_costs_nothing_that_had_arrived(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    any_host.slow(40)
    killed: list[int] = []

    def kill_once(arrived: int, _: int) -> None:
        if arrived > 12 * MB and not killed:
            killed.append(arrived)
            any_host.run(["sh", "-c", f"kill $(cat {any_host.home}/.a.tar.*.part.writer)"])

    sent = connect(any_host).put(big, "~/a.tar", progress=kill_once)

    assert killed
    # It is noticed within a second or so, which is 5 MB on this line; from the start
    # again would be 36 MB and more.
    assert sent.bytes_sent <= 24 * MB + 9 * MB
    assert _remote_sha256(any_host, f"{any_host.home}/a.tar") == _sha256(big)


def test_patience_ends_although_commands_pass_when_data_does_not(
    plain: LabHost, connect: Connect, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = connect(plain, patience=3)
    monkeypatch.setattr(sending, "RECEIVE", "kill -9 $$")

    with pytest.raises(Unreachable, match="ended from outside"):
        host.put(big, "~/a.tar")


def test_a_large_file_that_is_all_there_is_hashed_by_a_job(
    any_host: LabHost, connect: Connect, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_hash, "HASH_BY_JOB", MB)
    host = connect(any_host)
    part = f"{any_host.home}/大/.a.tar.{_sha256(big)[:16]}.part"
    any_host.write_file(part, big.read_bytes(), 0o666)

    sent = host.put(big, "~/大/a.tar")

    assert (sent.bytes_sent, sent.bytes_resumed) == (0, 24 * MB)
    assert _remote_sha256(any_host, f"{any_host.home}/大/a.tar") == sent.sha256 == _sha256(big)
    assert any_host.run(["ls", "-A", f"{any_host.home}/.crossgap/jobs"]) == ""


def test_a_connection_that_dies_while_the_far_side_hashes_costs_no_byte(
    plain: LabHost, connect: Connect, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = RECEIVE.replace("echo hashing\n", 'echo hashing; sleep 4720; echo "$part" >~/late\n')
    monkeypatch.setattr(sending, "RECEIVE", slow)
    monkeypatch.setattr(remote_hash, "HASH_BY_JOB", MB)
    killed: list[int] = []

    def kill_once(arrived: int, _: int) -> None:
        if arrived == 24 * MB and not killed:
            killed.append(arrived)
            _wait_until(lambda: any("sleep 4720" in line for _, line in plain.processes()))
            plain.stop_sshd()
            plain.start_sshd()

    sent = connect(plain).put(big, "~/a.tar", progress=kill_once)

    assert killed
    assert (sent.bytes_sent, sent.sha256) == (24 * MB, _sha256(big))
    assert _remote_sha256(plain, "/root/a.tar") == sent.sha256
    assert "late" not in plain.run(["ls", "-A", "/root"])


def test_a_file_whose_hash_nobody_knows_is_hashed_on_both_sides_at_once(
    any_host: LabHost, connect: Connect, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "HASH_FIRST", MB)
    monkeypatch.setattr(sending, "HASH_AT_ONCE", MB)
    host = connect(any_host)

    sent = host.put(big, "~/a.tar")
    again = host.put(big, "~/a.tar")

    assert (sent.bytes_sent, sent.sha256) == (24 * MB, _sha256(big))
    assert (again.bytes_sent, again.sha256) == (0, _sha256(big))
    assert _remote_sha256(any_host, f"{any_host.home}/a.tar") == _sha256(big)
    assert any_host.run(["sh", "-c", f"ls -A {any_host.home} | grep a.tar"]) == "a.tar\n"


def test_a_file_that_changes_while_it_travels_is_not_delivered(
    plain: LabHost, connect: Connect, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "HASH_FIRST", MB)

    def change(arrived: int, _: int) -> None:
        if arrived == 24 * MB:
            with big.open("r+b") as file:
                file.write(b"changed")

    with pytest.raises(SourceDamaged, match="no longer"):
        connect(plain).put(big, "~/a.tar", progress=change)

    assert "a.tar" not in plain.run(["ls", "-A", "/root"])


def test_a_file_that_shrinks_while_it_travels_is_said_to(
    plain: LabHost, connect: Connect, big: Path
) -> None:
    host, content = connect(plain), Content.of_file(big)
    os.truncate(big, 20 * MB)

    with pytest.raises(SourceDamaged, match="shorter than it was"):
        host.put(content, "~/a.tar", sha256="1" * 64)


def test_content_in_pieces_arrives_as_one_file(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    data = big.read_bytes()
    pieces = (b"head", FileRange(big, 5 * MB + 3, 2 * MB), b"between", FileRange(big, 0, 7), b"")
    whole = b"head" + data[5 * MB + 3 : 7 * MB + 3] + b"between" + data[:7]
    content = Content(pieces)
    part = f"{any_host.home}/.a.{content.sha256()[:16]}.part"
    any_host.write_file(part, whole[: MB + 1], 0o666)

    sent = connect(any_host).put(content, "~/a")

    assert (sent.bytes_resumed, sent.bytes_sent) == (MB + 1, len(whole) - MB - 1)
    assert sent.sha256 == hashlib.sha256(whole).hexdigest()
    assert any_host.run(["sha256sum", f"{any_host.home}/a"]).startswith(sent.sha256)


def test_a_byte_that_is_damaged_on_the_host_is_found_and_sent_again(
    plain: LabHost, connect: Connect, big: Path
) -> None:
    plain.slow(80)
    part = f"{plain.home}/.a.tar.{_sha256(big)[:16]}.part"
    damaged: list[int] = []

    def damage_once(arrived: int, _: int) -> None:
        if arrived > 4 * MB and not damaged:
            damaged.append(arrived)
            with plain.path(part).open("r+b") as file:
                file.write(b"damaged")
            plain.slow(None)

    sent = connect(plain).put(big, "~/a.tar", progress=damage_once)

    assert damaged
    assert (sent.bytes_sent, sent.sha256) == (48 * MB, _sha256(big))
    assert _remote_sha256(plain, f"{plain.home}/a.tar") == _sha256(big)


def test_several_files_travel_to_one_host_at_once(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    host = connect(any_host)
    contents = [Content((FileRange(big, number * MB, 5 * MB),)) for number in range(4)]

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda it: host.put(it, f"~/{id(it)}"), contents))

    assert [it.sha256 for it in sent] == [it.sha256() for it in contents]


def test_the_line_is_measured_with_bytes_that_need_not_travel_again(
    any_host: LabHost, connect: Connect, big: Path
) -> None:
    host, content = connect(any_host), Content.of_file(big)
    any_host.slow(20)

    slow = link_rate(host, content, "~/a.tar", content.sha256())
    any_host.slow(None)
    sent = host.put(content, "~/a.tar", sha256=content.sha256())
    fast = link_rate(host, content, "~/a.tar", content.sha256())

    # Twenty Mbit/s are 2.5 MB/s, which a busy machine may miss, but not exceed by much.
    assert slow < 2.5e6 * 1.5 < fast
    assert (sent.bytes_resumed, sent.bytes_sent) == (SAMPLE, 24 * MB - SAMPLE)


def test_what_is_sent_is_its_owners_only(any_host: LabHost, connect: Connect, big: Path) -> None:
    connect(any_host).put(big, "~/.crossgap/staging/a.tar")

    modes = any_host.run(
        ["sh", "-c", f"cd {any_host.home}/.crossgap && stat -c %a staging staging/*"]
    )
    assert set(modes.split()) <= {"700", "600"}


def test_a_link_in_the_place_of_the_part_is_not_written_through(
    plain: LabHost, connect: Connect, big: Path
) -> None:
    part = f"{plain.home}/.a.tar.{_sha256(big)[:16]}.part"
    plain.write_file("/etc/victim", b"precious", 0o644)
    plain.run(["ln", "-s", "/etc/victim", part])

    with pytest.raises(PermissionRefused):
        connect(plain).put(big, "~/a.tar")

    assert plain.read_file("/etc/victim") == b"precious"


def test_this_machine_takes_files_like_any_host(tmp_path: Path, big: Path) -> None:
    host = LocalHost(work_dir=str(tmp_path / "work"))

    sent = host.put(big, str(tmp_path / "new" / "a.tar"))
    again = host.put(big, str(tmp_path / "new" / "a.tar"))

    assert (sent.bytes_sent, again.bytes_sent) == (24 * MB, 0)
    assert _sha256(tmp_path / "new" / "a.tar") == _sha256(big)


def _wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to be")
