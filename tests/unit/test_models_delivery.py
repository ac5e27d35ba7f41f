"""A revision on its way to a host that is this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import (
    Cancelled,
    Conflict,
    ConnectionLost,
    CrossgapError,
    DiskFull,
    NotFound,
    SeveralFailures,
    SourceDamaged,
    Unreachable,
)
from blocks.host import CommandResult
from blocks.local_host import LocalHost
from tasks.models import agenda, delivery, remote_scripts
from tasks.models.arrivals import Arrivals
from tasks.models.delivery import Delivered, deliver, remove_revisions
from tasks.models.files import ModelFile, Revision
from tasks.models.remote_facts import proven, read_host_model
from tasks.models.remote_plan import Delivery, Keep, Link, Prove, Send, plan_delivery
from tests.unit.models_doubles import git_blob_sha1

NEW, OLD = "c" * 40, "d" * 40
MODEL = "org/模型 one"
KB = 1000

Contents = Mapping[str, bytes]


class Site:
    """A source of files here, and a host that they go to."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "here"
        self.root = folder / "模型 dir"
        self.host = LocalHost(patience=5)

    @property
    def folder(self) -> Path:
        return self.root / MODEL

    def revision(self, contents: Contents, commit: str = NEW) -> Revision:
        """Write the files of a revision, and say what it consists of."""
        files = []
        for path, data in sorted(contents.items()):
            place = self.source / commit / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            files.append(ModelFile(path, len(data), digest, git_blob_sha1(data)))
        return Revision(MODEL, "main", commit, tuple(files))

    def arrivals(self, revision: Revision) -> Arrivals:
        arrivals = Arrivals()
        for file in revision.files:
            arrivals.give(file, self.path(revision, file))
        return arrivals

    def path(self, revision: Revision, file: ModelFile) -> Path:
        return self.source / revision.commit / file.path

    def plan(self, revision: Revision) -> Delivery:
        return plan_delivery(revision, read_host_model(self.host, str(self.root), MODEL))

    def deliver(
        self, revision: Revision, arrivals: Arrivals | None = None, **named: Any
    ) -> Delivered:
        arrivals = arrivals or self.arrivals(revision)
        return deliver(self.host, self.plan(revision), arrivals, **named)

    def there(self, commit: str = NEW) -> dict[str, bytes]:
        """Return what is in view of a revision, but for its manifest."""
        folder = self.folder / commit
        subprocess.run(
            ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True
        )
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "SHA256SUMS"
        }


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of more than 100 kB count as large."""
    monkeypatch.setattr(agenda, "SMALL", 100 * KB)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Count the commands that are started."""
    asked: list[object] = []
    start = LocalHost.start

    def counted(self: LocalHost, argv: Any, **named: Any) -> Any:
        asked.append(argv)
        return start(self, argv, **named)

    monkeypatch.setattr(LocalHost, "start", counted)
    return asked


CONTENTS = {
    "model 1.safetensors": os.urandom(300 * KB),
    "model 2.safetensors": os.urandom(200 * KB),
    "config.json": b"{}",
    "分词 器/词表.txt": b"words",
    "empty": b"",
}


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to be")


def test_a_revision_comes_into_view_whole_and_current(site: Site) -> None:
    told: list[tuple[int, int]] = []

    done = site.deliver(site.revision(CONTENTS), progress=lambda *it: told.append(it))

    assert site.there() == CONTENTS
    assert str((site.folder / "current").readlink()) == NEW
    total = sum(map(len, CONTENTS.values()))
    assert (done.bytes_sent, done.files_sent, done.files_linked) == (total, 5, 0)
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert list((site.folder / ".crossgap" / "incoming").iterdir()) == []


def test_a_second_run_plans_nothing_and_asks_nothing(site: Site, asked: list[object]) -> None:
    revision = site.revision(CONTENTS)
    site.deliver(revision)

    plan = site.plan(revision)
    before = len(asked)
    done = deliver(site.host, plan, Arrivals())

    assert plan.is_done
    assert (done.bytes_sent, done.files_sent) == (0, 0)
    assert len(asked) == before


def test_a_thousand_small_files_take_few_round_trips(site: Site, asked: list[object]) -> None:
    contents = {f"{number % 9}/文件 {number}.json": b"x" * (number % 50) for number in range(1000)}

    done = site.deliver(site.revision(contents))

    assert site.there() == contents
    assert done.files_sent == 1000
    assert len(asked) < 40


