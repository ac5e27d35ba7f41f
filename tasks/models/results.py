"""What came of fetching a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FetchedModel:
    """A model that is here, and on the hosts that were named.

    Args:
        path: Its folder here, or on the only host that has it.
        commit: The revision.
        bytes_fetched: What came from hubs, also what came twice.
        bytes_delivered: What was sent to hosts.
        files: How many it consists of.
        compared: Whether its files were compared with hashes that a hub promised.
    """

    path: str
    commit: str
    bytes_fetched: int
    bytes_delivered: int
    files: int
    compared: bool = True


@dataclass(frozen=True)
class Movement:
    """Files that one place gave another: a line of the table.

    Args:
        what: `fetched`, `delivered`, `linked`, `there already`, or what a dry run would do.
        source: Who gave them.
        target: Where they are now.
        files: How many.
        size: Bytes that travelled, or that they have where nothing travelled.
        seconds: How long it took.
    """

    what: str
    source: str
    target: str
    files: int
    size: int
    seconds: float = 0.0


@dataclass(frozen=True)
class ModelPlan:
    """What a run would do.

    Args:
        model: Its name.
        commit: The revision.
        files: How many files it consists of.
        size: Bytes of all files.
        movements: What would go where.
    """

    model: str
    commit: str
    files: int
    size: int
    movements: tuple[Movement, ...]
