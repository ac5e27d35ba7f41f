"""Fetches layers out of registries into the content store, several at once, each once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blocks.errors import Cancelled, CrossgapError, Damaged, DiskFull, SeveralFailures
from blocks.files import Progress
from tasks.images.blobs import Layer
from tasks.images.registry.blobs import fetch_blob, sweep_partials
from tasks.images.registry.proof import prove_layer
from tasks.images.registry.web import Session
from tasks.transfer.turns import Turns

if TYPE_CHECKING:
    from tasks.images.store import Store

_BLOBS_AT_ONCE = 4


@dataclass(frozen=True)
class WantedLayer:
    """A layer to be fetched.

    Args:
        layer: As the registry keeps it.
        turns: The places that may have it.
        image: An image that it belongs to, as messages name it.
    """

    layer: Layer
    turns: Turns[Session]
    image: str


def fetch_wanted(
    wanted: Iterable[WantedLayer],
    store: Store,
    on_layer: Callable[[Layer], None],
    progress: Progress | None,
) -> dict[str, Layer]:
    """Get layers into the store; see `Registry.fetch_layers`."""
    sweep_partials(store.folder)
    jobs = {job.layer.diff_id: job for job in wanted}
    store.make_room(sum(job.layer.blob.size for job in jobs.values() if not _held(job, store)))
    tally = _Tally({key: job.layer.blob.size for key, job in jobs.items()}, progress)

    def work(job: WantedLayer) -> Layer:
        layer = _fetch(job, store, tally)
        tally.arrived(layer.diff_id, job.layer.blob.size)
        on_layer(layer)
        return layer

    with ThreadPoolExecutor(_BLOBS_AT_ONCE, thread_name_prefix="registry") as pool:
        futures = {key: pool.submit(copy_context().run, work, job) for key, job in jobs.items()}
        for future in wait(futures.values(), return_when=FIRST_EXCEPTION).not_done:
            # What has begun goes on: the next run needs it, too.
            future.cancel()
    _raise_failures(futures.values())
    return {key: future.result() for key, future in futures.items()}


def _fetch(job: WantedLayer, store: Store, tally: _Tally) -> Layer:
    if held := _held(job, store):
        return held
    wanted = job.layer
    blob = fetch_blob(
        job.turns, wanted.blob, store, lambda count: tally.arrived(wanted.diff_id, count)
    )
    try:
        compression = prove_layer(blob, wanted.diff_id, f"image {job.image!r}")
    except Damaged:
        store.discard(blob.digest)
        raise
    return store.record_layer(wanted.diff_id, compression, blob)


def _held(job: WantedLayer, store: Store) -> Layer | None:
    """Return any form of the layer that is here: others can be made of it."""
    diff_id = job.layer.diff_id
    return store.layer(diff_id, job.layer.compression) or store.layer(diff_id)


def _raise_failures(futures: Iterable[Future[Layer]]) -> None:
    errors = [future.exception() for future in futures if not future.cancelled()]
    failures: list[CrossgapError] = []
    for error in errors:
        if isinstance(error, CrossgapError) and not isinstance(error, Cancelled | DiskFull):
            failures.append(error)
        elif error is not None:
            # One of these says it all.
            raise error
    if failures:
        raise failures[0] if len(failures) == 1 else SeveralFailures(failures, "registry")


class _Tally:
    """Adds up what has arrived in several threads; a blob fetched anew is not counted back."""

    def __init__(self, sizes: Mapping[str, int], progress: Progress | None) -> None:
        self._total = sum(sizes.values())
        self._arrived = dict.fromkeys(sizes, 0)
        self._sum = 0
        self._progress = progress
        self._lock = threading.Lock()

    def arrived(self, diff_id: str, count: int) -> None:
        with self._lock:
            if count <= self._arrived[diff_id]:
                return
            self._sum += count - self._arrived[diff_id]
            self._arrived[diff_id] = count
            if self._progress:
                self._progress(self._sum, self._total)
