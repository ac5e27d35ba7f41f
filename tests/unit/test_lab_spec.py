"""Hosts are asked for by name and kind; what cannot be is refused before anything is made."""

from __future__ import annotations

import pytest

from tests.lab import HostSpec, LabError
from tests.lab.network import Subnet
from tests.lab.spec import complete
from tests.lab.sshd import known_hosts_line
from tests.lab.state import LabFolders


def test_a_bare_host_brings_its_jump_host_along_first() -> None:
    assert [(s.name, s.kind, s.behind) for s in complete([HostSpec("old", "bare")])] == [
        ("jump", "jump", ""),
        ("old", "bare", "jump"),
    ]


@pytest.mark.parametrize(
    "hosts",
    [
        [HostSpec("one"), HostSpec("one")],
        [HostSpec("one"), HostSpec("old", "bare", behind="one")],
        [HostSpec("jump", "jump", behind="other")],
    ],
)
def test_hosts_that_contradict_each_other_are_refused(hosts: list[HostSpec]) -> None:
    with pytest.raises(LabError):
        complete(hosts)


@pytest.mark.parametrize("name", ["", "Up", "a-b", "a.b", "waytoolongforus", "switch", "1st"])
def test_a_name_that_fits_no_interface_is_refused(name: str) -> None:
    with pytest.raises(LabError):
        HostSpec(name)


@pytest.mark.parametrize("name", ["", "../etc", "a.b", "A", "x" * 33])
def test_a_lab_name_that_fits_no_path_is_refused(name: str) -> None:
    with pytest.raises(LabError):
        LabFolders(name)


def test_subnets_lie_in_the_benchmarking_range() -> None:
    assert Subnet(1).front(0) == "198.18.1.10"
    assert Subnet(511).back(0) == "198.19.255.138"


def test_a_host_is_known_with_and_without_its_port() -> None:
    line = known_hosts_line("198.18.1.10", 2222, "ssh-ed25519 AAAA a comment")
    assert line == "198.18.1.10,[198.18.1.10]:2222 ssh-ed25519 AAAA\n"
