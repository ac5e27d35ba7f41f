"""Models on their way to real hosts, with links cut, disks filled and files damaged."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.errors import Conflict, DiskFull, PermissionRefused
from blocks.ssh_host import SSHHost
from tasks.models.arrivals import Arrivals
from tasks.models.delivery import Delivered, deliver, remove_revisions
from tasks.models.files import ModelFile, Revision
from tasks.models.remote_facts import read_host_model, shared_folders
from tasks.models.remote_plan import Delivery, Prove, Send, plan_delivery
from tests.integration.conftest import Connect
from tests.lab import LabHost

MB = 1_000_000
MODEL = "org/模型 one"
ROOT = "~/模型 dir"
NEW, OLD = "c" * 40, "d" * 40


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a small model: two shards, and a few dozen small files."""
    folder = tmp_path / "model"
    (folder / "分词 器").mkdir(parents=True)
    for number in range(2):
        (folder / f"model-{number} 甲.safetensors").write_bytes(os.urandom(8 * MB))
    for number in range(60):
        (folder / "分词 器" / f"{number} it's.json").write_bytes(os.urandom(number * 7))
    return folder


def revision(source: Path, commit: str = NEW) -> Revision:
    files = tuple(
        ModelFile(
            str(path.relative_to(source)),
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(source.rglob("*"))
        if path.is_file()
    )
    return Revision(MODEL, "main", commit, files)


def arrivals(wanted: Revision, source: Path) -> Arrivals:
    here = Arrivals()
    for file in wanted.files:
        here.give(file, source / file.path)
    return here


def plan(host: SSHHost, wanted: Revision) -> Delivery:
    return plan_delivery(wanted, read_host_model(host, ROOT, MODEL))


def bring(host: SSHHost, source: Path, commit: str = NEW) -> Delivered:
    wanted = revision(source, commit)
    return deliver(host, plan(host, wanted), arrivals(wanted, source))


def folder(host: LabHost, commit: str = NEW) -> str:
    return f"{host.home}/模型 dir/{MODEL}/{commit}"


def proven_there(host: LabHost, commit: str = NEW) -> int:
    """Return how many files sha256sum finds right on the host."""
    script = 'cd "$1" && sha256sum --strict -c SHA256SUMS'
    said = host.run(["sh", "-c", script, "sh", folder(host, commit)])
    return sum(line.endswith(": OK") for line in said.splitlines())


def test_a_model_arrives_whole_once_and_as_its_own_users_umask_says(
    any_host: LabHost, connect: Connect, source: Path
) -> None:
    host = connect(any_host)

    first = bring(host, source)
    before = any_host.bytes_received()
    again = plan(host, revision(source))

    assert proven_there(any_host) == 62
    assert any_host.run(["readlink", f"{folder(any_host)}/../current"]).strip() == NEW
    assert any_host.run(["stat", "-c", "%a", f"{folder(any_host)}/分词 器"]).strip() == "755"
    assert first.files_sent == 62
    assert again.is_done
    assert any_host.bytes_received() - before < MB


def test_a_damaged_file_is_repaired_and_a_new_revision_links_the_rest(
    any_host: LabHost, connect: Connect, source: Path
) -> None:
    host = connect(any_host)
    bring(host, source)
    shard = f"{folder(any_host)}/model-0 甲.safetensors"
    with any_host.path(shard).open("r+b") as file:
        file.write(b"damaged")

    repair = plan(host, revision(source))
    done = bring(host, source)

    assert sum(isinstance(action, Prove) for action in repair.actions) == 1
    assert (done.files_sent, done.bytes_sent) == (1, 8 * MB)
    assert proven_there(any_host) == 62

    (source / "分词 器" / "1 it's.json").write_bytes(b"changed")
    newer = bring(host, source, OLD)
    assert (newer.files_linked, newer.files_sent) == (61, 1)
    assert proven_there(any_host, OLD) == 62
    model = read_host_model(host, ROOT, MODEL)
    assert remove_revisions(host, model, []).commits == (NEW,)
    assert proven_there(any_host, OLD) == 62


def test_a_cut_link_is_waited_out(any_host: LabHost, connect: Connect, source: Path) -> None:
    any_host.slow(40)
    host = connect(any_host)
    wanted = revision(source)
    cut: list[int] = []

    def cut_once(arrived: int, _: int) -> None:
        if arrived > 3 * MB and not cut:
            cut.append(arrived)
            any_host.cut()
            threading.Timer(5, any_host.mend).start()

    done = deliver(host, plan(host, wanted), arrivals(wanted, source), progress=cut_once)

    assert cut
    assert proven_there(any_host) == 62
    # Two streams lose what was on the way.
    assert done.bytes_sent < wanted.size + 8 * MB


def test_a_killed_sshd_in_the_midst_of_small_files_is_waited_out(
    bare: LabHost, connect: Connect, source: Path
) -> None:
    host = connect(bare)
    wanted = revision(source)
    small = Revision(MODEL, "main", NEW, tuple(f for f in wanted.files if f.size < MB))
    killed: list[int] = []

    def kill_once(arrived: int, _: int) -> None:
        if not killed:
            killed.append(arrived)
            bare.stop_sshd()
            threading.Timer(2, bare.start_sshd).start()

    deliver(host, plan(host, small), arrivals(small, source), progress=kill_once)

    assert killed
    assert proven_there(bare) == 60


def test_a_killed_run_is_gone_on_with(
    any_host: LabHost, connect: Connect, source: Path, tmp_path: Path
) -> None:
    any_host.slow(40)
    host = connect(any_host)
    (tmp_path / "block.json").write_text(host.model_dump_json(context={"include_secrets": True}))
    script = textwrap.dedent("""
        import json, pathlib, sys
        from blocks.ssh_host import SSHHost
        from tests.integration.test_models_delivery import arrivals, deliver, plan, revision
        host = SSHHost.model_validate(json.loads(pathlib.Path(sys.argv[1]).read_text()))
        source = pathlib.Path(sys.argv[2])
        wanted = revision(source)
        told = lambda arrived, _: print(arrived, flush=True)
        deliver(host, plan(host, wanted), arrivals(wanted, source), progress=told)
    """)
    sender = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "block.json"), str(source)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with sender:
        assert sender.stdout
        for line in sender.stdout:
            if int(line) > 9 * MB:
                break
        sender.kill()
    any_host.slow(None)
    assert any_host.run(["sh", "-c", f"ls '{any_host.home}/模型 dir/{MODEL}'"]) == ""

    done = bring(host, source)

    # What had arrived, but for a second or so and an SSH window per stream.
    assert done.bytes_sent < 16 * MB - 9 * MB + 8 * MB
    assert proven_there(any_host) == 62


