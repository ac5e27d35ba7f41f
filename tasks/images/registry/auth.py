"""How a registry asks who is there, and what it is answered.

https://distribution.github.io/distribution/spec/auth/token/ and RFC 7617 (Basic).
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from blocks.errors import Damaged, Unreachable
from tasks.images.names import DEFAULT_DOMAIN, LEGACY_DEFAULT_DOMAIN, Reference
from tasks.images.registry.places import HUB_HOST

_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_HUB_NAMES = (DEFAULT_DOMAIN, LEGACY_DEFAULT_DOMAIN, HUB_HOST, "hub.docker.com")


@dataclass(frozen=True)
class Credentials:
    """Who pulls.

    Args:
        username: The registry's user name.
        password: The password or access token.
        registry: The registry that they are for; empty for any image's own.
    """

    username: str
    password: str = field(repr=False)
    registry: str = ""

    def are_for(self, reference: Reference) -> bool:
        """Whether they are for the registry that an image is named after."""
        if not self.registry:
            return True
        host = re.sub(r"^https?://", "", self.registry.strip(), flags=re.IGNORECASE)
        host = host.partition("/")[0].lower()
        return (DEFAULT_DOMAIN if host in _HUB_NAMES else host) == reference.domain.lower()

    def basic(self) -> str:
        """Return the header that shows them."""
        shown = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(shown).decode()}"


@dataclass(frozen=True)
class Challenge:
    """What a registry wants to see.

    Args:
        scheme: `basic` or `bearer`.
        realm: Where tokens are given, for `bearer`.
        service: What the giver of tokens calls the registry.
        scope: What the token has to allow.
    """

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""

    def token_url(self, repository: str) -> str:
        """Return where to get a token to pull a repository."""
        wanted = {"service": self.service, "scope": self.scope or f"repository:{repository}:pull"}
        joint = "&" if urlsplit(self.realm).query else "?"
        return f"{self.realm}{joint}{urlencode({k: v for k, v in wanted.items() if v})}"


def parse_challenge(header: str) -> Challenge | None:
    """Read a `WWW-Authenticate` header.

    Args:
        header: Its value; of several challenges joined in it, one for a token is preferred.

    Returns:
        What is asked for, or None when it is nothing known.
    """
    if found := re.search(r"\bbearer\s+(.*)", header, re.IGNORECASE | re.DOTALL):
        parameters = {
            name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain
            for name, quoted, plain in reversed(_PARAMETER.findall(found[1]))
        }
        known = {key: parameters.get(key, "") for key in ("realm", "service", "scope")}
        return Challenge("bearer", **known)
    return Challenge("basic") if re.match(r"\s*basic\b", header, re.IGNORECASE) else None


def check_realm(realm: str, registry_url: str, where: str) -> None:
    """Refuse to fetch a token, and to show a password, where anybody could read it.

    Raises:
        Unreachable: The registry is encrypted and the giver of tokens is not.
    """
    scheme = urlsplit(realm).scheme.lower()
    if scheme == "https" or (scheme == "http" and registry_url.startswith("http:")):
        return
    raise Unreachable(
        "it sends for a token to a place that is not encrypted",
        where,
        "Have the registry's token realm changed to https.",
        retryable=False,
    )


def parse_token(content: bytes, where: str) -> str:
    """Read what a giver of tokens answered.

    Raises:
        Damaged: There is no token in it.
    """
    try:
        answer = json.loads(content)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError):
        token = None
    # Anything else would end up as a header of its own.
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise Damaged("the giver of tokens answered without one", where, retryable=True)
    return token
