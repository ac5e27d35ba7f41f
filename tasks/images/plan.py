"""From wanted images and what hosts have, to what is to be done on each host.

Pure: no I/O, no clock. What an operator approves in a dry run is this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from blocks.errors import CrossgapError, DiskFull, WrongArchitecture
from tasks.common.units import bytes_text
from tasks.images.blobs import Layer
from tasks.images.facts import HostFacts, ImageFacts, runs_on, same_content
from tasks.images.presence import layers_there, sizes_of, store_keys

TransferChoice = Literal["auto", "staged", "stream"]
Way = Literal["staged", "stream"]

# Filesystems need room for their own records, and full ones become slow.
_MARGIN = 1.05
_RESERVE = 64 << 20
# More loads side by side only fight for the host's disk.
_MOST_LOADS = 4


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
        missing: The diff ids of the layers that its archive has to hold, the base
            first; those that an image loaded before it brings are not among them.
        after: Names of the images that have to be loaded before it.
        replaces: Whether the name now belongs to another image there.
    """

    image: ImageFacts
    missing: tuple[str, ...]
    after: tuple[str, ...] = ()
    replaces: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its archive holds every layer."""
        return set(self.missing) == set(self.image.diff_ids)

    @property
    def size(self) -> int:
        """Unpacked bytes of the layers that its archive holds, as far as known."""
        return sum(self.sizes().values())

    def sizes(self) -> dict[str, int]:
        """Return the unpacked bytes of each layer that its archive holds, by diff id."""
        sizes = sizes_of(self.image)
        return {diff_id: sizes[diff_id] for diff_id in self.missing}


Action = Keep | Tag | Send


@dataclass(frozen=True)
class HostPlan:
    """What is to be done on one host.

    Args:
        host: Its label.
        actions: One per wanted image, in the order asked for.
        sends: The images that it lacks, in the order in which they are loaded.
        there: Layers that it has, by diff id, as its engine knows them.
        way: Whether layers are staged in a folder there, or streamed into the load.
        loads_at_once: How many images its engine loads side by side.
        problems: Why nothing will be done there; empty when all is well.
    """

    host: str
    actions: tuple[Action, ...]
    sends: tuple[Send, ...] = ()
    there: Mapping[str, Layer] = field(default_factory=dict)
    way: Way = "staged"
    loads_at_once: int = 1
    problems: tuple[CrossgapError, ...] = ()

    @property
    def layers(self) -> dict[str, int]:
        """The layers that travel: unpacked bytes by diff id, in the order of need."""
        return layers_of(self.sends)


@dataclass(frozen=True)
class Shipment:
    """What is to be done on all hosts.

    Args:
        hosts: In the order asked for.
    """

    hosts: tuple[HostPlan, ...]

    @property
    def images(self) -> tuple[ImageFacts, ...]:
        """The images that a host without problems lacks, each once."""
        return tuple({send.image.image_id: send.image for send in self._sends()}.values())

    @property
    def missing(self) -> frozenset[str]:
        """The diff ids of all layers that have to travel to some host."""
        return frozenset(diff_id for send in self._sends() for diff_id in send.missing)

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
                "size": bytes_text(action.size if isinstance(action, Send) else 0),
            }
            for plan in self.hosts
            for action in plan.actions
        ]

    def _sends(self) -> Iterator[Send]:
        return (send for plan in self.hosts if not plan.problems for send in plan.sends)


def plan_shipment(
    hosts: Sequence[HostFacts],
    forms: Mapping[str, Sequence[Layer]] | None = None,
    transfer: TransferChoice = "auto",
) -> Shipment:
    """Decide what each host needs, and whether it can take it.

    Args:
        hosts: What the hosts shall have, and what they have.
        forms: Per diff id the forms that are known here, by which the digests in
            a containerd store are recognised.
        transfer: Whether layers are staged on a host or streamed into its engine;
            `auto` stages where there is room, as only that can be gone on with.

    Returns:
        The plan. A host with a problem does not hinder the others.
    """
    return Shipment(tuple(_host_plan(host, forms or {}, transfer) for host in hosts))


def loading_order(images: Sequence[ImageFacts]) -> list[ImageFacts]:
    """Put the smallest image that shares layers with another one first.

    The layers that all the others wait for are then there soonest.
    """

    def shares(image: ImageFacts) -> bool:
        return any(
            other is not image and set(other.diff_ids) & set(image.diff_ids) for other in images
        )

    first = min(filter(shares, images), key=lambda image: image.size, default=None)
    return sorted(images, key=lambda image: image is not first)


def _host_plan(
    host: HostFacts, forms: Mapping[str, Sequence[Layer]], transfer: TransferChoice
) -> HostPlan:
    wanted = host.wanted
    there: dict[str, Layer] = {}
    brought: dict[str, str] = {}
    actions: dict[str, Action] = {}
    for image in loading_order(wanted):
        actions[image.name] = _known(image, host) or _send(image, host, there, brought, forms)
    ordered = tuple(actions[image.name] for image in wanted)
    sends = tuple(action for action in actions.values() if isinstance(action, Send))
    problems: tuple[CrossgapError, ...] = tuple(_wrong_architecture(wanted, host))
    if problems or not sends:
        return HostPlan(host.host, ordered, sends, there, problems=problems)
    way, loads_at_once, shortage = _way(sends, host, transfer)
    return HostPlan(host.host, ordered, sends, there, way, loads_at_once, tuple(shortage))


def _known(image: ImageFacts, host: HostFacts) -> Keep | Tag | None:
    present = host.images.get(image.name)
    if present is not None and same_content(present, image):
        return Keep(image)
    twin = host.twins.get(image.name)
    if twin is not None:
        return Tag(image, twin)
    return None


def _send(
    image: ImageFacts,
    host: HostFacts,
    there: dict[str, Layer],
    brought: dict[str, str],
    forms: Mapping[str, Sequence[Layer]],
) -> Send:
    """Plan to send an image, and note which layers the host has or is brought by it."""
    found = layers_there(image, host, forms)
    there.update({layer.diff_id: layer for layer in found.values()})
    by_key = dict(zip(store_keys(image, host.store), image.diff_ids, strict=True))
    needed = {key: diff_id for key, diff_id in by_key.items() if key not in found}
    after = dict.fromkeys(brought[key] for key in needed if key in brought)
    missing = dict.fromkeys(diff_id for key, diff_id in needed.items() if key not in brought)
    brought.update({key: image.name for key in needed if key not in brought})
    return Send(image, tuple(missing), tuple(after), replaces=image.name in host.images)


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


def _way(
    sends: Sequence[Send], host: HostFacts, transfer: TransferChoice
) -> tuple[Way, int, list[DiskFull]]:
    """Choose how layers get into the engine, by the room that each way needs.

    `docker load` first copies what it is given into its own temporary folder,
    then unpacks the layers from there. Staged layers need room once more, but
    for those that an earlier run has sent; loads side by side each need their
    own copy.
    """
    side_by_side = max(1, min(_MOST_LOADS, host.cpus, len(sends)))
    ways: dict[tuple[Way, int], None] = {}
    if transfer != "stream":
        ways |= {("staged", side_by_side): None, ("staged", 1): None}
    if transfer != "staged":
        ways |= {("stream", 1): None}
    shortage: list[DiskFull] = []
    for way, loads in ways:
        shortage = _no_room(sends, host, way, loads)
        if not shortage:
            break
    return way, loads, shortage


def _no_room(sends: Sequence[Send], host: HostFacts, way: Way, loads: int) -> list[DiskFull]:
    layers = layers_of(sends)
    unpacked = sum(layers.values())
    copies = sum(sorted((send.size for send in sends), reverse=True)[:loads])
    staging = 0
    if way == "staged":
        staging = unpacked - sum(min(host.staged.get(d, 0), size) for d, size in layers.items())
    engine = unpacked + copies
    staging_disk, engine_disk = host.staging_disk, host.docker_root_disk
    if staging_disk.shares_room_with(engine_disk):
        return _shortage(host, staging + engine, engine_disk.free, engine_disk.mount)
    shortage = _shortage(host, engine, engine_disk.free, engine_disk.mount)
    if way == "staged":
        shortage[:0] = _shortage(host, staging, staging_disk.free, staging_disk.mount)
    return shortage


def layers_of(sends: Iterable[Send]) -> dict[str, int]:
    """Return the layers of some images: unpacked bytes by diff id, each layer once."""
    return {diff_id: size for send in sends for diff_id, size in send.sizes().items()}


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
        case Send(missing=missing, image=image, replaces=replaces):
            what = f"send {len(missing)} of {len(set(image.diff_ids))} layers"
            return f"{what}: another image has this name there" if replaces else what
