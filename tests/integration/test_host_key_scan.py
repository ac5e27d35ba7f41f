"""Recording host keys: shown first, and only then trusted."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import paramiko
import pytest
from paramiko.hostkeys import HostKeys

from blocks.errors import ChangedHostKey
from blocks.host_key_scan import main
from blocks.host_keys import host_key_name
from blocks.ssh_connection import close_connections
from blocks.ssh_host import JumpHost, SSHHost
from tests.lab import LabHost

pytestmark = pytest.mark.usefixtures("prefect_api")

Save = Callable[..., str]


@pytest.fixture
def save() -> Iterator[Save]:
    """Save a block for a host of the lab, with some fields replaced, and give its name."""
    saved: list[str] = []

    def block(host: LabHost, **fields: Any) -> str:
        saved.append(f"scan-{uuid.uuid4().hex[:8]}")
        SSHHost(**{**host.block_fields(), "known_hosts": "", **fields}).save(saved[-1])
        return saved[-1]

    yield block
    close_connections()
    for name in saved:
        with suppress(ValueError):
            SSHHost.delete(name)


def scan(host: LabHost, *more: str) -> int:
    return main(["scan", host.address, "--port", str(host.port), *more])


def recorded(name: str) -> list[str]:
    block = SSHHost.load(name)
    assert isinstance(block, SSHHost)
    return block.known_hosts.splitlines()


def key_of(host: LabHost) -> str:
    """The key as the host itself has it."""
    return " ".join(host.known_hosts.split()[1:3])


def line_of(host: LabHost) -> str:
    """The line that is recorded for it."""
    return f"{host_key_name(host.address, host.port)} {key_of(host)}"


def fingerprint_of(host: LabHost) -> str:
    return subprocess.run(
        ["ssh-keygen", "-lf", "-"], input=key_of(host), capture_output=True, text=True, check=True
    ).stdout.split()[1]


def answering(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_the_fingerprint_is_shown_and_without_a_block_nothing_else_happens(
    plain2: LabHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(plain2) == 0

    shown = capsys.readouterr().out
    assert f"[{plain2.address}]:{plain2.port} shows ssh-ed25519" in shown
    assert fingerprint_of(plain2) in shown
    assert f"[{plain2.address}]:{plain2.port} {key_of(plain2)}\n" in shown


def test_a_confirmed_key_is_recorded_and_the_host_can_be_used(
    any_host: LabHost, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = save(any_host)
    answering(monkeypatch, "y\n")

    assert scan(any_host, "--block", name) == 0

    (line,) = recorded(name)
    assert line.endswith(key_of(any_host))
    host = SSHHost.load(name)
    assert isinstance(host, SSHHost)
    assert host.run(["echo", "in"], timeout=20).stdout == "in\n"


def test_with_yes_nobody_is_asked(plain: LabHost, save: Save) -> None:
    name = save(plain)

    assert scan(plain, "--block", name, "--yes") == 0

    assert recorded(name) == [f"{plain.address} {key_of(plain)}"]


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yy\n", "no\n"])
def test_anything_but_yes_records_nothing(
    plain: LabHost, save: Save, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    name = save(plain)
    answering(monkeypatch, answer)

    assert scan(plain, "--block", name) == 1

    assert recorded(name) == []


def test_a_key_that_is_recorded_already_is_not_recorded_twice(
    plain: LabHost, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    name = save(plain)
    scan(plain, "--block", name, "--yes")

    assert scan(plain, "--block", name) == 0

    assert "has it already" in capsys.readouterr().out
    assert len(recorded(name)) == 1


@pytest.mark.parametrize(
    ("form", "left"),
    [
        ("{address}", []),
        ("{address},gpu1.lan", ["gpu1.lan"]),
        ("{hashed}", []),
        ("*.lan,{part}*", ["*.lan,{part}*,!{address}"]),
    ],
)
def test_a_new_key_takes_the_place_of_the_hosts_old_one(
    plain: LabHost, save: Save, form: str, left: list[str]
) -> None:
    fields = {
        "address": plain.address,
        "part": plain.address[:-1],
        "hashed": HostKeys.hash_host(plain.address),
    }
    names = form.format(**fields)
    rest = [f"{part.format(**fields)} {key_of(plain)}" for part in left]
    other = f"10.9.9.9 {key_of(plain)}"
    name = save(plain, known_hosts=f"{names} {key_of(plain)}\n{other}\n")
    plain.change_host_key()
    host = SSHHost.load(name)
    assert isinstance(host, SSHHost)
    with pytest.raises(ChangedHostKey):
        host.run(["true"], timeout=20)

    assert scan(plain, "--block", name, "--yes") == 0

    host = SSHHost.load(name)
    assert isinstance(host, SSHHost)
    assert host.run(["echo", "in"], timeout=20).stdout == "in\n"
    assert recorded(name) == [*rest, other, f"{plain.address} {key_of(plain)}"]


def test_everything_else_in_the_block_stays_as_it_was(bare: LabHost, save: Save) -> None:
    name = save(bare, work_dir="/data1/工作", patience=7)
    before = SSHHost.load(name)

    assert scan(bare, "--block", name, "--yes") == 0

    after = SSHHost.load(name)
    assert isinstance(before, SSHHost)
    assert isinstance(after, SSHHost)
    assert after.jump_host
    assert before.login().jump == after.login().jump
    for field in set(SSHHost.model_fields) - {"known_hosts", "jump_host"}:
        assert getattr(after, field) == getattr(before, field)


def test_a_host_behind_a_jump_host_is_scanned_through_it(
    bare: LabHost, jump: LabHost, capsys: pytest.CaptureFixture[str]
) -> None:
    jump_block(jump).save("scan-gate", overwrite=True)
    try:
        assert scan(bare, "--jump", "scan-gate") == 0
    finally:
        JumpHost.delete("scan-gate")

    assert fingerprint_of(bare) in capsys.readouterr().out


def jump_block(host: LabHost, **fields: Any) -> JumpHost:
    known = JumpHost.model_fields
    return JumpHost(
        **{field: value for field, value in host.block_fields().items() if field in known}, **fields
    )


def test_an_ssh_host_block_can_be_the_jump_host_as_well(
    bare: LabHost, jump: LabHost, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(bare, "--jump", save(jump, known_hosts=jump.known_hosts)) == 0

    assert fingerprint_of(bare) in capsys.readouterr().out


def test_the_key_of_a_jump_host_is_recorded_in_its_own_block_too(jump: LabHost, save: Save) -> None:
    name = save(jump)  # an SSH Host and an SSH Jump Host of one name
    JumpHost(**(jump_block(jump).model_dump() | {"known_hosts": ""})).save(name)
    try:
        assert scan(jump, "--block", name, "--yes") == 0

        block = JumpHost.load(name)
        assert isinstance(block, JumpHost)
        assert block.known_hosts == line_of(jump)
        assert block.private_key.get_secret_value() == jump.private_key
        assert recorded(name) == [line_of(jump)]
    finally:
        JumpHost.delete(name)


def test_recording_a_key_leaves_the_jump_host_a_block_of_its_own(
    bare: LabHost, jump: LabHost, save: Save
) -> None:
    jump_block(jump).save("scan-gate", overwrite=True)
    try:
        name = save(bare, jump_host=JumpHost.load("scan-gate"))
        assert scan(bare, "--block", name, "--yes") == 0
        gate = JumpHost.load("scan-gate")
        assert isinstance(gate, JumpHost)
        gate.username = "somebody"
        gate.save("scan-gate", overwrite=True)

        host = SSHHost.load(name)
        assert isinstance(host, SSHHost)
        assert host.jump_host
        assert host.jump_host.username == "somebody"
    finally:
        JumpHost.delete("scan-gate")


def test_without_a_port_the_one_of_the_block_is_scanned(plain2: LabHost, save: Save) -> None:
    name = save(plain2)

    assert main(["scan", plain2.address, "--block", name, "--yes"]) == 0

    assert recorded(name) == [line_of(plain2)]


@pytest.mark.parametrize(("address", "port"), [("10.9.9.9", []), ("{address}", ["--port", "23"])])
def test_a_key_that_the_block_would_never_look_up_is_not_recorded(
    plain: LabHost, save: Save, capsys: pytest.CaptureFixture[str], address: str, port: list[str]
) -> None:
    name = save(plain)
    address = address.format(address=plain.address)

    assert main(["scan", address, *port, "--block", name, "--yes"]) == 1

    said = capsys.readouterr().err
    assert f"{name}: the block has {plain.address}, port {plain.port};" in said
    assert recorded(name) == []


def test_an_old_key_of_another_kind_does_not_stay_beside_the_new_one(
    plain: LabHost, save: Save
) -> None:
    old = paramiko.RSAKey.generate(2048)
    name = save(
        plain,
        known_hosts=f"{line_of(plain)}\n"
        f"{plain.address} {old.get_name()} {old.get_base64()}\nnonsense",
    )

    assert scan(plain, "--block", name, "--yes") == 0

    assert recorded(name) == [line_of(plain)]


def test_a_revoked_key_is_not_recorded(
    plain: LabHost, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    name = save(plain, known_hosts=f"@revoked {plain.known_hosts}")

    assert scan(plain, "--block", name, "--yes") == 1

    assert "revoked" in capsys.readouterr().err
    assert recorded(name) == [f"@revoked {plain.known_hosts.strip()}"]


@pytest.mark.parametrize("option", ["--block", "--jump"])
def test_a_block_that_does_not_exist_is_named(
    plain: LabHost, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert scan(plain, option, "no-such-block") == 1

    said = capsys.readouterr()
    assert "no-such-block: there is no SSH" in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_host_that_is_down_is_named(
    plain: LabHost, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    name = save(plain)
    plain.stop_sshd()

    assert scan(plain, "--block", name, "--yes") == 1

    said = capsys.readouterr()
    assert f"{plain.address}: nothing listens on the port." in said.err
    assert said.out == ""
    assert recorded(name) == []


def test_a_port_where_something_else_than_sshd_listens_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        code = main(["scan", "127.0.0.1", "--port", str(server.getsockname()[1])])
        thread.join(10)

    assert code == 1
    assert "handshake failed" in capsys.readouterr().err


def test_the_command_is_found_under_its_public_name(plain: LabHost) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blocks.ssh_host", "scan", plain.address, "--port", str(plain.port)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert fingerprint_of(plain) in done.stdout
