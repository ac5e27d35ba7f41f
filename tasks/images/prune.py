"""Images that newer ones have superseded on a host: found, and removed when asked.

Only names and leftovers of the repositories in question come into it, only by
`docker rmi` without force, and never what a container uses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from blocks.errors import CommandFailed, InvalidInput
from tasks.images.docker_cli import checked, docker
from tasks.images.facts import ImageFacts
from tasks.images.names import parse_reference

if TYPE_CHECKING:
    from blocks.host import Host

# A busy engine answers late, and removing large layers takes its disk a while.
ANSWER_SECONDS = 120.0
REMOVAL_SECONDS = 600.0
_READINGS = 3

# Tools that make the same image from the same files give it a date of their own:
# Bazel and Nix 1970, Cloud Native Buildpacks 1980. It says nothing about its age.
_FIRST_REAL_YEAR = 2000

# Images before containers: a container that is made meanwhile is seen.
# Newer clients leave nameless images out unless told --all.
_INVENTORY = """\
images=$(docker image ls --all --quiet --no-trunc) || exit
containers=$(docker ps --all --quiet --no-trunc) || exit
[ -z "$images" ] || docker image inspect --format "$1" $images || missed=$?
[ -z "$containers" ] || docker container inspect --format "$2" $containers || missed=$?
exit "${missed:-0}"
"""
_IMAGE_FORMAT = (
    '{"image":{{json .Id}},"names":{{json .RepoTags}},'
    '"created":{{json .Created}},"size":{{json .Size}}}'
)
_CONTAINER_FORMAT = (
    '{"container":{{json .Name}},"of":{{json .Image}},'
    '"called":{{json .Config.Image}},"state":{{json .State.Status}}}'
)
# How some engines write that an image has no name.
_NAMELESS = "<none>:<none>"
_GONE = ("no such image", "no such container", "no such object")


@dataclass(frozen=True)
class StoredImage:
    """An image that a host has.

    Args:
        image_id: What its engine calls it.
        names: Its names with tags; none where it is a leftover.
        created: RFC 3339; empty if never set.
        size: Bytes of its unpacked layers, those that it shares with others included.
    """

    image_id: str
    names: tuple[str, ...]
    created: str = ""
    size: int = 0


@dataclass(frozen=True)
class Container:
    """A container of a host, whether it runs or not.

    Args:
        name: Its name.
        image_id: What it was made from.
        image_name: What that was called then.
        state: `running`, `exited` and so on.
    """

    name: str
    image_id: str
    image_name: str = ""
    state: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.state})" if self.state else self.name


@dataclass(frozen=True)
class Inventory:
    """All images and containers of a host.

    Args:
        images: Each image once.
        containers: In every state.
    """

    images: tuple[StoredImage, ...] = ()
    containers: tuple[Container, ...] = ()

    def users_of(self, image: StoredImage) -> tuple[Container, ...]:
        """Return the containers that use an image, under whichever of its names."""
        return tuple(
            container
            for container in self.containers
            if container.image_id == image.image_id
            or _familiar(container.image_name) in image.names
        )


@dataclass(frozen=True)
class Superseded:
    """A name, or a nameless image, that a newer image has superseded on a host.

    Args:
        name: The name with its tag; empty for a nameless image.
        image_id: What its engine calls the image.
        size: Bytes of its unpacked layers; those that it shares with others stay.
        why: What superseded it, in words.
        used_by: The containers that use it, with their state.
    """

    name: str
    image_id: str
    size: int
    why: str
    used_by: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What an operator calls it."""
        return self.name or self.image_id.removeprefix("sha256:")[:12]


@dataclass(frozen=True)
class Removal:
    """What became of a superseded image.

    Args:
        image: The image.
        removed: Whether it is gone.
        said: Why it stays; empty when it is gone.
    """

    image: Superseded
    removed: bool
    said: str = ""


def read_inventory(host: Host) -> Inventory:
    """Read which images and containers a host has, in one command.

    Args:
        host: The host.

    Returns:
        What is there.

    Raises:
        CommandFailed: Images and containers come and go faster than they can be read.
        EngineUnavailable: Docker is not installed there or does not run.
        PermissionRefused: The user may not use Docker there.
        CrossgapError: As for `Host.run`.
    """
    argv = ["sh", "-c", _INVENTORY, "sh", _IMAGE_FORMAT, _CONTAINER_FORMAT]
    for _ in range(_READINGS):
        result = host.run(argv, timeout=ANSWER_SECONDS, check=False, sudo=True)
        # Something went away between its listing and its reading. Old clients leave out
        # what comes after it, which may be a container that uses an image.
        if result.exit_code == 0 or not _is_gone(result.stderr):
            break
    return parse_inventory(checked(result, "list images and containers", host.label), host.label)


