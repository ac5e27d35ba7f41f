"""What the OpenSSH client is told."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.openssh_config import Hop, compose_config, compose_known_hosts

HOST = Hop("10.0.0.1", 2222, "operator", ("ssh-ed25519 AAAA",), 7.5, True, False)
JUMP = Hop("fe80::1%eth0", 22, "门 卫".replace(" ", ""), ("ssh-rsa BBBB",), 0.1, False, True)


def understood(hops: list[Hop], tmp_path: Path, number: int = 0) -> dict[str, str]:
    """Give what OpenSSH itself makes of the configuration for a hop."""
    config = tmp_path / "config"
    config.write_text(compose_config(hops, tmp_path, "/usr/bin/ssh"))
    done = subprocess.run(
        ["ssh", "-F", str(config), "-G", f"crossgap-{number}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())


def test_openssh_understands_where_to_go_and_as_whom(tmp_path: Path) -> None:
    told = understood([HOST], tmp_path)

    assert (told["hostname"], told["port"], told["user"]) == ("10.0.0.1", "2222", "operator")
    assert told["connecttimeout"] == "8"
    assert "proxycommand" not in told


def test_host_keys_are_checked_against_ours_only(tmp_path: Path) -> None:
    told = understood([HOST], tmp_path)

    assert told["stricthostkeychecking"] == "true"
    assert told["userknownhostsfile"] == str(tmp_path / "known_hosts")
    assert told["globalknownhostsfile"] == "/dev/null"
    assert (told["hostkeyalias"], told["checkhostip"]) == ("crossgap-0", "no")
    assert told["updatehostkeys"] == "false"
    assert compose_known_hosts([HOST, JUMP]) == (
        "crossgap-0 ssh-ed25519 AAAA\ncrossgap-1 ssh-rsa BBBB\n"
    )


def test_the_fast_cipher_comes_first_and_old_ones_stay(tmp_path: Path) -> None:
    ciphers = understood([HOST], tmp_path)["ciphers"].split(",")

    assert ciphers[0] == "aes128-gcm@openssh.com"
    assert {"aes128-ctr", "aes256-ctr", "chacha20-poly1305@openssh.com"} <= set(ciphers)


def test_a_silent_peer_is_noticed_within_twenty_seconds(tmp_path: Path) -> None:
    told = understood([HOST], tmp_path)

    assert int(told["serveraliveinterval"]) * int(told["serveralivecountmax"]) == 20


def test_only_what_the_login_has_is_tried(tmp_path: Path) -> None:
    by_key, by_password = understood([HOST, JUMP], tmp_path), understood([HOST, JUMP], tmp_path, 1)

    assert by_key["preferredauthentications"] == "publickey"
    assert by_key["identityagent"] == str(tmp_path / "agent-0")
    assert by_key["passwordauthentication"] == "no"
    assert by_password["preferredauthentications"] == "password,keyboard-interactive"
    assert by_password["identityagent"] == "none"
    assert by_password["numberofpasswordprompts"] == "1"
    assert understood([HOST], tmp_path)["batchmode"] == "yes"


def test_a_host_behind_others_is_reached_through_each_of_them(tmp_path: Path) -> None:
    hops = [HOST, JUMP, replace(HOST, address="gate")]

    commands = [understood(hops, tmp_path, number).get("proxycommand") for number in range(3)]

    assert commands[2] is None
    for number, command in enumerate(commands[:2], 1):
        assert command
        assert f"SSH_ASKPASS={tmp_path}/askpass-{number}" in command
        assert command.endswith(f"-W '[%h]:%p' crossgap-{number}")
    assert understood(hops, tmp_path, 1)["hostname"] == "fe80::1%eth0"
    assert understood(hops, tmp_path, 1)["user"] == "门卫"


@pytest.mark.parametrize(
    ("address", "username"),
    [
        ("10.0.0.1\nProxyCommand touch /tmp/pwned", "root"),
        ("$(touch /tmp/pwned)", "root"),
        ("host;id", "root"),
        ("%h", "root"),
        ("", "root"),
        ("10.0.0.1", "root\nProxyCommand id"),
        ("10.0.0.1", "a b"),
        ("10.0.0.1", "-oProxyCommand=id"),
        ("10.0.0.1", '"root"'),
        ("10.0.0.1", "%u"),
        ("10.0.0.1", "${HOME}"),
        ("10.0.0.1", ""),
    ],
)
def test_what_would_need_quoting_is_not_written_down(address: str, username: str) -> None:
    assert not replace(HOST, address=address, username=username).is_plain


@pytest.mark.parametrize(
    ("address", "username"),
    [("10.0.0.1", "root"), ("gpu-1.example.org", "a.b-c_d"), ("fe80::1%eth0", "操作员"),
     ("::1", "DOMAIN+user"), ("h", "user@corp")],
)  # fmt: skip
def test_usual_names_are_written_down(address: str, username: str) -> None:
    assert replace(HOST, address=address, username=username).is_plain
