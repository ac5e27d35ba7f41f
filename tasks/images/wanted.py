"""What an operator wants shipped: names, looked up where the images are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blocks.errors import CrossgapError, InvalidInput, NotFound
from tasks.images import steps
from tasks.images.archive import ArchiveFacts
from tasks.images.compose.images import expand_images
from tasks.images.credentials import load_credentials
from tasks.images.engine import close_names, several
from tasks.images.facts import ImageFacts
from tasks.images.names import parse_references
from tasks.images.pull import PullPolicy
from tasks.images.registry.auth import Credentials
from tasks.images.registry.registries import Registry, RegistryAccess
from tasks.images.sources import ArchiveSource, EngineSource, RegistrySource, Source
from tasks.images.store import Store

CA_VARIABLE = "CROSSGAP_CA_BUNDLE"
PROXY_VARIABLE = "CROSSGAP_USE_PROXY"
_YES = ("1", "yes", "true", "on")

SourceKind = Literal["engine", "registry", "archive"]


@dataclass(frozen=True)
class Wanted:
    """What an operator asked for, as the parameters of a flow say it.

    Args:
        images: Names, or `compose:PATH`; none for all of an archive.
        source: Where they are.
        archive: The file or folder, for source `archive`.
        pull: When the source engine pulls.
        mirrors: Hosts that mirror Docker Hub, tried in order before it.
        registry_credentials: Name of a block with the user of the images' registry.
    """

    images: Sequence[str]
    source: SourceKind = "engine"
    archive: str = ""
    pull: PullPolicy = "missing"
    mirrors: Sequence[str] = ()
    registry_credentials: str = ""


def find_source(wanted: Wanted) -> Source:
    """Look the wanted images up, having the source engine pull or an archive checked.

    Args:
        wanted: What an operator asked for.

    Returns:
        The images, and where their layers come from.

    Raises:
        InvalidInput: A name is malformed, or the parameters contradict each other.
        NotFound: An image is not where it should be.
        CrossgapError: As for the steps.
    """
    if wanted.archive and wanted.source != "archive":
        raise InvalidInput(
            f"an archive is named, but source is {wanted.source!r}",
            "archive",
            "Set source to 'archive'.",
        )
    expanded = expand_images(wanted.images)
    names = [one.familiar for one in parse_references(expanded)] if expanded else []
    store = Store.default()
    if wanted.source == "archive":
        return _archive_source(wanted, names, store)
    parse_references(names)  # names what is wrong with an empty list
    if wanted.source == "registry":
        return RegistrySource(names, Registry(_access(wanted)), store)
    images = steps.read_source(names, wanted.pull, wanted.mirrors, _credentials(wanted))
    return EngineSource(images, store)


def _access(wanted: Wanted) -> RegistryAccess:
    """Return how registries are reached: as the run says, and as the worker's site needs."""
    bundle = os.environ.get(CA_VARIABLE, "").strip()
    return RegistryAccess(
        mirrors=tuple(wanted.mirrors),
        credentials=_credentials(wanted),
        ca_bundle=Path(bundle).expanduser() if bundle else None,
        use_proxy=os.environ.get(PROXY_VARIABLE, "").strip().lower() in _YES,
    )


def _credentials(wanted: Wanted) -> Credentials | None:
    name = wanted.registry_credentials
    return load_credentials(name) if name else None


def _archive_source(wanted: Wanted, names: Sequence[str], store: Store) -> ArchiveSource:
    if not wanted.archive:
        raise InvalidInput(
            "source is 'archive', but none is named",
            "archive",
            "Give the path of a docker save file, or of a folder of them.",
        )
    archives = steps.check_archives(wanted.archive)
    return ArchiveSource(chosen(archives, names), archives, store)


def chosen(archives: Sequence[ArchiveFacts], names: Sequence[str]) -> tuple[ImageFacts, ...]:
    """Choose images out of archives.

    Args:
        archives: The archives.
        names: The wanted names; none for all.

    Returns:
        The images, in the order of the names.

    Raises:
        NotFound: An image is in none of the archives.
        SeveralFailures: Several are not.
    """
    held = {image.name: image for archive in archives for image in archive.images}
    missing: list[CrossgapError] = [
        NotFound(
            "it is in none of the archives",
            f"image {name!r}",
            f"They hold {', '.join(close_names(name, list(held)) or list(held)[:10])}.",
        )
        for name in names
        if name not in held
    ]
    if missing:
        raise several(missing)
    return tuple(held[name] for name in names) if names else tuple(held.values())
