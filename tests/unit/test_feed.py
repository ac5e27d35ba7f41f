"""Bytes from here into a command, which may end, stall or talk meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blocks import feed as module
from blocks.cancellation import Cancellation, cancellation_scope
from blocks.content import Content, FileRange
from blocks.errors import Cancelled, SourceDamaged, TimedOut
from blocks.feed import feed
from blocks.local_host import LocalHost

HOST = LocalHost()


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """More than a pipe holds, from memory and from a file."""
    (tmp_path / "文件").write_bytes(os.urandom(3_000_000))
    return Content((b"head", FileRange(tmp_path / "文件", 1, 2_999_999), b"tail"))


def test_a_command_reads_all_of_it_and_its_end_is_told(content: Content) -> None:
    numbers: list[tuple[int, int]] = []
    paced: list[int] = []
    result = feed(
        HOST,
        ["sh", "-c", "sha256sum; echo 完 >&2; exit 3"],
        content,
        progress=lambda done, total: numbers.append((done, total)),
        pace=paced.append,
    )
    assert result.stdout.split()[0] == content.sha256()
    assert (result.exit_code, result.stderr) == (3, "完\n")
    assert numbers == sorted(numbers)
    assert numbers[-1] == (content.size, content.size)
    assert sum(paced) == content.size


def test_a_command_that_ends_before_it_has_read_all_is_no_error_here(content: Content) -> None:
    result = feed(HOST, ["sh", "-c", "head -c 1 >/dev/null; echo full >&2; exit 1"], content)
    assert (result.exit_code, result.stderr) == (1, "full\n")


def test_of_what_a_command_prints_the_end_is_kept() -> None:
    script = "cat >/dev/null; seq 100000; seq 100000 >&2"
    result = feed(HOST, ["sh", "-c", script], Content((b"x",)))
    assert result.stdout.endswith("\n99999\n100000\n")
    assert result.stderr.endswith("\n100000\n")
    assert max(len(result.stdout), len(result.stderr)) <= 1 << 16


def test_a_command_that_talks_much_while_it_reads_does_not_block(content: Content) -> None:
    result = feed(HOST, ["sh", "-c", "od -An -tx1"], content.cut(0, 500_000))
    assert result.exit_code == 0
    assert len(result.stdout) == 1 << 16


@pytest.mark.parametrize("script", ["sleep 60", "cat >/dev/null; sleep 60"], ids=["reading", "end"])
def test_a_command_that_neither_reads_nor_talks_is_given_up(
    content: Content, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(module, "STALL", 0.3)
    with pytest.raises(TimedOut):
        feed(HOST, ["sh", "-c", script], content)


def test_a_command_that_shows_life_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL", 1.5)
    script = "cat >/dev/null; for i in 1 2 3 4 5 6 7 8; do sleep 0.25; echo $i; done"
    result = feed(HOST, ["sh", "-c", script], Content((b"x",)))
    assert result.stdout.split() == list("12345678")


def test_a_file_that_became_shorter_is_told_and_the_command_ended(
    content: Content, tmp_path: Path
) -> None:
    (tmp_path / "文件").write_bytes(bytes(1_000_000))
    with pytest.raises(SourceDamaged, match="shorter than it was"):
        feed(HOST, ["cat"], content)


def test_a_cancelled_run_stops_feeding(content: Content) -> None:
    cancellation = Cancellation()

    def cancel(_done: int, _total: int) -> None:
        cancellation.cancel()

    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        feed(HOST, ["sh", "-c", "cat >/dev/null"], content, progress=cancel)
