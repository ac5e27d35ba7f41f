"""From wanted images and what hosts have, to what is to be done on each host.

Pure: no I/O, no clock. What an operator approves in a dry run is this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blocks.errors import CrossgapError, DiskFull, WrongArchitecture
from tasks.common.units import bytes_text
from tasks.images.facts import (
    HostFacts,
    ImageFacts,
    runs_on,
    same_content,
    staged_key,
    unpacked_size,
)

if TYPE_CHECKING:
    from tasks.images.archive import ArchiveFacts

# Filesystems need room for their own records, and full ones become slow.
_MARGIN = 1.05
_RESERVE = 64 << 20
# What an archive holds besides layers.
_ARCHIVE_OVERHEAD = 1 << 20


@dataclass(frozen=True)
class Keep:
    """The host has this image under its name already."""

    image: ImageFacts


@dataclass(frozen=True)
class Tag:
    """The host has this content under another name; it only needs the name.

    Args:
        image: What is wanted.
        existing: What the host calls it.
    """

    image: ImageFacts
    existing: str


@dataclass(frozen=True)
class Send:
    """The host lacks this image, or has something else under its name.

    Args:
        image: What is wanted.
        replaces: Whether the name now belongs to another image there.
    """

    image: ImageFacts
    replaces: bool = False


Action = Keep | Tag | Send


@dataclass(frozen=True)
class Parcel:
    """One archive that goes to hosts.

    Args:
        images: What it holds.
        size: Bytes that are sent; an estimate while `path` is empty.
        path: The file, or empty when the source engine has yet to save it.
        sha256: Its hash in hex, or empty when the source engine has yet to save it.
    """

    images: tuple[ImageFacts, ...]
    size: int
    path: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class HostPlan:
    """What is to be done on one host.

    Args:
        host: Its label.
        actions: One per wanted image, in the order asked for.
        parcels: The archives it needs.
        problems: Why nothing will be done there; empty when all is well.
    """

    host: str
    actions: tuple[Action, ...]
    parcels: tuple[Parcel, ...] = ()
    problems: tuple[CrossgapError, ...] = ()

    @property
    def sends(self) -> tuple[ImageFacts, ...]:
        """The images that it lacks."""
        return tuple(action.image for action in self.actions if isinstance(action, Send))


@dataclass(frozen=True)
class Shipment:
    """What is to be done on all hosts.

    Args:
        hosts: In the order asked for.
    """

    hosts: tuple[HostPlan, ...]

    @property
    def parcels(self) -> tuple[Parcel, ...]:
        """Every archive that a host without problems needs, once."""
        needed = (p for plan in self.hosts if not plan.problems for p in plan.parcels)
        return tuple(dict.fromkeys(needed))

    @property
    def problems(self) -> tuple[CrossgapError, ...]:
        """What keeps hosts from being served."""
        return tuple(problem for plan in self.hosts for problem in plan.problems)

    def as_rows(self) -> list[dict[str, str]]:
        """Return one row per host and image, for a table artifact."""
        return [
            {
                "host": plan.host,
                "image": action.image.name,
                "action": "none" if plan.problems else _in_words(action),
                "size": bytes_text(action.image.size),
            }
            for plan in self.hosts
            for action in plan.actions
        ]


def plan_shipment(
    wanted: Sequence[ImageFacts],
    hosts: Sequence[HostFacts],
    archives: Sequence[ArchiveFacts] = (),
) -> Shipment:
    """Decide what each host needs, and whether it can take it.

    Args:
        wanted: The images, each under the name it shall have.
        hosts: What the hosts have.
        archives: The files that hold the images; none when the source engine
            saves one for all hosts.

    Returns:
        The plan. A host with a problem does not hinder the others.
    """
    actions = {host.host: tuple(_action(image, host) for image in wanted) for host in hosts}
    if archives:
        parcels = [Parcel(a.images, a.size, str(a.path), a.sha256) for a in archives]
    else:
        parcels = _one_parcel(wanted, hosts, actions)
    return Shipment(tuple(_host_plan(host, actions[host.host], parcels) for host in hosts))


def _action(image: ImageFacts, host: HostFacts) -> Action:
    present = host.images.get(image.name)
    if present is not None and same_content(present, image):
        return Keep(image)
    twin = host.twins.get(image.name)
    if twin is not None and "@" not in image.name:
        return Tag(image, twin)
    return Send(image, replaces=present is not None)


def _one_parcel(
    wanted: Sequence[ImageFacts],
    hosts: Sequence[HostFacts],
    actions: Mapping[str, Sequence[Action]],
) -> list[Parcel]:
    """Make one archive of whatever any host that can run it lacks."""
    lacking = {
        action.image.name
        for host in hosts
        if not _wrong_architecture(wanted, host)
        for action in actions[host.host]
        if isinstance(action, Send)
    }
    images = tuple(image for image in wanted if image.name in lacking)
    return [Parcel(images, unpacked_size(images) + _ARCHIVE_OVERHEAD)] if images else []


def _host_plan(host: HostFacts, actions: tuple[Action, ...], parcels: Iterable[Parcel]) -> HostPlan:
    lacking = {action.image.name for action in actions if isinstance(action, Send)}
    needed = tuple(p for p in parcels if any(image.name in lacking for image in p.images))
    wanted = [action.image for action in actions]
    problems: list[CrossgapError] = list(_wrong_architecture(wanted, host))
    if not problems:
        problems += _no_room(needed, host)
    return HostPlan(host.host, actions, needed, tuple(problems))


def _wrong_architecture(wanted: Iterable[ImageFacts], host: HostFacts) -> list[WrongArchitecture]:
    return [
        WrongArchitecture(
            f"{image.name} is built for {image.os}/{image.architecture}, "
            f"this host is linux/{host.architecture}",
            host.host,
            f"Get it with docker pull --platform linux/{host.architecture}, then start again. "
            "Nothing was sent to this host.",
        )
        for image in wanted
        if not runs_on(image, host.architecture)
    ]


def _no_room(parcels: Sequence[Parcel], host: HostFacts) -> list[DiskFull]:
    """Compare what is needed with what is free.

    `docker load` first copies the archive into its own temporary folder, then
    unpacks the layers from there: an engine needs the unpacked size twice, on
    top of the file that was sent. Archives are loaded one after the other.
    What an earlier run has sent already needs no room any more.
    """
    staging = sum(parcel.size - _staged(parcel, host) for parcel in parcels)
    unpacked = [unpacked_size(parcel.images) for parcel in parcels]
    engine = sum(unpacked) + max(unpacked, default=0)
    staging_disk, engine_disk = host.staging_disk, host.docker_root_disk
    if not parcels:
        return []
    if staging_disk.shares_room_with(engine_disk):
        return _shortage(host, staging + engine, engine_disk.free, engine_disk.mount)
    return [
        *_shortage(host, staging, staging_disk.free, staging_disk.mount),
        *_shortage(host, engine, engine_disk.free, engine_disk.mount),
    ]


def _staged(parcel: Parcel, host: HostFacts) -> int:
    """Return how many bytes of a parcel lie on a host."""
    if parcel.sha256:
        there = host.staged.get(staged_key(parcel.sha256), 0)
    else:
        # The hash is known once it is saved. If the largest is of another archive,
        # the sending finds out before its first byte.
        there = max(host.staged.values(), default=0)
    return min(there, parcel.size)


def _shortage(host: HostFacts, need: int, free: int, mount: str) -> list[DiskFull]:
    need = int(need * _MARGIN) + _RESERVE
    if need <= free:
        return []
    return [
        DiskFull(
            f"{bytes_text(need)} are needed on {mount}, {bytes_text(free)} are free",
            host.host,
            "Make room there (docker system df shows what images take), or point 'work_dir' in "
            "the host's block at a larger disk. Nothing was sent to this host.",
        )
    ]


def _in_words(action: Action) -> str:
    match action:
        case Keep():
            return "keep: already there"
        case Tag(existing=existing):
            return f"tag: already there as {existing}"
        case Send(replaces=True):
            return "send: another image has this name there"
        case Send():
            return "send"