def test_a_finished_file_travels_while_others_still_come(site: Site) -> None:
    revision = site.revision(CONTENTS)
    arrivals = Arrivals()
    thread = threading.Thread(target=site.deliver, args=(revision, arrivals))
    thread.start()
    incoming = site.folder / ".crossgap" / "incoming" / NEW

    for file in revision.files:
        arrivals.give(file, site.path(revision, file))
        until((incoming / file.path).exists if file != revision.files[-1] else lambda: True)
    thread.join()

    assert site.there() == CONTENTS


def test_a_run_that_ends_half_way_is_gone_on_with(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = site.revision(CONTENTS)
    put = LocalHost.put

    proof = site.folder / ".crossgap" / "proofs" / NEW

    def broken(self: LocalHost, local: Any, remote: str, **named: Any) -> Any:
        if remote.endswith("model 2.safetensors"):
            until(lambda: "config.json" in proof.read_text())
            raise CrossgapError("the line is cut", self.label)
        return put(self, local, remote, **named)

    monkeypatch.setattr(LocalHost, "put", broken)
    with pytest.raises(CrossgapError, match="the line is cut"):
        site.deliver(revision)
    assert not (site.folder / NEW).exists()
    assert not (site.folder / "current").is_symlink()

    monkeypatch.undo()
    plan = site.plan(revision)
    kept = [action.file.path for action in plan.actions if isinstance(action, Keep)]
    done = deliver(site.host, plan, site.arrivals(revision))

    assert "config.json" in kept
    assert "model 2.safetensors" not in kept
    assert done.files_sent == len(CONTENTS) - len(kept)
    assert site.there() == CONTENTS


def test_the_same_bytes_of_another_revision_are_linked(site: Site) -> None:
    site.deliver(site.revision(CONTENTS, OLD))
    changed = {**CONTENTS, "config.json": b"{1}", "renamed": CONTENTS["model 1.safetensors"]}

    done = site.deliver(site.revision(changed))

    assert (done.files_linked, done.files_sent, done.bytes_sent) == (5, 1, 3)
    assert site.there() == changed
    assert site.there(OLD) == CONTENTS
    inodes = {(site.folder / commit / "empty").stat().st_ino for commit in (OLD, NEW)}
    assert len(inodes) == 1
    assert str((site.folder / "current").readlink()) == NEW
    assert site.plan(site.revision(changed)).is_done


def test_a_file_that_cannot_be_linked_is_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.deliver(site.revision(CONTENTS, OLD))
    link = remote_scripts.link

    def refused(*arguments: Any) -> list[str]:
        argv = link(*arguments)
        argv[2] = argv[2].replace('ln "', 'false "')
        return argv

    monkeypatch.setattr(remote_scripts, "link", refused)

    done = site.deliver(site.revision(CONTENTS))

    assert (done.files_linked, done.files_sent) == (0, 5)
    assert site.there() == CONTENTS


def test_a_void_proof_is_renewed_without_sending_and_a_damaged_file_is_sent(site: Site) -> None:
    revision = site.revision(CONTENTS)
    site.deliver(revision)
    (site.folder / NEW / "model 1.safetensors").touch()
    (site.folder / NEW / "config.json").write_bytes(b"[]")
    (site.folder / NEW / "empty").unlink()
    inode = (site.folder / NEW / "model 2.safetensors").stat().st_ino

    plan = site.plan(revision)
    done = deliver(site.host, plan, site.arrivals(revision))

    kinds = {action.file.path: type(action) for action in plan.actions}
    assert kinds["model 1.safetensors"] is Prove
    assert kinds["config.json"] is Prove
    assert kinds["empty"] is Send
    assert (done.files_sent, done.bytes_sent) == (2, 2)
    assert site.there() == CONTENTS
    assert (site.folder / NEW / "model 2.safetensors").stat().st_ino == inode
    assert site.plan(revision).is_done


def test_a_large_file_whose_proof_is_void_is_hashed_by_itself(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site.host = LocalHost(work_dir=str(tmp_path / "work"))
    revision = site.revision(CONTENTS)
    site.deliver(revision)
    (site.folder / NEW / "model 1.safetensors").touch()
    (site.folder / NEW / "model 2.safetensors").write_bytes(os.urandom(200 * KB))
    monkeypatch.setattr(delivery, "HASH_BY_JOB", 150 * KB)

    done = site.deliver(revision)

    assert done.files_sent == 1
    assert site.there() == CONTENTS


def test_more_files_of_a_revision_join_those_in_view(site: Site) -> None:
    revision = site.revision(CONTENTS)
    some = replace(revision, files=revision.files[:2])
    site.deliver(some)

    site.deliver(replace(revision, files=revision.files[2:]))

    assert site.there() == CONTENTS
    assert site.plan(revision).is_done


def test_files_of_an_earlier_choice_do_not_come_into_view(site: Site) -> None:
    revision = site.revision(CONTENTS)
    arrivals = Arrivals()
    arrivals.give(revision.files[0], site.path(revision, revision.files[0]))
    arrivals.fail(NotFound("no more", "hub"))
    with pytest.raises(NotFound):
        site.deliver(revision, arrivals)

    site.deliver(replace(revision, files=revision.files[1:]))

    assert set(site.there()) == {file.path for file in revision.files[1:]}


def test_what_was_given_before_a_failure_arrives_and_the_failure_is_told_once(site: Site) -> None:
    revision = site.revision(CONTENTS)
    arrivals = Arrivals()
    for file in revision.files[:-1]:
        arrivals.give(file, site.path(revision, file))
    arrivals.fail(NotFound("the hub has it no more", "hub"))

    with pytest.raises(NotFound, match="no more") as caught:
        site.deliver(revision, arrivals)

    assert not isinstance(caught.value, SeveralFailures)
    held = read_host_model(site.host, str(site.root), MODEL).incoming[NEW]
    assert set(proven(held)) == {file.path for file in revision.files[:-1]}
    assert not (site.folder / NEW).exists()


def test_a_cancelled_run_does_not_wait_for_files(site: Site) -> None:
    cancellation = Cancellation()
    threading.Timer(0.3, cancellation.cancel).start()

    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        site.deliver(site.revision(CONTENTS), Arrivals())


@pytest.mark.parametrize("path", ["model 1.safetensors", "config.json"])
def test_a_file_that_is_damaged_here_is_named_and_nothing_comes_into_view(
    site: Site, path: str
) -> None:
    revision = site.revision(CONTENTS)
    place = site.source / NEW / path
    place.write_bytes(b"?" * place.stat().st_size)

    with pytest.raises(SourceDamaged, match=path):
        site.deliver(revision)

    assert not (site.folder / NEW).exists()


def test_files_whose_hash_was_not_known_are_sent_only_where_they_lack(site: Site) -> None:
    site.deliver(site.revision(CONTENTS, OLD))
    changed = {**CONTENTS, "config.json": b"{1}"}
    revision = site.revision(changed)
    files = tuple(replace(f, sha256="") if f.size < KB else f for f in revision.files)

    plan = site.plan(replace(revision, files=files))
    done = deliver(site.host, plan, site.arrivals(revision))

    assert [type(action) for action in plan.actions].count(Send) == 3
    assert (done.files_sent, done.files_linked, done.bytes_sent) == (1, 4, 3)
    assert site.there() == changed
    assert site.plan(replace(revision, files=files)).is_done


def test_scripts_are_run_again_when_the_connection_is_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = LocalHost.run
    seen: set[str] = set()

    def lossy(self: LocalHost, argv: Any, **named: Any) -> CommandResult:
        result = run(self, argv, **named)
        # The answer to each kind of script is lost once, after it did its work.
        if argv[2] not in seen:
            seen.add(argv[2])
            if len(seen) % 2:
                raise ConnectionLost("the line is cut", self.label)
            return replace(result, exit_code=143)
        return result

    site.deliver(site.revision(CONTENTS, OLD))
    revision = site.revision({**CONTENTS, "config.json": b"{1}", "b": b"b"})
    plan = site.plan(revision)
    monkeypatch.setattr(LocalHost, "run", lossy)
    monkeypatch.setattr("blocks.outage.LONGEST_PAUSE", 0.01)

    deliver(site.host, plan, site.arrivals(revision))

    monkeypatch.undo()
    assert len(seen) >= 4
    assert site.there() == {**CONTENTS, "config.json": b"{1}", "b": b"b"}
    assert site.there(OLD) == CONTENTS


def test_patience_has_an_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.host = LocalHost(patience=0)
    plan = site.plan(site.revision(CONTENTS))

    def gone(self: LocalHost, argv: Any, **named: Any) -> CommandResult:
        raise Unreachable("it is away", self.label)

    monkeypatch.setattr(LocalHost, "run", gone)
    monkeypatch.setattr("blocks.outage.LONGEST_PAUSE", 0.01)

    with pytest.raises(Unreachable, match="it is away"):
        deliver(site.host, plan, Arrivals())


def test_a_disk_that_fills_up_is_told_with_what_helps(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = remote_scripts.note
    monkeypatch.setattr(remote_scripts, "note", lambda proof, *rest: note("/dev/full", *rest))

    with pytest.raises(DiskFull, match="models_dir to a larger disk"):
        site.deliver(site.revision({"a.safetensors": b"x" * 200 * KB}))


def test_what_came_to_stand_in_the_way_is_a_conflict(site: Site) -> None:
    revision = site.revision(CONTENTS)
    plan = site.plan(revision)
    (site.folder / NEW).mkdir(parents=True)
    (site.folder / NEW / "notes").write_bytes(b"mine")

    with pytest.raises(Conflict, match=f"{NEW} is something that crossgap did not make"):
        deliver(site.host, plan, site.arrivals(revision))

    assert [path.name for path in (site.folder / NEW).iterdir()] == ["notes"]
    with pytest.raises(Conflict, match="a folder that crossgap did not make"):
        site.plan(revision)


def test_a_link_plan_holds_only_while_its_source_is_what_it_was(site: Site) -> None:
    site.deliver(site.revision(CONTENTS, OLD))
    revision = site.revision(CONTENTS)
    plan = site.plan(revision)
    assert all(isinstance(action, Link) for action in plan.actions)
    (site.folder / OLD / "config.json").write_bytes(b"[]")

    done = deliver(site.host, plan, site.arrivals(revision))

    assert (done.files_linked, done.files_sent) == (4, 1)
    assert site.there() == CONTENTS


def test_old_revisions_are_removed_but_not_the_current_one(site: Site) -> None:
    site.deliver(site.revision(CONTENTS, OLD))
    site.deliver(site.revision({**CONTENTS, "config.json": b"{1}"}))
    model = read_host_model(site.host, str(site.root), MODEL)

    kept = remove_revisions(site.host, model, [OLD])
    assert kept.commits == ()
    removed = remove_revisions(site.host, model, [])

    assert removed.commits == (OLD,)
    assert not (site.folder / OLD).exists()
    assert site.there() == {**CONTENTS, "config.json": b"{1}"}
    assert list((site.folder / ".crossgap" / "proofs").iterdir()) == [
        site.folder / ".crossgap" / "proofs" / NEW
    ]


# Arrivals


FILE = ModelFile("a", 1, "0" * 64)


def waited(arrivals: Arrivals, count: int) -> list[str]:
    """Wait until more than so many files are there, and name all of them."""
    while len(arrivals.since(0)) <= count:
        arrivals.wait_beyond(count, "gpu1")
    return [arrived.file.path for arrived in arrivals.since(0)]


def test_a_file_is_waited_for_and_given_once(tmp_path: Path) -> None:
    arrivals = Arrivals()
    other = replace(FILE, path="b")
    threading.Timer(0.1, arrivals.give, (other, tmp_path)).start()

    assert waited(arrivals, 0) == ["b"]
    arrivals.give(other, tmp_path)
    arrivals.give(FILE, tmp_path)
    assert waited(arrivals, 1) == ["b", "a"]
    assert arrivals.since(2) == []


def test_a_failure_wakes_those_who_wait_and_spares_what_came_before(tmp_path: Path) -> None:
    arrivals = Arrivals()
    arrivals.give(FILE, tmp_path)
    threading.Timer(0.1, arrivals.fail, (NotFound("first", "hub"),)).start()

    with pytest.raises(NotFound, match="first"):
        waited(arrivals, 1)
    arrivals.fail(NotFound("second", "hub"))

    assert waited(arrivals, 0) == ["a"]
    with pytest.raises(NotFound, match="first"):
        waited(arrivals, 1)


def test_a_cancellation_wakes_those_who_wait() -> None:
    cancellation = Cancellation()
    threading.Timer(0.1, cancellation.cancel).start()

    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        waited(Arrivals(), 0)
