"""Hosts by the names of their blocks, as Prefect's server keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from prefect.blocks.core import Block

from blocks.errors import NotFound
from blocks.hosts import host_names, load_host
from blocks.local_host import LocalHost
from blocks.ssh_host import JumpHost, SSHHost

pytestmark = pytest.mark.usefixtures("prefect_api")

GPU = SSHHost(
    address="10.0.3.17",
    port=2222,
    username="operator",
    known_hosts="[10.0.3.17]:2222 ssh-ed25519 AAAA",
    password="hush",
    sudo="password",
    jump_host=JumpHost(address="10.0.0.1", private_key="-----BEGIN"),
)


@pytest.fixture(autouse=True)
def _no_other_blocks() -> Iterator[None]:
    """Remove the blocks of other tests before, and those of this one afterwards."""
    _remove_hosts()
    yield
    _remove_hosts()


def _remove_hosts() -> None:
    kinds: tuple[type[Block], ...] = (SSHHost, LocalHost)
    for name in host_names():
        for kind in kinds:
            with suppress(ValueError):
                kind.delete(name)


def test_a_host_comes_back_as_it_was_saved() -> None:
    GPU.save("gpu-1")

    host = load_host("gpu-1")

    assert isinstance(host, SSHHost)
    assert (host.name, host.label) == ("gpu-1", "gpu-1 (10.0.3.17:2222)")
    assert host.lock_name == "10.0.3.17-2222"
    login = host.login()
    assert (login.username, login.password, login.sudo_password) == ("operator", "hush", "hush")
    assert login.jump
    assert (login.jump.address, login.jump.private_keys) == ("10.0.0.1", ("-----BEGIN",))
    assert login == GPU.login()


def test_this_machine_comes_back_too() -> None:
    LocalHost(work_dir="/data1/crossgap").save("desk")

    host = load_host("desk")

    assert isinstance(host, LocalHost)
    assert (host.name, host.label, host.work_dir) == ("desk", "desk (local)", "/data1/crossgap")


def test_of_two_hosts_of_one_name_the_one_behind_ssh_counts() -> None:
    LocalHost().save("same")
    GPU.save("same")

    assert isinstance(load_host("same"), SSHHost)


def test_all_hosts_are_named_in_order() -> None:
    assert host_names() == []
    for name in ("gpu-2", "gpu-1", "gpu-10"):
        GPU.save(name)
    LocalHost().save("desk")

    assert host_names() == ["desk", "gpu-1", "gpu-10", "gpu-2"]


def test_a_jump_host_is_no_host_to_work_on() -> None:
    JumpHost(address="10.0.0.1").save("gate", overwrite=True)

    assert host_names() == []
    with pytest.raises(NotFound):
        load_host("gate")


def test_a_name_that_does_not_exist_is_answered_with_those_that_do() -> None:
    GPU.save("gpu-1")
    LocalHost().save("desk")

    with pytest.raises(NotFound) as unknown:
        load_host("gpu1")

    assert str(unknown.value) == (
        "gpu1: there is no host block of this name. Did you mean 'gpu-1'? "
        "Existing hosts: desk, gpu-1. Make one in the UI under Blocks, type SSH Host."
    )


@pytest.mark.parametrize("name", ["gpu-1", "", "a/b", "镜像", "../x", "a b"])
def test_where_there_are_no_hosts_that_is_said(name: str) -> None:
    with pytest.raises(NotFound, match="Existing hosts: none"):
        load_host(name)
