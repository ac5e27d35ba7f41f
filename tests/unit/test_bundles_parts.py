"""Files in parts, and the sizes and paths that people and manifests give."""

from __future__ import annotations

import pytest

from blocks.errors import Damaged, InvalidInput
from tasks.bundles.parts import checked_path, parse_part_size, part_paths, split


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("3.9GB", 3_900_000_000), ("3.9 gb", 3_900_000_000), ("2GiB", 2 << 30),
        ("700M", 700_000_000), ("1048576", 1 << 20), (" 1TB ", 10**12),
    ],
)  # fmt: skip
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_part_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1GB", "1kB", "0", "4 GB or so", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="max_part_size"):
        parse_part_size(text)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(0, [0]), (9, [9]), (10, [10]), (11, [10, 1]), (30, [10, 10, 10]), (31, [10, 10, 10, 1])],
)
def test_parts_add_up_to_the_file(size: int, sizes: list[int]) -> None:
    parts = split("blobs/aa", size, 10)
    assert [part.size for part in parts] == sizes
    assert [part.offset for part in parts] == [sum(sizes[:n]) for n in range(len(sizes))]
    paths = part_paths(10)("blobs/aa", size)
    assert paths == [part.path for part in parts]
    if len(sizes) > 1:
        assert paths[:2] == ["blobs/aa.001", "blobs/aa.002"]


def test_only_paths_that_stay_inside_are_taken() -> None:
    assert checked_path("blobs/sha256/aa.001", "b") == "blobs/sha256/aa.001"
    for path in ("..", "a/../b", "/a", "a/", None, 7, "a" * 2000):
        with pytest.raises(Damaged):
            checked_path(path, "b")
