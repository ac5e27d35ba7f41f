"""Shipping to one host: which steps, in which order, and what came of them."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from blocks.errors import (
    Cancelled,
    CrossgapError,
    DiskFull,
    EngineUnavailable,
    PermissionRefused,
    SeveralFailures,
    SudoRefused,
    TimedOut,
    Unreachable,
)
from blocks.logs import logger
from tasks.common.failures import collect, each_failure
from tasks.common.units import bytes_text
from tasks.images import steps
from tasks.images.act import not_as_wanted
from tasks.images.arrival import arrival_note
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.names import parse_reference
from tasks.images.plan import HostPlan, Send, Tag
from tasks.images.results import Shipped, ShipResult
from tasks.images.sending import Sending, Speed
from tasks.images.staging import staged_forms
from tasks.images.supply import Supply
from tasks.transfer.rate import RateLimit

if TYPE_CHECKING:
    from blocks.host import Host

Verification = Literal["content", "start"]

FLOW = "ship-images"

# Of the eight commands that a host is given at once, some are left for what else goes on.
_STARTS_AT_ONCE = 4

# Sending more to the host does not help against these.
_HOPELESS = (
    Cancelled,
    DiskFull,
    EngineUnavailable,
    PermissionRefused,
    SudoRefused,
    TimedOut,
    Unreachable,
)


@dataclass(frozen=True)
class Terms:
    """How a run ships, the same for all its hosts.

    Args:
        verify: How the images are proven.
        speed: How fast it may send.
        prune: Whether images that these supersede are removed.
    """

    verify: Verification = "content"
    speed: Speed = field(default_factory=Speed)
    prune: bool = False

    @classmethod
    def of(
        cls,
        verify: Verification,
        rate_limit_mbit: float | None,
        total_mbit: float | None,
        *,
        prune: bool = False,
    ) -> Terms:
        """Make the terms from a flow's parameters.

        Raises:
            InvalidInput: A limit is not above zero.
        """
        if rate_limit_mbit is not None:
            RateLimit(rate_limit_mbit)
        total = RateLimit(total_mbit) if total_mbit is not None else None
        return cls(verify, Speed(rate_limit_mbit, total), prune)


def ship_to(host: Host, plan: HostPlan, facts: HostFacts, supply: Supply, terms: Terms) -> Shipped:
    """Carry out the plan for one host.

    Args:
        host: Where; a saved block, which the steps load by its name.
        plan: What is to be done there.
        facts: What is known of it.
        supply: Where the layers come from.
        terms: How to ship.

    Returns:
        What is there now, and what failed; a failure of one image does not keep
        the others from arriving.

    Raises:
        SeveralFailures: The plan found problems on this host.
    """
    if plan.problems:
        raise SeveralFailures(plan.problems, host.label)
    return _Shipping(host, plan, facts, supply, terms).run()


class _Shipping:
    """The work on one host in one run."""

    def __init__(
        self, host: Host, plan: HostPlan, facts: HostFacts, supply: Supply, terms: Terms
    ) -> None:
        self._host = host
        self._plan = plan
        self._facts = facts
        self._terms = terms
        self._sending = Sending(host, plan, facts, supply, terms.speed)
        self._sends = {send.image.name: send for send in plan.sends}
        self._failed: dict[str, CrossgapError] = {}
        self._notes: list[str] = []
        self._begin = time.monotonic()

    def run(self) -> Shipped:
        if self._facts.staged:
            steps.clean_up(self._host.name, self._needed())
        self._send_and_load()
        if any(_is(error, (Unreachable, Cancelled)) for error in self._failed.values()):
            raise SeveralFailures(self._failures(), self._host.label)
        for action in self._plan.actions:
            if isinstance(action, Tag):
                steps.tag_image(self._host.name, action)
        self._prove_content()
        proof = self._prove()
        if self._plan.sends:
            left = [name for name in self._sends if name in self._failed]
            steps.clean_up(self._host.name, self._needed(left))
        self._note_names(proof)
        if self._plan.sends or self._terms.prune:
            self._tidy([a.image for a in self._plan.actions if a.image.name in proof])
        return Shipped(self._results(proof), self._failures(), tuple(self._notes))

    def _needed(self, names: Sequence[str] | None = None) -> list[str]:
        """Name the staged files that belong to images which are still to be loaded."""
        sends = [s for name, s in self._sends.items() if names is None or name in names]
        return [n for send in sends for diff_id in send.missing for n in staged_forms(diff_id)]

    def _failures(self) -> tuple[CrossgapError, ...]:
        """Return what failed, each failure once, however many images it kept from arriving."""
        return tuple(dict.fromkeys(self._failed.values()))

    def _send_and_load(self) -> None:
        """Load each image as soon as its layers are there, while the next ones travel."""
        with ThreadPoolExecutor(self._plan.loads_at_once, thread_name_prefix="load") as pool:
            loads: dict[str, Future[None]] = {}
            for send in self._plan.sends:
                try:
                    if self._plan.way == "staged":
                        steps.send_layers(self._host.name, send, self._sending)
                except CrossgapError as error:
                    self._failed[send.image.name] = error
                    if _is(error, _HOPELESS):
                        # Why nothing of the others was tried, either.
                        rest = [name for name in self._sends if name not in loads]
                        self._failed |= {name: error for name in rest if name not in self._failed}
                        break
                    continue
                before = [loads[name] for name in send.after if name in loads]
                context = contextvars.copy_context()
                loads[send.image.name] = pool.submit(context.run, self._load, send, before)
            for name, load in loads.items():
                self._note_load(self._sends[name], load)

    def _load(self, send: Send, before: Sequence[Future[None]]) -> None:
        for load in before:
            load.exception()  # its failure is its own; this one may find its base all the same
        if self._plan.way == "staged":
            steps.load_image(self._host.name, send, self._sending)
        else:
            steps.stream_image(self._host.name, send, self._sending)

    def _note_load(self, send: Send, load: Future[None]) -> None:
        try:
            load.result()
        except CrossgapError as error:
            if send.is_whole or _is(error, _HOPELESS):
                self._failed[send.image.name] = error
            else:
                self._send_whole(send, error.what)

    def _send_whole(self, send: Send, reason: str) -> None:
        """Send all of an image after the host could not complete it from what it had."""
        name = send.image.name
        if send.is_whole:
            self._failed[name] = not_as_wanted([reason], self._host.label)
            return
        logger().warning("%s: all of %s is sent, because %s.", self._host.name, name, reason)
        whole = replace(send, missing=tuple(dict.fromkeys(send.image.diff_ids)), after=())
        self._sends[name] = whole
        try:
            if self._plan.way == "staged":
                steps.send_layers(self._host.name, whole, self._sending)
            self._load(whole, ())
        except CrossgapError as error:
            self._failed[name] = error
        else:
            self._notes.append(f"{self._host.name}: all of {name} was sent, because {reason}.")

    def _prove_content(self) -> None:
        """Compare what is there with what is wanted; what is not right is sent whole, once."""
        for last in (False, True):
            images = [a.image for a in self._plan.actions if a.image.name not in self._failed]
            faults = steps.verify_images(self._host.name, images) if images else {}
            for name, fault in faults.items():
                send = self._sends.get(name)
                if send is None or last:
                    self._failed[name] = not_as_wanted([fault], self._host.label)
                else:
                    self._send_whole(send, fault)
            if not faults:
                return

    def _prove(self) -> dict[str, str]:
        images = [a.image for a in self._plan.actions if a.image.name not in self._failed]
        if self._terms.verify == "content":
            return {image.name: "content" for image in images}
        started = collect(
            lambda image: (image.name, steps.start_image(self._host.name, image)),
            images,
            name=lambda image: f"{image.name} on {self._host.label}",
            at_once=_STARTS_AT_ONCE,
        )
        proof = dict(started.results)
        unproven = [image.name for image in images if image.name not in proof]
        self._failed.update(zip(unproven, started.failures, strict=True))
        return proof

    def _note_names(self, names: Iterable[str]) -> None:
        """Say under which names images are there that were asked for by digest."""
        self._notes += [
            f"{self._host.name}: {arrival_note(parse_reference(name))}"
            for name in names
            if "@" in name
        ]

    def _tidy(self, images: Sequence[ImageFacts]) -> None:
        """List what these images have superseded, and remove it if that was asked for."""
        name = self._host.name
        found = steps.find_superseded(name, images, self._facts.images) if images else ()
        for image in found:
            what = f"{name}: {image.label} ({bytes_text(image.size)}, {image.why}) is superseded"
            if image.used_by:
                self._notes.append(f"{what}, but stays: {', '.join(image.used_by)} uses it.")
            elif not self._terms.prune:
                self._notes.append(f"{what}; prune removes it.")
            else:
                removal = steps.remove_superseded(name, image)
                end = "was removed" if removal.removed else f"stays: {removal.said}"
                self._notes.append(f"{what} and {end}.")

    def _results(self, proof: dict[str, str]) -> tuple[ShipResult, ...]:
        seconds = time.monotonic() - self._begin
        sent = self._sending.sent
        results = []
        for action in self._plan.actions:
            image = action.image
            if image.name not in proof:
                continue
            send = self._sends.get(image.name)
            layers = [diff_id for diff_id in (send.missing if send else ()) if diff_id in sent]
            results.append(
                ShipResult(
                    image=image.name,
                    host=self._host.name,
                    action=_word(send),
                    layers_sent=len(layers),
                    # A layer that two images need is counted for the first.
                    bytes_sent=sum(sent.pop(diff_id) for diff_id in layers),
                    seconds=seconds,
                    verified=proof[image.name],
                )
            )
        return tuple(results)


def _is(error: CrossgapError, kinds: tuple[type[CrossgapError], ...]) -> bool:
    """Whether an error, or one of those that it stands for, is of some kinds."""
    return any(isinstance(one, kinds) for one in each_failure([error]))


def _word(send: Send | None) -> Literal["present", "delta", "full"]:
    if send is None:
        return "present"
    return "full" if send.is_whole else "delta"
