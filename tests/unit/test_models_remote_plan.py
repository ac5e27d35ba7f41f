"""What is to be done on a host so that it has a revision."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from blocks.disk import Disk
from blocks.errors import Conflict, DiskFull
from tasks.models.files import MANIFEST, ModelFile, Revision
from tasks.models.remote_facts import Files, HeldFile, HostModel
from tasks.models.remote_plan import (
    Keep,
    Link,
    Prove,
    Send,
    manifest_of,
    part_path,
    plan_delivery,
    plan_removal,
)

NEW, OLD = "c" * 40, "d" * 40
GB = 10**9
A = ModelFile("a.safetensors", GB, "a" * 64)
B = ModelFile("sub/b.json", 100, "b" * 64)
UNKNOWN = ModelFile("config.json", 50, git_sha1="e" * 40)
ENDS = ["", "/current", "/.crossgap", f"/{NEW}"]
INCOMING = f".crossgap/incoming/{NEW}"
BARE = HostModel("gpu1", "/models", "org/name", Disk("/dev/sda1", "/data", 100 * GB))


def revision(*files: ModelFile) -> Revision:
    return Revision("org/name", "main", NEW, files or (A, B))


def held(file: ModelFile, sha256: str = "", inode: int = 1, **changes: object) -> HeldFile:
    one = HeldFile(file.path, file.size, "2026-11-21 11:05:21 +0000", inode, sha256, ours=True)
    return replace(one, **changes)  # type: ignore[arg-type]


def files(*given: HeldFile) -> Files:
    return {one.path: one for one in given}


def complete(*given: HeldFile) -> HostModel:
    """Give a host that has all it should."""
    text = "".join(f"{one.sha256}  {one.path}\n" for one in sorted(given, key=lambda it: it.path))
    manifest = ModelFile(MANIFEST, len(text), hashlib.sha256(text.encode()).hexdigest())
    own = files(*given, held(manifest, manifest.sha256))
    return replace(BARE, current=NEW, revisions={NEW: own})


def test_an_empty_host_is_sent_everything() -> None:
    plan = plan_delivery(revision(), BARE)

    assert plan.actions == (Send(A), Send(B))
    assert plan.bytes_to_send == GB + 100
    assert not plan.is_done


def test_a_host_that_has_it_all_has_nothing_to_do() -> None:
    plan = plan_delivery(revision(), complete(held(A, A.sha256), held(B, B.sha256)))

    assert plan.actions == (Keep(A, True), Keep(B, True))
    assert (plan.bytes_to_send, plan.is_done) == (0, True)


@pytest.mark.parametrize("change", [{"current": OLD}, {"current": ""}])
def test_a_link_to_another_revision_is_still_to_be_switched(change: dict[str, str]) -> None:
    there = complete(held(A, A.sha256), held(B, B.sha256))

    assert not plan_delivery(revision(), replace(there, **change)).is_done  # type: ignore[arg-type]


def test_a_manifest_that_is_lost_or_damaged_is_still_to_be_written() -> None:
    there = complete(held(A, A.sha256), held(B, B.sha256))
    own = dict(there.revisions[NEW])
    damaged = {**own, MANIFEST: replace(own[MANIFEST], sha256="")}
    del own[MANIFEST]

    for state in (own, damaged):
        assert not plan_delivery(revision(), replace(there, revisions={NEW: state})).is_done


def test_what_has_arrived_is_kept_but_not_yet_in_view() -> None:
    there = replace(BARE, incoming={NEW: files(held(A, A.sha256))})

    plan = plan_delivery(revision(), there)

    assert plan.actions == (Keep(A, False), Send(B))
    assert not plan.is_done


def test_a_void_proof_is_renewed_where_the_size_is_right() -> None:
    there = replace(
        BARE,
        revisions={NEW: files(held(A), held(B, size=99))},
        incoming={NEW: files(held(B))},
    )

    plan = plan_delivery(revision(), there)

    assert plan.actions == (Prove(A, NEW), Prove(B, INCOMING))
    assert plan.stale == ()


def test_the_same_bytes_under_another_name_are_linked() -> None:
    other = held(ModelFile("old name", GB, A.sha256), A.sha256)
    there = replace(BARE, revisions={OLD: files(other), NEW: files(held(A))})

    plan = plan_delivery(revision(A), there)

    assert plan.actions == (Link(A, f"{OLD}/old name", other),)


def test_a_file_with_the_right_name_and_other_bytes_is_sent() -> None:
    there = replace(BARE, revisions={NEW: files(held(A, "f" * 64))})

    assert plan_delivery(revision(A), there).actions == (Send(A),)


def test_a_file_of_another_revision_is_no_proof_for_its_name() -> None:
    there = replace(BARE, revisions={OLD: files(held(UNKNOWN, "f" * 64))})

    assert plan_delivery(revision(UNKNOWN), there).actions == (Send(UNKNOWN),)


def test_a_file_of_unknown_hash_is_known_by_the_proof_of_the_same_revision() -> None:
    there = replace(BARE, revisions={NEW: files(held(UNKNOWN, "f" * 64))})

    kept = replace(UNKNOWN, sha256="f" * 64)
    assert plan_delivery(revision(UNKNOWN), there).actions == (Keep(kept, True),)


def test_what_must_not_come_into_view_is_stale() -> None:
    there = replace(
        BARE,
        revisions={NEW: files(held(A, A.sha256))},
        incoming={NEW: files(held(A), held(B, size=3), held(B, path=part_path(B)))},
    )

    assert plan_delivery(revision(), there).stale == (A.path, B.path)


def test_a_disk_without_room_is_told_before_anything_is_done() -> None:
    small = replace(BARE, disk=Disk("/dev/sda1", "/data", GB // 2))

    with pytest.raises(
        DiskFull, match=r"/models/org/name needs 1\.00 GB but /data has 500 MB free"
    ):
        plan_delivery(revision(), small)


def test_what_has_arrived_of_a_file_needs_no_more_room() -> None:
    part = held(A, path=part_path(A), size=800_000_000)
    there = replace(BARE, disk=Disk("/dev/sda1", "/data", GB // 2), incoming={NEW: files(part)})

    plan = plan_delivery(revision(), there)

    assert plan.actions == (Send(A, 800_000_000), Send(B))
    assert 200_000_000 < plan.room_needed < 200_100_000
    assert part.path == f".a.safetensors.{'a' * 16}.part"


def test_nothing_to_send_needs_no_room() -> None:
    full = replace(complete(held(A, A.sha256)), disk=Disk("/dev/sda1", "/data", 0))

    assert plan_delivery(revision(A), full).is_done


@pytest.mark.parametrize("name", ["", "org", *(f"org/name{end}" for end in ENDS)])
def test_something_else_in_the_way_is_named_and_left_alone(name: str) -> None:
    path = f"/models/{name}".rstrip("/")
    there = replace(BARE, occupied={path: "a file"})

    with pytest.raises(Conflict, match=f"{path} is a file, and stands where org/name belongs"):
        plan_delivery(revision(), there)


def test_something_else_that_is_not_in_the_way_does_not_matter() -> None:
    there = replace(BARE, occupied={f"/models/org/name/{OLD}": "a file"})

    assert plan_delivery(revision(), there).actions == (Send(A), Send(B))


def test_the_manifest_keeps_what_an_earlier_choice_of_files_brought() -> None:
    plan = plan_delivery(revision(B), complete(held(A, A.sha256)))

    assert manifest_of({B.path: B.sha256}, plan) == (
        f"{A.sha256}  {A.path}\n{B.sha256}  {B.path}\n"
    )


# What may go


def test_old_revisions_go_and_free_what_no_other_one_shares() -> None:
    shared, own = held(A, A.sha256, inode=1), held(B, B.sha256, inode=2)
    third = "e" * 40
    there = replace(
        BARE,
        current=NEW,
        revisions={NEW: files(shared), OLD: files(shared, own)},
        incoming={third: files(held(A, inode=3))},
    )

    plan = plan_removal(there, [])

    assert (plan.commits, plan.freed, plan.left) == ((OLD, third), 100 + GB, {})
    assert plan_removal(there, [OLD, third]).commits == ()


def test_a_revision_with_somebody_elses_files_stays_and_is_named() -> None:
    mine = held(ModelFile("my-adapter.bin", 5), ours=False)
    there = replace(BARE, current=NEW, revisions={OLD: files(held(A, A.sha256), mine)})

    plan = plan_removal(there, [])

    assert plan.commits == ()
    assert "my-adapter.bin" in plan.left[OLD]
