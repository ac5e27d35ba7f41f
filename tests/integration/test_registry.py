"""Debian's registry, whole and behind a front that fails: images resolved and layers fetched."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import (
    AuthenticationRefused,
    Cancelled,
    ConnectionRefused,
    CrossgapError,
    Damaged,
    DiskFull,
    NotFound,
    TimedOut,
    Unreachable,
    WrongArchitecture,
)
from tasks.images.blobs import Blob, Layer
from tasks.images.names import Reference, parse_reference
from tasks.images.registry import places
from tasks.images.registry.auth import Credentials
from tasks.images.registry.registries import Registry, RegistryAccess
from tasks.images.store import Store
from tasks.transfer.web import Throttled
from tests.integration.registries import running_registry
from tests.lab import ImageSpec, LayerSpec
from tests.lab.archives import native_architecture
from tests.lab.front import Fault, Front
from tests.lab.registry import LabAuthority, LabRegistry, PushedImage

pytestmark = pytest.mark.integration

BIG = 6_000_000
HERE = native_architecture()
BASE = LayerSpec({"opt/base": 300_000}, seed=61)
TOP = LayerSpec({"opt/app": BIG}, seed=62)
# The busybox of other images would only take time.
APP = ImageSpec("library/app:1", [BASE, TOP], busybox=False)


@pytest.fixture(scope="module")
def registry() -> Iterator[LabRegistry]:
    with running_registry() as running:
        yield running


@pytest.fixture(scope="module")
def app(registry: LabRegistry) -> PushedImage:
    return registry.push(APP)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 10**9)


def named(address: str, text: str = "library/app:1") -> Reference:
    return parse_reference(f"{address}/{text}")


def access(**settings: Any) -> Registry:
    return Registry(RegistryAccess(**{"stall_seconds": 5, **settings}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Docker Hub, out of reach."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(places, "HUB_HOST", f"127.0.0.1:{unused.getsockname()[1]}")
        yield


def fetched(registry: Registry, reference: Reference, store: Store, **more: Any) -> list[bytes]:
    """Resolve an image, fetch its layers, and return their blobs."""
    with registry:
        image = registry.resolve(reference, HERE)
        layers = registry.fetch_layers([image], store, **more)
    assert tuple(layers) == image.diff_ids
    return [b"".join(store.read(blob)) for blob in blobs_of(layers)]


def blobs_of(layers: Mapping[str, Layer]) -> list[Blob]:
    return [layer.blob for layer in layers.values() if isinstance(layer.blob, Blob)]


def big_blob(image: PushedImage) -> str:
    return f"/blobs/{image.blobs[1]}"


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_image_is_resolved_and_fetched_in_each_compression(
    registry: LabRegistry, store: Store, compression: Any
) -> None:
    pushed = registry.push(
        ImageSpec(f"forms/{compression}:1", APP.layers, busybox=False), compression
    )
    with access() as client:
        image = client.resolve(named(registry.address, f"forms/{compression}:1"), HERE)
        seen: list[str] = []
        moves: list[tuple[int, int]] = []
        layers = client.fetch_layers(
            [image],
            store,
            None,
            lambda layer: seen.append(layer.diff_id),
            lambda *m: moves.append(m),
        )
    assert image.digest == pushed.digest
    assert image.config_digest == pushed.made.config_digest
    assert image.diff_ids == pushed.made.diff_ids
    assert sorted(seen) == sorted(image.diff_ids)
    assert [layer.blob.digest for layer in layers.values()] == list(pushed.blobs)
    assert {layer.compression for layer in layers.values()} == {compression}
    assert moves == sorted(moves)
    assert moves[-1] == (sum(pushed.blob_bytes), sum(pushed.blob_bytes))
    assert not list((store.folder / "partial").iterdir())


def test_layers_that_are_here_are_not_fetched_again(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    with Front(registry.address) as front, access() as client:
        image = client.resolve(named(front.address), HERE)
        client.fetch_layers([image], store, wanted=image.diff_ids[:1])
        assert len(front.asked(app.blobs[0])) == 1
        assert not front.asked(app.blobs[1])
        client.fetch_layers([image, image], store)
        client.fetch_layers([image], store)
        assert len(front.asked(app.blobs[0])) == 1
        assert len(front.asked(app.blobs[1])) == 1


def test_a_tag_is_looked_up_once_in_a_run_for_all_architectures(registry: LabRegistry) -> None:
    images = [
        registry.push(ImageSpec(f"multi/app:{name}", [BASE], architecture=name, busybox=False))
        for name in ("amd64", "arm64")
    ]
    provenance = {
        "mediaType": images[0].manifest["mediaType"],
        "digest": images[0].digest,
        "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    digest = registry.push_index("multi/app", "1", images, [provenance])
    reference = named(registry.address, "multi/app:1")
    with access() as client:
        amd64 = client.resolve(reference, "amd64")
        registry.push_index("multi/app", "1", images[:1])
        arm64 = client.resolve(reference, "arm64")
        assert (amd64.index_digest, arm64.index_digest) == (digest, digest)
        assert (amd64.digest, arm64.digest) == (images[0].digest, images[1].digest)
        with pytest.raises(WrongArchitecture, match=r"but for linux/amd64, linux/arm64\."):
            client.resolve(reference, "s390x")
    with access() as later, pytest.raises(WrongArchitecture, match=r"but for linux/amd64\."):
        later.resolve(reference, "arm64")
    pinned = named(registry.address, f"multi/app@{digest}")
    with access() as client:
        assert client.resolve(pinned, "arm64").name.endswith(f"multi/app:sha256-{digest[7:19]}")


def test_what_is_not_there_is_told_apart(registry: LabRegistry, app: PushedImage) -> None:
    def failure(text: str) -> CrossgapError:
        with access() as client, pytest.raises(CrossgapError) as failed:
            client.resolve(named(registry.address, text), HERE)
        return failed.value

    missing_tag = failure("library/app:11")
    assert isinstance(missing_tag, NotFound)
    assert missing_tag.remedy == "It has 1."
    misspelt = failure("library/apq:1")
    assert isinstance(misspelt, NotFound)
    assert "no repository library/apq" in misspelt.what
    unknown = failure(f"library/app@sha256:{'0' * 64}")
    assert isinstance(unknown, NotFound)
    assert "nothing of this digest" in unknown.what


def test_a_private_registry_is_shown_the_credentials_that_are_meant_for_it(store: Store) -> None:
    user = ("操作员", "秘密 pass:word")
    with running_registry(user=user) as private:
        private.push(APP)
        reference = named(private.address)
        good = Credentials(*user, registry=f"http://{private.address}/v2/")
        assert fetched(access(credentials=good), reference, store)
        for bad, words in (
            (Credentials("操作员", "wrong"), "refused the credentials"),
            (None, "no such image, or not for everybody"),
            (Credentials(*user, registry="docker.io"), "no such image, or not for everybody"),
        ):
            with (
                access(credentials=bad) as client,
                pytest.raises(AuthenticationRefused, match=words) as failed,
            ):
                client.resolve(reference, HERE)
            assert "秘密" not in str(failed.value)


def test_tokens_are_fetched_for_everybody_or_for_a_user(
    registry: LabRegistry, app: PushedImage, store: Store, tmp_path: Path
) -> None:
    with Front(registry.address, tokens=True) as front:
        assert fetched(access(), named(front.address), store)
        assert len(front.asked("/token")) == 1
        front.token = "another"  # as when the first has run out
        assert fetched(access(), named(front.address), Store(tmp_path / "other", 10**9))
    with Front(registry.address, tokens=True, user=("u", "p")) as front:
        with access() as client, pytest.raises(AuthenticationRefused):
            client.resolve(named(front.address), HERE)
        assert fetched(access(credentials=Credentials("u", "p")), named(front.address), store)


def test_a_token_that_runs_out_between_two_layers_is_fetched_anew(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    with Front(registry.address, tokens=True) as front, access() as client:
        image = client.resolve(named(front.address), HERE)
        front.token = "another"
        assert len(client.fetch_layers([image], store)) == 2
        assert len(front.asked("/token")) == 2


def test_a_registry_of_an_own_authority_is_trusted_only_with_its_bundle(
    tmp_path: Path, store: Store
) -> None:
    authority = LabAuthority(tmp_path)
    with running_registry(authority=authority) as private:
        private.push(APP)
        with (
            access() as client,
            pytest.raises(Unreachable, match="certificate is not trusted") as failed,
        ):
            client.resolve(named(private.address), HERE)
        assert "CA bundle" in failed.value.remedy
        assert not failed.value.retryable
        assert fetched(access(ca_bundle=authority.bundle), named(private.address), store)


def test_the_next_mirror_is_asked_and_shown_no_credentials(
    registry: LabRegistry, app: PushedImage, store: Store, hub: None
) -> None:
    broken = Fault("status", path="/v2/")
    with (
        Front(registry.address, broken) as first,
        Front(registry.address, tokens=True) as second,
    ):
        mirrors = (first.address, f"http://{second.address}")
        client = access(mirrors=mirrors, credentials=Credentials("u", "p"))
        assert fetched(client, parse_reference("app:1"), store)
        shown = [seen.authorization for seen in (*first.seen, *second.seen)]
        assert first.seen
        assert {text.partition(" ")[0] for text in shown} == {"", "Bearer"}
        # Once it has failed it comes last.
        assert not first.asked("/blobs/")


def test_what_every_place_said_is_told_when_none_has_it(
    registry: LabRegistry, hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.transfer.turns._FIRST_WAIT", 0.01)
    with access(mirrors=(registry.address,)) as client, pytest.raises(ConnectionRefused) as failed:
        client.resolve(parse_reference("nothing:1"), HERE)
    assert f"{registry.address}: the registry has no repository library/nothing" in str(
        failed.value
    )
    assert "nothing listens there" in str(failed.value)
    assert failed.value.retryable


@pytest.mark.parametrize("kind", ["stall", "cut", "reset"])
def test_a_mirror_that_fails_in_the_middle_of_a_layer_is_relieved_there(
    registry: LabRegistry, app: PushedImage, store: Store, hub: None, kind: Any
) -> None:
    half = app.blob_bytes[1] // 2
    with (
        Front(registry.address, Fault(kind, big_blob(app), after=half)) as first,
        Front(registry.address) as second,
    ):
        client = access(mirrors=(first.address, second.address), stall_seconds=1)
        moves: list[int] = []
        blobs = fetched(
            client, parse_reference("app:1"), store, progress=lambda done, _: moves.append(done)
        )
        assert [len(blob) for blob in blobs] == list(app.blob_bytes)
        (rest,) = second.asked(big_blob(app))
        # A reset takes bytes with it that have arrived and were not read yet.
        assert kind == "reset" or rest.range == f"bytes={half}-"
        assert moves == sorted(moves)


def test_a_connection_that_breaks_again_and_again_brings_the_layer_nevertheless(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    with Front(registry.address, Fault("cut", big_blob(app), after=1_000_000)) as front:
        fetched(access(), named(front.address), store)
        starts = [seen.range for seen in front.asked(big_blob(app))]
        assert starts == [
            "",
            *(f"bytes={n}-" for n in range(1_000_000, app.blob_bytes[1], 1_000_000)),
        ]


def test_the_next_run_goes_on_where_this_one_stopped(
    registry: LabRegistry, app: PushedImage, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.transfer.turns._FIRST_WAIT", 0.01)
    half = app.blob_bytes[1] // 2
    fault = Fault("stall", big_blob(app), after=half, times=1)
    dead = Fault("status", big_blob(app), status=503)
    with Front(registry.address, fault, dead) as front:
        with pytest.raises(CrossgapError) as failed:
            fetched(access(stall_seconds=1), named(front.address), store)
        assert isinstance(failed.value, Unreachable | TimedOut)
        front.faults.clear()
        front.seen.clear()
        fetched(access(), named(front.address), store)
        (rest,) = front.asked(big_blob(app))
        assert rest.range == f"bytes={half}-"


def test_a_killed_run_has_lost_nothing(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    half = app.blob_bytes[1] // 2
    script = (
        "import sys; from pathlib import Path; from tasks.images.names import parse_reference;"
        "from tasks.images.registry.registries import Registry, RegistryAccess;"
        "from tasks.images.store import Store;"
        "registry = Registry(RegistryAccess());"
        "image = registry.resolve(parse_reference(sys.argv[1]), sys.argv[2]);"
        "registry.fetch_layers([image], Store(Path(sys.argv[3]), 10**9))"
    )
    partial = store.folder / "partial" / app.blobs[1].removeprefix("sha256:")
    with Front(registry.address, Fault("stall", big_blob(app), after=half, times=1)) as front:
        name = f"{front.address}/library/app:1"
        arguments = (name, HERE, str(store.folder))
        with subprocess.Popen([sys.executable, "-c", script, *arguments]) as run:
            while run.poll() is None and not (partial.exists() and partial.stat().st_size == half):
                time.sleep(0.02)
            run.kill()
        front.seen.clear()
        fetched(access(), parse_reference(name), store)
        (rest,) = front.asked(big_blob(app))
        assert rest.range == f"bytes={half}-"


def test_what_an_earlier_run_left_damaged_is_fetched_anew(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    partial = store.folder / "partial" / app.blobs[1].removeprefix("sha256:")
    partial.write_bytes(bytes(1000))
    with Front(registry.address) as front:
        fetched(access(), named(front.address), store)
        assert [seen.range for seen in front.asked(big_blob(app))] == ["bytes=1000-", ""]
    for left in (bytes(app.blob_bytes[1]), bytes(app.blob_bytes[1] + 1)):
        store.discard(app.blobs[1])
        partial.write_bytes(left)
        fetched(access(), named(registry.address), store)
    # A power cut, before it was noted what the blob is.
    (store.folder / "layers" / f"{app.made.diff_ids[1].removeprefix('sha256:')}.json").unlink()
    (store.folder / "blobs/sha256" / partial.name).write_bytes(bytes(app.blob_bytes[1]))
    fetched(access(), named(registry.address), store)


def test_two_runs_at_once_fetch_a_layer_once(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    with Front(registry.address) as front, ThreadPoolExecutor(2) as runs:
        reference = named(front.address)
        jobs = [
            runs.submit(fetched, access(), reference, Store(store.folder, 10**9)) for _ in range(2)
        ]
        assert jobs[0].result() == jobs[1].result()
        assert len(front.asked(big_blob(app))) == 1


def test_a_full_disk_is_told_with_where_to_put_the_store(
    registry: LabRegistry, app: PushedImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", tmp_path], check=True)
    try:
        store = Store(tmp_path, 10**9)
        with Front(registry.address) as front:
            with pytest.raises(DiskFull, match="CROSSGAP_STORE"):
                fetched(access(), named(front.address), store)
            assert not front.asked("/blobs/sha256:.*" + app.blobs[1][7:])
            monkeypatch.setattr(Store, "make_room", lambda *_: None)
            with pytest.raises(DiskFull, match="full while"):
                fetched(access(), named(front.address), store)
            assert len(front.asked(big_blob(app))) == 1
    finally:
        # The store keeps a file open for as long as it lives.
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_registry_that_knows_no_ranges_is_put_up_with(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    faults = [
        Fault("cut", big_blob(app), after=2_000_000, times=1),
        Fault("ignore-range", big_blob(app)),
    ]
    with Front(registry.address, *faults) as front:
        blobs = fetched(access(), named(front.address), store)
        assert len(blobs[1]) == app.blob_bytes[1]
        assert [seen.range for seen in front.asked(big_blob(app))] == ["", "bytes=2000000-"]


def test_a_flipped_byte_is_found_and_the_layer_fetched_anew(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    with Front(registry.address, Fault("flip", big_blob(app), after=12345, times=1)) as front:
        fetched(access(), named(front.address), store)
        assert len(front.asked(big_blob(app))) == 2


def test_a_byte_that_is_always_wrong_is_an_error_unless_another_mirror_has_it_right(
    registry: LabRegistry, app: PushedImage, store: Store, hub: None
) -> None:
    with Front(registry.address, Fault("flip", big_blob(app), after=12345)) as front:
        with pytest.raises(Damaged, match="others than the registry promises"):
            fetched(access(), named(front.address), store)
        assert len(front.asked(big_blob(app))) == 2
        assert store.blob(app.blobs[1]) is None
        client = access(mirrors=(front.address, registry.address))
        assert fetched(client, parse_reference("app:1"), store)


@pytest.mark.parametrize("what", ["manifests", "blobs"])
def test_a_web_page_in_place_of_an_answer_is_called_one(
    registry: LabRegistry,
    app: PushedImage,
    store: Store,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.transfer.turns._FIRST_WAIT", 0.01)
    with (
        Front(registry.address, Fault("page", f"/{what}/")) as front,
        pytest.raises(Unreachable, match="answered with a web page"),
    ):
        fetched(access(), named(front.address), store)


def test_whoever_wants_to_be_left_alone_is(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    short = Fault("status", status=429, headers={"Retry-After": "1"}, times=1)
    with Front(registry.address, short) as front:
        assert fetched(access(), named(front.address), store)
    hours = Fault("status", status=429, headers={"Retry-After": "7200"})
    with Front(registry.address, hours) as front:
        with pytest.raises(Throttled, match="no more requests for 7200 s"):
            fetched(access(), named(front.address), Store(store.folder / "other", 10**9))
        assert len(front.asked("/blobs/")) == 1


def test_a_redirected_layer_is_fetched_elsewhere_without_the_credentials(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    with Front(registry.address) as storage:
        away = Fault("redirect", "/blobs/", target=f"http://{storage.address}")
        with Front(registry.address, away, tokens=True, user=("u", "p")) as front:
            client = access(credentials=Credentials("u", "p"))
            assert fetched(client, named(front.address), store)
            assert {seen.authorization for seen in storage.seen} == {""}
            assert any(seen.authorization.startswith("Bearer") for seen in front.asked("/blobs/"))


def test_somebody_to_whom_a_layer_was_redirected_may_not_ask_who_we_are(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    with Front(registry.address, tokens=True) as thief:
        away = Fault("redirect", "/blobs/", target=f"http://{thief.address}")
        with Front(registry.address, away) as front:
            client = access(credentials=Credentials("u", "p"))
            with pytest.raises(AuthenticationRefused):
                fetched(client, named(front.address), store)
            assert not thief.asked("/token")
            assert {seen.authorization for seen in thief.seen} == {""}


def test_no_proxy_is_used_unless_asked_for(
    registry: LabRegistry, app: PushedImage, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Front(registry.address) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy.address}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert fetched(access(), named(registry.address), store)
        assert not proxy.seen
        # On the loopback https is tried first, which this proxy does not know.
        monkeypatch.delenv("https_proxy")
        monkeypatch.setattr(places, "_schemes", lambda _: ("http",))
        with access(use_proxy=True) as client:
            client.resolve(named(registry.address), HERE)
        assert proxy.asked(f"^http://{registry.address}/v2/")


def test_a_layer_that_unpacks_to_something_else_is_refused_and_not_kept(
    registry: LabRegistry, store: Store
) -> None:
    spec = ImageSpec("library/false:1", [BASE], busybox=False)
    pushed = registry.push(spec, tamper={0: b"something else"})
    with pytest.raises(Damaged, match=r"unpacks to sha256:\w+… instead of sha256:"):
        fetched(access(), named(registry.address, "library/false:1"), store)
    assert store.blob(pushed.blobs[0]) is None


def test_an_old_manifest_and_an_artifact_are_refused(registry: LabRegistry) -> None:
    config = registry.put_blob("charts/rag", b"{}", "application/vnd.cncf.helm.config.v1+json")
    kind = "application/vnd.oci.image.manifest.v1+json"
    document = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []}
    registry.put_manifest("charts/rag", "1", document)
    with access() as client, pytest.raises(CrossgapError, match=r"no container image .*helm"):
        client.resolve(named(registry.address, "charts/rag:1"), HERE)


def test_a_cancelled_run_does_not_wait_for_a_silent_registry(
    registry: LabRegistry, app: PushedImage, store: Store
) -> None:
    half = app.blob_bytes[1] // 2
    with Front(registry.address, Fault("stall", big_blob(app), after=half)) as front:
        cancellation = Cancellation()

        def stop_half_way(done: int, total: int) -> None:
            if total - done <= app.blob_bytes[1] - half:
                cancellation.cancel()

        with cancellation_scope(cancellation), pytest.raises(Cancelled):
            fetched(access(stall_seconds=250), named(front.address), store, progress=stop_half_way)


def test_an_image_that_an_engine_pushed_is_fetched_as_it_was_made(
    registry: LabRegistry, engine: str, images: Any, store: Store
) -> None:
    made = images.make("crossgap-registry/app:1", [BASE])
    registry.push_from_engine(engine, made.name, "pushed/app", "1")
    with access() as client:
        image = client.resolve(named(registry.address, "pushed/app:1"), HERE)
        layers = client.fetch_layers([image], store)
    assert image.config_digest == made.config_digest
    assert tuple(layers) == made.diff_ids
