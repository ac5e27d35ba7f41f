"""Plans: facts as data in, actions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from blocks.disk import Disk
from blocks.errors import DiskFull, WrongArchitecture
from tasks.images.blobs import Compression, Descriptor, Layer
from tasks.images.facts import HostFacts, ImageFacts
from tasks.images.layout import chain_ids
from tasks.images.plan import (
    HostPlan,
    Keep,
    Send,
    Shipment,
    Tag,
    TransferChoice,
    loading_order,
    plan_shipment,
)

GB = 10**9
BIG = Disk("/dev/sdb1", "/data", 900 * GB)
ROOT = Disk("/dev/sda1", "/", 900 * GB)


def image(name: str, *layers: str, size: int = GB, architecture: str = "amd64") -> ImageFacts:
    """An image whose layers are named in a few letters, each of the same size."""
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
    *wanted: ImageFacts,
    label: str = "gpu1",
    present: Sequence[ImageFacts] = (),
    others: Sequence[tuple[str, ...]] = (),
    architecture: str = "amd64",
    staging: Disk = BIG,
    engine: Disk = ROOT,
    twins: dict[str, str] | None = None,
    staged: dict[str, int] | None = None,
    cpus: int = 1,
) -> HostFacts:
    """A host with graph drivers: what it shall have, has, and has besides."""
    stacks = [one.diff_ids for one in present] + list(others)
    return HostFacts(
        label,
        architecture,
        "20.10.24",
        "graphdriver",
        "/var/lib/docker",
        engine,
        staging,
        wanted=wanted,
        images={one.name: one for one in present},
        twins=twins or {},
        layers=dict.fromkeys((chain for stack in stacks for chain in chain_ids(stack)), 0),
        staged=staged or {},
        cpus=cpus,
    )


def plan_for(facts: HostFacts, transfer: TransferChoice = "auto") -> HostPlan:
    (plan,) = plan_shipment([facts], {}, transfer).hosts
    return plan


APP, BASE, OTHER = image("app:1", "l1", "l2"), image("base:1", "l1"), image("other:1", "l3")


# What is there


def test_an_image_that_a_host_has_is_kept_and_nothing_is_sent() -> None:
    plan = plan_for(host(APP, present=[APP]))
    assert plan.actions == (Keep(APP),)
    assert (plan.sends, plan.layers, plan.problems) == ((), {}, ())


def test_content_under_another_name_is_only_tagged() -> None:
    plan = plan_for(host(APP, twins={"app:1": "team/app:old"}))
    assert plan.actions == (Tag(APP, "team/app:old"),)
    assert plan.sends == ()


def test_a_name_that_belongs_to_another_image_is_sent_and_said_to_be_replaced() -> None:
    old = replace(APP, config_digest="sha256:old")
    shipment = plan_shipment([host(APP, present=[old])])
    assert shipment.hosts[0].actions == (Send(APP, (), replaces=True),)
    assert "another image has this name" in shipment.as_rows()[0]["action"]


def test_an_image_asked_for_by_digest_is_tagged_as_it_would_have_arrived() -> None:
    pinned = replace(APP, name="app@sha256:" + "a" * 64)
    plan = plan_for(host(pinned, twins={pinned.name: "app:1"}))
    assert plan.actions == (Tag(pinned, "app:1"),)
    assert plan_for(host(pinned, present=[pinned])).actions == (Keep(pinned),)


# Which layers travel, where chains are looked up


def test_an_empty_host_gets_every_layer() -> None:
    (send,) = plan_for(host(APP)).sends
    assert (send.missing, send.after, send.is_whole, send.size) == (("l1", "l2"), (), True, 2 * GB)


def test_of_an_update_only_what_is_above_the_known_layers_travels() -> None:
    new = image("app:2", "l1", "l2", "l3")
    plan = plan_for(host(new, present=[APP]))
    (send,) = plan.sends
    assert (send.missing, send.is_whole) == (("l3",), False)
    assert plan.layers == {"l3": GB}
    assert set(plan.there) == {"l1", "l2"}
    assert plan.there["l2"].blob == Descriptor("l2", GB)


def test_a_layer_that_lies_on_others_there_has_to_travel_again() -> None:
    """An engine looks for the layer together with all that is below it."""
    swapped = image("swapped:1", "l2", "l1")
    (send,) = plan_for(host(swapped, others=[("l1", "l2")])).sends
    assert send.missing == ("l2", "l1")


def test_what_is_below_a_change_stays_and_what_is_above_it_travels() -> None:
    changed = image("app:2", "l1", "new", "l3")
    (send,) = plan_for(host(changed, others=[("l1", "old", "l3")])).sends
    assert send.missing == ("new", "l3")


def test_the_layers_of_images_that_nobody_asked_about_count_too() -> None:
    (send,) = plan_for(host(APP, others=[("l1", "x", "y")])).sends
    assert send.missing == ("l2",)


def test_a_layer_that_is_in_an_image_twice_travels_once() -> None:
    (send,) = plan_for(host(image("twice:1", "l1", "empty", "l2", "empty"))).sends
    assert send.missing == ("l1", "empty", "l2")
    assert send.is_whole


def test_a_layer_whose_first_place_is_there_and_second_is_not_still_travels() -> None:
    twice = image("twice:1", "empty", "l2", "empty")
    plan = plan_for(host(twice, others=[("empty", "l2")]))
    assert plan.sends[0].missing == ("empty",)
    assert "empty" in plan.there


def test_an_image_of_which_only_the_configuration_is_new_takes_no_layers() -> None:
    other = replace(APP, name="app:2", config_digest="sha256:2", image_id="sha256:2")
    (send,) = plan_for(host(other, present=[APP])).sends
    assert (send.missing, send.size, send.is_whole) == ((), 0, False)


def test_sixty_layers_with_one_that_is_new() -> None:
    layers = [f"l{number}" for number in range(60)]
    deep = image("deep:2", *layers, size=10)
    (send,) = plan_for(host(deep, others=[tuple(layers[:59])])).sends
    assert send.missing == ("l59",)
    (send,) = plan_for(host(deep)).sends
    assert send.missing == tuple(layers)


def test_where_sizes_are_not_known_each_layer_counts_as_its_share() -> None:
    unknown = replace(image("app:2", "l1", "l2", "l3"), layer_sizes=(), size=10)
    plan = plan_for(host(unknown, others=[("l1",)]))
    assert plan.layers == {"l2": 4, "l3": 4}


# Several images with layers in common


def test_a_shared_base_travels_once_with_the_smallest_image_and_the_others_wait_for_it() -> None:
    large = image("large:1", "base", "l1", "l2")
    small = image("small:1", "base", "s1")
    alone = image("alone:1", "z")
    plan = plan_for(host(large, alone, small))
    assert [(send.image.name, send.missing, send.after) for send in plan.sends] == [
        ("small:1", ("base", "s1"), ()),
        ("large:1", ("l1", "l2"), ("small:1",)),
        ("alone:1", ("z",), ()),
    ]
    assert [action.image.name for action in plan.actions] == ["large:1", "alone:1", "small:1"]
    assert list(plan.layers) == ["base", "s1", "l1", "l2", "z"]


def test_an_image_whose_layers_two_others_bring_waits_for_both() -> None:
    a, b = image("a:1", "x"), image("b:1", "x", "y")
    both = image("c:1", "x", "y", "z")
    plan = plan_for(host(a, b, both))
    assert [send.after for send in plan.sends] == [(), ("a:1",), ("a:1", "b:1")]
    assert [send.missing for send in plan.sends] == [("x",), ("y",), ("z",)]


def test_a_layer_in_two_images_on_different_bases_is_in_both_archives() -> None:
    one, two = image("a:1", "x", "same"), image("b:1", "y", "same", size=2 * GB)
    plan = plan_for(host(one, two))
    assert [send.missing for send in plan.sends] == [("x", "same"), ("y", "same")]
    assert [send.after for send in plan.sends] == [(), ()]
    assert set(plan.layers) == {"x", "y", "same"}


def test_a_base_that_is_kept_is_nothing_to_wait_for() -> None:
    plan = plan_for(host(BASE, APP, present=[BASE]))
    assert [send.after for send in plan.sends] == [()]
    assert plan.sends[0].missing == ("l2",)


def test_two_names_of_one_image_bring_its_layers_once() -> None:
    again = replace(APP, name="app:latest")
    plan = plan_for(host(APP, again))
    assert [(send.missing, send.after) for send in plan.sends] == [
        (("l1", "l2"), ()),
        ((), ("app:1",)),
    ]


def test_images_that_share_nothing_keep_their_order() -> None:
    images = [image("c:1"), image("a:1"), image("b:1", size=1)]
    assert loading_order(images) == images


# A containerd store looks for blobs by digest


def form(diff_id: str, compression: Compression, digest: str, size: int = 7) -> Layer:
    return Layer(diff_id, compression, Descriptor(digest, size))


def containerd(*wanted: ImageFacts, blobs: dict[str, int]) -> HostFacts:
    return replace(host(*wanted), store="containerd", layers=blobs)


def test_a_containerd_store_has_a_layer_whatever_it_lies_on() -> None:
    swapped = image("swapped:1", "l2", "l1")
    (plan,) = plan_shipment([containerd(swapped, blobs={"l1": 5})]).hosts
    assert plan.sends[0].missing == ("l2",)
    assert plan.there["l1"] == form("l1", "none", "l1", 5)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_layer_is_recognised_by_the_digest_of_any_form_that_is_known(
    compression: Compression,
) -> None:
    forms = {"l1": [form("l1", "gzip", "other"), form("l1", compression, "packed", 1)]}
    facts = containerd(APP, blobs={"packed": 8, "l9": 1})
    (plan,) = plan_shipment([facts], forms).hosts
    assert plan.sends[0].missing == ("l2",)
    assert plan.there == {"l1": form("l1", compression, "packed", 8)}


def test_without_a_known_form_the_layer_travels() -> None:
    (plan,) = plan_shipment([containerd(APP, blobs={"packed": 8})]).hosts
    assert plan.sends[0].missing == ("l1", "l2")
    assert plan.there == {}


def test_layers_and_chains_are_not_taken_for_each_other() -> None:
    chain = chain_ids(APP.diff_ids)[1]
    (plan,) = plan_shipment([containerd(APP, blobs={chain: 8})]).hosts
    assert plan.sends[0].is_whole
    facts = replace(host(APP), layers={"l2": 0})
    assert plan_for(facts).sends[0].is_whole


def test_what_one_image_brings_a_containerd_store_has_for_the_next() -> None:
    swapped = image("swapped:1", "l2", "l1", size=2 * GB)
    (plan,) = plan_shipment([containerd(APP, swapped, blobs={})]).hosts
    assert [send.missing for send in plan.sends] == [("l1", "l2"), ()]
    assert plan.sends[1].after == ("app:1",)


# Several hosts


def test_each_host_gets_what_it_lacks_and_everything_is_fetched_once() -> None:
    shipment = plan_shipment(
        [
            host(APP, OTHER, label="empty"),
            host(APP, OTHER, label="all", present=[APP, OTHER]),
            host(APP, OTHER, label="base", present=[OTHER], others=[("l1",)]),
        ]
    )
    assert [list(plan.layers) for plan in shipment.hosts] == [["l1", "l2", "l3"], [], ["l2"]]
    assert shipment.images == (APP, OTHER)
    assert shipment.missing == {"l1", "l2", "l3"}


def test_hosts_of_different_architectures_each_get_their_own_image() -> None:
    arm = replace(image("app:1", "a1", architecture="arm64"), image_id="sha256:arm")
    shipment = plan_shipment(
        [host(APP, label="intel"), host(arm, label="arm", architecture="arm64")]
    )
    assert shipment.images == (APP, arm)
    assert shipment.problems == ()


def test_an_image_of_another_architecture_is_refused_for_that_host_only() -> None:
    shipment = plan_shipment(
        [host(APP, label="arm", architecture="arm64"), host(APP, label="intel")]
    )
    (problem,) = shipment.hosts[0].problems
    assert isinstance(problem, WrongArchitecture)
    assert "app:1 is built for linux/amd64, this host is linux/arm64" in str(problem)
    assert shipment.hosts[1].problems == ()


def test_nothing_is_fetched_when_no_host_can_run_it() -> None:
    shipment = plan_shipment([host(APP, architecture="arm64")])
    assert (shipment.images, shipment.missing) == ((), frozenset())


def test_one_full_host_does_not_hinder_another() -> None:
    full = replace(ROOT, free=0)
    shipment = plan_shipment(
        [host(APP, label="full", staging=full, engine=full), host(APP, label="free")]
    )
    assert [problem.where for problem in shipment.problems] == ["full"]
    assert shipment.images == (APP,)


# Room, and the way that layers take


def way(facts: HostFacts, transfer: TransferChoice = "auto") -> str:
    plan = plan_for(facts, transfer)
    return "none" if plan.problems else plan.way


@pytest.mark.parametrize(
    ("transfer", "staging", "engine", "expected"),
    [
        # Two gigabytes are needed for staging, and twice as much by the engine.
        ("auto", 3 * GB, 5 * GB, "staged"),
        ("auto", 1 * GB, 5 * GB, "stream"),
        ("auto", 3 * GB, 4 * GB, "none"),
        ("auto", 1 * GB, 1 * GB, "none"),
        ("staged", 3 * GB, 5 * GB, "staged"),
        ("staged", 1 * GB, 5 * GB, "none"),
        ("stream", 3 * GB, 5 * GB, "stream"),
        ("stream", 0, 5 * GB, "stream"),
        ("stream", 900 * GB, 4 * GB, "none"),
    ],
)
def test_layers_are_staged_where_there_is_room_unless_told_otherwise(
    transfer: TransferChoice, staging: int, engine: int, expected: str
) -> None:
    facts = host(APP, staging=replace(BIG, free=staging), engine=replace(ROOT, free=engine))
    assert way(facts, transfer) == expected


@pytest.mark.parametrize(
    ("free", "expected"), [(7 * GB, "staged"), (6 * GB, "stream"), (4 * GB, "none")]
)
def test_needs_add_up_when_both_are_on_one_filesystem(free: int, expected: str) -> None:
    disk = replace(ROOT, free=free)
    assert way(host(APP, staging=disk, engine=disk)) == expected


def test_every_disk_that_is_too_small_is_named() -> None:
    facts = host(APP, staging=replace(BIG, free=GB), engine=replace(ROOT, free=GB))
    problems = plan_for(facts, "staged").problems
    assert all(isinstance(problem, DiskFull) for problem in problems)
    assert ["/data" in problem.what for problem in problems] == [True, False]
    assert "4.27 GB are needed on /, 1.00 GB are free" in problems[1].what


def test_only_what_travels_needs_room() -> None:
    small = host(
        image("app:2", "l1", "l2", "l3"),
        present=[APP],
        staging=replace(BIG, free=2 * GB),
        engine=replace(ROOT, free=3 * GB),
    )
    assert way(small) == "staged"


def test_a_host_that_needs_nothing_may_be_full() -> None:
    full = replace(ROOT, free=0)
    assert plan_for(host(APP, present=[APP], staging=full, engine=full)).problems == ()


@pytest.mark.parametrize(
    ("staged", "expected"),
    [
        ({}, "none"),
        ({"l1": GB}, "none"),
        ({"l1": GB, "l2": GB // 4}, "staged"),
        ({"l1": 50 * GB}, "none"),
        ({"l8": GB, "l9": GB}, "none"),
    ],
    ids=["nothing", "one", "one and a part", "too much of one", "other layers"],
)
def test_what_an_earlier_run_has_staged_needs_no_room_again(
    staged: dict[str, int], expected: str
) -> None:
    facts = host(APP, staging=replace(BIG, free=900_000_000), staged=staged)
    assert way(facts, "staged") == expected


@pytest.mark.parametrize(("cpus", "loads"), [(1, 1), (2, 2), (3, 3), (64, 3)])
def test_as_many_images_load_side_by_side_as_there_are_processors_and_images(
    cpus: int, loads: int
) -> None:
    images = [image(f"app:{number}", f"l{number}") for number in range(3)]
    assert plan_for(host(*images, cpus=cpus)).loads_at_once == loads


def test_no_more_than_four_load_side_by_side() -> None:
    images = [image(f"app:{number}", f"l{number}") for number in range(9)]
    assert plan_for(host(*images, cpus=64)).loads_at_once == 4


def test_images_load_one_by_one_where_copies_of_all_have_no_room() -> None:
    images = [image(f"app:{number}", f"l{number}") for number in range(3)]
    roomy, tight = replace(ROOT, free=7 * GB), replace(ROOT, free=5 * GB)
    assert plan_for(host(*images, cpus=3, engine=roomy)).loads_at_once == 3
    plan = plan_for(host(*images, cpus=3, engine=tight))
    assert (plan.way, plan.loads_at_once, plan.problems) == ("staged", 1, ())


def test_what_is_streamed_is_loaded_one_by_one() -> None:
    plan = plan_for(host(APP, OTHER, cpus=8), "stream")
    assert (plan.way, plan.loads_at_once) == ("stream", 1)


# What an operator sees


def test_a_dry_run_names_every_host_and_image() -> None:
    rows = plan_shipment(
        [
            host(APP, OTHER, label="a", present=[OTHER], others=[("l1",)]),
            host(APP, label="b", architecture="arm64"),
            host(APP, label="c", twins={"app:1": "old:1"}),
        ]
    ).as_rows()
    assert rows == [
        {"host": "a", "image": "app:1", "action": "send 1 of 2 layers", "size": "1.00 GB"},
        {"host": "a", "image": "other:1", "action": "keep: already there", "size": "0 B"},
        {"host": "b", "image": "app:1", "action": "none", "size": "2.00 GB"},
        {"host": "c", "image": "app:1", "action": "tag: already there as old:1", "size": "0 B"},
    ]


def test_a_plan_is_the_same_for_the_same_facts() -> None:
    facts = [host(APP, OTHER, BASE, label=label) for label in "abc"]
    assert plan_shipment(facts) == plan_shipment(facts)
    assert plan_shipment([]) == Shipment(())
