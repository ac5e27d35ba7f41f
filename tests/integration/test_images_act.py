"""Images onto real hosts of both kinds: read, planned, loaded, proven, and what goes wrong."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import (
    Cancelled,
    CommandFailed,
    Damaged,
    DiskFull,
    EngineUnavailable,
    NotFound,
    PermissionRefused,
)
from blocks.ssh_host import SSHHost
from tasks.common.failures import collect
from tasks.images.act import (
    IMAGE_LABEL,
    RUN_LABEL,
    differences,
    load,
    tag,
    verify_start,
)
from tasks.images.archive import ArchiveFacts, read_archive
from tasks.images.docker_cli import docker
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.host_facts import read_host
from tasks.images.plan import HostPlan, Keep, Send, Tag, plan_shipment
from tasks.images.staging import load_job_name
from tests.lab import ImageSpec, LabHost, LayerSpec, write_archive

pytestmark = pytest.mark.integration

Connect = Callable[..., SSHHost]
STAGED = "~/.crossgap/staging/images.tar"
DATA = LayerSpec({"opt/data": 2_000_000}, seed=51)
APP = ImageSpec("crossgap-act/app:1", [DATA])
OTHER = ImageSpec("crossgap-act/other:1", [DATA, LayerSpec({"opt/more": 100_000}, seed=52)])


@dataclass(frozen=True)
class Target:
    """A host of the lab from both sides, and an archive to bring there."""

    host: SSHHost
    side: LabHost
    archive: ArchiveFacts

    @property
    def images(self) -> tuple[ImageFacts, ...]:
        return self.archive.images

    def stage(self) -> None:
        self.host.run(["mkdir", "-p", self.host.expand("~/.crossgap/staging")], timeout=30)
        self.host.put(self.archive.path, STAGED)

    @property
    def job(self) -> str:
        return load_job_name(self.archive.sha256[:32])

    def load(self, on_output: Callable[[str], None] | None = None) -> None:
        argv = ["docker", "load", "-i", self.host.expand(STAGED)]
        load(self.host, argv, self.job, timeout=120, on_output=on_output)

    def facts(self, *images: ImageFacts) -> HostFacts:
        return read_host(self.host, lambda _: images or self.images)

    def plan(self, *images: ImageFacts) -> HostPlan:
        (plan,) = plan_shipment([self.facts(*images)]).hosts
        return plan

    def differences(self, *images: ImageFacts) -> dict[str, str]:
        return differences(self.host, images or self.images)

    def containers(self) -> list[str]:
        return docker(self.host, "ps", "-aq", timeout=60).stdout.split()


def archived(folder: Path, *specs: ImageSpec) -> ArchiveFacts:
    path = folder / "images.tar"
    write_archive(path, specs)
    return read_archive(path)


@pytest.fixture
def target(any_host: LabHost, connect: Connect, tmp_path: Path) -> Target:
    return Target(connect(any_host), any_host, archived(tmp_path, APP, OTHER))


@pytest.fixture
def shipped(target: Target) -> Iterator[Target]:
    """A host that has the images already."""
    target.stage()
    target.load()
    yield target
    docker(target.host, "rmi", "-f", *[image.name for image in target.images], timeout=60)


def test_images_are_planned_loaded_proven_and_then_left_alone(target: Target) -> None:
    before = target.facts()
    assert (before.architecture, before.store) == ("amd64", "graphdriver")
    assert before.engine_version.startswith("20.10")
    assert before.staging_disk.free > 0
    assert before.docker_root_disk.free > 0
    assert (before.staged, before.layers) == ({}, {})
    app, other = target.images
    assert target.plan().sends == (
        Send(app, app.diff_ids),
        Send(other, other.diff_ids[2:], after=(app.name,)),
    )

    printed: list[str] = []
    target.stage()
    target.load(printed.append)
    assert "Loaded image: crossgap-act/app:1" in "".join(printed)
    assert target.host.find_job(target.job, sudo=True) is None
    assert target.differences() == {}
    for image in target.images:
        assert verify_start(target.host, image, "run-1") == "started"
    assert target.containers() == []

    after = target.plan()
    assert after.actions == tuple(Keep(image) for image in target.images)
    assert after.sends == ()


def test_layers_that_a_host_has_are_known_by_what_lies_below_them(shipped: Target) -> None:
    app, other = shipped.images
    newer = replace(app, name="crossgap-act/newer:1", diff_ids=(*app.diff_ids, "sha256:new"))
    moved = replace(app, name="crossgap-act/moved:1", diff_ids=other.diff_ids[::-1])
    sends = shipped.plan(*(replace(i, config_digest="sha256:new") for i in (newer, moved))).sends
    assert [send.missing for send in sends] == [("sha256:new",), moved.diff_ids]


def test_loading_twice_is_the_same_as_loading_once(shipped: Target) -> None:
    shipped.load()
    assert shipped.differences() == {}


def test_content_under_another_name_is_tagged_without_sending(shipped: Target) -> None:
    renamed = replace(shipped.images[0], name="crossgap-act/renamed:1")
    (action,) = shipped.plan(renamed).actions
    assert action == Tag(renamed, "crossgap-act/app:1")
    for _ in range(2):
        tag(shipped.host, action.existing, renamed.name)
    assert shipped.differences(renamed) == {}
    docker(shipped.host, "rmi", renamed.name, timeout=60)


def test_another_image_under_the_name_is_told_from_the_wanted_one(shipped: Target) -> None:
    app, other = shipped.images
    swapped = replace(other, name=app.name)
    assert shipped.plan(swapped).actions == (Tag(swapped, other.name),)
    altered = replace(app, config_digest="sha256:other")
    absent = replace(app, name="crossgap-act/nothing:1")
    assert shipped.differences(swapped) == {
        app.name: f"{app.name} has other layers than its source"
    }
    assert shipped.differences(altered, absent, other) == {
        app.name: f"{app.name} has another configuration than its source",
        absent.name: f"{absent.name} is not there after loading",
    }


def test_an_archive_that_is_damaged_on_the_host_is_told_by_the_load(target: Target) -> None:
    target.stage()
    path = target.host.expand(STAGED)
    target.host.run(["truncate", "-s", "1000000", path], timeout=30)
    with pytest.raises(Damaged, match="damaged"):
        target.load()
    target.host.run(["rm", path], timeout=30)
    with pytest.raises(NotFound, match="not there any more"):
        target.load()


def test_a_disk_that_fills_during_the_load_is_told_and_a_later_load_succeeds(
    target: Target,
) -> None:
    target.stage()
    target.side.fill_disk(leave_bytes=1 << 20)
    try:
        with pytest.raises(DiskFull):
            target.load()
    finally:
        target.side.free_disk()
    target.load()
    assert differences(target.host, target.images) == {}


def test_an_engine_that_is_stopped_is_told_with_what_to_do(target: Target) -> None:
    target.stage()
    target.side.stop_engine()
    try:
        with pytest.raises(EngineUnavailable, match="systemctl start docker"):
            target.facts()
        with pytest.raises(EngineUnavailable) as failed:
            target.load()
        assert failed.value.retryable
    finally:
        target.side.start_engine()
    target.load()
    assert differences(target.host, target.images) == {}


def test_a_user_outside_of_the_docker_group_is_told_to_use_sudo(
    bare: LabHost, connect: Connect
) -> None:
    host = connect(bare, sudo="no")
    with pytest.raises(PermissionRefused, match="Set 'sudo'"):
        read_host(host, lambda _: [])


def test_a_load_that_already_runs_is_waited_for_not_started_again(target: Target) -> None:
    target.stage()
    name = target.job
    mark = target.host.expand("~/.crossgap/staging/loaded-by-first")
    script = 'sleep 2; docker load -i "$1" && touch "$2"'
    argv = ["sh", "-c", script, "sh", target.host.expand(STAGED), mark]
    target.host.start_job(argv, name=name, sudo=True)
    target.load()
    assert target.host.run(["ls", mark], timeout=30).stdout.strip() == mark
    assert differences(target.host, target.images) == {}


def test_a_job_that_ended_earlier_is_not_taken_for_proof(target: Target) -> None:
    target.stage()
    name = target.job
    target.host.start_job(["true"], name=name, sudo=True).wait(timeout=30)
    target.load()
    assert differences(target.host, target.images) == {}


BROKEN = ImageSpec("crossgap-act/broken:1", cmd=["/no/such/program"])
DIES = ImageSpec("crossgap-act/dies:1", cmd=["sh", "-c", "exit 127"])
ENDS = ImageSpec("crossgap-act/ends:1", cmd=["true"])
SILENT = ImageSpec("crossgap-act/silent:1", cmd=[])


def test_starting_proves_what_can_start_and_names_what_cannot(
    any_host: LabHost, connect: Connect, tmp_path: Path
) -> None:
    target = Target(connect(any_host), any_host, archived(tmp_path, BROKEN, DIES, ENDS, SILENT))
    target.stage()
    target.load()
    broken, dies, ends, silent = target.images
    with pytest.raises(CommandFailed, match=r"broken:1 is there, .*does not start .*no/such"):
        verify_start(target.host, broken, "run")
    with pytest.raises(CommandFailed, match="exit code 127"):
        verify_start(target.host, dies, "run")
    assert verify_start(target.host, ends, "run") == "started"
    assert verify_start(target.host, silent, "run").startswith("content; the image has no command")
    assert target.containers() == []


def test_only_containers_that_a_killed_check_of_this_image_left_are_removed(
    shipped: Target,
) -> None:
    name = shipped.images[0].name
    ours = ["--label", f"{IMAGE_LABEL}={name}", "--label", f"{RUN_LABEL}=killed"]
    create = ["create", "--network", "none"]
    left = docker(shipped.host, *create, *ours, name, timeout=60).stdout.strip()
    theirs = docker(shipped.host, *create, name, timeout=60).stdout.strip()
    try:
        verify_start(shipped.host, shipped.images[0], "run")
        remaining = shipped.containers()
        assert not any(left.startswith(one) for one in remaining)
        assert any(theirs.startswith(one) for one in remaining)
    finally:
        docker(shipped.host, "rm", "-f", theirs, timeout=60)


def test_a_run_that_is_cancelled_while_it_starts_images_leaves_no_container(
    shipped: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.images.act._SETTLE_SECONDS", 120.0)
    cancellation = Cancellation()

    def cancel_when_both_run() -> None:
        for _ in range(600):
            if len(shipped.containers()) == 2:
                break
            time.sleep(0.1)
        cancellation.cancel()

    canceller = threading.Thread(target=cancel_when_both_run)
    canceller.start()
    with cancellation_scope(cancellation):
        started = collect(
            lambda image: verify_start(shipped.host, image, "run"),
            shipped.images,
            name=lambda image: image.name,
        )
    canceller.join()

    assert [type(failure) for failure in started.failures] == [Cancelled, Cancelled]
    assert shipped.containers() == []


def test_too_little_room_is_seen_before_anything_is_sent(target: Target) -> None:
    target.side.fill_disk(leave_bytes=20 << 20)
    try:
        problems = plan_shipment([target.facts()]).problems
    finally:
        target.side.free_disk()
    assert problems
    assert all(isinstance(problem, DiskFull) for problem in problems)
    assert re.search(r"are needed on /\S*, \S+ \S+ are free", str(problems[0]))
