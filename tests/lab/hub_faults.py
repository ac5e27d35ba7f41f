"""What goes wrong with the lab's hub on demand, and what it has seen."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "status",
    "page",
    "redirect",
    "next-page",
    "stall",
    "cut",
    "reset",
    "trickle",
    "flip",
    "ignore-range",
    "range-as-200",
    "content-range",
    "content-length",
]
INSTEAD: frozenset[Kind] = frozenset({"status", "page"})
"""What comes instead of an answer."""
STOPS: frozenset[Kind] = frozenset({"stall", "cut", "reset"})
"""What ends an answer early."""
BODIES: frozenset[Kind] = STOPS | {"trickle"}
"""What befalls any answer with a body."""
RANGES: frozenset[Kind] = frozenset({"ignore-range", "range-as-200", "content-range"})
"""What befalls an answer to a request for a part."""
HEADS: frozenset[Kind] = frozenset({"content-range", "content-length"})
"""What befalls the head of an answer with a file."""
FILES: frozenset[Kind] = BODIES | RANGES | HEADS | {"flip"}
"""What befalls an answer with a file."""
BYTES = "/resolve|/cdn/|FilePath="
"""The paths that files are asked for by."""


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: `status` answers with one; `page` with a web page and status 200; `redirect` sends
            elsewhere for a file; `next-page` names another host for a listing's next page;
            `stall`, `cut` and `reset` stop an answer after some bytes (a reset also throws away
            what has arrived and was not read yet); `trickle` goes on slowly from there; `flip`
            changes one byte of a file; `ignore-range` sends all where a part was asked for;
            `range-as-200` sends the part but calls it all; `content-range` says a wrong total
            size; `content-length` says a wrong length and sends what it should.
        path: Which requests, as a regular expression that is searched for in the path and query,
            both without percent signs. Large files come from `/cdn/`, small ones from
            `/api/resolve-cache/`, and all are asked for by `/resolve/` first.
        times: How often; None for always.
        after: How many bytes of an answer pass before; -1 for not even its head. For `flip`, the
            byte of the file; parts without it pass and do not count.
        method: Only `GET` or only `HEAD`; empty for both.
        status: For `status`.
        headers: Further headers, for `status`.
        by: How much is added to what is said, for `content-range` and `content-length`.
        rate: Bytes per second, for `trickle`.
        target: The beginning of a URL, for `redirect` and `next-page`; nobody answers there.
    """

    kind: Kind
    path: str = BYTES
    times: int | None = None
    after: int = 0
    method: Literal["", "GET", "HEAD"] = ""
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    by: int = 1000
    rate: float = 100.0
    target: str = "http://elsewhere.invalid"

    def fits(
        self, kinds: Collection[Kind], method: str, path: str, part: tuple[int, int] | None
    ) -> bool:
        """Return whether a request meets this fault.

        Args:
            kinds: What can go wrong at this point.
            method: The request's.
            path: Its path and query.
            part: The first byte of the file that is sent and the one behind the last.
        """
        return (
            self.kind in kinds
            and self.times != 0
            and self.method in ("", method)
            and re.search(self.path, path) is not None
            and (self.kind != "flip" or part is None or part[0] <= self.after < part[1])
        )


@dataclass(frozen=True)
class Seen:
    """One request that came.

    Attributes:
        server: `hub`, or `cdn` for the host that large files are redirected to.
        method: `GET` or `HEAD`.
        path: Path and query, without percent signs.
        range: The part that was asked for, or empty.
        authorization: What was shown, or empty.
    """

    server: str
    method: str
    path: str
    range: str
    authorization: str
