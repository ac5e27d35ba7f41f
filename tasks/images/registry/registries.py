"""Images straight from a registry, with no engine: resolved, pinned, fetched, checked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from blocks.files import Progress
from tasks.images.blobs import Layer
from tasks.images.names import Reference
from tasks.images.registry.auth import Credentials
from tasks.images.registry.documents import (
    LARGEST_CONFIG,
    LARGEST_MANIFEST,
    ResolvedImage,
    assemble,
    index_entries,
    parse_descriptor,
    parse_document,
    parse_manifest,
)
from tasks.images.registry.layers import WantedLayer, fetch_wanted
from tasks.images.registry.lookup import read_checked, read_named
from tasks.images.registry.places import find_places
from tasks.images.registry.platforms import choose_platform
from tasks.images.registry.web import Session
from tasks.transfer.turns import Turns
from tasks.transfer.web import Transport

if TYPE_CHECKING:
    from tasks.images.store import Store


@dataclass(frozen=True)
class RegistryAccess:
    """How registries are reached.

    Args:
        mirrors: Mirrors of Docker Hub, asked before it: `host`, `host:port`,
            `http://host:port`, `https://host/prefix`.
        credentials: For the images' own registry, never for a mirror.
        ca_bundle: Certificates to trust beside the system's.
        use_proxy: Whether the proxy that the environment names is used.
        stall_seconds: How long a registry may send nothing before the next is asked.
    """

    mirrors: tuple[str, ...] = ()
    credentials: Credentials | None = None
    ca_bundle: Path | None = None
    use_proxy: bool = False
    stall_seconds: float = 30.0


class Registry:
    """The registries of a run; safe to use from several threads.

    Args:
        access: How they are reached.

    Raises:
        InvalidInput: The CA bundle cannot be read.
    """

    def __init__(self, access: RegistryAccess) -> None:
        self._access = access
        self._transport = Transport(access.ca_bundle, access.use_proxy, access.stall_seconds)
        self._failed: Counter[str] = Counter()
        self._names: dict[str, _Named] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._transport.close()

    def resolve(self, reference: Reference, architecture: str) -> ResolvedImage:
        """Find out what an image consists of on one architecture.

        A tag is looked up once, however often and for however many
        architectures this is called: it may be moved while a run is at work.

        Args:
            reference: The image.
            architecture: The host's, as Docker calls it; `arm/v6` names a variant.

        Returns:
            The image, pinned by digests that have been checked.

        Raises:
            InvalidInput: It is of a kind that hosts cannot be given.
            WrongArchitecture: It is not made for it; what it is made for is named.
            NotFound: There is no such repository or tag; tags like it are named.
            AuthenticationRefused: It is private, or the credentials are wrong.
            Damaged: What the registries say does not have the digest it should.
            CrossgapError: No place can be reached.
        """
        where = f"image {reference.familiar!r}"
        named = self._named(reference)
        content, digest = named.pin()
        document = parse_document(content, where)
        entries = index_entries(document)
        index_digest = ""
        if entries is not None:
            index_digest = digest
            entry = choose_platform(entries, architecture, where)
            chosen = parse_descriptor(entry, where)
            digest = chosen.digest
            content = named.turns.ask(
                lambda session: read_checked(session, "manifests", chosen, LARGEST_MANIFEST)
            )
            document = parse_document(content, where)
        manifest = parse_manifest(document, where)
        config = named.turns.ask(
            lambda session: read_checked(session, "blobs", manifest.config, LARGEST_CONFIG)
        )
        return assemble(reference, digest, index_digest, manifest, config, architecture)

    def fetch_layers(
        self,
        images: Sequence[ResolvedImage],
        store: Store,
        wanted: Collection[str] | None = None,
        on_layer: Callable[[Layer], None] = lambda _: None,
        progress: Progress | None = None,
    ) -> dict[str, Layer]:
        """Get layers into the store, several at once, each once.

        Args:
            images: The images whose layers are wanted.
            store: Where they go; what it has is not fetched.
            wanted: The diff ids that are wanted; None for all of these images.
            on_layer: Called with each layer as soon as it is there, from several threads.
            progress: Called with the bytes that are there and those that will be.

        Returns:
            The layers by diff id.

        Raises:
            Damaged: A layer is not what its image says, wherever it is fetched.
            DiskFull: There is no room for it.
            CrossgapError: No place gives it.
            SeveralFailures: Several of these.
        """
        return fetch_wanted(
            (
                WantedLayer(layer, self._named(image.reference).turns, image.reference.familiar)
                for image in images
                for layer in image.layers
                if wanted is None or layer.diff_id in wanted
            ),
            store,
            on_layer,
            progress,
        )

    def _named(self, reference: Reference) -> _Named:
        with self._lock:
            if reference.familiar not in self._names:
                turns = Turns(self._sessions(reference), self._failed)
                self._names[reference.familiar] = _Named(reference, turns)
            return self._names[reference.familiar]

    def _sessions(self, reference: Reference) -> list[Session]:
        shown = self._access.credentials
        if shown is not None and not shown.are_for(reference):
            shown = None
        places = find_places(reference, self._access.mirrors)
        return [Session(place, self._transport, reference.familiar, shown) for place in places]


class _Named:
    """An image name, and what it stood for when it was first asked for."""

    def __init__(self, reference: Reference, turns: Turns[Session]) -> None:
        self.turns = turns
        self._reference = reference
        self._pinned: tuple[bytes, str] | None = None
        self._lock = threading.Lock()

    def pin(self) -> tuple[bytes, str]:
        with self._lock:
            if self._pinned is None:
                self._pinned = self.turns.ask(lambda session: read_named(session, self._reference))
            return self._pinned
