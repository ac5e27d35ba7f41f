"""Superseded images on real hosts: listed, removed when unused, left alone otherwise."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from blocks.errors import EngineUnavailable
from blocks.ssh_host import SSHHost
from tasks.images.archive import read_archive
from tasks.images.facts import ImageFacts
from tasks.images.host_facts import read_images
from tasks.images.prune import (
    Container,
    Superseded,
    read_inventory,
    removable,
    remove,
    superseded,
)
from tests.lab import (
    ImageSpec,
    LabHost,
    LayerSpec,
    image_names,
    load_archive,
    make_images,
    write_archive,
)

pytestmark = pytest.mark.integration

Connect = Callable[..., SSHHost]
APP = "crossgap-prune/app"
SHARED = LayerSpec({"opt/shared": 500_000}, seed=81)


def version(tag: str, month: int) -> ImageSpec:
    layers = [SHARED, LayerSpec({"opt/version": f"{tag} {month}".encode()})]
    return ImageSpec(f"{APP}:{tag}", layers, created=f"2025-{month:02}-01T00:00:00.5Z")


OLD = [version("v1", 1), version("v2", 2), version("v3", 3)]
OTHER = replace(version("v1", 1), name="crossgap-prune/other:v1", env=["OTHER=1"])
NEW = version("v4", 4)


@dataclass(frozen=True)
class Target:
    """A host of the lab from both sides."""

    host: SSHHost
    side: LabHost

    def has(self, *specs: ImageSpec) -> None:
        make_images(self.side.docker_host, specs)

    def docker(self, *arguments: str) -> str:
        command = ["docker", "-H", self.side.docker_host, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def names(self) -> set[str]:
        return image_names(self.side.docker_host)

    def ids(self) -> set[str]:
        return set(self.docker("image", "ls", "--all", "--quiet", "--no-trunc").split())

    def superseded(
        self, wanted: Sequence[ImageFacts], before: dict[str, ImageFacts] | None = None
    ) -> tuple[Superseded, ...]:
        return superseded(wanted, read_inventory(self.host), before)


@pytest.fixture
def target(any_host: LabHost, connect: Connect) -> Target:
    return Target(connect(any_host), any_host)


def facts(folder: Path, *specs: ImageSpec) -> tuple[ImageFacts, ...]:
    path = folder / "wanted.tar"
    write_archive(path, specs)
    return read_archive(path).images


def test_older_images_are_listed_and_those_that_no_container_uses_are_removed(
    target: Target, tmp_path: Path
) -> None:
    target.has(*OLD, OTHER, NEW)
    target.docker("run", "--detach", "--name", "runs", "--network", "none", f"{APP}:v1")
    target.docker("create", "--name", "stopped", "--network", "none", f"{APP}:v2")
    target.docker("tag", f"{APP}:v1", f"{APP}:also-v1")
    wanted = facts(tmp_path, NEW)

    found = target.superseded(wanted)
    assert {image.name: image.used_by for image in found} == {
        f"{APP}:v1": ("runs (running)",),
        f"{APP}:also-v1": ("runs (running)",),
        f"{APP}:v2": ("stopped (created)",),
        f"{APP}:v3": (),
    }
    assert {image.why for image in found} == {f"older than {APP}:v4"}
    (unused,) = removable(found)
    assert unused.size > 500_000

    assert remove(target.host, unused).removed
    assert remove(target.host, unused).removed, "again is the same as once"
    kept = {f"{APP}:{tag}" for tag in ("v1", "also-v1", "v2", "v4")} | {OTHER.name}
    assert target.names() == kept
    assert unused.image_id not in target.ids()
    target.docker("exec", "runs", "test", "-s", "/opt/shared")

    # docker itself would take a name away from an image that has others.
    for image in found:
        if image.used_by:
            removal = remove(target.host, replace(image, used_by=()))
            assert not removal.removed
            assert "has begun to use it" in removal.said
    assert target.names() == kept


def test_an_image_that_lost_its_name_to_the_new_one_is_removed_with_its_layers(
    target: Target, tmp_path: Path
) -> None:
    target.has(version("latest", 1), OTHER)
    target.docker("create", "--name", "user", "--network", "none", OTHER.name)
    wanted = facts(tmp_path, version("latest", 5), replace(OTHER, created="2025-06-01T00:00:00Z"))
    before = dict(read_images(target.host, wanted))
    assert set(before) == {image.name for image in wanted}
    with (tmp_path / "wanted.tar").open("rb") as archive:
        load_archive(target.side.docker_host, archive)

    found = target.superseded(wanted, before)
    assert {image.image_id: (image.name, image.used_by) for image in found} == {
        before[f"{APP}:latest"].image_id: ("", ()),
        before[OTHER.name].image_id: ("", ("user (created)",)),
    }
    assert target.superseded(wanted) == (), "who left other nameless images is not known"
    (left,) = removable(found)
    assert left.why == f"was {APP}:latest until this run"
    assert remove(target.host, left).removed
    assert left.image_id not in target.ids()
    assert target.names() == {image.name for image in wanted}


def test_a_nameless_image_that_somebody_names_meanwhile_is_left_alone(
    target: Target, tmp_path: Path
) -> None:
    target.has(version("latest", 1))
    wanted = facts(tmp_path, version("latest", 5))
    before = dict(read_images(target.host, wanted))
    target.has(version("latest", 5))
    (left,) = target.superseded(wanted, before)
    target.docker("tag", left.image_id, "somebody/rescued:1")
    assert not remove(target.host, left).removed
    assert "somebody/rescued:1" in target.names()


def test_a_refusal_of_docker_is_reported(target: Target, tmp_path: Path) -> None:
    target.has(*OLD[:1], NEW)
    (found,) = removable(target.superseded(facts(tmp_path, NEW)))
    # The container is there when docker looks, and not when it was asked who uses the image.
    target.docker("create", "--name", "late", "--network", "none", f"{APP}:v1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.images.prune._users", lambda host, image: [])
        removal = remove(target.host, found)
    assert not removal.removed
    assert "must force" in removal.said
    assert f"{APP}:v1" in target.names()


def test_a_host_without_images_has_an_empty_inventory(target: Target) -> None:
    assert read_inventory(target.host).images == ()


def test_containers_are_known_by_image_name_and_state(target: Target) -> None:
    target.has(NEW)
    target.docker("run", "--name", "ended", "--network", "none", NEW.name, "true")
    (user,) = read_inventory(target.host).containers
    (image,) = read_inventory(target.host).images
    assert user == Container("ended", image.image_id, NEW.name, "exited")
    assert image.created.startswith("2025-04-01T00:00:00.5")


def test_an_engine_that_is_stopped_is_told(plain: LabHost, connect: Connect) -> None:
    plain.stop_engine()
    try:
        with pytest.raises(EngineUnavailable, match="systemctl start docker"):
            read_inventory(connect(plain))
    finally:
        plain.start_engine()
