"""The agent in our own process, asked by OpenSSH's tools."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.ssh_agent import Agent
from blocks.ssh_login import load_private_key

KINDS = [("ed25519", ""), ("ecdsa", "256"), ("ecdsa", "521"), ("rsa", "2048")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, as sockets need one."""
    with tempfile.TemporaryDirectory(prefix="crossgap-test-") as name:
        yield Path(name)


def _tool(*argv: str | Path, agent: Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": os.environ["PATH"], "SSH_AUTH_SOCK": str(agent)}
    return subprocess.run(
        argv, env=environment, input=data, capture_output=True, check=False, timeout=30
    )


def _new_key(path: Path, kind: str, bits: str = "", passphrase: str = "") -> str:
    size = ["-b", bits] if bits else []
    command = ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path.read_text()


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_it_signs_with_every_kind_of_key(folder: Path, kind: str, bits: str) -> None:
    key = load_private_key(_new_key(folder / "key", kind, bits), "", "gpu1")
    (folder / "key").unlink()  # the public half is all that is left on disk

    with Agent(folder / "agent", [key]):
        sign = ["ssh-keygen", "-Y", "sign", "-n", "test", "-f", str(folder / "key.pub")]
        signed = _tool(*sign, agent=folder / "agent", data=b"message")
    (folder / "signature").write_bytes(signed.stdout)
    check = ["ssh-keygen", "-Y", "check-novalidate", "-n", "test", "-s", str(folder / "signature")]

    assert _tool(*check, agent=folder / "agent", data=b"message").returncode == 0
    assert _tool(*check, agent=folder / "agent", data=b"another").returncode != 0


def test_it_lists_its_keys_in_their_order(folder: Path) -> None:
    texts = [_new_key(folder / kind, kind) for kind in ("rsa", "ed25519")]
    keys = [load_private_key(text, "", "gpu1") for text in texts]

    with Agent(folder / "agent", keys):
        listed = _tool("ssh-add", "-L", agent=folder / "agent").stdout.decode().splitlines()

    public = [(folder / f"{kind}.pub").read_text().split()[:2] for kind in ("rsa", "ed25519")]
    assert [line.split()[:2] for line in listed] == public


def test_it_signs_with_no_key_but_its_own(folder: Path) -> None:
    own = load_private_key(_new_key(folder / "own", "ed25519"), "", "gpu1")
    _new_key(folder / "other", "ed25519")
    (folder / "other").unlink()

    with Agent(folder / "agent", [own]):
        sign = ["ssh-keygen", "-Y", "sign", "-n", "test", "-f", str(folder / "other.pub")]
        assert _tool(*sign, agent=folder / "agent", data=b"message").returncode != 0


def test_what_it_does_not_know_is_refused_and_nonsense_ends_the_conversation(folder: Path) -> None:
    with Agent(folder / "agent", []), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(folder / "agent"))
        for request in (b"\x1b", b"\x0d", b"\x0d\0\0\0\x05abc"):  # extension, odd sign requests
            client.sendall(struct.pack(">I", len(request)) + request)
            assert client.recv(16) == b"\0\0\0\x01\x05"
        client.sendall(b"\xff\xff\xff\xff")
        assert client.recv(16) == b""


def test_afterwards_nobody_answers(folder: Path) -> None:
    with Agent(folder / "agent", []):
        assert _tool("ssh-add", "-l", agent=folder / "agent").returncode == 1  # no keys

    assert _tool("ssh-add", "-l", agent=folder / "agent").returncode == 2  # no agent
