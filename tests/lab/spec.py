"""What kinds of host there are, and what a caller may choose about one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tests.lab.errors import LabError

Kind = Literal["plain", "bare", "jump"]
Tools = Literal["coreutils", "busybox"]
GIB = 1 << 30

USERS: Mapping[Kind, str] = {"plain": "root", "bare": "operator", "jump": "gate"}


@dataclass(frozen=True)
class HostSpec:
    """One host as it is wanted.

    Attributes:
        name: Its name in the lab: lower-case letters and digits, at most 12.
        kind: `plain` (root by key, an engine), `bare` (an old server behind a jump host) or
            `jump` (a way in, no engine).
        disk_bytes: Size of its disk; the image file is sparse.
        tools: Whether a bare host's shell and basic tools are coreutils' or busybox'.
        port: Where its sshd listens.
        behind: The jump host that it can be reached through only; a bare host is behind
            `jump` unless told otherwise.
    """

    name: str
    kind: Kind = "plain"
    disk_bytes: int = 3 * GIB
    tools: Tools = "coreutils"
    port: int = 22
    behind: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", self.name) or self.name == "switch":
            raise LabError(f"{self.name!r} is no name for a host: use up to 12 letters and digits")
        if self.kind == "bare" and not self.behind:
            object.__setattr__(self, "behind", "jump")

    @property
    def username(self) -> str:
        """Who logs in."""
        return USERS[self.kind]

    @property
    def home(self) -> str:
        """Where that user lives."""
        return "/root" if self.username == "root" else f"/home/{self.username}"

    @property
    def has_engine(self) -> bool:
        """Whether it runs a dockerd."""
        return self.kind != "jump"

    def as_record(self) -> dict[str, Any]:
        """Return it as the lab's record keeps it."""
        return asdict(self)


DEFAULT_HOSTS = (
    HostSpec("plain1"),
    # A port of its own, so that the [address]:port form of known_hosts is met somewhere.
    HostSpec("plain2", port=2222),
    HostSpec("jump", "jump", disk_bytes=GIB // 4),
    HostSpec("bare", "bare"),
)

Wanted = Mapping[str, str] | Iterable[HostSpec]


def kind_named(text: str) -> Kind:
    """Return the kind of this name.

    Raises:
        LabError: There is none; names those there are.
    """
    for kind in USERS:
        if kind == text:
            return kind
    raise LabError(f"{text!r} is no kind of host: {', '.join(USERS)} are")


def complete(wanted: Wanted) -> list[HostSpec]:
    """Return the hosts to make, jump hosts that others need included and first.

    Raises:
        LabError: Two hosts have one name, or one is behind a host that is no jump host.
    """
    if isinstance(wanted, Mapping):
        specs = [HostSpec(name, kind_named(kind)) for name, kind in wanted.items()]
    else:
        specs = list(wanted)
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise LabError(f"two hosts of one name: {', '.join(names)}")
    for missing in sorted({spec.behind for spec in specs} - {"", *names}):
        specs.append(HostSpec(missing, "jump", disk_bytes=GIB // 4))
    jumps = {spec.name for spec in specs if spec.kind == "jump"}
    for spec in specs:
        if spec.behind and (spec.behind not in jumps or spec.kind == "jump"):
            raise LabError(f"{spec.name} cannot be behind {spec.behind}")
    return sorted(specs, key=lambda spec: spec.kind != "jump")
