"""What an operator wants shipped: names, looked up where the images are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from blocks.errors import CrossgapError, InvalidInput, NotFound
from tasks.images import steps
from tasks.images.archive import ArchiveFacts
from tasks.images.engine import close_names, several
from tasks.images.facts import ImageFacts
from tasks.images.names import parse_references
from tasks.images.pull import PullPolicy

Source = Literal["engine", "archive"]

Wanted = tuple[tuple[ImageFacts, ...], tuple[ArchiveFacts, ...]]


def find_wanted(
    images: Sequence[str], source: Source, archive: str, pull: PullPolicy, mirrors: Sequence[str]
) -> Wanted:
    """Look the wanted images up, having the source engine pull or an archive checked.

    Args:
        images: Names as the operator wrote them; none for all of an archive.
        source: Where they are.
        archive: The file or folder, for source `archive`.
        pull: When the source engine pulls.
        mirrors: Hosts that mirror Docker Hub.

    Returns:
        The images, and the archives that hold them; none for the source engine.

    Raises:
        InvalidInput: A name is malformed, or the parameters contradict each other.
        NotFound: An image is not where it should be.
        CrossgapError: As for the steps.
    """
    names = [reference.familiar for reference in parse_references(images)] if images else []
    if source == "engine":
        if archive:
            raise InvalidInput(
                "an archive is named, but source is 'engine'", "archive", "Set source to 'archive'."
            )
        parse_references(images)  # names what is wrong with an empty list
        return steps.read_source(names, pull, mirrors), ()
    if not archive:
        raise InvalidInput(
            "source is 'archive', but none is named",
            "archive",
            "Give the path of a docker save file, or of a folder of them.",
        )
    archives = steps.check_archives(archive)
    return chosen(archives, names), archives


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
