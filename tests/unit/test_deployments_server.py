"""What a private server decides before anything is started."""

import fcntl
import socket
from pathlib import Path

import pytest

from blocks.errors import Conflict, InvalidInput
from deployments import server as module
from deployments.server import PrivateServer


def test_two_servers_never_share_one_folder(tmp_path: Path):
    (tmp_path / "demo").mkdir()
    with (tmp_path / "demo" / "lock").open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="in use by process 4711"):
            PrivateServer("demo", state=tmp_path).start()


def test_a_port_in_use_is_passed_over_for_a_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert module._free_port("127.0.0.1", port) != port


def test_a_free_preferred_port_is_taken():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert module._free_port("127.0.0.1", port) == port


def test_an_address_of_another_machine_is_refused_with_the_remedy(tmp_path: Path):
    server = PrivateServer("demo", port=4280, listen="192.0.2.1", state=tmp_path)
    with pytest.raises(InvalidInput, match="hostname -I"):
        server.start()


def test_loopback_needs_no_authentication_and_any_other_address_does(tmp_path: Path):
    assert PrivateServer("a", state=tmp_path).auth_string == ""
    assert PrivateServer("b", listen="198.51.100.5", state=tmp_path).auth_string


def test_the_ui_of_all_addresses_is_named_by_one_a_browser_can_reach(tmp_path: Path):
    server = PrivateServer("demo", port=4280, listen="0.0.0.0", state=tmp_path)
    assert "0.0.0.0" not in server.ui_url
    assert server.api_url == f"{server.ui_url}/api"
