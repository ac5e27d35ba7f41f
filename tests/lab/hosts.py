"""One pretend server, seen from the side: what a test does to it, and what it reads off it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.lab.boot import prepare_folder, start_init
from tests.lab.host_engine import HostEngine
from tests.lab.inside import Inside
from tests.lab.network import Network
from tests.lab.processes import Process
from tests.lab.root import home_files
from tests.lab.spec import HostSpec
from tests.lab.sshd import Sshd, SshdSettings, known_hosts_line
from tests.lab.state import NETNS_ROOT, LabFolders

BALLAST = "var/lib/ballast"
IDLE = "tail -f /dev/null"  # see init.sh
# Where users leave things. None of it lies behind an absolute symbolic link (see Inside.path).
WRITTEN_TO = (
    "tmp", "var/tmp", "home", "root", "opt", "srv", "mnt", "data1", "dev/shm", "run/lock",
    "usr/local/bin",
)  # fmt: skip


@dataclass(frozen=True)
class Access:
    """How a host's user logs in.

    Attributes:
        private_key: OpenSSH text of the key, empty where keys are not accepted.
        public_key: Its public half.
        password: The login and sudo password, empty where there is none.
    """

    private_key: str = field(default="", repr=False)
    public_key: str = ""
    password: str = field(default="", repr=False)


class LabHost(Inside):
    """A pretend server.

    Everything here reaches it from the side, through its namespaces; it works when the host
    is cut off, its disk full or its sshd dead. `tests/lab/README.md` lists what there is.
    """

    def __init__(
        self,
        spec: HostSpec,
        address: str,
        folders: LabFolders,
        network: Network,
        access: Access,
        jump: LabHost | None = None,
        init: Process | None = None,
    ) -> None:
        super().__init__(spec.name, init)
        self.spec = spec
        self.address = address
        self.jump = jump
        self._folder = folders.host(spec.name)
        self._netns = NETNS_ROOT / folders.netns(spec.name)
        self._network = network
        self._access = access
        keys = self._folder / "etc" / "ssh"
        self._sshd = Sshd(self, spec, keys, self._netns)
        self._engine = HostEngine(self, f"{folders.cgroup}/{spec.name}")

    def __repr__(self) -> str:
        return f"<LabHost {self.name} ({self.spec.kind}, {self.address}:{self.port})>"

    # Who and where it is.

    @property
    def name(self) -> str:
        """Its name in the lab, and its host name."""
        return self.spec.name

    @property
    def kind(self) -> str:
        """`plain`, `bare` or `jump`."""
        return self.spec.kind

    @property
    def port(self) -> int:
        """Where its sshd listens."""
        return self.spec.port

    @property
    def username(self) -> str:
        """Who logs in."""
        return self.spec.username

    @property
    def home(self) -> str:
        """That user's home on the host."""
        return self.spec.home

    @property
    def private_key(self) -> str:
        """The key that is let in, as OpenSSH text; empty on a bare host."""
        return "" if self.kind == "bare" else self._access.private_key

    @property
    def password(self) -> str:
        """The password that is let in; empty where only a key is."""
        return self._access.password if self.kind == "bare" else ""

    @property
    def sudo_password(self) -> str:
        """What sudo asks for; empty where the user is root."""
        return self.password

    @property
    def known_hosts(self) -> str:
        """The known_hosts line of the key it has now."""
        return known_hosts_line(self.address, self.port, self._sshd.public_key)

    @property
    def docker_host(self) -> str:
        """The URL by which its engine can be asked from the side."""
        return self._engine.url

    def block_fields(self) -> dict[str, object]:
        """Return the fields of an SSHHost block that reaches it, the jump host's nested."""
        fields: dict[str, object] = {
            "address": self.address,
            "port": self.port,
            "username": self.username,
            "known_hosts": self.known_hosts,
            "sudo": "password" if self.sudo_password else "no",
        }
        if self.private_key:
            fields["private_key"] = self.private_key
        if self.password:
            fields |= {"password": self.password, "sudo_password": self.sudo_password}
        if self.jump:
            fields["jump_host"] = self.jump.block_fields()
        return fields

    # Its link.

    def cut(self) -> None:
        """Pull its network cable: packets are lost both ways, nothing is told to anyone."""
        self._network.switch_link(self.name).set("down")

    def mend(self) -> None:
        """Plug the cable in again."""
        self._network.switch_link(self.name).set("up")

    def slow(self, mbit: float | None) -> None:
        """Limit its link, each way, to `mbit` Mbit/s; None lifts the limit."""
        self._network.switch_link(self.name).shape(mbit)
        self._network.host_link(self.name).shape(mbit)

    def bytes_received(self) -> int:
        """Bytes that arrived at its own network interface since it is up."""
        return self._network.host_link(self.name).bytes_received()

    def bytes_sent(self) -> int:
        """Bytes that left its own network interface since it is up."""
        return self._network.host_link(self.name).bytes_sent()

    # Its disk.

    def disk_free(self) -> int:
        """Bytes free on its disk (which holds /home, /root, /tmp and Docker's data)."""
        disk = os.statvfs(self.path(""))
        return disk.f_bavail * disk.f_frsize

    def fill_disk(self, leave_bytes: int = 0) -> None:
        """Fill its disk until about `leave_bytes` are free, a few blocks more or less."""
        descriptor = os.open(self.path(BALLAST), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            step = self.disk_free() - leave_bytes
            while step >= 4096:
                try:
                    os.posix_fallocate(descriptor, size, step)
                except OSError:
                    step //= 2
                    continue
                size += step
                step = min(step, self.disk_free() - leave_bytes)
        finally:
            os.close(descriptor)

    def free_disk(self) -> None:
        """Take away what `fill_disk` put there."""
        self.path(BALLAST).unlink(missing_ok=True)

    # Its sshd.

    def start_sshd(self) -> None:
        """Start sshd where it does not run, and wait until it listens."""
        self._sshd.start()

    def stop_sshd(self) -> None:
        """Kill sshd and every session of it, as a crash would; what they started lives on."""
        self._sshd.stop()

    def forbid_forwarding(self) -> None:
        """Let its sshd refuse TCP forwarding (a jump host that will not be one)."""
        self._sshd.configure(replace(self._sshd.settings, forwarding=False))

    def allow_forwarding(self) -> None:
        """Let its sshd forward TCP again."""
        self._sshd.configure(replace(self._sshd.settings, forwarding=True))

    def max_startups(self, connections: int | None) -> None:
        """Let no more than so many connections be in their login phase; None: as by default."""
        self._sshd.configure(replace(self._sshd.settings, max_startups=connections))

    def change_host_key(self) -> None:
        """Give it another host key, as after a new installation; `known_hosts` is the new one's.

        Sessions that are open stay open.
        """
        self._sshd.change_key()

    def restore_host_key(self) -> None:
        """Give it the host key back that it came up with."""
        self._sshd.restore_key()

    # Its engine.

    def start_engine(self) -> None:
        """Start dockerd where it does not run, and wait until it answers."""
        if self.spec.has_engine:
            self._engine.start()

    def stop_engine(self) -> None:
        """Kill dockerd, containerd and all containers, as a crash of the engine would."""
        self._engine.stop()

    def engine_answers(self) -> bool:
        """Whether its dockerd answers a ping."""
        return self._engine.answers()

    # What it holds and runs.

    def write_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file on the host, with its folders, owned by the login user."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
        if path.startswith(f"{self.home}/"):
            self._own_home()

    def leftover_processes(self) -> list[tuple[int, str]]:
        """Return what runs beyond its own init, sshd and engine: sessions, jobs, containers."""
        standing = {1, self._sshd.listener()}
        standing |= {pid for pid, name in self.names() if name in ("dockerd", "containerd")}
        running = self.processes()
        # What its first process waits for came before any other of the same words.
        standing |= {min((pid for pid, line in running if line == IDLE), default=0)}
        return [(pid, line) for pid, line in running if pid not in standing]

    # Its life.

    @property
    def healthy(self) -> bool:
        """Whether it is up, with its sshd listening and its engine answering."""
        if self.init is None or not self.init.alive:
            return False
        return self._sshd.listens() and (not self.spec.has_engine or self.engine_answers())

    def boot(self, known: Mapping[str, str]) -> None:
        """Make its disk and root, and start what runs on it.

        Args:
            known: Names and addresses for its /etc/hosts.

        Raises:
            LabError: It did not come up; carries the end of the log that says why.
        """
        prepare_folder(self._folder, self.spec, known)
        self.init = start_init(self._folder, self.name, self._netns)
        self._fill_home()
        if self.password:
            account = f"{self.username}:{self.password}\n"
            self.run(["chpasswd", "-c", "SHA512"], input=account)
        self.start_sshd()
        self.start_engine()

    def reset(self) -> None:
        """Make it as good as new for the next test, in a second or less.

        Mends the link, frees the disk, undoes what the methods here changed, removes
        containers, images, volumes and networks, ends sessions and jobs, and empties the
        places that users write to.
        """
        self.mend()
        self.slow(None)
        self._end_sessions()
        self.free_disk()
        self._empty_folders()
        self._fill_home()
        self._sshd.restore_key()
        self._sshd.configure(SshdSettings())
        self._sshd.start()
        if self.spec.has_engine:
            self._engine.start()
            self._engine.empty()
        self.kill(pid for pid, _ in self.leftover_processes())

    def _end_sessions(self) -> None:
        """End what is neither the host's own nor a container's; the engine ends those."""
        containers = self._engine.processes()
        self.kill(pid for pid, _ in self.leftover_processes() if pid not in containers)

    def _empty_folders(self) -> None:
        for place in WRITTEN_TO:
            for entry in self.path(place).iterdir():
                if entry.name != "containerd":  # the engine's own, in /opt
                    _remove(entry)
        for parent in ("var/lib", "run", "etc"):
            for entry in self.path(parent).glob("crossgap*"):
                _remove(entry)

    def _fill_home(self) -> None:
        home = self.path(self.home)
        for name, content in home_files(self.spec, self._access.public_key).items():
            target = home / name
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            target.write_bytes(content)
            target.chmod(0o600 if name.startswith(".ssh/") else 0o644)
        self._own_home()

    def _own_home(self) -> None:
        if self.username != "root":
            owner = f"{self.username}:{self.username}"
            self.run(["chown", "-R", owner, self.home])


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
