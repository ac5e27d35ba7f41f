"""Where an image may be had: the mirrors of Docker Hub in their order, then its own registry."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from blocks.errors import InvalidInput
from tasks.images.names import DEFAULT_DOMAIN, Reference

HUB_HOST = "registry-1.docker.io"
_PATH = re.compile(r"(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*", re.ASCII)
_HOST = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:]+\]", re.ASCII)
_LOOKS_LIKE = "A mirror looks like docker.example.com, 10.0.0.5:5000 or https://example.com/prefix."


@dataclass(frozen=True)
class Place:
    """One registry that may have an image.

    Args:
        host: Its host, with the port where it is not the usual one.
        repository: The image's path there.
        schemes: `https` and `http`, in the order in which they are tried.
        own: Whether it is the image's own registry, which alone is shown credentials.
    """

    host: str
    repository: str
    schemes: tuple[str, ...]
    own: bool = False

    @property
    def title(self) -> str:
        """The registry as messages name it."""
        return DEFAULT_DOMAIN if self.host == HUB_HOST else self.host

    @property
    def engine_repository(self) -> str:
        """The repository as a Docker engine has to be asked for it.

        An engine takes a first word without a dot or a colon for a folder of
        Docker Hub (names.py), and `http` for port 443 unless a port is named.
        """
        host = self.host
        usual = ":443" if self.schemes[0] == "https" else ":80"
        bare = host.rpartition("]")[2] if host.startswith("[") else host
        named = ":" in bare or (self.schemes[0] == "https" and "." in bare) or host == "localhost"
        return f"{host}{'' if named else usual}/{self.repository}"


def find_places(wanted: Reference, mirrors: Sequence[str] = ()) -> tuple[Place, ...]:
    """Return the places to ask for an image, in order.

    Args:
        wanted: The image.
        mirrors: Mirrors of Docker Hub, which are of use for its images only:
            `host`, `host:port`, `http://host:port`, `https://host/prefix`.

    Raises:
        InvalidInput: A mirror is none of these.
    """
    known = [_mirror(text, wanted.path) for text in mirrors if text.strip()]
    if wanted.domain == DEFAULT_DOMAIN:
        return (*known, Place(HUB_HOST, wanted.path, ("https",), own=True))
    return (Place(wanted.domain, wanted.path, _schemes(wanted.domain), own=True),)


def _mirror(text: str, path: str) -> Place:
    scheme, separator, rest = text.strip().rpartition("://")
    parts = urlsplit(f"//{rest}")
    try:
        port = parts.port
    except ValueError as error:
        raise _malformed(text, "has a port that is none") from error
    if "@" in parts.netloc:
        # Not shown: what stands before the @ is a secret.
        raise InvalidInput(
            "it has a user name in it",
            f"mirror {rest.rpartition('@')[2]!r}",
            "A mirror is asked without credentials; leave them out.",
        )
    if separator and scheme.lower() not in ("http", "https"):
        raise _malformed(text, f"begins with {scheme}://")
    host = parts.netloc.lower()
    prefix = parts.path.rstrip("/")
    if not _HOST.fullmatch(host.removesuffix(f":{port}")):
        raise _malformed(text, "has no host name")
    if parts.query or parts.fragment or not _PATH.fullmatch(prefix):
        raise _malformed(text, "has a path that no registry has")
    repository = f"{prefix}/{path}".lstrip("/")
    return Place(host, repository, (scheme.lower(),) if separator else _schemes(host))


def _schemes(host: str) -> tuple[str, ...]:
    """Nothing goes unencrypted but to this machine itself, which is asked both ways."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        loopback = ipaddress.ip_address(name).is_loopback
    except ValueError:
        loopback = name == "localhost"
    return ("https", "http") if loopback else ("https",)


def _malformed(text: str, what: str) -> InvalidInput:
    return InvalidInput(f"it {what}", f"mirror {text.strip()!r}", _LOOKS_LIKE)
