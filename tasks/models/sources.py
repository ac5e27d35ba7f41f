"""Where a run has its model from: a hub, what was fetched before, or a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from blocks.errors import CrossgapError, NotFound, TimedOut, Unreachable
from blocks.logs import logger
from blocks.model_hub import ModelHub
from tasks.common.units import bytes_text
from tasks.models.fetching import Terms
from tasks.models.files import ModelFile, Revision, chosen_files
from tasks.models.hub.hub import Hub
from tasks.models.hub.names import check_model
from tasks.models.local import held_alone
from tasks.models.places import Place, probe
from tasks.models.records import Record, recall, records, save_record
from tasks.transfer.rate import RateLimit, pace_of
from tasks.transfer.turns import Turns


@dataclass(frozen=True)
class Asked:
    """What an operator asked for.

    Args:
        model: `organisation/name`, a folder, or `HOST:FOLDER`.
        revision: Branch, tag or commit.
        hub: Name of the hub's block.
        include: Patterns of files; none for all.
        exclude: Patterns of files to leave out.
        destination: The folder of models here.
    """

    model: str
    revision: str = "main"
    hub: str = "hf-mirror"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    destination: str = "~/models"

    @property
    def root(self) -> Path:
        """The folder of models here, absolute."""
        return Path(self.destination).expanduser().absolute()

    @property
    def folder(self) -> Path:
        """The folder that the model is, where it is one."""
        return Path(self.model).expanduser().absolute()

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder on this machine, and not a name on a hub."""
        return self.model.startswith(("/", "~", "./", "../"))

    @property
    def host_folder(self) -> tuple[str, str] | None:
        """The name of a host's block and the folder there, where the model is one."""
        found = re.fullmatch(r"([a-z0-9][a-z0-9-]*):([/~].*)", self.model)
        return (found[1], found[2]) if found else None


@dataclass(frozen=True)
class Source:
    """A revision, and who has its files.

    Args:
        revision: Pinned, with the files that were chosen.
        record: All that is known of it.
        places: Who has them, in the order in which they are asked; none where all that
            can be had is here already.
        terms: How they are fetched.
        folder: Where its files lie, if the model is a folder here.
        stays: Where they lie on a host, if they are needed nowhere else.
        note: What the operator should know of where it comes from, as a sentence.
    """

    revision: Revision
    record: Record
    places: Sequence[Place] = ()
    terms: Terms = field(default_factory=Terms)
    folder: Path | None = None
    stays: str = ""
    note: str = ""


def load_hub(name: str) -> ModelHub:
    """Load the block of a hub.

    Args:
        name: The block's name.

    Raises:
        NotFound: There is none of that name.
    """
    try:
        return cast(ModelHub, ModelHub.load(name))
    except ValueError as error:
        raise NotFound(
            "there is no model hub block of this name",
            name,
            "Make one in the UI under Blocks, type Model Hub, or run `make register`, which "
            "makes hf-mirror.",
        ) from error


@contextmanager
def find_on_hub(asked: Asked, *, alone: bool = True) -> Iterator[Source]:
    """Find out what a model consists of and who has it, and keep other runs away from it.

    Args:
        asked: What an operator asked for.
        alone: Whether to work on the model's folder here; not for a dry run.

    Yields:
        Where the model comes from.

    Raises:
        InvalidInput: A name is malformed, or nothing fits the patterns.
        NotFound: There is no such model, revision or block.
        AuthenticationRefused: It is gated or private.
        Unreachable: No hub is within reach, and this revision was not fetched before.
        CrossgapError: As for `Hub.resolve`.
    """
    name = check_model(asked.model.strip())
    folder = asked.root / name
    block = load_hub(asked.hub)
    with ExitStack() as opened:
        if alone:
            opened.enter_context(held_alone(folder))
        hub = opened.enter_context(Hub.of(block))
        yield _resolved(asked, folder, hub, block, save=alone)


def _resolved(asked: Asked, folder: Path, hub: Hub, block: ModelHub, *, save: bool) -> Source:
    where = f"model {asked.model!r}"
    try:
        found = hub.resolve(asked.model, asked.revision)
    except (Unreachable, TimedOut) as error:
        record = _recalled(folder, asked.revision, error)
        note = (
            f"No hub is within reach ({error.what}): this is {asked.revision!r} as it was when "
            "one last was."
        )
        logger().warning("%s", note)
        revision = record.revision
        files = chosen_files(revision.files, asked.include, asked.exclude, where)
        return Source(replace(revision, files=files), record, note=note)
    found = replace(found, files=with_known_hashes(found.files, records(folder)))
    record = Record(found)
    if save:
        save_record(folder, record)
    revision = replace(found, files=chosen_files(found.files, asked.include, asked.exclude, where))
    limit = RateLimit(block.rate_limit_mbit) if block.rate_limit_mbit else None
    terms = Terms(block.connections_per_file, block.files_at_once, pace_of(limit))
    return Source(revision, record, hub.places(revision), terms)


def _recalled(folder: Path, asked: str, error: CrossgapError) -> Record:
    try:
        return recall(folder, asked)
    except NotFound:
        raise error from None


def with_known_hashes(
    files: Sequence[ModelFile], known: Mapping[str, Record]
) -> tuple[ModelFile, ...]:
    """Give small files the SHA-256 that they had in other revisions.

    Hubs know them by git only; with it, an unchanged one is found wherever it is.

    Args:
        files: What a hub lists.
        known: The records of other revisions.
    """
    sums = {
        file.git_sha1: file.sha256
        for record in known.values()
        for file in record.revision.files
        if file.git_sha1 and file.sha256
    }
    return tuple(replace(file, sha256=file.sha256 or sums.get(file.git_sha1, "")) for file in files)


def check_way(source: Source, files: Sequence[ModelFile]) -> str:
    """Find out, before anything is fetched, who will give the bytes.

    Args:
        source: The model and who has it.
        files: The files that are to be fetched.

    Returns:
        A sentence about it.

    Raises:
        Unreachable: Nobody gives them; the host that a mirror sends us on to is named.
        CrossgapError: As for `probe`.
    """
    if not source.places:
        size = bytes_text(sum(file.size for file in files))
        raise Unreachable(
            f"no hub is within reach, and {len(files)} files with {size} of this revision are not "
            "here",
            f"model {source.revision.model!r}",
            "Fetch it while a hub is within reach, or give the folder of a copy as the model.",
        )
    largest = max(files, key=lambda file: file.size)

    def ask(place: Place) -> tuple[str, str]:
        return place.name, probe(place, largest)

    name, host = Turns(source.places, Counter()).ask(ask)
    via = "" if host == name else f", which sends on to {host}"
    return f"The bytes come from {name}{via}."
