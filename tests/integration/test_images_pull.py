"""A real engine pulls: from mirrors that work and mirrors that fail, and with credentials."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from blocks.errors import AuthenticationRefused, CrossgapError
from tasks.images import pull
from tasks.images.arrival import arrival_name
from tasks.images.names import parse_reference
from tasks.images.pull import ensure_images, pull_places
from tasks.images.registry.auth import Credentials
from tests.integration.registries import running_registry
from tests.lab import ImageSpec, LayerSpec, remove_images
from tests.lab.front import Fault, Front
from tests.lab.registry import LabRegistry, PushedImage

pytestmark = pytest.mark.integration

NAME = "crossgap-pulled/app:1"
SPEC = ImageSpec(NAME, [LayerSpec({"opt/app": 400_000}, seed=71)], busybox=False)


@pytest.fixture(scope="module")
def mirror() -> Iterator[LabRegistry]:
    with running_registry() as running:
        yield running


@pytest.fixture(scope="module")
def app(mirror: LabRegistry) -> PushedImage:
    return mirror.push(SPEC)


@pytest.fixture
def source(engine: str, app: PushedImage, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The source engine, which `DOCKER_HOST` names; what was pulled is removed."""
    monkeypatch.setenv("DOCKER_HOST", engine)
    yield engine
    digest = arrival_name(parse_reference(f"crossgap-pulled/app@{app.digest}"))
    remove_images(engine, [NAME, digest])


def names_in(engine: str) -> set[str]:
    with docker.APIClient(base_url=engine, version="1.41") as client:
        return {tag for image in client.images() for tag in image.get("RepoTags") or ()}


def test_an_image_comes_from_a_mirror_under_its_own_name_only(
    source: str, mirror: LabRegistry, app: PushedImage
) -> None:
    (image,) = ensure_images([NAME], mirrors=[f"http://{mirror.address}/"])
    assert (image.name, image.config_digest) == (NAME, app.made.config_digest)
    assert image.diff_ids == app.made.diff_ids
    assert not {name for name in names_in(source) if mirror.address in name}


@pytest.mark.parametrize("kind", ["status", "page", "reset", "stall"])
def test_the_engine_is_sent_to_the_next_mirror_when_one_fails(
    source: str,
    mirror: LabRegistry,
    app: PushedImage,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pull, "SILENT_SECONDS", 2)
    # A layer whose connection breaks is tried by the engine itself, with growing pauses.
    path = "/manifests/" if kind in ("status", "page", "reset") else "/blobs/"
    fault = Fault(kind, path, after=1)  # type: ignore[arg-type]
    with Front(mirror.address, fault) as front:
        (image,) = ensure_images([NAME], mirrors=[front.address, mirror.address])
        assert front.asked(path)
    assert image.config_digest == app.made.config_digest


def test_what_a_mirror_gave_for_a_digest_is_found_again(
    source: str, mirror: LabRegistry, app: PushedImage
) -> None:
    name = f"crossgap-pulled/app@{app.digest}"
    (image,) = ensure_images([name], mirrors=[mirror.address])
    assert (image.name, image.config_digest) == (name, app.made.config_digest)
    assert arrival_name(parse_reference(name)) in names_in(source)
    assert ensure_images([name], pull="never") == (image,)
    assert ensure_images([name], mirrors=["127.0.0.1:1"]) == (image,)


def test_a_private_registry_gives_to_the_user_who_is_named(
    source: str, mirror: LabRegistry
) -> None:
    with running_registry(user=("操作员", "秘密")) as private:
        private.push(SPEC)
        name = f"{private.address}/{NAME}"
        for bad in (
            None,
            Credentials("操作员", "wrong"),
            Credentials("操作员", "秘密", registry="docker.io"),
        ):
            with pytest.raises(AuthenticationRefused) as failed:
                ensure_images([name], auth=bad)
            assert "秘密" not in str(failed.value)
        good = Credentials("操作员", "秘密", registry=private.address)
        assert ensure_images([name], auth=good)[0].name == name
        remove_images(source, [name])


def test_what_each_place_said_is_told_when_none_gives_it(
    source: str, mirror: LabRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Docker Hub itself is nobody's to ask in a test.
    monkeypatch.setattr(pull, "pull_places", lambda *args: pull_places(*args)[:-1])
    missing = "crossgap-pulled/missing:1"
    with Front(mirror.address, Fault("status", "/v2/", status=503)) as front:
        with pytest.raises(CrossgapError) as failed:
            ensure_images([missing], mirrors=[front.address, mirror.address])
        told = str(failed.value)
        assert f"{front.address}: the registry cannot be reached" in told
        assert f"{mirror.address}: the registry has no such image" in told
