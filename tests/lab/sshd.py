"""The sshd of a host: its configuration, its keys, its life."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.lab.commands import execute
from tests.lab.inside import Inside
from tests.lab.spec import HostSpec

HOST_KEY = "ssh_host_ed25519_key"

COMMON = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
UseDNS no
PrintMotd no
X11Forwarding no
PasswordAuthentication no
AcceptEnv LANG LC_*
"""
BY_KIND = {
    "plain": "PermitRootLogin prohibit-password\nUsePAM no\nKbdInteractiveAuthentication no\n"
    "Subsystem sftp internal-sftp\n",
    "jump": "PermitRootLogin no\nUsePAM no\nKbdInteractiveAuthentication no\n",
    "bare": "PermitRootLogin no\nUsePAM yes\nKbdInteractiveAuthentication yes\n"
    "PubkeyAuthentication no\nBanner /etc/issue.net\n",
}


@dataclass(frozen=True)
class SshdSettings:
    """What a test may change about an sshd.

    Attributes:
        forwarding: Whether TCP forwarding is allowed (AllowTcpForwarding).
        max_startups: Connections that may be in their login phase; None is OpenSSH's default.
    """

    forwarding: bool = True
    max_startups: int | None = None


def sshd_config(spec: HostSpec, settings: SshdSettings) -> str:
    """Compose the host's /etc/ssh/sshd_config."""
    lines = [f"Port {spec.port}\n", COMMON, BY_KIND[spec.kind]]
    lines.append(f"AllowTcpForwarding {'yes' if settings.forwarding else 'no'}\n")
    if settings.max_startups is not None:
        lines.append(f"MaxStartups {settings.max_startups}\n")
    return "".join(lines)


def make_key(path: Path, comment: str) -> None:
    """Make a new Ed25519 key pair at `path` and `path`.pub, replacing one that is there."""
    for old in (path, path.with_name(f"{path.name}.pub")):
        old.unlink(missing_ok=True)
    execute("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path))


def known_hosts_line(address: str, port: int, public_key: str) -> str:
    """Compose the known_hosts line of a host, with the `[address]:port` form (sshd(8))."""
    algorithm, key = public_key.split()[:2]
    return f"{address},[{address}]:{port} {algorithm} {key}\n"


class Sshd:
    """A host's sshd.

    Args:
        inside: The host.
        spec: What kind of host it is.
        keys: The folder on this machine that holds its host key.
        netns: Its network namespace.
    """

    def __init__(self, inside: Inside, spec: HostSpec, keys: Path, netns: Path) -> None:
        self._inside = inside
        self._spec = spec
        self._keys = keys
        self._netns = netns
        self.settings = SshdSettings()

    @property
    def public_key(self) -> str:
        """Its public host key, as OpenSSH text."""
        return (self._keys / f"{HOST_KEY}.pub").read_text()

    def start(self) -> None:
        """Start it where it does not listen, and wait until it does."""
        if self.listens():
            return
        for name in (HOST_KEY, f"{HOST_KEY}.pub"):
            key = self._inside.path(f"etc/ssh/{name}")
            key.write_bytes((self._keys / name).read_bytes())
            key.chmod(0o600)
        self._config.write_text(sshd_config(self._spec, self.settings))
        self._inside.run(["/usr/sbin/sshd", "-E", "/var/log/sshd.log"])
        self._inside.wait_for(self.listens, "sshd does not listen", "var/log/sshd.log")

    def stop(self) -> None:
        """Kill it and every session of it."""
        self._inside.kill(pid for pid, name in self._inside.names() if name.startswith("sshd"))

    def configure(self, settings: SshdSettings) -> None:
        """Let new connections find these settings; sessions that are open stay open."""
        self.settings = settings
        if self._config.read_text() != sshd_config(self._spec, settings):
            self._restart_listener()

    def change_key(self) -> None:
        """Let new connections find another host key."""
        kept = self._kept_keys
        if not kept.exists():
            shutil.copytree(self._keys, kept)
        make_key(self._keys / HOST_KEY, self._spec.name)
        self._restart_listener()

    def restore_key(self) -> None:
        """Let new connections find the host key that it came up with."""
        if self._kept_keys.exists():
            shutil.rmtree(self._keys)
            self._kept_keys.replace(self._keys)
            self._restart_listener()

    def listener(self) -> int:
        """Return the pid, on the host, of the process that accepts connections; 0 for none."""
        with suppress(OSError, ValueError):
            pid = int(self._inside.path("run/sshd.pid").read_text())
            if (pid, "sshd") in self._inside.names():
                return pid
        return 0

    def listens(self) -> bool:
        """Whether something listens on its port."""
        entered = ("nsenter", f"--net={self._netns}")
        return bool(execute(*entered, "ss", "-Hltn", f"sport = :{self._spec.port}").strip())

    @property
    def _config(self) -> Path:
        return self._inside.path("etc/ssh/sshd_config")

    @property
    def _kept_keys(self) -> Path:
        return self._keys.with_name("ssh.first")

    def _restart_listener(self) -> None:
        # A new listener instead of SIGHUP: afterwards it is certain that the new one answers.
        self._inside.kill([self.listener()])
        self._inside.wait_for(lambda: not self.listens(), "sshd does not stop")
        self.start()
