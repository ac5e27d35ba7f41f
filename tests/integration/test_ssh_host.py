"""SSHHost against real sshds: both kinds of host, and their bad days."""

from __future__ import annotations

import concurrent.futures
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import paramiko
import pytest
from paramiko.common import cMSG_CHANNEL_EOF

from blocks import ssh_connection
from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import (
    AuthenticationRefused,
    Cancelled,
    ChangedHostKey,
    CommandFailed,
    ConnectionLost,
    ConnectionRefused,
    CrossgapError,
    ForwardingForbidden,
    InvalidInput,
    PassphraseNeeded,
    SudoRefused,
    TimedOut,
    TooManyConnections,
    UnknownHostKey,
    Unreachable,
)
from blocks.ssh_host import JumpHost
from tests.integration.conftest import Connect
from tests.lab import LabHost


def test_output_is_free_of_banners_and_startup_noise(any_host: LabHost, connect: Connect) -> None:
    result = connect(any_host).run(
        ["sh", "-c", "echo 你好; echo 出错 >&2; exit 3"], timeout=20, check=False
    )

    assert (result.exit_code, result.stdout, result.stderr) == (3, "你好\n", "出错\n")


def test_arguments_reach_the_command_unchanged(any_host: LabHost, connect: Connect) -> None:
    arguments = ["$(touch /tmp/pwned)", "a b", "'", '"', ";", "*", "\\", "!", "换\n行", ""]

    result = connect(any_host).run(["printf", "%s|", *arguments], timeout=20)

    assert result.stdout == "".join(f"{argument}|" for argument in arguments)
    assert "pwned" not in any_host.run(["ls", "/tmp"])


def test_a_failing_command_is_named_with_what_it_said(any_host: LabHost, connect: Connect) -> None:
    with pytest.raises(CommandFailed, match=r"'ls /nowhere'.*exit code \d.*No such file"):
        connect(any_host).run(["ls", "/nowhere"], timeout=20)


def test_output_that_is_not_text_does_no_harm(any_host: LabHost, connect: Connect) -> None:
    result = connect(any_host).run(["printf", r"\377\376ok"], timeout=20)

    assert result.stdout.endswith("ok")


def test_input_larger_than_every_buffer_comes_through(any_host: LabHost, connect: Connect) -> None:
    data = b"0123456789abcde\n" * 300_000

    for sudo in (False, True):
        result = connect(any_host).run(["cat"], timeout=60, input=data, sudo=sudo)
        assert result.stdout.encode() == data


def test_sudo_makes_root_and_keeps_the_password_off_the_process_list(
    any_host: LabHost, connect: Connect
) -> None:
    host = connect(any_host)

    listing = host.run(["sh", "-c", "id -u; cat /proc/[0-9]*/cmdline"], timeout=20, sudo=True)

    assert listing.stdout.startswith("0\n")
    assert not any_host.sudo_password or any_host.sudo_password not in listing.stdout


