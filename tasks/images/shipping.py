"""Shipping to one host: which steps, in which order, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from blocks.errors import CrossgapError, SeveralFailures, Unreachable
from tasks.common.failures import collect
from tasks.common.run_report import RunReport
from tasks.images import steps
from tasks.images.archive import ArchiveFacts
from tasks.images.facts import ImageFacts
from tasks.images.plan import HostPlan, Send, Shipment, Tag
from tasks.images.results import ShipResult
from tasks.images.source import drop_spool, hold_spool
from tasks.images.staging import cleared_when_cancelled, staged_path
from tasks.transfer.rate import RateLimit
from tasks.transfer.steps import Delivery, send_file

if TYPE_CHECKING:
    from blocks.host import Host

Verification = Literal["content", "start"]

FLOW = "ship-images"

# Of the eight commands that a host is given at once, some are left for what else goes on.
_STARTS_AT_ONCE = 4


@dataclass(frozen=True)
class Terms:
    """How a run ships, the same for all its hosts.

    Args:
        verify: How the images are proven.
        rate_limit_mbit: Limit for each host in Mbit/s.
        total_limit: Limit for all hosts together.
    """

    verify: Verification = "content"
    rate_limit_mbit: float | None = None
    total_limit: RateLimit | None = None

    @classmethod
    def of(
        cls, verify: Verification, rate_limit_mbit: float | None, total_mbit: float | None
    ) -> Terms:
        """Make the terms from a flow's parameters.

        Raises:
            InvalidInput: A limit is not above zero.
        """
        if rate_limit_mbit is not None:
            RateLimit(rate_limit_mbit)
        total = RateLimit(total_mbit) if total_mbit is not None else None
        return cls(verify, rate_limit_mbit, total)


def ship_to(
    host: Host, plan: HostPlan, archives: Sequence[ArchiveFacts], terms: Terms
) -> tuple[ShipResult, ...]:
    """Carry out the plan for one host.

    Args:
        host: Where; a saved block, which the steps load by its name.
        plan: What is to be done there.
        archives: Those of the run; the host gets the ones that hold what it lacks.
        terms: How to ship.

    Returns:
        One result per wanted image.

    Raises:
        SeveralFailures: The plan found problems on this host.
        CrossgapError: A step failed for good.
    """
    if plan.problems:
        raise SeveralFailures(plan.problems, host.label)
    begin = time.monotonic()
    needed = [archive for archive in archives if _holds(archive, plan.sends)]
    bytes_sent = _deliver(host, needed, terms)
    for action in plan.actions:
        if isinstance(action, Tag):
            steps.tag_image(host.name, action)
    proof = _prove(host, [action.image for action in plan.actions], terms.verify)
    seconds = time.monotonic() - begin
    shares = bytes_by_image(plan.sends, bytes_sent)
    return tuple(
        ShipResult(
            image=action.image.name,
            host=host.name,
            action="full" if isinstance(action, Send) else "present",
            layers_sent=len(action.image.diff_ids) if isinstance(action, Send) else 0,
            bytes_sent=shares.get(action.image.name, 0),
            seconds=seconds,
            verified=proof[action.image.name],
        )
        for action in plan.actions
    )


def _deliver(host: Host, archives: Sequence[ArchiveFacts], terms: Terms) -> int:
    """Send and load archives one by one, each removed once loaded; return the bytes sent."""
    later = [archive.sha256 for archive in archives]
    if not later:
        # A run that was killed after its load left an archive, and nobody lacks it now.
        steps.clean_up(host.name)
    bytes_sent = 0
    for archive in archives:
        staged = staged_path(host, archive.sha256)
        title = images_text(archive.images)
        delivery = Delivery(archive.path, staged, archive.sha256, title)
        sent = send_file(host.name, delivery, FLOW, terms.rate_limit_mbit, terms.total_limit)
        bytes_sent += sent.bytes_sent
        later = later[1:]
        with cleared_when_cancelled(host, later):
            try:
                steps.load_archive(host.name, staged, archive.sha256, archive.size, title)
            except Unreachable:
                raise  # the next run clears up
            except CrossgapError:
                steps.clean_up(host.name, later, return_state=True)
                raise
            steps.clean_up(host.name, later)
    return bytes_sent


def _prove(host: Host, images: Sequence[ImageFacts], verify: Verification) -> dict[str, str]:
    steps.verify_images(host.name, images)
    if verify == "content":
        return {image.name: "content" for image in images}
    started = collect(
        lambda image: (image.name, steps.start_image(host.name, image)),
        images,
        name=lambda image: f"{image.name} on {host.label}",
        at_once=_STARTS_AT_ONCE,
    )
    if started.failures:
        raise SeveralFailures(started.failures, host.label)
    return dict(started.results)


@contextmanager
def archives_for(
    shipment: Shipment, archives: Sequence[ArchiveFacts], report: RunReport[ShipResult]
) -> Iterator[Sequence[ArchiveFacts]]:
    """Give the archives that a shipment needs, having the source engine save them if need be.

    Args:
        shipment: The plan.
        archives: Archives that the operator named; they are not touched.
        report: The run's, which knows whether all went well.

    Yields:
        The archives. What was saved for this run is removed when nothing in
        the run has failed, and kept for the next run otherwise.
    """
    if archives or not shipment.parcels:
        yield archives
        return
    saved = [steps.save_images(parcel.images) for parcel in shipment.parcels]
    with ExitStack() as held:
        for archive in saved:
            held.enter_context(hold_spool(archive))
        yield saved
    if not report.failed:
        for archive in saved:
            drop_spool(archive)


def _holds(archive: ArchiveFacts, lacking: Sequence[ImageFacts]) -> bool:
    names = {image.name for image in lacking}
    return any(image.name in names for image in archive.images)


def images_text(images: Sequence[ImageFacts]) -> str:
    """Name some images in a few words."""
    return images[0].name if len(images) == 1 else f"{len(images)} images"


def bytes_by_image(images: Sequence[ImageFacts], total: int) -> dict[str, int]:
    """Share out the bytes of an archive among the images in it.

    Args:
        images: The images that were sent together.
        total: Bytes that were sent.

    Returns:
        Bytes by image name, in proportion to the unpacked layers that an image
        is the first to need; they add up to the total.
    """
    weights: dict[str, int] = {}
    seen: set[str] = set()
    for image in images:
        sizes = dict(zip(image.diff_ids, image.layer_sizes, strict=False))
        if len(sizes) == len(image.diff_ids):
            weights[image.name] = sum(size for layer, size in sizes.items() if layer not in seen)
        else:
            weights[image.name] = image.size
        seen.update(image.diff_ids)
    whole = sum(weights.values())
    shares: dict[str, int] = {}
    given = weighed = 0
    for name, weight in weights.items():
        weighed += weight
        upto = total * weighed // whole if whole else total
        shares[name] = upto - given
        given = upto
    return shares
