"""Bytes in pieces, as one sequence."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from blocks.content import Content, FileRange

WHOLE = b"head" + b"34567" + b"-" + b"0123456789"


@pytest.fixture
def content(tmp_path: Path) -> Content:
    path = tmp_path / "文件"
    path.write_bytes(b"0123456789")
    return Content((b"head", FileRange(path, 3, 5), b"", b"-", FileRange(path, 0, 10)))


def test_it_reads_as_one(content: Content) -> None:
    assert content.size == len(WHOLE)
    assert b"".join(content.chunks()) == WHOLE
    assert content.sha256() == hashlib.sha256(WHOLE).hexdigest()


def test_it_is_cut_at_any_two_places(content: Content) -> None:
    for start in range(len(WHOLE) + 2):
        assert b"".join(content.chunks(start)) == WHOLE[start:]
        for stop in range(start, len(WHOLE) + 2):
            cut = content.cut(start, stop)
            assert (b"".join(cut.chunks()), cut.size) == (WHOLE[start:stop], len(WHOLE[start:stop]))


def test_another_file_or_place_is_another_identity(content: Content, tmp_path: Path) -> None:
    path, before = tmp_path / "文件", content.identity()
    assert content.identity() == before
    assert content.cut(0, 7).identity() != before

    stat = path.stat()
    path.write_bytes(b"0123456780")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))

    assert content.identity() != before


def test_a_file_that_has_shrunk_is_noticed(content: Content, tmp_path: Path) -> None:
    os.truncate(tmp_path / "文件", 9)

    with pytest.raises(EOFError, match="shorter than it was"):
        content.sha256()


def test_hashing_stops_when_told(tmp_path: Path) -> None:
    endless = Content((FileRange(Path("/dev/zero"), 0, 1 << 60),))
    asked = iter([False, False, True])

    endless.sha256(lambda: next(asked))
