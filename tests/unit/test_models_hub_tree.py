"""The file list of a hub."""

from __future__ import annotations

from typing import Any

import pytest

from blocks.errors import Damaged
from tasks.models.files import ModelFile, check_files
from tasks.models.hub.tree import next_query, parse_entry

SHA256, SHA1 = "a" * 64, "b" * 40


@pytest.mark.parametrize(
    ("link", "query"),
    [
        (
            '<https://huggingface.co/api/models/a/b/tree/x?cursor=Z%3D%3D>; rel="next"',
            "cursor=Z%3D%3D",
        ),
        ("<https://h/x?a=1&b=2>;rel=next", "a=1&b=2"),
        ('<https://h/x?page=0>; rel="prev", <https://h/x?page=2>; rel="next"', "page=2"),
        ('<https://h/x?page=0>; rel="prev"', ""),
        ("<https://h/x>; rel=next", ""),
        ("", ""),
    ],
)
def test_of_the_next_page_only_the_query_is_taken(link: str, query: str) -> None:
    assert next_query(link) == query


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        (
            {"type": "file", "path": "config.json", "size": 7, "oid": SHA1},
            ModelFile("config.json", 7, git_sha1=SHA1),
        ),
        (
            {"path": "m.bin", "size": 9, "oid": SHA1, "lfs": {"oid": SHA256, "size": 9}},
            ModelFile("m.bin", 9, sha256=SHA256),
        ),
        (
            {"path": "m.bin", "size": 9, "oid": SHA1, "lfs": {"sha256": f"sha256:{SHA256}"}},
            ModelFile("m.bin", 9, sha256=SHA256),
        ),
    ],
)
def test_a_large_file_is_known_by_sha256_and_a_small_one_by_git(
    entry: dict[str, Any], file: ModelFile
) -> None:
    assert parse_entry(entry, "x") == file


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "a", "size": 7},
        {"path": "a", "oid": SHA1},
        {"path": "a", "size": "7", "oid": SHA1},
        {"path": "a", "size": True, "oid": SHA1},
        {"path": 1, "size": 7, "oid": SHA1},
        {"path": "a", "size": 7, "oid": SHA1, "lfs": {"size": 7}},
        {"path": "a", "size": 7, "oid": SHA1, "lfs": {"oid": None, "size": 7}},
    ],
)
def test_a_file_without_size_or_hash_gets_none_that_would_pass(entry: dict[str, Any]) -> None:
    with pytest.raises(Damaged):
        check_files([parse_entry(entry, "x")], "x")


def test_a_file_of_two_sizes_is_refused() -> None:
    entry = {"path": "m.bin", "size": 130, "oid": SHA1, "lfs": {"oid": SHA256, "size": 9}}
    with pytest.raises(Damaged, match="two sizes, 130 and 9"):
        parse_entry(entry, "x")
