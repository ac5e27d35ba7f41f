"""The lab is what it says: servers of their own, faults on demand, and nothing left behind."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import paramiko
import pytest

from tests.lab import (
    HostSpec,
    ImageShelf,
    ImageSpec,
    Lab,
    LabBusy,
    LabError,
    LabHost,
    LayerSpec,
    make_images,
    write_archive,
)
from tests.lab.commands import execute
from tests.lab.residue import cgroups_of, loops_of, mounts_below
from tests.lab.state import LabFolders, lab_names

MIB = 1 << 20
CHECKOUT = Path(__file__).resolve().parents[2]


def connected(host: LabHost) -> paramiko.Transport:
    """Log in as an operator would, checking the host key."""
    if host.jump:
        outer = connected(host.jump)
        channel = outer.open_channel("direct-tcpip", (host.address, host.port), ("", 0))
        transport = paramiko.Transport(channel)
    else:
        transport = paramiko.Transport(socket.create_connection((host.address, host.port), 10))
    transport.start_client(timeout=15)
    assert transport.get_remote_server_key().get_base64() == host.known_hosts.split()[2]
    if host.password:
        transport.auth_interactive(
            host.username, lambda title, text, prompts: [host.password for _ in prompts]
        )
    else:
        key = paramiko.Ed25519Key(file_obj=io.StringIO(host.private_key))
        transport.auth_publickey(host.username, key)
    return transport


def ssh(host: LabHost, command: str, stdin: bytes = b"") -> tuple[int, bytes]:
    """Run a command through SSH and return its exit status and stdout."""
    transport = connected(host)
    try:
        session = transport.open_session(timeout=15)
        session.settimeout(30)
        session.exec_command(command)
        session.sendall(stdin)
        session.shutdown_write()
        output = session.makefile("rb").read()
        return session.recv_exit_status(), output
    finally:
        transport.close()


def reachable(host: LabHost, timeout: float = 3) -> bool:
    try:
        socket.create_connection((host.address, host.port), timeout).close()
    except OSError:
        return False
    return True


def traces(name: str) -> list[str]:
    """List everything that a lab of this name has on the machine."""
    folders = LabFolders(name)
    record = folders.read()
    found = [str(path) for path in folders.namespaces()]
    found += mounts_below(folders.state)
    found += loops_of(folders.state)
    found += [str(path) for path in cgroups_of(folders.cgroup)]
    found += [str(folders.state)] if folders.state.exists() else []
    if record:
        links = execute("ip", "-o", "link")
        found += [f"cglab{record['subnet']}"] if f"cglab{record['subnet']}:" in links else []
    return found


class TestHosts:
    def test_each_has_files_processes_and_a_name_of_its_own(
        self, plain: LabHost, plain2: LabHost
    ) -> None:
        plain.run(
            ["sh", "-c", "touch /tmp/mark /root/mark /etc/mark; sleep 4321 >/dev/null 2>&1 &"]
        )

        for place in ("tmp", "root", "etc"):
            assert plain.path(f"{place}/mark").exists()
            assert not plain2.path(f"{place}/mark").exists()
            assert not Path("/", place, "mark").exists()
        assert any(line == "sleep 4321" for _, line in plain.processes())
        assert not any(line == "sleep 4321" for _, line in plain2.processes())
        assert ssh(plain, "hostname") == (0, b"plain1\n")
        assert ssh(plain2, "hostname") == (0, b"plain2\n")

    def test_each_has_an_engine_of_its_own(self, plain: LabHost, plain2: LabHost) -> None:
        make_images(plain.docker_host, [ImageSpec("crossgap.test/own:1")])

        assert b"crossgap.test/own" in ssh(plain, "docker images")[1]
        assert b"crossgap.test/own" not in ssh(plain2, "docker images")[1]

    def test_this_machine_is_out_of_their_sight(self, any_host: LabHost) -> None:
        seen = any_host.run(["sh", "-c", f"ls -d {CHECKOUT} {sys.prefix} {sys.base_prefix}; ls /"])

        assert str(CHECKOUT) not in seen
        assert not any_host.path(str(Path(sys.prefix).resolve())).exists()
        assert any_host.run(["ls", "/opt"]).strip() in ("", "containerd")
        assert any_host.run(["ip", "route", "show", "default"]) == ""

    def test_a_container_runs_on_each(self, any_host: LabHost) -> None:
        make_images(any_host.docker_host, [ImageSpec("crossgap.test/run:1")])
        sudo = "sudo -S -p '' " if any_host.sudo_password else ""
        answer = any_host.sudo_password.encode() + b"\n"

        status, output = ssh(
            any_host, f"{sudo}docker run --rm crossgap.test/run:1 echo alive", answer
        )

        assert status == 0
        assert output.endswith(b"alive\n")

    def test_reset_makes_a_host_as_good_as_new(self, any_host: LabHost) -> None:
        make_images(any_host.docker_host, [ImageSpec("crossgap.test/gone:1")])
        any_host.run(["docker", "run", "--detach", "--restart=always", "crossgap.test/gone:1"])
        any_host.run(
            ["sh", "-c", "sleep 4321 >/dev/null 2>&1 & mkdir -p /tmp/a/b; echo x >/data1/x"]
        )
        any_host.write_file(f"{any_host.home}/.crossgap/jobs/1/log", b"text")
        any_host.fill_disk()
        any_host.stop_sshd()
        any_host.cut()

        any_host.reset()

        assert any_host.leftover_processes() == []
        assert not any_host.path(f"{any_host.home}/.crossgap").exists()
        assert list(any_host.path("tmp").iterdir()) == []
        with docker.APIClient(base_url=any_host.docker_host, version="1.41") as engine:
            assert engine.images() == []
            assert engine.containers(all=True) == []
        assert ssh(any_host, "true")[0] == 0


class TestBare:
    @pytest.fixture(params=["coreutils", "busybox"])
    def old(self, request: pytest.FixtureRequest, lab: Lab) -> Iterator[LabHost]:
        if request.param == "coreutils":
            yield lab.host("bare")
            return
        spec = HostSpec("old", "bare", tools="busybox", disk_bytes=512 * MIB)
        with Lab(f"{lab.name[:24]}-old").up([spec]) as other:
            yield other.host("old")

    def test_has_the_tools_of_an_old_server_and_no_more(self, old: LabHost) -> None:
        absent = "python3 python perl zstd pigz rsync nc tmux curl wget git gcc node sftp-server"
        present = "sh tar gzip sha256sum dd stat mkfifo setsid df docker sudo find"

        status, output = ssh(old, f"for tool in {absent}; do command -v $tool; done; true")
        assert status == 0
        assert b"/" not in output
        for tool in present.split():
            assert ssh(old, f"command -v {tool}")[0] == 0, tool

    def test_takes_a_password_by_keyboard_interactive_only(self, old: LabHost) -> None:
        assert old.jump
        channel = connected(old.jump).open_channel("direct-tcpip", (old.address, 22), ("", 0))
        transport = paramiko.Transport(channel)
        transport.start_client(timeout=15)

        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_none(old.username)
        assert refused.value.allowed_types == ["keyboard-interactive"]
        assert transport.get_banner()
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_interactive(
                old.username, lambda title, text, prompts: ["wrong" for _ in prompts]
            )
        transport.close()

    def test_gives_no_sftp_and_no_docker_without_sudo(self, old: LabHost) -> None:
        transport = connected(old)
        with pytest.raises(paramiko.SSHException):
            paramiko.SFTPClient.from_transport(transport)
        transport.close()

        assert ssh(old, "docker ps")[0] != 0
        assert ssh(old, "sudo -n docker ps")[0] != 0
        answer = old.sudo_password.encode() + b"\n"
        assert ssh(old, "sudo -S -p '' docker ps", answer)[0] == 0

    def test_says_things_nobody_asked_for_that_are_not_utf8(self, bare: LabHost) -> None:
        output = ssh(bare, "true")[1]

        assert output
        with pytest.raises(UnicodeDecodeError):
            output.decode()

    def test_is_reached_through_its_jump_host_only(self, bare: LabHost) -> None:
        assert not reachable(bare)
        assert ssh(bare, "true")[0] == 0
        assert bare.jump
        bare.jump.forbid_forwarding()
        with pytest.raises(paramiko.ChannelException):
            connected(bare)


class TestFaults:
    def test_a_host_that_is_cut_off_answers_again_when_mended(self, plain: LabHost) -> None:
        assert reachable(plain)
        plain.cut()
        assert not reachable(plain)
        assert plain.run(["hostname"]) == "plain1\n"
        plain.mend()
        assert reachable(plain)

    def test_a_disk_is_filled_and_freed(self, any_host: LabHost) -> None:
        before = any_host.disk_free()

        any_host.fill_disk(leave_bytes=10 * MIB)
        assert 9 * MIB < any_host.disk_free() < 11 * MIB
        with pytest.raises(LabError, match="No space left"):
            any_host.run(["dd", "if=/dev/zero", f"of={any_host.home}/big", "bs=1M", "count=20"])

        any_host.path(f"{any_host.home}/big").unlink()
        any_host.free_disk()
        assert any_host.disk_free() > before - MIB

    def test_sshd_dies_with_its_sessions_and_comes_back(self, any_host: LabHost) -> None:
        transport = connected(any_host)
        session = transport.open_session()
        session.settimeout(20)
        session.exec_command("cat")

        any_host.stop_sshd()
        assert session.makefile("rb").read() == b"" or transport.is_active() is False
        with pytest.raises((OSError, paramiko.SSHException)):
            connected(any_host)

        any_host.start_sshd()
        assert ssh(any_host, "true")[0] == 0

    def test_an_engine_dies_and_comes_back_with_its_images(self, any_host: LabHost) -> None:
        make_images(any_host.docker_host, [ImageSpec("crossgap.test/kept:1")])
        any_host.run(["docker", "run", "--detach", "crossgap.test/kept:1"])

        any_host.stop_engine()
        assert not any_host.engine_answers()
        assert any_host.leftover_processes() == []

        any_host.start_engine()
        assert "crossgap.test/kept" in any_host.run(["docker", "images"])

    def test_a_host_key_changes_and_is_restored(self, plain: LabHost) -> None:
        first = plain.known_hosts
        plain.change_host_key()
        assert plain.known_hosts != first
        assert ssh(plain, "true")[0] == 0
        plain.restore_host_key()
        assert plain.known_hosts == first
        assert ssh(plain, "true")[0] == 0

    def test_max_startups_refuses_who_comes_too_many(self, plain: LabHost) -> None:
        plain.max_startups(1)
        first = socket.create_connection((plain.address, plain.port), 10)
        assert first.recv(4) == b"SSH-"
        second = socket.create_connection((plain.address, plain.port), 10)
        second.settimeout(10)
        try:
            assert not second.recv(1024).startswith(b"SSH-")
        except ConnectionResetError:
            pass
        finally:
            first.close()
            second.close()

    def test_counters_see_what_a_host_receives(self, plain: LabHost, lab: Lab) -> None:
        here, there = lab.bytes_sent(), plain.bytes_received()

        assert ssh(plain, "wc -c", os.urandom(2 * MIB)) == (0, b"2097152\n")

        assert 2 * MIB < plain.bytes_received() - there < 3 * MIB
        assert lab.bytes_sent() - here >= 2 * MIB

    def test_a_slow_link_queues_at_the_rate_asked_for(self, plain: LabHost, lab: Lab) -> None:
        plain.slow(8)
        lab.shape_uplink(16)
        shown = execute("tc", "qdisc", "show", "dev", lab.network.uplink.interface)
        assert "rate 16Mbit" in shown
        assert "rate 8Mbit" in plain.run(["tc", "qdisc", "show", "dev", "eth0"])
        assert ssh(plain, "wc -c", os.urandom(MIB // 2))[0] == 0


class TestImages:
    @pytest.mark.parametrize("form", ["legacy", "oci"])
    @pytest.mark.parametrize("compress", [None, "gzip"])
    def test_an_archive_written_without_an_engine_is_loaded_by_one(
        self, plain: LabHost, tmp_path: Path, form: str, compress: str | None
    ) -> None:
        base = LayerSpec({"data/base": MIB}, seed=7)
        specs = [
            ImageSpec("crossgap.test/base:1", [base]),
            ImageSpec("crossgap.test/app:1", [base, LayerSpec({"app": b"text"})]),
            ImageSpec("crossgap.test/arm:1", [base], architecture="arm64"),
        ]
        archive = tmp_path / "images.tar"

        made = write_archive(archive, specs, compress, form)  # type: ignore[arg-type]

        plain.run(["docker", "load"], input=archive.read_bytes())
        with docker.APIClient(base_url=plain.docker_host, version="1.41") as engine:
            for image in made:
                loaded = engine.inspect_image(image.name)
                assert loaded["Id"] == image.config_digest
                assert loaded["RootFS"]["Layers"] == list(image.diff_ids)
            assert engine.inspect_image("crossgap.test/arm:1")["Architecture"] == "arm64"
        run = ["docker", "run", "--rm", "crossgap.test/app:1", "cat", "/app"]
        assert plain.run(run) == "text"

    def test_images_are_made_in_the_source_engine_and_taken_away(self, engine: str) -> None:
        shelf = ImageShelf(engine)
        made = shelf.make("crossgap.test/shelf:1", [LayerSpec({"data": MIB})], labels={"a": "b"})
        with docker.APIClient(base_url=engine, version="1.41") as client:
            assert client.inspect_image(made.name)["Config"]["Labels"] == {"a": "b"}
            shelf.clear()
            assert client.images(made.name.partition(":")[0]) == []


class TestLife:
    SMALL = (HostSpec("one", disk_bytes=512 * MIB),)

    @pytest.fixture
    def name(self, lab: Lab) -> Iterator[str]:
        name = f"{lab.name[:24]}-life"
        yield name
        Lab(name).down()

    def test_down_leaves_nothing(self, name: str) -> None:
        lab = Lab(name).up(self.SMALL)
        host = lab.host("one")
        make_images(host.docker_host, [ImageSpec("crossgap.test/left:1")])
        host.run(["docker", "run", "--detach", "crossgap.test/left:1"])
        init = host.first
        assert init.alive
        assert list(cgroups_of(LabFolders(name).cgroup))
        assert loops_of(LabFolders(name).state)
        link = lab.network.uplink.interface

        lab.down()

        assert not init.alive
        assert traces(name) == []
        assert name not in lab_names()
        assert not Path("/sys/class/net", link).exists()

    def test_up_removes_what_a_killed_run_left(self, name: str) -> None:
        script = (
            "import os, sys, signal; from tests.lab import *;"
            f"lab = Lab({name!r}).up([HostSpec('one', disk_bytes={512 * MIB})]);"
            "host = lab.host('one'); host.cut();"
            "host.run(['sh', '-c', 'sleep 4321 >/dev/null 2>&1 &']);"
            "print(host.init.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        )
        killed = subprocess.run(
            [sys.executable, "-c", script],
            check=False,
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        left = int(killed.stdout)
        assert Path(f"/proc/{left}").exists()
        assert traces(name)

        with Lab(name).up(self.SMALL) as lab:
            assert ssh(lab.host("one"), "hostname") == (0, b"one\n")
            assert not any("4321" in line for _, line in lab.host("one").processes())
            assert not Path(f"/proc/{left}").exists()
            assert len(loops_of(LabFolders(name).state)) == 1
        assert traces(name) == []

    def test_a_lab_is_taken_over_while_its_hosts_are_as_wanted(self, name: str) -> None:
        first = Lab(name).up(self.SMALL)
        init = first.host("one").init
        first.leave()

        second = Lab(name).up(self.SMALL, reuse=True)
        assert second.host("one").init == init
        second.host("one").stop_sshd()
        second.leave()

        third = Lab(name).up(self.SMALL, reuse=True)
        assert third.host("one").init != init
        third.down()

    def test_two_do_not_use_one_lab_at_once(self, lab: Lab) -> None:
        with pytest.raises(LabBusy, match=str(os.getpid())):
            Lab(lab.name).up(self.SMALL)

    def test_labs_live_side_by_side(self, lab: Lab, plain: LabHost, name: str) -> None:
        with Lab(name).up(self.SMALL) as other:
            assert other.host("one").address.rsplit(".", 1)[0] != plain.address.rsplit(".", 1)[0]
            assert ssh(other.host("one"), "hostname") == (0, b"one\n")
        assert ssh(plain, "hostname") == (0, b"plain1\n")

    def test_a_host_that_cannot_come_up_leaves_nothing(self, name: str) -> None:
        with pytest.raises(LabError):
            Lab(name).up([HostSpec("one", disk_bytes=64 * 1024)])
        assert traces(name) == []