def test_what_stands_in_the_way_is_named_and_stays(
    bare: LabHost, connect: Connect, source: Path
) -> None:
    host = connect(bare)
    bare.write_file(f"{folder(bare)}/notes.txt", b"mine")

    with pytest.raises(Conflict, match=f"{NEW} is a folder that crossgap did not make"):
        bring(host, source)

    assert bare.run(["ls", "-A", folder(bare)]) == "notes.txt\n"


def test_a_disk_without_room_is_found_before_anything_is_sent(
    any_host: LabHost, connect: Connect, source: Path
) -> None:
    host = connect(any_host)
    host.run(["true"], timeout=20)
    any_host.fill_disk(6 * MB)
    before = any_host.bytes_received()

    with pytest.raises(DiskFull, match=r"needs 16\.\d MB but .* free"):
        bring(host, source)

    assert any_host.bytes_received() - before < MB
    assert "模型 dir" not in any_host.run(["ls", "-A", any_host.home])


def test_a_disk_that_fills_up_on_the_way_keeps_what_is_proven(
    any_host: LabHost, connect: Connect, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.models.delivery.STREAMS", 1)
    any_host.slow(40)
    host = connect(any_host)
    whole = revision(source)
    wanted = replace(whole, files=tuple(file for file in whole.files if file.size > MB))
    filled: list[int] = []

    def fill_once(arrived: int, _: int) -> None:
        if arrived > 9 * MB and not filled:
            filled.append(arrived)
            any_host.fill_disk(0)

    with pytest.raises(DiskFull, match="filled up"):
        deliver(host, plan(host, wanted), arrivals(wanted, source), progress=fill_once)
    any_host.free_disk()
    any_host.slow(None)
    rest = [action.file for action in plan(host, wanted).actions if isinstance(action, Send)]

    assert filled
    assert [file.path for file in rest] == ["model-1 甲.safetensors"]
    bring(host, source)
    assert proven_there(any_host) == 62


def test_two_names_for_one_folder_are_found(
    plain: LabHost, bare: LabHost, connect: Connect, tmp_path: Path
) -> None:
    plain.run(["sh", "-c", "mkdir -p /data1/models && ln -s /data1/models /root/linked"])
    one, two, other = connect(plain), connect(plain), connect(bare)
    one._block_document_name, two._block_document_name = "gpu1", "gpu1-by-link"
    other._block_document_name = "gpu2"
    roots = {"gpu1": "/data1/models", "gpu1-by-link": "~/linked", "gpu2": "~/新 models"}

    found = shared_folders([one, two, other], roots, tmp_path)

    assert found.failures == ()
    assert set(found.results) == {
        frozenset({""}),
        frozenset({"gpu1", "gpu1-by-link"}),
        frozenset({"gpu2"}),
    }
    assert plain.run(["ls", "-A", "/data1/models"]) == ""


def test_a_folder_that_the_user_may_not_write_is_named(
    bare: LabHost, connect: Connect, source: Path
) -> None:
    host = connect(bare)
    wanted = revision(source)
    plan = plan_delivery(wanted, read_host_model(host, "/usr/lib/models", MODEL))

    with pytest.raises(PermissionRefused, match="may not write to /usr/lib/models") as caught:
        deliver(host, plan, arrivals(wanted, source))

    assert "models_dir" in caught.value.remedy
    (failure,) = shared_folders([host], {host.name: "/usr/lib/models"}).failures
    assert isinstance(failure, PermissionRefused)
