"""What a run ships from: layers and configurations, handed out as they become available.

Whoever needs a layer asks for it and waits; whoever makes layers available
(a `docker save` being read, a registry, a bundle) hands them in. So sending
begins with the first layer, and what nobody asks for is not fetched again.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self, TypeVar

from blocks.cancellation import current_cancellation
from blocks.errors import Damaged, NotFound
from tasks.images.blobs import Layer
from tasks.images.facts import ImageFacts
from tasks.images.store import Store, StoredImage

T = TypeVar("T")

# Each is one `docker save` or one image from a registry; more only fight for the same disk.
_FETCHES_AT_ONCE = 2
_LOOK_EVERY = 0.5


class Fetch(Protocol):
    """Makes images available; how depends on where they are."""

    def __call__(
        self, images: Sequence[ImageFacts], lacking: Collection[str], supply: Supply
    ) -> None:
        """Hand in what some images consist of.

        Args:
            images: The images; the configuration of each is needed.
            lacking: The diff ids of the layers that are needed.
            supply: What to call `give_layer` and `give_image` of.

        Raises:
            CrossgapError: It failed; who waits for these images is told.
        """


def nowhere_else(
    images: Sequence[ImageFacts],
    lacking: Collection[str],
    supply: Supply,  # noqa: ARG001 - as every Fetch
) -> None:
    """Fetch nothing: for sources that hand in all they have at the beginning.

    Raises:
        NotFound: Always; something was asked for that the source does not hold.
    """
    missing = ", ".join(f"{diff_id[:19]}…" for diff_id in lacking) or "a configuration"
    raise NotFound(
        f"the source does not hold all of it ({missing})",
        f"image {', '.join(image.name for image in images)!r}",
        "Bring the whole image: docker save it anew, or pack a bundle without 'since'.",
    )


class Supply:
    """Hands out the layers and configurations of a run's images.

    Args:
        store: Where layers are kept from run to run.
        fetch: Gets what the store does not have.
    """

    def __init__(self, store: Store, fetch: Fetch = nowhere_else) -> None:
        self.store = store
        self._fetch = fetch
        self._changed = threading.Condition()
        self._layers: dict[str, Layer] = {}
        self._images: list[StoredImage] = []
        self._fetches: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(_FETCHES_AT_ONCE, thread_name_prefix="fetch")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            current_cancellation().cancel()
        self._pool.shutdown(cancel_futures=True)

    def give_layer(self, layer: Layer) -> None:
        """Hand in a layer."""
        with self._changed:
            if layer.diff_id not in self._layers:
                self._layers[layer.diff_id] = layer
                self._changed.notify_all()

    def give_image(self, image: StoredImage) -> None:
        """Hand in a configuration."""
        with self._changed:
            self._images.append(image)
            self._changed.notify_all()

    def start(self, groups: Sequence[Sequence[ImageFacts]], lacking: Collection[str]) -> None:
        """Begin to fetch images that will be asked for.

        Args:
            groups: Images that are fetched together, the first ones first.
            lacking: The diff ids of the layers that will be asked for; one that
                images of several groups have is fetched with the first.
        """
        with self._changed:
            left = set(lacking)
            for group in groups:
                self._begin(group, left)
                left = left.difference(*(image.diff_ids for image in group))

    def layer(self, image: ImageFacts, diff_id: str) -> Layer:
        """Return a layer, whenever it is available.

        Args:
            image: One that it belongs to.
            diff_id: Which layer.

        Raises:
            CrossgapError: It could not be fetched.
            Cancelled: The run was cancelled meanwhile.
        """

        def found() -> Layer | None:
            return self._layers.get(diff_id) or self._stored_layer(diff_id)

        return self._wait(image, f"the layer {diff_id}", found)

    def image(self, image: ImageFacts) -> StoredImage:
        """Return the configuration of an image, whenever it is available.

        Raises:
            CrossgapError: As for `layer`.
        """

        def found() -> StoredImage | None:
            given = (one for one in self._images if _is_of(one, image))
            return next(given, None) or self.store.image(image.image_id)

        return self._wait(image, "its configuration", found)

    def has(self, image: ImageFacts, lacking: Collection[str]) -> bool:
        """Whether an image's configuration and some layers are here already."""
        with self._changed:
            config = any(_is_of(one, image) for one in self._images) or self.store.image(
                image.image_id
            )
            return bool(config) and all(
                diff_id in self._layers or self._stored_layer(diff_id)
                for diff_id in lacking
                if diff_id in image.diff_ids
            )

    def damaged(self, layer: Layer) -> None:
        """Forget a layer whose bytes here were found damaged; asking fetches it again."""
        with self._changed:
            self._layers.pop(layer.diff_id, None)
            self.store.discard(layer.blob.digest)
            self._fetches = {n: f for n, f in self._fetches.items() if not f.done()}

    def _wait(self, image: ImageFacts, what: str, found: Callable[[], T | None]) -> T:
        cancellation = current_cancellation()
        again = False
        with self._changed:
            while True:
                cancellation.check(image.name)
                if (here := found()) is not None:
                    return here
                fetch = self._fetches.get(image.image_id)
                if fetch is not None and fetch.done():
                    fetch.result()
                if all(one.done() for one in self._fetches.values()):
                    if again:
                        raise _not_in_it(image, what)
                    # It was not among what was to be fetched: a base that a host has lost.
                    self._begin([image], image.diff_ids)
                    again = True
                self._changed.wait(_LOOK_EVERY)

    def _begin(self, group: Sequence[ImageFacts], lacking: Collection[str]) -> None:
        context = contextvars.copy_context()
        fetch = self._pool.submit(context.run, self._fetch, group, lacking, self)
        fetch.add_done_callback(self._notify)
        for image in group:
            self._fetches[image.image_id] = fetch

    def _notify(self, _: Future[None]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _stored_layer(self, diff_id: str) -> Layer | None:
        layer = self.store.layer(diff_id, None)
        if layer is not None:
            self._layers[diff_id] = layer
        return layer


def _is_of(stored: StoredImage, image: ImageFacts) -> bool:
    if image.config_digest:
        return stored.config_digest == image.config_digest
    return stored.diff_ids == image.diff_ids and image.name in stored.names


def _not_in_it(image: ImageFacts, what: str) -> Damaged:
    return Damaged(
        f"its source did not give {what}",
        f"image {image.name!r}",
        "Get the image anew (docker pull, or docker load of the original), then start again.",
    )
