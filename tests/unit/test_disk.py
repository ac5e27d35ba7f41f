"""Room on a disk, from what df prints."""

from __future__ import annotations

import pytest

from blocks.disk import Disk, parse_disk
from blocks.errors import CommandFailed


@pytest.mark.parametrize(
    ("line", "disk"),
    [
        ("/dev/vda1 100 40 60 40% /", Disk("/dev/vda1", "/", 60 * 1024)),
        ("overlay  99 9 0 100% /var/lib/docker", Disk("overlay", "/var/lib/docker", 0)),
        ("nas:/my share 9 1 8 2% /mnt/my share", Disk("nas:/my share", "/mnt/my share", 8192)),
        (
            "//nas/our files 2024 1000 0 1000 0% /mnt/our files 100% full",
            Disk("//nas/our files 2024", "/mnt/our files 100% full", 1000 * 1024),
        ),
        ("/dev/sda1 100 110 -10 110% /", Disk("/dev/sda1", "/", 0)),
        ("tmpfs 5 0 5 - /run", Disk("tmpfs", "/run", 5120)),
        ("gpu1:/export/home 7 3 4 43% /home", Disk("gpu1:/export/home", "/home", 4096)),
    ],
)
def test_a_line_of_df_is_read_whatever_the_names_hold(line: str, disk: Disk) -> None:
    head = "Filesystem 1024-blocks Used Available Capacity Mounted on\n"
    assert parse_disk(head + line + "\n", "gpu1") == disk
    assert parse_disk(line, "gpu1") == disk


@pytest.mark.parametrize("output", ["df: /x: No such file or directory", "", "a b c"])
def test_what_is_not_dfs_output_is_refused_with_the_host(output: str) -> None:
    with pytest.raises(CommandFailed, match=r"^gpu1: the answer of df is not understood"):
        parse_disk(output, "gpu1")


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (Disk("/dev/sda1", "/", 1), Disk("/dev/sda1", "/", 1), True),
        (Disk("/dev/sda1", "/data", 1), Disk("/dev/sda1", "/var/lib/docker", 1), True),
        (Disk("overlay", "/a", 1), Disk("overlay", "/b", 1), False),
        (Disk("/dev/sda1", "/", 1), Disk("/dev/sdb1", "/data", 1), False),
    ],
)
def test_two_places_share_room_when_they_are_on_one_filesystem(
    one: Disk, other: Disk, shared: bool
) -> None:
    assert one.shares_room_with(other) is shared
