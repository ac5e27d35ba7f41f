"""One line of a known_hosts file: which hosts it is about, and their key.

The format is OpenSSH's (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"): an optional
marker, host names (patterns with `*`, `?` and a leading `!`, or one hashed name),
the key's type, the key. Names are compared in lower case, as OpenSSH does.
"""

from __future__ import annotations

import base64
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import paramiko

_HASHED = "|1|"
_REVOKED = "@revoked"


@dataclass(frozen=True)
class HostKeyRecord:
    """What one line says.

    Args:
        names: Host names, patterns, or one hashed name.
        key: The public key.
        revoked: Whether the line says that this key is never to be accepted.
        comment: What else is on the line.
    """

    names: tuple[str, ...]
    key: paramiko.PKey
    revoked: bool = False
    comment: str = ""

    def matches(self, name: str) -> bool:
        """Return whether the line is about a host.

        Args:
            name: The host as known_hosts names it; see `host_key_name`.
        """
        refused = any(_matches(part[1:], name) for part in self.names if part.startswith("!"))
        return not refused and any(_matches(part, name) for part in self.names)

    def without(self, name: str) -> HostKeyRecord | None:
        """Take one host out, so that the line still says the same of all others.

        Args:
            name: The host as known_hosts names it.

        Returns:
            The rest of the record; None when it was about nobody else.
        """
        others = tuple(part for part in self.names if _is_pattern(part) or not _matches(part, name))
        rest = HostKeyRecord(others, self.key, self.revoked, self.comment)
        if rest.matches(name):  # through a pattern, which may stand for others too
            rest = HostKeyRecord((*others, f"!{name}"), self.key, self.revoked, self.comment)
        return rest if any(not part.startswith("!") for part in others) else None

    def __str__(self) -> str:
        marker = [_REVOKED] if self.revoked else []
        comment = [self.comment] if self.comment else []
        key = [self.key.get_name(), self.key.get_base64()]
        return " ".join([*marker, ",".join(self.names), *key, *comment])


def is_record(line: str) -> bool:
    """Return whether a line says anything: it is neither empty nor a comment."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def parse_record(line: str) -> HostKeyRecord:
    """Read a line that `is_record`.

    Args:
        line: The line.

    Raises:
        ValueError: It is not a host key that can be compared: not in the format, an
            unknown type, or a certificate authority.
    """
    from paramiko.hostkeys import HostKeyEntry

    fields = line.split()
    revoked = fields[0] == _REVOKED
    if revoked:
        fields = fields[1:]
    try:
        names = tuple(fields[0].split(","))
        entry = HostKeyEntry.from_line(" ".join(fields[:3]))
        for name in names:
            _matches(name, "")  # a hashed name that is damaged shows here
    except Exception as error:  # paramiko raises what its parser met
        raise ValueError(f"not a host key: {error}") from error
    if entry is None or entry.key is None or names[0].startswith("@"):
        raise ValueError("not a host key")
    return HostKeyRecord(names, entry.key, revoked, " ".join(fields[3:]))


def _is_pattern(part: str) -> bool:
    return part.startswith("!") or "*" in part or "?" in part


def _matches(part: str, name: str) -> bool:
    if part.startswith(_HASHED):
        _, _, salt, digest = part.split("|")
        hashed = hmac.new(base64.b64decode(salt, validate=True), name.lower().encode(), "sha1")
        return hmac.compare_digest(hashed.digest(), base64.b64decode(digest, validate=True))
    # Not fnmatch: to it, the brackets around an address mean something.
    pattern = re.escape(part.lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, name.lower()) is not None