def parse_inventory(text: str, where: str) -> Inventory:
    """Read what `read_inventory` has docker print: a JSON object per line.

    Args:
        text: What it printed.
        where: The host, for errors.

    Raises:
        CommandFailed: It is not that.
    """
    images: dict[str, StoredImage] = {}
    containers = []
    for line in filter(str.strip, text.splitlines()):
        try:
            row: dict[str, Any] = json.loads(line)
            if "image" in row:
                image = _stored_image(row)
                images[image.image_id] = image
            else:
                name = str(row["container"]).removeprefix("/")
                containers.append(Container(name, row["of"], row["called"], row["state"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CommandFailed(
                f"the answer of docker is not understood ({line[:200]!r})",
                where,
                "See whether something on that host stands in for the real command.",
            ) from error
    return Inventory(tuple(images.values()), tuple(containers))


def superseded(
    wanted: Sequence[ImageFacts],
    inventory: Inventory,
    before: Mapping[str, ImageFacts] | None = None,
) -> tuple[Superseded, ...]:
    """Tell which images of a host the wanted ones have superseded.

    These are other tags of a wanted repository whose images were made before
    every wanted image of it, and nameless images that had a wanted name until
    this run. A tag whose age is not known is left out.

    Args:
        wanted: The images that the host has now under their names.
        inventory: All that it has, read after they arrived.
        before: What it had under the wanted names before they did.

    Returns:
        What is superseded, in use or not; `removable` leaves out what is in use.
    """
    return (*_older_tags(wanted, inventory), *_replaced(inventory, before or {}))


def removable(found: Iterable[Superseded]) -> tuple[Superseded, ...]:
    """Return those superseded images that no container uses."""
    return tuple(image for image in found if not image.used_by)


def remove(host: Host, image: Superseded) -> Removal:
    """Remove a superseded image, if it is still what it was and docker agrees.

    Args:
        host: Where.
        image: One of `removable`.

    Returns:
        Whether it is gone; that docker refuses is no error.

    Raises:
        InvalidInput: A container uses the image.
        EngineUnavailable: Docker does not run there.
        CrossgapError: As for `tasks.images.docker_cli.docker`.
    """
    if image.used_by:
        raise InvalidInput(
            f"{image.label} is used by {', '.join(image.used_by)}",
            host.label,
            "Remove those first.",
        )
    handle = image.name or image.image_id
    looked = docker(
        host, "image", "inspect", "--format", _IMAGE_FORMAT, handle, timeout=ANSWER_SECONDS
    )
    if looked.exit_code != 0 and _is_gone(looked.stderr):
        return Removal(image, removed=True)
    now = _stored_image(json.loads(checked(looked, f"inspect {image.label}", host.label)))
    if now.image_id != image.image_id or (now.names and not image.name):
        return Removal(image, removed=False, said="it has become another image or got a name")
    if users := _users(host, image):
        return Removal(image, removed=False, said=f"{', '.join(users)} has begun to use it")
    result = docker(host, "rmi", handle, timeout=REMOVAL_SECONDS)
    if result.exit_code == 0 or _is_gone(result.stderr):
        return Removal(image, removed=True)
    return Removal(image, removed=False, said=" ".join(result.stderr.split())[-300:])


def _users(host: Host, image: Superseded) -> list[str]:
    """Ask again who uses an image: docker takes a name away from one that has others."""
    listed = docker(
        host,
        "ps", "--all", "--filter", f"ancestor={image.image_id}", "--format", "{{.Names}}",
        timeout=ANSWER_SECONDS,
    )  # fmt: skip
    return checked(listed, "list containers", host.label).split()


def _older_tags(wanted: Sequence[ImageFacts], inventory: Inventory) -> list[Superseded]:
    kept = {_familiar(image.name) for image in wanted}
    newer: dict[str, list[ImageFacts]] = {}
    for image in wanted:
        newer.setdefault(_repository(image.name), []).append(image)
    return [
        Superseded(
            name,
            stored.image_id,
            stored.size,
            "older than " + ", ".join(image.name for image in newer[_repository(name)]),
            tuple(map(str, inventory.users_of(stored))),
        )
        for stored in inventory.images
        for name in stored.names
        if name not in kept and _older_than_all(stored, newer.get(_repository(name), ()))
    ]


def _replaced(inventory: Inventory, before: Mapping[str, ImageFacts]) -> list[Superseded]:
    former = {image.image_id: name for name, image in before.items()}
    return [
        Superseded(
            "",
            stored.image_id,
            stored.size,
            f"was {former[stored.image_id]} until this run",
            tuple(map(str, inventory.users_of(stored))),
        )
        for stored in inventory.images
        if not stored.names and stored.image_id in former
    ]


def _older_than_all(stored: StoredImage, newer: Sequence[ImageFacts]) -> bool:
    made = _when(stored.created)
    dates = [_when(image.created) for image in newer]
    return bool(dates) and made is not None and all(date and made < date for date in dates)


def _when(created: str) -> datetime | None:
    """Return when an image was made, if its date means that."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return None
    if when.year < _FIRST_REAL_YEAR:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _repository(name: str) -> str:
    try:
        return parse_reference(name).repository
    except InvalidInput:
        return ""


def _familiar(name: str) -> str:
    try:
        return parse_reference(name).familiar
    except InvalidInput:
        return name


def _stored_image(row: Mapping[str, Any]) -> StoredImage:
    return StoredImage(
        image_id=str(row["image"]),
        names=tuple(name for name in row["names"] or () if name != _NAMELESS),
        created=str(row["created"] or ""),
        size=int(row["size"] or 0),
    )


def _is_gone(text: str) -> bool:
    return any(gone in text.lower() for gone in _GONE)
