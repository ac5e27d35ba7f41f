"""Layers packed and unpacked as streams."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator

import pytest
import zstandard

from tasks.images.blobs import Compression
from tasks.images.compress import packed, unpacked

MIXED = random.Random(1).randbytes(300_000) + b"words and words " * 40_000
COMPRESSED: list[Compression] = ["gzip", "zstd"]


def cut(data: bytes, size: int = 70_001) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("content", [b"", b"x", MIXED, bytes(20_000_000)])
@pytest.mark.parametrize("compression", ["none", *COMPRESSED])
def test_what_was_packed_unpacks_to_the_same(compression: Compression, content: bytes) -> None:
    made = b"".join(packed(cut(content), compression))
    for size in (70_001, len(made) + 1):
        assert b"".join(unpacked(cut(made, size), compression)) == content


@pytest.mark.parametrize("compression", COMPRESSED)
def test_the_same_bytes_give_the_same_bytes_however_they_come(compression: Compression) -> None:
    made = b"".join(packed(cut(MIXED), compression))
    assert made == b"".join(packed(cut(MIXED), compression))
    assert len(made) < len(MIXED) / 2


def test_others_can_read_it() -> None:
    made = b"".join(packed(cut(MIXED), "gzip"))
    assert gzip.decompress(made) == MIXED
    assert made[3] == 0  # no name
    assert made[4:8] == bytes(4)  # no time
    made = b"".join(packed(cut(MIXED), "zstd"))
    assert zstandard.ZstdDecompressor().decompressobj().decompress(made) == MIXED


def test_several_members_and_padding_are_one_stream() -> None:
    made = gzip.compress(MIXED) + gzip.compress(b"end") + bytes(900)
    for size in (1, 1000, len(made)):
        assert b"".join(unpacked(cut(made, size), "gzip")) == MIXED + b"end"
    frames = zstandard.compress(MIXED) + zstandard.compress(b"end")
    assert b"".join(unpacked(cut(frames), "zstd")) == MIXED + b"end"


@pytest.mark.parametrize("compression", COMPRESSED)
def test_little_that_unpacks_to_much_comes_in_pieces(compression: Compression) -> None:
    made = b"".join(packed(cut(bytes(50_000_000), 1 << 20), compression))
    assert max(map(len, unpacked([made], compression))) <= 1 << 20


@pytest.mark.parametrize("compression", COMPRESSED)
def test_what_is_damaged_is_told(compression: Compression) -> None:
    made = bytearray(b"".join(packed(cut(MIXED), compression)))
    made[len(made) // 2 : len(made) // 2 + 8] = bytes(8)
    try:
        found = b"".join(unpacked(cut(bytes(made)), compression))
    except ValueError:
        return
    # zstd without a checksum may unpack to something else: digests are for that.
    assert found != MIXED
    assert compression == "zstd"


def test_gzip_that_ends_too_early_is_told() -> None:
    made = gzip.compress(MIXED)
    with pytest.raises(EOFError):
        b"".join(unpacked(cut(made[:-1]), "gzip"))
    with pytest.raises(ValueError, match="gzip"):
        b"".join(unpacked([b"no gzip at all"], "gzip"))


def test_zstd_that_ends_too_early_never_passes_for_the_whole() -> None:
    made = zstandard.compress(MIXED)
    for end in (1, 5, len(made) // 2, len(made) - 1):
        assert b"".join(unpacked(cut(made[:end]), "zstd")) != MIXED
    with pytest.raises(ValueError, match="zstd"):
        b"".join(unpacked([b"no zstd at all"], "zstd"))
