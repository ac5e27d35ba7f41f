"""Host keys: what is recorded, what a host shows, and how to compare them.

The format of the records is that of OpenSSH's known_hosts file (sshd(8), "SSH
KNOWN_HOSTS FILE FORMAT"), hashed names included.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from blocks.errors import ChangedHostKey, InvalidInput, UnknownHostKey

if TYPE_CHECKING:
    import paramiko

# What a record calls a key, and the signature algorithms that prove it.
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


def host_key_name(address: str, port: int) -> str:
    """Return the name under which known_hosts records a host."""
    return address if port == 22 else f"[{address}]:{port}"


def fingerprint(key: paramiko.PKey) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode()
    return f"SHA256:{digest.rstrip('=')}"


def known_hosts_line(address: str, port: int, key: paramiko.PKey) -> str:
    """Return the line that records a host's key."""
    return f"{host_key_name(address, port)} {key.get_name()} {key.get_base64()}"


class KnownHosts:
    """Recorded host keys.

    Args:
        text: Lines in known_hosts format; empty lines and comments are skipped.
        where: The host as messages name it.

    Raises:
        InvalidInput: A line is not a record.
    """

    def __init__(self, text: str, where: str) -> None:
        from paramiko.hostkeys import HostKeyEntry

        self._where = where
        self._entries: list[HostKeyEntry] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                entry = HostKeyEntry.from_line(line.strip(), number)
            except Exception:  # noqa: BLE001 - paramiko raises what its parser met
                entry = None
            if entry is None or entry.key is None:
                raise InvalidInput(
                    f"line {number} of known_hosts is not a host key",
                    where,
                    "Record the key anew: python -m blocks.ssh_host scan ADDRESS --block NAME",
                )
            self._entries.append(entry)

    def keys(self, address: str, port: int) -> list[paramiko.PKey]:
        """Return the keys recorded for a host."""
        from paramiko.hostkeys import HostKeys

        table = HostKeys()
        table._entries = self._entries  # type: ignore[attr-defined]
        found = table.lookup(host_key_name(address, port))
        return [] if found is None else list(found.values())

    def algorithms(self, address: str, port: int) -> list[str]:
        """Return the algorithms that can prove a recorded key, to ask the host for those."""
        names = [key.get_name() for key in self.keys(address, port)]
        return [algorithm for name in names for algorithm in _ALGORITHMS.get(name, (name,))]

    def check(self, address: str, port: int, shown: paramiko.PKey) -> None:
        """Compare the key that a host shows with what is recorded.

        Args:
            address: The host's address as the block has it.
            port: Its port.
            shown: The key it shows.

        Raises:
            UnknownHostKey: Nothing is recorded for this host.
            ChangedHostKey: Something else is recorded.
        """
        recorded = self.keys(address, port)
        if any(key.asbytes() == shown.asbytes() for key in recorded):
            return
        scan = f"python -m blocks.ssh_host scan {address} --port {port} --block NAME"
        print_ = f"{shown.get_name()} {fingerprint(shown)}"
        if not recorded:
            raise UnknownHostKey(
                f"its host key is not recorded; it shows {print_}",
                self._where,
                f"Compare that with what the host's own console says "
                f"(ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub), then record it: {scan}",
            )
        was = ", ".join(f"{key.get_name()} {fingerprint(key)}" for key in recorded)
        raise ChangedHostKey(
            f"its host key has changed: recorded is {was}, shown is {print_}",
            self._where,
            "Either the host was installed anew or somebody is in between. Ask who runs it; "
            f"only then record the new key: {scan}",
        )
