"""Large streams through the OpenSSH client, and what becomes of the secrets."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from blocks import transfer
from blocks.cancellation import Cancellation, cancellation_scope
from blocks.commands import command_line
from blocks.errors import Cancelled, ConnectionLost, SudoRefused, TimedOut
from blocks.host import RunningCommand
from blocks.openssh import OpenSSHClient, OpenSSHProcess
from blocks.ssh_host import SSHHost
from blocks.ssh_process import SSHProcess
from tests.integration.conftest import Connect
from tests.lab import LabHost

MB = 1_000_000


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, with a path as short as usual; pytest has its own."""
    with tempfile.TemporaryDirectory(prefix="crossgap-test-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def _in_front(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in front of the ssh client."""
    real = shutil.which("ssh")
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "ssh"
    program.write_text(f'#!/bin/sh\nreal={real}\n[ "$1" != -V ] || exec $real -V\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def _secrets(host: LabHost) -> list[str]:
    """Give what must not show: passwords, and each line of the keys."""
    hosts = [host, host.jump] if host.jump else [host]
    lines = [line for it in hosts for line in it.private_key.splitlines()[1:-1]]
    return [word for word in [*lines, *(it.password for it in hosts)] if word]


def _opened(host: SSHHost, script: str = "cat") -> OpenSSHProcess:
    """Start a command with OpenSSH, and say why it did not get in if it did not."""
    line = command_line(["sh", "-c", script], mark="mark123", has_input=True)
    process = host.open_bulk(line)
    assert isinstance(process, OpenSSHProcess)
    return process


def test_no_secret_is_in_a_file_an_argument_or_the_environment_of_the_client(
    any_host: LabHost, connect: Connect, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    # Every client on the way, and all files that it is given, at the time when it starts.
    _in_front(
        tmp_path,
        f"{{ tr '\\0' '\\n' </proc/$$/cmdline; env; find {base} -type f -exec cat {{}} +; }} "
        f'>>{seen}; exec $real "$@"',
        monkeypatch,
    )

    process = _opened(connect(any_host))
    try:
        running = [_all_about(pid) for pid in _children("ssh")]
        left = list(base.iterdir())
    finally:
        process.close()

    shown = seen.read_text() + "".join(running)
    assert "HostKeyAlias" in shown  # it was looked at indeed
    assert running
    assert not [secret for secret in _secrets(any_host) if secret in shown]
    assert left == []  # while the session goes on


def test_nothing_is_left_of_a_file_that_was_sent(
    any_host: LabHost,
    connect: Connect,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "BULK", MB)
    started: list[bool] = []
    real = OpenSSHClient.open_process

    def note(self: OpenSSHClient, *arguments: object) -> OpenSSHProcess | None:
        process = real(self, *arguments)  # type: ignore[arg-type]
        started.append(process is not None)
        return process

    monkeypatch.setattr(OpenSSHClient, "open_process", note)
    (tmp_path / "file").write_bytes(os.urandom(2 * MB))

    connect(any_host).put(tmp_path / "file", "~/file")

    assert started == [True]
    assert list(base.iterdir()) == []
    assert not _children("ssh")


@pytest.mark.parametrize(("kind", "bits"), [("ed25519", ""), ("ecdsa", "384"), ("rsa", "2048")])
def test_it_logs_in_with_every_kind_of_key(
    plain: LabHost, connect: Connect, tmp_path: Path, kind: str, bits: str
) -> None:
    size = ["-b", bits] if bits else []
    command = [
        "ssh-keygen",
        "-q",
        "-t",
        kind,
        *size,
        "-N",
        "open sesame",
        "-f",
        str(tmp_path / "key"),
    ]
    subprocess.run(command, check=True)
    plain.write_file("/root/.ssh/authorized_keys", (tmp_path / "key.pub").read_bytes(), 0o600)
    key = (tmp_path / "key").read_text()

    _opened(connect(plain, private_key=key, passphrase="open sesame")).close()


def test_a_refused_password_is_told_once(
    bare: LabHost, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = connect(bare, password="wrong-and-secret").login()
    told: list[str] = []
    monkeypatch.setattr(OpenSSHProcess, "_failed", _remembering(told, OpenSSHProcess._failed))
    client = OpenSSHClient(login)
    line = command_line(["true"], mark="mark123")

    assert client.open_process(line) is None
    assert client.open_process(line) is None

    assert len(told) == 1
    assert "wrong-and-secret" not in told[0]


def test_another_host_key_than_the_recorded_one_keeps_it_out(
    any_host: LabHost, connect: Connect
) -> None:
    login = connect(any_host).login()
    any_host.change_host_key()

    assert OpenSSHClient(login).open_process(command_line(["true"], mark="mark123")) is None


def test_where_it_cannot_be_used_our_own_connection_is_and_that_is_said_once(
    any_host: LabHost,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(transfer, "BULK", MB)
    script = f"echo started >>{tmp_path}/started; echo 'Bad configuration option' >&2; exit 255"
    _in_front(tmp_path, script, monkeypatch)
    (tmp_path / "file").write_bytes(os.urandom(2 * MB))
    host = connect(any_host)

    with caplog.at_level(logging.WARNING, "crossgap"):
        host.put(tmp_path / "file", "~/one")
        host.put(tmp_path / "file", "~/two")

    (said,) = [record.getMessage() for record in caplog.records if record.name == "crossgap"]
    assert "OpenSSH client cannot be used (Bad configuration option)" in said
    assert (tmp_path / "started").read_text() == "started\n"


def test_a_connection_that_sshd_drops_is_tried_again(
    plain: LabHost, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = "kex_exchange_identification: Connection closed by remote host"
    once = tmp_path / "once"
    script = f"[ -e {once} ] && exec $real \"$@\"\n>{once}; echo '{dropped}' >&2; exit 255"
    _in_front(tmp_path, script, monkeypatch)

    _opened(connect(plain)).close()


def test_a_client_that_is_ended_is_a_connection_lost(any_host: LabHost, connect: Connect) -> None:
    with connect(any_host).start(["sleep", "4721"], timeout=60, bulk=True) as command:
        for pid in _children("ssh"):
            os.kill(pid, 9)

        with pytest.raises(ConnectionLost):
            _read_to_the_end(command)


def test_a_killed_sshd_is_a_connection_lost(any_host: LabHost, connect: Connect) -> None:
    with connect(any_host).start(["sleep", "4722"], timeout=60, bulk=True) as command:
        any_host.stop_sshd()

        with pytest.raises(ConnectionLost):
            _read_to_the_end(command)


def test_a_signal_on_the_host_is_the_end_of_the_command_and_no_more(
    plain: LabHost, connect: Connect
) -> None:
    with connect(plain).start(["sh", "-c", "kill -9 $$"], timeout=60, bulk=True) as command:
        _read_to_the_end(command)

        assert command.finish() == 255


def test_output_is_free_of_noise_and_the_exit_code_is_the_commands(
    any_host: LabHost, connect: Connect
) -> None:
    argv = ["sh", "-c", "cat; echo 出错 >&2; exit 3"]
    with connect(any_host).start(argv, timeout=60, has_input=True, bulk=True) as command:
        command.write(b"\0\xff\r\n")
        command.close_input()
        out, err = _read_to_the_end(command)
        code = command.finish()

    assert (out, err.decode(), code) == (b"\0\xff\r\n", "出错\n", 3)


def test_sudo_reads_its_password_ahead_of_the_input(bare: LabHost, connect: Connect) -> None:
    def as_root(host: SSHHost) -> bytes:
        argv = ["sh", "-c", "id -u; cat"]
        with host.start(argv, timeout=60, sudo=True, has_input=True, bulk=True) as command:
            with suppress(BrokenPipeError):
                command.write(b"data")
            command.close_input()
            out, _ = _read_to_the_end(command)
            command.finish()
        return out

    assert as_root(connect(bare)) == b"0\ndata"
    with pytest.raises(SudoRefused, match="refused the password"):
        as_root(connect(bare, sudo_password="wrong-and-secret"))


def test_a_deadline_and_a_cancelled_run_end_the_command_on_the_host(
    any_host: LabHost, connect: Connect
) -> None:
    host, cancellation = connect(any_host), Cancellation()

    def wait(timeout: float) -> None:
        with host.start(["sleep", "4723"], timeout=timeout, bulk=True) as command:
            if timeout > 30:
                cancellation.cancel()
            _read_to_the_end(command)

    with pytest.raises(TimedOut):
        wait(0.5)
    assert not any("sleep 4723" in line for _, line in any_host.processes())
    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        wait(60)
    assert not any("sleep 4723" in line for _, line in any_host.processes())


def test_a_missing_client_is_no_hindrance(
    any_host: LabHost, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    line = command_line(["true"], mark="mark123")

    process = connect(any_host).open_bulk(line)
    process.close()

    assert isinstance(process, SSHProcess)


def _read_to_the_end(command: RunningCommand) -> tuple[bytes, bytes]:
    out, err = b"", b""
    while (pair := command.read()) is not None:
        out, err = out + pair[0], err + pair[1]
    return out, err


def _remembering(told: list[str], real: object) -> object:
    def failed(self: OpenSSHProcess, reason: str) -> str:
        told.append(real(self, reason))  # type: ignore[operator]
        return told[-1]

    return failed


def _children(name: str) -> list[int]:
    """Give the processes of a name that come from this test, and theirs."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = entry.read_text().split(" (", 1)
        except OSError:
            continue
        command, _, fields = rest.rpartition(") ")
        parents[int(pid)] = (int(fields.split()[1]), command)
    mine = {os.getpid()}
    while more := {pid for pid, (parent, _) in parents.items() if parent in mine} - mine:
        mine |= more
    return [pid for pid in mine if pid in parents and parents[pid][1] == name]


def _all_about(pid: int) -> str:
    folder = Path(f"/proc/{pid}")
    return (folder / "cmdline").read_text() + (folder / "environ").read_text()