def test_a_sudo_that_needs_no_password_leaves_it_out_of_the_input(
    bare: LabHost, connect: Connect
) -> None:
    bare.write_file("/etc/sudoers.d/free", b"operator ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    try:
        result = connect(bare).run(["cat"], timeout=20, input=b"data", sudo=True)
    finally:
        bare.run(["rm", "/etc/sudoers.d/free"])

    assert result.stdout == "data"


def test_a_wrong_sudo_password_is_tried_once_only(bare: LabHost, connect: Connect) -> None:
    host = connect(bare, sudo_password="wrong-and-secret")

    with pytest.raises(SudoRefused, match="sudo refused the password") as first:
        host.run(["id"], timeout=20, sudo=True)
    bare.run(["mv", "/usr/bin/sudo", "/usr/bin/sudo.away"])
    try:
        with pytest.raises(SudoRefused, match="sudo refused the password"):
            host.run(["id"], timeout=20, sudo=True)
    finally:
        bare.run(["mv", "/usr/bin/sudo.away", "/usr/bin/sudo"])

    assert "wrong-and-secret" not in str(first.value)
    assert not first.value.retryable


def test_a_user_without_sudo_rights_is_told_so(bare: LabHost, connect: Connect) -> None:
    host = connect(bare, sudo="passwordless")

    with pytest.raises(SudoRefused, match="asks for a password"):
        host.run(["id"], timeout=20, sudo=True)


def test_a_deadline_ends_the_command_on_the_host(any_host: LabHost, connect: Connect) -> None:
    with pytest.raises(TimedOut, match="did not end within 1 s"):
        connect(any_host).run(["sleep", "4711"], timeout=1)

    assert not _running(any_host, "sleep 4711")


def test_a_cancelled_run_ends_its_command_on_the_host(any_host: LabHost, connect: Connect) -> None:
    cancellation = Cancellation()
    timer = threading.Timer(1, cancellation.cancel)

    timer.start()
    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        connect(any_host).run(["sleep", "4712"], timeout=60)

    assert not _running(any_host, "sleep 4712")


def test_lines_stream_while_the_command_runs(any_host: LabHost, connect: Connect) -> None:
    lines = connect(any_host).stream(["sh", "-c", "echo 一; sleep 60"], timeout=20)

    assert next(lines) == "一"
    lines.close()  # type: ignore[attr-defined]
    assert not _running(any_host, "sleep 60")


def test_many_commands_at_once_share_one_connection(any_host: LabHost, connect: Connect) -> None:
    host = connect(any_host)
    any_host.max_startups(3)  # sshd would drop a fourth connection in its handshake

    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        results = pool.map(lambda n: host.run(["echo", str(n)], timeout=60).stdout, range(30))

    assert [int(text) for text in results] == list(range(30))


def test_an_end_of_input_that_is_late_does_not_end_the_connection(
    plain: LabHost, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = paramiko.Transport._send_user_message  # type: ignore[attr-defined]

    def send_late(transport: paramiko.Transport, message: paramiko.Message) -> None:
        if message.asbytes()[:1] == cMSG_CHANNEL_EOF:
            time.sleep(0.5)  # the command has ended, and both sides have sent their CLOSE
        send(transport, message)

    monkeypatch.setattr(paramiko.Transport, "_send_user_message", send_late)
    host = connect(plain)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(host.run, ["sleep", "3"], timeout=20)
        for number in range(3):
            assert host.run(["echo", str(number)], timeout=20).stdout == f"{number}\n"

    assert slow.result().exit_code == 0  # on the same connection


def test_a_command_that_is_killed_is_a_failure(any_host: LabHost, connect: Connect) -> None:
    with pytest.raises(CommandFailed, match="exit code 255"):
        connect(any_host).run(["sh", "-c", "kill -KILL $$"], timeout=20)


def test_an_unknown_host_key_is_refused_with_its_fingerprint(
    any_host: LabHost, connect: Connect
) -> None:
    shown = subprocess.run(
        ["ssh-keygen", "-lf", "-"],
        input=any_host.known_hosts.split(" ", 1)[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[1]

    with pytest.raises(UnknownHostKey) as refused:
        connect(any_host, known_hosts="").run(["true"], timeout=20)

    assert shown in str(refused.value)
    assert "blocks.ssh_host scan" in refused.value.remedy
    assert not refused.value.retryable


def test_a_changed_host_key_is_refused_and_never_retried(
    any_host: LabHost, connect: Connect
) -> None:
    host = connect(any_host)
    host.run(["true"], timeout=20)
    ssh_connection.close_connections()

    any_host.change_host_key()

    with pytest.raises(ChangedHostKey, match="recorded is ssh-ed25519 SHA256:") as refused:
        host.run(["true"], timeout=20)
    assert not refused.value.retryable


def test_a_wrong_password_is_tried_once_only(bare: LabHost, connect: Connect) -> None:
    host = connect(bare, password="wrong-and-secret")

    with pytest.raises(AuthenticationRefused, match="'operator' was refused") as refused:
        host.run(["true"], timeout=20)
    bare.cut()
    with pytest.raises(AuthenticationRefused):  # from memory: the host cannot be asked now
        host.run(["true"], timeout=20)

    assert "wrong-and-secret" not in str(refused.value)
    assert not refused.value.retryable


def test_a_wrong_key_is_refused_and_says_what_the_host_takes(
    plain: LabHost, connect: Connect, tmp_path: Path
) -> None:
    key = _new_key(tmp_path / "key")

    with pytest.raises(AuthenticationRefused, match="private key; it takes publickey"):
        connect(plain, private_key=key).run(["true"], timeout=20)


def test_a_locked_key_asks_for_its_passphrase(
    plain: LabHost, connect: Connect, tmp_path: Path
) -> None:
    key = _new_key(tmp_path / "key", "open sesame")
    plain.write_file("/root/.ssh/authorized_keys", (tmp_path / "key.pub").read_bytes(), 0o600)

    with pytest.raises(PassphraseNeeded, match="missing"):
        connect(plain, private_key=key).run(["true"], timeout=20)
    with pytest.raises(PassphraseNeeded, match="wrong"):
        connect(plain, private_key=key, passphrase="open says me").run(["true"], timeout=20)
    connect(plain, private_key=key, passphrase="open sesame").run(["true"], timeout=20)


def test_a_key_file_is_read_where_the_worker_runs(
    plain: LabHost, connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(plain.private_key)

    host = connect(plain, private_key="", private_key_path=str(tmp_path / "key"))

    assert host.run(["id", "-un"], timeout=20).stdout == "root\n"


def test_what_is_no_private_key_is_said_to_be_none(plain: LabHost, connect: Connect) -> None:
    with pytest.raises(InvalidInput, match="private key cannot be read"):
        connect(plain, private_key="ssh-ed25519 AAAA me@desk").run(["true"], timeout=20)


def test_a_port_without_sshd_refuses(plain: LabHost, connect: Connect) -> None:
    with pytest.raises(ConnectionRefused, match="nothing listens"):
        connect(plain, port=2).run(["true"], timeout=20)


def test_a_host_that_is_down_is_unreachable(plain: LabHost, connect: Connect) -> None:
    plain.cut()

    with pytest.raises(Unreachable, match="cannot be reached") as down:
        connect(plain, connect_timeout=2).run(["true"], timeout=20)

    assert down.value.retryable


def test_an_unknown_name_is_named(connect: Connect, plain: LabHost) -> None:
    with pytest.raises(Unreachable, match=r"'no-such-host\.invalid' is not known"):
        connect(plain, address="no-such-host.invalid").run(["true"], timeout=20)


def test_an_sshd_that_drops_connections_is_named(plain: LabHost, connect: Connect) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        stop = threading.Event()

        def drop() -> None:
            listener.settimeout(0.2)
            while not stop.is_set():
                try:
                    listener.accept()[0].close()
                except TimeoutError:
                    continue

        dropper = threading.Thread(target=drop)
        dropper.start()
        try:
            host = connect(plain, address="127.0.0.1", port=listener.getsockname()[1])
            with pytest.raises(TooManyConnections, match="MaxStartups"):
                host.run(["true"], timeout=60)
        finally:
            stop.set()
            dropper.join()


def test_a_port_that_never_greets_is_unreachable_and_may_pass(
    plain: LabHost, connect: Connect
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        host = connect(
            plain, address="127.0.0.1", port=listener.getsockname()[1], connect_timeout=1
        )

        with pytest.raises(Unreachable, match="nothing greets there") as silent:
            host.run(["true"], timeout=20)

    assert silent.value.retryable
    assert not isinstance(silent.value, TooManyConnections)


def test_a_jump_host_that_forbids_forwarding_is_named(
    bare: LabHost, jump: LabHost, connect: Connect
) -> None:
    jump.forbid_forwarding()

    with pytest.raises(ForwardingForbidden, match="AllowTcpForwarding"):
        connect(bare).run(["true"], timeout=20)


def test_a_host_behind_a_jump_host_that_is_down_is_unreachable(
    bare: LabHost, connect: Connect
) -> None:
    bare.stop_sshd()

    with pytest.raises(Unreachable, match=r"jump host .* cannot connect"):
        connect(bare).run(["true"], timeout=20)


def test_a_dead_peer_is_noticed_within_half_a_minute(any_host: LabHost, connect: Connect) -> None:
    host = connect(any_host)
    host.run(["true"], timeout=20)
    threading.Timer(1, any_host.cut).start()

    with pytest.raises(ConnectionLost):
        # The deadline is what would be met if the silence were not noticed.
        host.run(["sleep", "300"], timeout=31)


def test_a_killed_sshd_is_noticed_and_the_next_command_connects_again(
    any_host: LabHost, connect: Connect
) -> None:
    host = connect(any_host)
    threading.Timer(1, any_host.stop_sshd).start()

    with pytest.raises(ConnectionLost):
        host.run(["sleep", "300"], timeout=60)
    any_host.start_sshd()

    assert host.run(["echo", "back"], timeout=20).stdout == "back\n"


def test_a_forwarded_port_reaches_a_service_on_the_host(plain: LabHost, connect: Connect) -> None:
    host = connect(plain)
    server = ["busybox", "httpd", "-f", "-p", "127.0.0.1:8099", "-h", "/etc"]
    job = host.start_job(server, name="web")
    try:
        with host.forward("127.0.0.1", 8099) as port:
            page = _fetch(f"http://127.0.0.1:{port}/hostname")
        assert page == plain.read_file("/etc/hostname")
    finally:
        job.cancel()


def test_a_saved_block_keeps_its_secrets_and_masks_them(plain: LabHost, connect: Connect) -> None:
    host = connect(plain, password="hunter2")

    assert "hunter2" not in repr(host)
    assert "hunter2" not in host.model_dump_json()
    assert isinstance(host, JumpHost)
    assert host.login().password == "hunter2"
    assert "hunter2" not in repr(host.login())


def test_errors_name_the_host(plain: LabHost, connect: Connect) -> None:
    plain.cut()

    with pytest.raises(CrossgapError) as error:
        connect(plain, connect_timeout=1).run(["true"], timeout=20)

    assert str(error.value).startswith(plain.address)


def _running(host: LabHost, command: str) -> bool:
    for _ in range(30):
        if not any(command in cmdline for _, cmdline in host.processes()):
            return False
        time.sleep(0.1)
    return True


def _new_key(path: Path, passphrase: str = "") -> str:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)]
    subprocess.run(command, check=True)
    return path.read_text()


def _fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(30):
        try:
            with opener.open(url, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer")
