"""Image names: what Docker accepts, and how it shows them.

The grammar is that of https://github.com/distribution/reference (regexp.go):
`[domain[:port]/]path[:tag][@digest]`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from blocks.errors import CrossgapError, InvalidInput, SeveralFailures

DEFAULT_DOMAIN = "docker.io"
LEGACY_DEFAULT_DOMAIN = "index.docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"
LONGEST_NAME = 255

_DOMAIN_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(
    rf"(?:{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII
)
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128}", re.ASCII)
_BARE_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)
_LOOKS_LIKE = (
    "A name looks like infiniflow/ragflow:v0.20.0 or registry.example.com:5000/team/app:1.2."
)


@dataclass(frozen=True)
class Reference:
    """An image name taken apart.

    Args:
        domain: The registry with its port; `docker.io` where none was given.
        path: The repository within the registry, with `library/` for
            Docker's official images.
        tag: The tag; `latest` where neither tag nor digest was given, empty
            where only a digest was.
        digest: `sha256:…` of the manifest, or empty.
    """

    domain: str
    path: str
    tag: str
    digest: str = ""

    def __str__(self) -> str:
        return self.familiar

    @property
    def repository(self) -> str:
        """The name without tag and digest, as `docker images` shows it."""
        if self.domain != DEFAULT_DOMAIN:
            return f"{self.domain}/{self.path}"
        return self.path.removeprefix(OFFICIAL_PREFIX)

    @property
    def familiar(self) -> str:
        """The whole name as Docker shows it; a digest outweighs a tag, as in Docker."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        return f"{self.repository}:{self.tag}"


def parse_reference(text: str) -> Reference:
    """Take one image name apart.

    Args:
        text: The name as somebody typed it; white space around it is ignored.

    Returns:
        Its parts, with Docker's defaults filled in.

    Raises:
        InvalidInput: It is not a name that Docker would accept.
    """
    name = text.strip()
    _refuse_foreign_characters(name)
    rest, _, digest = name.partition("@")
    if "@" in name and not _DIGEST.fullmatch(digest):
        raise _malformed(name, "has no complete digest after the @ (sha256: and 64 hex digits)")
    domain, path_and_tag = _split_domain(rest)
    path, colon, tag = path_and_tag.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _malformed(name, f"has a tag that Docker does not accept, {tag!r}")
    if not _DOMAIN.fullmatch(domain):
        raise _malformed(name, f"has a registry that is no host name, {domain!r}")
    _check_path(name, path)
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_PREFIX + path
    if not tag and not digest:
        tag = DEFAULT_TAG
    reference = Reference(domain, path, tag, digest)
    if len(f"{domain}/{path}") > LONGEST_NAME:
        raise _malformed(name, f"is longer than {LONGEST_NAME} characters")
    return reference


def parse_references(entries: Iterable[str]) -> tuple[Reference, ...]:
    """Take a list of image names apart; a name that comes twice is kept once.

    Args:
        entries: The names as somebody typed them.

    Returns:
        The references in the order given.

    Raises:
        InvalidInput: The list is empty or a name is malformed.
        SeveralFailures: Several names are malformed.
    """
    found: dict[str, Reference] = {}
    failures: list[CrossgapError] = []
    for entry in entries:
        try:
            reference = parse_reference(entry)
        except InvalidInput as error:
            failures.append(error)
        else:
            found.setdefault(reference.familiar, reference)
    if len(failures) > 1:
        raise SeveralFailures(failures, "images")
    if failures:
        raise failures[0]
    if not found:
        raise InvalidInput("the list of images is empty", "images", f"Name one. {_LOOKS_LIKE}")
    return tuple(found.values())


def _split_domain(name: str) -> tuple[str, str]:
    """Tell a registry from the first folder of a path, by Docker's rule."""
    first, slash, rest = name.partition("/")
    is_domain = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not is_domain:
        return DEFAULT_DOMAIN, name
    return (DEFAULT_DOMAIN if first == LEGACY_DEFAULT_DOMAIN else first), rest


def _check_path(name: str, path: str) -> None:
    if not path:
        raise _malformed(name, "is empty" if not name else "has no repository")
    if _BARE_ID.fullmatch(path):
        raise _malformed(name, "is an image id, which other hosts do not know")
    if path != path.lower() and _PATH.fullmatch(path.lower()):
        raise _malformed(name, f"has capital letters; Docker would accept {name.lower()!r}")
    if not _PATH.fullmatch(path):
        raise _malformed(name, "is not an image name that Docker accepts")


def _refuse_foreign_characters(name: str) -> None:
    """Say what is wrong with a character no name can have, before any other complaint."""
    plain = unicodedata.normalize("NFKC", name)
    if any(character.isspace() for character in name) or "," in name:
        raise _malformed(
            name, "contains a space or a comma", "Give every image an entry of its own."
        )
    if plain != name and plain.isascii():
        raise _malformed(
            name, "contains full-width characters", f"Type it with an English keyboard: {plain!r}."
        )
    odd = [c for c in name if not c.isascii() or not c.isprintable()]
    if odd:
        raise _malformed(
            name,
            f"contains {odd[0]!r}",
            "Only English letters, digits and . _ - / : @ are allowed (no Chinese characters).",
        )


def _malformed(name: str, what: str, hint: str = "") -> InvalidInput:
    return InvalidInput(f"the name {what}", f"image {name!r}", f"{hint} {_LOOKS_LIKE}".strip())
