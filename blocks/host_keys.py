"""Host keys: what is recorded, what a host shows, and how to compare them."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from blocks.errors import ChangedHostKey, InvalidInput, UnknownHostKey
from blocks.host_key_record import HostKeyRecord, is_record, parse_record

if TYPE_CHECKING:
    import paramiko

# What a record calls a key, and the signature algorithms that prove it.
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


def host_key_name(address: str, port: int) -> str:
    """Return the name under which known_hosts records a host."""
    name = address.strip().lower()
    return name if port == 22 else f"[{name}]:{port}"


def fingerprint(key: paramiko.PKey) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode()
    return f"SHA256:{digest.rstrip('=')}"


def known_hosts_line(address: str, port: int, key: paramiko.PKey) -> str:
    """Return the line that records a host's key."""
    return f"{host_key_name(address, port)} {key.get_name()} {key.get_base64()}"


def recorded_anew(text: str, address: str, port: int, key: paramiko.PKey) -> str:
    """Make a key the only one that is recorded for a host.

    Args:
        text: What is recorded so far, in known_hosts format.
        address: The host's address.
        port: Its port.
        key: Its key.

    Returns:
        The text with the new line last. Gone are other keys of this host and lines that
        are no host keys; comments, other hosts and revoked keys stay.
    """
    name = host_key_name(address, port)
    kept = [_without(line, name) for line in text.splitlines()]
    return "\n".join([*filter(None, kept), known_hosts_line(address, port, key)])


def _without(line: str, name: str) -> str | None:
    if not is_record(line):
        return line
    try:
        record = parse_record(line)
    except ValueError:
        return None
    if record.revoked or not record.matches(name):
        return line
    rest = record.without(name)
    return None if rest is None else str(rest)


class KnownHosts:
    """Recorded host keys.

    Args:
        text: Lines in known_hosts format; empty lines and comments are skipped.
        where: The host as messages name it.

    Raises:
        InvalidInput: A line is not a record.
    """

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._records: list[HostKeyRecord] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not is_record(line):
                continue
            try:
                self._records.append(parse_record(line))
            except ValueError as error:
                raise InvalidInput(
                    f"line {number} of known_hosts is not a host key",
                    where,
                    "Record the key anew: python -m blocks.ssh_host scan ADDRESS --block NAME",
                ) from error

    def keys(self, address: str, port: int) -> list[paramiko.PKey]:
        """Return the keys recorded for a host and not revoked, in the order of their lines."""
        about = self._about(address, port)
        revoked = {record.key.asbytes() for record in about if record.revoked}
        return [record.key for record in about if record.key.asbytes() not in revoked]

    def _about(self, address: str, port: int) -> list[HostKeyRecord]:
        name = host_key_name(address, port)
        return [record for record in self._records if record.matches(name)]

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
            ChangedHostKey: Something else is recorded, or this key is revoked.
        """
        recorded = self.keys(address, port)
        if any(key.asbytes() == shown.asbytes() for key in recorded):
            return
        print_ = f"{shown.get_name()} {fingerprint(shown)}"
        if any(it.key.asbytes() == shown.asbytes() for it in self._about(address, port)):
            raise ChangedHostKey(
                f"it shows a key that is recorded as revoked: {print_}",
                self._where,
                "Somebody else may have this key: ask who runs the host for a new one. Only if "
                "it was revoked by mistake, take the line @revoked out of the block's host keys.",
            )
        scan = f"python -m blocks.ssh_host scan {address} --port {port} --block NAME"
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
