"""The layers on their way to one host: which form of each, how fast, how far."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blocks.cancellation import current_cancellation
from blocks.errors import NotFound, SeveralFailures, SourceDamaged
from blocks.files import Pace, Progress
from blocks.link import LARGE_SAMPLE, SAMPLE, link_rate
from blocks.logs import logger
from tasks.common.failures import collect
from tasks.common.units import rate_text
from tasks.images.blobs import Blob, Compression, Descriptor, Layer
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.forms import SMALL, best_form
from tasks.images.layout import LayoutImage
from tasks.images.plan import HostPlan, Send
from tasks.images.staging import staged_name, staged_path, staging_folder
from tasks.images.supply import Supply
from tasks.transfer.rate import RateLimit, pace_of

if TYPE_CHECKING:
    from blocks.host import Host

# One stream alone leaves the line idle while layers are packed, hashed and moved into place.
STREAMS = 3
_SAMPLE = 2 << 20
# Bytes per second. Slower than this, packing pays: there is nothing more to measure.
_SLOW = 5e6


@dataclass(frozen=True)
class Speed:
    """How fast a run may send.

    Args:
        per_host_mbit: Limit for each host in Mbit/s.
        total: Limit for all hosts together.
    """

    per_host_mbit: float | None = None
    total: RateLimit | None = None


class Sending:
    """What is sent to one host in one run, by any number of tasks.

    Args:
        host: Where to.
        plan: What is to be done there.
        facts: What is known of the host.
        supply: Where the layers come from.
        speed: The run's limits.
    """

    def __init__(
        self, host: Host, plan: HostPlan, facts: HostFacts, supply: Supply, speed: Speed
    ) -> None:
        self._host = host
        self._there = plan.there
        self._is_staged = plan.way == "staged"
        self._facts = facts
        self._supply = supply
        own = RateLimit(speed.per_host_mbit) if speed.per_host_mbit is not None else None
        self.pace: Pace | None = pace_of(own, speed.total)
        self._limit = min(
            (limit.bytes_per_second for limit in (own, speed.total) if limit), default=None
        )
        self._lock = threading.Lock()
        # Its own, as measuring takes as long as the line does: progress goes on meanwhile.
        self._measuring = threading.Lock()
        self._rate: float | None = None
        self._folder = ""
        self._forms: dict[str, Layer] = {}
        self._sizes = dict(plan.layers)
        self._arrived: dict[str, int] = {}
        self._sent: dict[str, int] = {}

    @property
    def sent(self) -> dict[str, int]:
        """Bytes that travelled so far, by diff id."""
        with self._lock:
            return dict(self._sent)

    @property
    def is_done(self) -> bool:
        """Whether the bytes of all layers have arrived."""
        with self._lock:
            return sum(self._arrived.values()) >= sum(self._sizes.values())

    def note_streamed(self, send: Send, count: int) -> None:
        """Note the bytes of an archive that travelled at once, as those of its layers."""
        with self._lock:
            for diff_id in send.missing:
                size = self._forms[diff_id].blob.size
                self._sent[diff_id] = self._sent.get(diff_id, 0) + size
                count -= size
            for diff_id in send.missing[:1]:
                self._sent[diff_id] += count

    def progress_of(self, send: Send, progress: Progress) -> Progress:
        """Make the progress of an archive that travels at once out of that of all."""
        with self._lock:
            self._sizes.update({d: self._forms[d].blob.size for d in send.missing})
        sizes = [(d, self._sizes[d]) for d in send.missing]

        def report(arrived: int, _: int) -> None:
            with self._lock:
                for diff_id, size in sizes:
                    own = min(size, arrived)
                    self._arrived[diff_id] = max(own, self._arrived.get(diff_id, 0))
                    arrived -= own
                progress(sum(self._arrived.values()), sum(self._sizes.values()))

        return report

    def stage(self, image: ImageFacts, diff_ids: Iterable[str], progress: Progress) -> None:
        """Send some layers of an image into the staging folder of the host.

        Args:
            image: One that they belong to.
            diff_ids: Which layers; those that are there already cost a look.
            progress: Is told the bytes of all images that arrived, and in all.

        Raises:
            CrossgapError: As for `Supply.layer` and `Host.put`.
        """
        sent = collect(
            lambda diff_id: self._stage_layer(image, diff_id, progress),
            diff_ids,
            name=lambda diff_id: f"layer {diff_id[:19]}… to {self._host.label}",
            at_once=STREAMS,
        )
        if len(sent.failures) > 1:
            raise SeveralFailures(sent.failures, self._host.label)
        if sent.failures:
            raise sent.failures[0]

    def layout(self, send: Send, *, pack: bool = False) -> LayoutImage:
        """Return an image as the archive for this host holds it.

        Args:
            send: What is sent.
            pack: Whether its layers are still to be brought into the form that
                suits the link, as nothing was staged.

        Raises:
            NotFound: A layer that another image was to bring did not come.
            CrossgapError: As for `Supply.image`.
        """
        stored = self._supply.image(send.image)
        if pack:
            for diff_id in send.missing:
                self._prepare(send.image, diff_id, self._prove)
        layers = tuple(
            self._forms[diff_id] if diff_id in send.missing else self._absent(diff_id)
            for diff_id in send.image.diff_ids
        )
        return LayoutImage(name_there(send.image), stored.config, layers)

    def staged_path(self, blob: Blob) -> str:
        """Return where a layer that was staged lies on the host, absolute."""
        with self._lock:
            layer = next(one for one in self._forms.values() if one.blob.digest == blob.digest)
            self._folder = self._folder or self._host.expand(staging_folder(self._host))
        return f"{self._folder}/{staged_name(layer)}"

    def forget_damaged(self, send: Send) -> bool:
        """Prove the layers of an archive that the host found damaged.

        Args:
            send: What was sent.

        Returns:
            Whether any is damaged here; those are fetched anew when they are asked for.
        """
        found = False
        for layer in [self._forms[d] for d in send.missing if d in self._forms]:
            try:
                for _ in self._supply.store.read(layer.here):
                    pass
            except SourceDamaged as error:
                self._supply.damaged(layer)
                logger().warning("%s It is fetched again.", error)
                found = True
        return found

    def _absent(self, diff_id: str) -> Layer:
        """Return a layer that the host has, in the form that it knows it by, without its bytes."""
        layer = self._forms.get(diff_id) or self._there.get(diff_id)
        if layer is None:
            raise NotFound(
                f"the layer {diff_id[:19]}… should have come with another image, and did not",
                self._host.label,
                "Start again: what is lacking is sent.",
            )
        return Layer(diff_id, layer.compression, Descriptor(layer.blob.digest, layer.blob.size))

    def _stage_layer(self, image: ImageFacts, diff_id: str, progress: Progress) -> None:
        def put(layer: Layer) -> None:
            self._put(layer, progress)

        self._prepare(image, diff_id, put)

    def _prepare(self, image: ImageFacts, diff_id: str, use: Callable[[Layer], None]) -> None:
        """Get a layer in the form that pays and use it; once more if it was damaged here."""
        for again in (True, False):
            given = layer = self._supply.layer(image, diff_id)
            try:
                layer = self._packed(given)
                use(layer)
            except SourceDamaged as error:
                self._forget(given, layer)
                if not again:
                    raise
                logger().warning("%s It is fetched again.", error)
            else:
                return

    def _forget(self, given: Layer, damaged: Layer) -> None:
        """Forget a damaged layer, or only the form that was made of it."""
        if damaged is given:
            self._supply.damaged(given)
        else:
            self._supply.store.discard(damaged.blob.digest)

    def _prove(self, layer: Layer) -> None:
        """Take a layer that is to be streamed, after proving it: nobody hashes it there."""
        for _ in self._supply.store.read(layer.here):
            pass
        with self._lock:
            self._forms[layer.diff_id] = layer

    def _put(self, layer: Layer, progress: Progress) -> None:
        with self._lock:
            self._forms[layer.diff_id] = layer
            self._sizes[layer.diff_id] = layer.blob.size
        transfer = self._host.put(
            layer.here.content,
            staged_path(self._host, layer),
            progress=self._share(layer.diff_id, progress),
            pace=self.pace,
            sha256=layer.blob.hex,
        )
        with self._lock:
            before = self._sent.get(layer.diff_id, 0)
            self._sent[layer.diff_id] = before + transfer.bytes_sent
            if self._rate is not None and not self._limit and transfer.bytes_sent > SMALL:
                # The first measurement may have met a busy moment.
                self._rate = max(self._rate, transfer.bytes_sent / transfer.seconds)

    def _share(self, diff_id: str, progress: Progress) -> Progress:
        """Make the progress of one layer out of that of all."""

        def report(arrived: int, _: int) -> None:
            with self._lock:
                self._arrived[diff_id] = max(arrived, self._arrived.get(diff_id, 0))
                progress(sum(self._arrived.values()), sum(self._sizes.values()))

        return report

    def _packed(self, layer: Layer) -> Layer:
        """Bring a layer into the form that pays on this link."""
        current_cancellation().check(self._host.label)
        if layer.compression == "zstd" and not self._facts.unpacks_zstd:
            layer = self._supply.store.unpacked(layer)
        if layer.compression != "none":
            return layer
        # A part of it that is there already can only be gone on with in the same form.
        before = self._forms.get(layer.diff_id)
        form = before.compression if before else self._facts.staged_forms.get(layer.diff_id)
        if form is None or (form == "zstd" and not self._facts.unpacks_zstd):
            form = self._best_form(layer)
        return layer if form == "none" else self._supply.store.compressed(layer, form)

    def _best_form(self, layer: Layer) -> Compression:
        with closing(self._supply.store.read(layer.here)) as chunks:
            ratio = sample_ratio(chunks)
        rate = self._rate
        if rate is None and layer.blob.size > SMALL:
            rate = self._measure(layer)
        return best_form(ratio, rate, unpacks_zstd=self._facts.unpacks_zstd)

    def _measure(self, layer: Layer) -> float:
        """Return the rate of the link, or the limit, which no measurement may exceed."""
        with self._measuring:
            if self._rate is None:
                self._rate = self._limit or self._sampled(layer)
                logger().info(
                    "%s: the link gives about %s.", self._host.label, rate_text(self._rate)
                )
            return self._rate

    def _sampled(self, layer: Layer) -> float:
        """Measure the link with the first megabytes of a layer.

        Where it is staged, they need not travel again. A busy machine makes the link
        look slower than it is, so the better of two counts.
        """

        def measured(sample: int) -> float:
            path = staged_path(self._host, layer) if self._is_staged else ""
            return link_rate(self._host, layer.here.content, path, layer.blob.hex, sample=sample)

        rate = measured(SAMPLE)
        return rate if rate < _SLOW else max(rate, measured(LARGE_SAMPLE))


def name_there(image: ImageFacts) -> str:
    """Return the name that an image gets on a host; empty for one that has none."""
    return "" if image.name == image.config_digest else image.lookup


def sample_ratio(chunks: Iterable[bytes]) -> float:
    """Return the unpacked bytes per byte of gzip, in the first megabytes of a layer."""
    from isal import isal_zlib

    sample = bytearray()
    for chunk in chunks:
        sample += chunk
        if len(sample) >= _SAMPLE:
            break
    return len(sample) / max(1, len(isal_zlib.compress(bytes(sample), 1)))
