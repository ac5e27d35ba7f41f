"""One pass over a tar: every member hashed, memory flat."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import Cancelled, Damaged
from tasks.images.tar_stream import read_tar


def tar_file(path: Path, members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_hashed_as_stored_and_as_unpacked(tmp_path: Path, tar_format: int) -> None:
    plain, long = b"plain" * 1000, "x/" * 90 + "文件"
    zipped = gzip.compress(plain)
    path = tar_file(tmp_path / "t", {"./a": plain, long: zipped, "c.json": b"{}"}, tar_format)
    contents = read_tar(path)
    a, b, c = (contents.members[name] for name in ("a", long, "c.json"))
    assert a.sha256 == a.unpacked_sha256 == hashlib.sha256(plain).hexdigest()
    assert b.sha256 == hashlib.sha256(zipped).hexdigest()
    assert (b.compression, b.unpacked_sha256, b.unpacked_size) == ("gzip", a.sha256, len(plain))
    assert (c.document, a.document) == (b"{}", b"")
    assert contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("zipped", [False, True], ids=["tar", "gzip"])
def test_memory_stays_flat_however_large_a_member_is(tmp_path: Path, zipped: bool) -> None:
    path = tar_file(
        tmp_path / "t", {"layer": bytes(96 << 20), "gz": gzip.compress(bytes(96 << 20))}
    )
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    tracemalloc.start()
    try:
        contents = read_tar(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert contents.members["gz"].unpacked_size == 96 << 20
    assert peak < 32 << 20


@pytest.mark.parametrize("size", [1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_whatever_unpacks_to_many_times_its_size_is_unpacked_whole(
    tmp_path: Path, size: int
) -> None:
    path = tar_file(tmp_path / "t", {"gz": gzip.compress(bytes(size)), "plain": bytes(size)})
    path.write_bytes(gzip.compress(path.read_bytes()))
    members = read_tar(path).members
    assert members["gz"].unpacked_size == members["plain"].size == size
    assert members["gz"].unpacked_sha256 == members["plain"].sha256


def test_a_torn_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = tar_file(tmp_path / "t", {"a": b"x" * 512, "b": b"y" * 512})
    content = bytearray(path.read_bytes())
    content[1024 + 148 : 1024 + 156] = b"9999999\0"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"is damaged .* within a, "):
        read_tar(path)


def test_a_cancelled_run_stops_reading(tmp_path: Path) -> None:
    path = tar_file(tmp_path / "t", {"a": bytes(8 << 20)})
    cancellation = Cancellation()

    def cancel(_read: int, _total: int) -> None:
        cancellation.cancel()

    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        read_tar(path, cancel)
