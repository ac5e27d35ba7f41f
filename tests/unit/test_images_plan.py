"""Plans: facts as data in, actions out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from blocks.disk import Disk
from blocks.errors import DiskFull, WrongArchitecture
from tasks.images.archive import ArchiveFacts
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.plan import Keep, Parcel, Send, Tag, plan_shipment

GB = 10**9
BIG = Disk("/dev/sdb1", "/data", 900 * GB)
ROOT = Disk("/dev/sda1", "/", 900 * GB)


def image(name: str, *layers: str, size: int = GB, architecture: str = "amd64") -> ImageFacts:
    return ImageFacts(
        name,
        f"sha256:{name}",
        f"sha256:{name}",
        layers or (name,),
        architecture,
        size=size * len(layers or (name,)),
        layer_sizes=tuple(size for _ in layers or (name,)),
    )


def host(
    label: str = "gpu1",
    *present: ImageFacts,
    architecture: str = "amd64",
    staging: Disk = BIG,
    engine: Disk = ROOT,
    twins: dict[str, str] | None = None,
) -> HostFacts:
    return HostFacts(
        label,
        architecture,
        "20.10.24",
        "graphdriver",
        "/var/lib/docker",
        engine,
        staging,
        {one.name: one for one in present},
        twins or {},
    )


APP, BASE, OTHER = image("app:1", "l1", "l2"), image("base:1", "l1"), image("other:1", "l3")


def test_an_image_that_a_host_has_is_kept_and_nothing_is_sent() -> None:
    plan = plan_shipment([APP], [host("gpu1", APP)])
    assert plan.hosts[0].actions == (Keep(APP),)
    assert plan.parcels == ()
    assert plan.problems == ()


def test_content_under_another_name_is_only_tagged() -> None:
    plan = plan_shipment([APP], [host(twins={"app:1": "team/app:old"})])
    assert plan.hosts[0].actions == (Tag(APP, "team/app:old"),)
    assert plan.parcels == ()


def test_a_name_that_belongs_to_another_image_is_sent_and_said_to_be_replaced() -> None:
    old = replace(APP, config_digest="sha256:old")
    plan = plan_shipment([APP], [host("gpu1", old)])
    assert plan.hosts[0].actions == (Send(APP, replaces=True),)
    assert "another image has this name" in plan.as_rows()[0]["action"]


def test_an_image_asked_for_by_digest_is_never_tagged_for_no_engine_allows_it() -> None:
    pinned = replace(APP, name="app@sha256:" + "a" * 64)
    plan = plan_shipment([pinned], [host(twins={pinned.name: "app:1"})])
    assert plan.hosts[0].actions == (Send(pinned),)
    plan = plan_shipment([pinned], [host("gpu1", pinned)])
    assert plan.hosts[0].actions == (Keep(pinned),)


def test_one_archive_holds_what_any_host_lacks_with_shared_layers_counted_once() -> None:
    plan = plan_shipment(
        [APP, BASE, OTHER], [host("a", OTHER), host("b", APP, BASE, OTHER), host("c", APP)]
    )
    (parcel,) = plan.parcels
    assert parcel.images == (APP, BASE, OTHER)
    assert 3 * GB < parcel.size < 3 * GB + 2**21
    assert [len(one.parcels) for one in plan.hosts] == [1, 0, 1]
    assert [one.sends for one in plan.hosts] == [(APP, BASE), (), (BASE, OTHER)]


def test_given_archives_go_only_to_the_hosts_that_need_them() -> None:
    first = ArchiveFacts(Path("a.tar"), 5, "00", "none", (APP, BASE))
    second = ArchiveFacts(Path("b.tar"), 6, "01", "gzip", (OTHER,))
    plan = plan_shipment(
        [APP, BASE, OTHER], [host("x", OTHER), host("y", APP, BASE)], [first, second]
    )
    assert plan.hosts[0].parcels == (Parcel((APP, BASE), 5, "a.tar", "00"),)
    assert plan.hosts[1].parcels == (Parcel((OTHER,), 6, "b.tar", "01"),)
    assert len(plan.parcels) == 2


def test_an_image_of_another_architecture_is_refused_for_that_host_only() -> None:
    plan = plan_shipment([APP], [host("arm", architecture="arm64"), host("intel")])
    (problem,) = plan.hosts[0].problems
    assert isinstance(problem, WrongArchitecture)
    assert "app:1 is built for linux/amd64, this host is linux/arm64" in str(problem)
    assert plan.hosts[1].problems == ()
    assert len(plan.parcels) == 1


def test_nothing_is_saved_when_no_host_can_run_it() -> None:
    plan = plan_shipment([APP], [host("arm", architecture="arm64")])
    assert plan.parcels == ()


@pytest.mark.parametrize(
    ("staging", "engine", "short"),
    [
        (3 * GB, 5 * GB, []),
        (1 * GB, 5 * GB, ["/data"]),
        (3 * GB, 4 * GB, ["/"]),
        (1 * GB, 1 * GB, ["/data", "/"]),
    ],
)
def test_staging_and_engine_disks_are_checked_apart(
    staging: int, engine: int, short: list[str]
) -> None:
    facts = host(staging=replace(BIG, free=staging), engine=replace(ROOT, free=engine))
    problems = plan_shipment([APP], [facts]).problems
    assert all(isinstance(problem, DiskFull) for problem in problems)
    assert [problem.what.split(" are needed on ")[1].split(",")[0] for problem in problems] == short


@pytest.mark.parametrize(("free", "fits"), [(6 * GB, False), (7 * GB, True)])
def test_needs_add_up_when_both_are_on_one_filesystem(free: int, fits: bool) -> None:
    disk = replace(ROOT, free=free)
    plan = plan_shipment([APP], [host(staging=disk, engine=disk)])
    assert (plan.problems == ()) is fits


def test_a_host_that_needs_nothing_may_be_full() -> None:
    full = replace(ROOT, free=0)
    assert plan_shipment([APP], [host("gpu1", APP, staging=full, engine=full)]).problems == ()


def test_one_full_host_does_not_hinder_another() -> None:
    full = replace(ROOT, free=0)
    plan = plan_shipment([APP], [host("full", staging=full, engine=full), host("free")])
    assert [problem.where for problem in plan.problems] == ["full"]
    assert len(plan.parcels) == 1


def test_a_dry_run_names_every_host_and_image() -> None:
    rows = plan_shipment(
        [APP, OTHER], [host("a", OTHER), host("b", architecture="arm64")]
    ).as_rows()
    assert rows[0] == {"host": "a", "image": "app:1", "action": "send", "size": "2.00 GB"}
    assert [row["action"] for row in rows] == ["send", "keep: already there", "none", "none"]


# An earlier run was cut off


ARCHIVE = ArchiveFacts(Path("a.tar"), 2 * GB, "ab" * 32, "none", (APP,))
OTHER_ARCHIVE = ArchiveFacts(Path("b.tar"), 2 * GB, "cd" * 32, "none", (OTHER,))


def problems(staged: dict[str, int], free: int, *archives: ArchiveFacts) -> tuple[object, ...]:
    """Plan for a host whose staging disk has this room and these files."""
    facts = replace(host(staging=replace(BIG, free=free)), staged=staged)
    wanted = [image for archive in archives for image in archive.images] or [APP]
    return plan_shipment(wanted, [facts], archives).problems


@pytest.mark.parametrize("archives", [(ARCHIVE,), ()], ids=["archive", "engine"])
def test_what_an_earlier_run_has_sent_needs_no_room_again(archives: tuple[ArchiveFacts]) -> None:
    assert problems({}, GB, *archives)
    assert problems({"ab" * 16: 3 * GB // 2}, GB, *archives) == ()
    assert problems({"ab" * 16: GB // 2}, GB, *archives)


def test_a_file_that_is_larger_than_the_archive_counts_no_more_than_the_archive() -> None:
    staged = {"ab" * 16: 50 * GB}
    assert problems(staged, GB, ARCHIVE, OTHER_ARCHIVE)
    assert problems(staged, 3 * GB, ARCHIVE, OTHER_ARCHIVE) == ()


def test_parts_of_other_archives_do_not_count() -> None:
    assert problems({"ef" * 16: 2 * GB}, GB, ARCHIVE)


def test_each_archive_has_its_own_part() -> None:
    staged = {"ab" * 16: 3 * GB // 2, "cd" * 16: 3 * GB // 2}
    assert problems(staged, 3 * GB // 2, ARCHIVE, OTHER_ARCHIVE) == ()
    assert problems({"ab" * 16: 3 * GB // 2}, 3 * GB // 2, ARCHIVE, OTHER_ARCHIVE)
