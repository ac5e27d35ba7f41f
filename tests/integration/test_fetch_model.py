"""fetch-model against the lab's stand-in for the public hub, and local folders."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from pydantic import SecretStr

from blocks.errors import SeveralFailures
from blocks.local_host import LocalHost
from blocks.model_hub import HubEndpoint, ModelHub
from flows.fetch_model import fetch_model
from tasks.models import places, steps
from tasks.models.files import OWN_FOLDER
from tasks.models.hub.hub import Hub
from tasks.models.results import FetchedModel, ModelPlan
from tasks.transfer import turns
from tests.integration.fetching import (
    MB,
    MODEL,
    SHARD,
    check_manifest,
    contents,
    failure,
    fetch,
    make_model,
    save_hub,
    write,
)
from tests.lab.hub import LabHub
from tests.lab.hub_faults import Fault
from tests.lab.registry import LabAuthority

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less between two tries."""
    monkeypatch.setattr("tasks.transfer.turns._FIRST_WAIT", 0.05)


@pytest.fixture
def hub() -> Iterator[LabHub]:
    with LabHub() as running:
        yield running


@pytest.fixture
def content(tmp_path: Path, hub: LabHub) -> dict[str, bytes]:
    """A model on the hub, and its files."""
    files = make_model(tmp_path / "origin")
    hub.add(MODEL, tmp_path / "origin")
    return files


@pytest.fixture(autouse=True)
def block(hub: LabHub) -> str:
    return save_hub(hub.url)


def summary() -> str:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["fetch-model-summary"]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=wanted, sort=ArtifactSort.UPDATED_DESC, limit=1
        )
    return str(found[0].data)


def test_a_model_arrives_whole_with_a_manifest_and_a_link(
    tmp_path: Path, content: dict[str, bytes]
) -> None:
    result = fetch(tmp_path / "models")
    folder = tmp_path / "models" / MODEL / result.commit
    assert result.path == str(folder)
    assert contents(folder) == content
    check_manifest(folder)
    assert (folder.parent / "current").readlink() == Path(result.commit)
    assert result.files == len(content)
    assert result.bytes_fetched == sum(map(len, content.values()))
    text = summary()
    assert "vllm serve" in text
    assert "compared with what the hub promises" in text


def test_a_second_run_fetches_nothing_and_says_so(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    fetch(tmp_path / "models")
    before = hub.sent
    result = fetch(tmp_path / "models")
    assert result.bytes_fetched == 0
    assert hub.sent == before
    assert "were here already, and are proven" in summary()
    assert content


def test_a_file_that_was_changed_here_is_fetched_again_and_only_that(
    tmp_path: Path, content: dict[str, bytes]
) -> None:
    folder = Path(fetch(tmp_path / "models").path)
    damaged = folder / "model-00001-of-00002.safetensors"
    with damaged.open("r+b") as file:
        file.write(b"damage")
    touched = folder / "model-00002-of-00002.safetensors"
    os.utime(touched)
    result = fetch(tmp_path / "models")
    assert contents(folder) == content
    assert result.bytes_fetched == len(content[damaged.name])
    check_manifest(folder)


def test_a_new_revision_moves_only_what_changed_and_links_the_rest(
    tmp_path: Path, hub: LabHub, content: dict[str, bytes]
) -> None:
    old = fetch(tmp_path / "models")
    write(tmp_path / "origin", {"config.json": b'{"new": true}'})
    hub.add(MODEL, tmp_path / "origin")
    new = fetch(tmp_path / "models")
    assert new.commit != old.commit
    assert new.bytes_fetched == len(b'{"new": true}')
    name = "model-00001-of-00002.safetensors"
    assert (Path(new.path) / name).samefile(Path(old.path) / name)
    assert (Path(new.path) / "tokenizer.json").samefile(Path(old.path) / "tokenizer.json")
    assert contents(Path(new.path)) == {**content, "config.json": b'{"new": true}'}
    assert (Path(new.path).parent / "current").resolve() == Path(new.path)
    assert "old revisions are there" in summary()

    unfinished = tmp_path / "models" / MODEL / OWN_FOLDER / "parts" / "sha256-of-an-older-one"
    unfinished.write_bytes(b"half")
    pruned = fetch(tmp_path / "models", prune_revisions=True)
    assert not Path(old.path).exists()
    assert not unfinished.exists()
    assert contents(Path(pruned.path)) == {**content, "config.json": b'{"new": true}'}


def test_a_dry_run_shows_the_plan_and_makes_nothing(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    plan = fetch_model(MODEL, hub="lab-hub", destination=str(tmp_path / "models"), dry_run=True)
    assert isinstance(plan, ModelPlan)
    assert plan.size == sum(map(len, content.values()))
    assert [(row.what, row.files) for row in plan.movements] == [("to be brought", len(content))]
    assert not (tmp_path / "models").exists()
    assert hub.sent <= 1


def test_only_chosen_files_come_and_others_are_added_later(
    tmp_path: Path, content: dict[str, bytes]
) -> None:
    first = fetch(tmp_path / "models", include=["*.json"])
    assert sorted(contents(Path(first.path))) == ["config.json", "tokenizer.json"]
    whole = fetch(tmp_path / "models", exclude=["empty.txt"])
    assert whole.path == first.path
    assert sorted(contents(Path(whole.path))) == sorted(set(content) - {"empty.txt"})
    check_manifest(Path(whole.path))


def test_without_a_hub_what_was_proven_before_is_delivered(
    tmp_path: Path, content: dict[str, bytes]
) -> None:
    here = fetch(tmp_path / "models")
    save_hub("http://127.0.0.1:9")
    LocalHost(models_dir=str(tmp_path / "far")).save("far-host", overwrite=True)
    result = fetch(tmp_path / "models", hosts=["far-host"])
    assert result.commit == here.commit
    assert contents(tmp_path / "far" / MODEL / here.commit) == content
    assert "No hub is within reach" in summary()


def test_without_a_hub_what_is_not_here_is_an_error(tmp_path: Path) -> None:
    save_hub("http://127.0.0.1:9")
    assert "nothing listens there" in failure(tmp_path / "models")


def test_a_model_goes_to_a_host_while_it_comes(tmp_path: Path, content: dict[str, bytes]) -> None:
    LocalHost(models_dir=str(tmp_path / "far 远")).save("far-host", overwrite=True)
    result = fetch(tmp_path / "models", hosts=["far-host"])
    folder = tmp_path / "far 远" / MODEL / result.commit
    assert contents(folder) == content
    check_manifest(folder)
    assert result.bytes_delivered == sum(map(len, content.values()))
    again = fetch(tmp_path / "models", hosts=["far-host"])
    assert (again.bytes_fetched, again.bytes_delivered) == (0, 0)


def test_a_host_that_sees_this_machines_folder_is_sent_nothing(
    tmp_path: Path, content: dict[str, bytes]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "nfs").symlink_to(tmp_path / "models")
    LocalHost(models_dir=str(tmp_path / "nfs")).save("nfs-host", overwrite=True)
    result = fetch(tmp_path / "models", hosts=["nfs-host"])
    assert result.bytes_delivered == 0
    assert contents(tmp_path / "nfs" / MODEL / result.commit) == content
    assert "sees this machine's folder" in summary()
    assert [path.name for path in (tmp_path / "models").iterdir()] == [MODEL.partition("/")[0]]


def test_a_folder_is_hashed_and_delivered_as_it_is(tmp_path: Path) -> None:
    files = make_model(tmp_path / "my 模型")
    LocalHost(models_dir=str(tmp_path / "far")).save("far-host", overwrite=True)
    result = fetch(tmp_path / "unused", str(tmp_path / "my 模型"), hosts=["far-host"])
    assert not result.compared
    folder = tmp_path / "far" / "local" / "my 模型" / result.commit
    assert contents(folder) == files
    check_manifest(folder)
    check_manifest(tmp_path / "my 模型")
    assert "not compared with any hub" in summary()
    assert not (tmp_path / "unused").exists()


def test_a_folder_on_a_host_is_hashed_in_its_place(tmp_path: Path) -> None:
    files = make_model(tmp_path / "its 模型")
    LocalHost().save("its-host", overwrite=True)
    result = fetch(tmp_path / "unused", f"its-host:{tmp_path}/its 模型")
    assert not result.compared
    assert result.path == f"{tmp_path}/its 模型"
    assert result.files == len(files)
    check_manifest(tmp_path / "its 模型")
    assert not (tmp_path / "unused").exists()
    assert "not compared with any hub" in summary()


def test_a_folder_on_a_host_goes_to_another_through_here(tmp_path: Path) -> None:
    files = make_model(tmp_path / "its")
    LocalHost().save("its-host", overwrite=True)
    LocalHost(models_dir=str(tmp_path / "far")).save("far-host", overwrite=True)
    model = f"its-host:{tmp_path}/its"
    result = fetch(tmp_path / "models", model, hosts=["far-host"])
    for root in ("models", "far"):
        assert contents(tmp_path / root / "local" / "its" / result.commit) == files
        check_manifest(tmp_path / root / "local" / "its" / result.commit)
    again = fetch(tmp_path / "models", model, hosts=["far-host"])
    assert (again.bytes_fetched, again.bytes_delivered) == (0, 0)
    assert "no such folder on that host" in failure(tmp_path, f"its-host:{tmp_path}/nothing")


def test_an_unfinished_download_in_a_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "mine", {"a.safetensors": b"1", "a.safetensors.aria2": b"2"})
    assert "a download that has not ended" in failure(tmp_path / "m", str(tmp_path / "mine"))


def test_two_runs_at_once_fetch_it_once(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    hub.rate = 4e6
    results: list[FetchedModel] = []

    def run() -> None:
        results.append(fetch(tmp_path / "models"))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    total = sum(map(len, content.values()))
    assert sorted(result.bytes_fetched for result in results) == [0, total]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", path="safetensors", after=MB, times=3),
        Fault("cut", path="safetensors", after=2 * MB, times=3),
        Fault("status", path="safetensors", status=503, times=2),
        Fault("status", path="safetensors", status=429, headers={"Retry-After": "1"}, times=3),
        Fault("page", path="safetensors", times=2),
        Fault("ignore-range", path="safetensors"),
        Fault("content-range", path="safetensors", times=2),
        Fault("content-length", path="tokenizer", times=1),
        Fault("flip", path="safetensors", after=5 * MB, times=1),
        Fault("flip", path="config", after=3, times=1),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.path.strip('/')}",
)
def test_a_bad_day_of_the_mirror_is_survived(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub, fault: Fault
) -> None:
    hub.faults.append(fault)
    result = fetch(tmp_path / "models")
    assert contents(Path(result.path)) == content
    check_manifest(Path(result.path))


def test_links_that_expire_are_asked_for_anew(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    hub.link_uses = 1
    result = fetch(tmp_path / "models")
    assert contents(Path(result.path)) == content
    assert len(hub.asked("resolve/.*00001")) > 1


def test_wrong_bytes_of_one_mirror_come_from_the_next(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    hub.faults.append(Fault("flip", path="00001", after=MB))
    with LabHub() as other:
        other.add(MODEL, tmp_path / "origin")
        save_hub(hub.url, other.url)
        result = fetch(tmp_path / "models")
    assert contents(Path(result.path)) == content
    assert other.sent_by_file[f"{MODEL}/model-00001-of-00002.safetensors"] >= SHARD
    assert "had to be asked again" in summary()


def test_modelscope_gives_bytes_but_not_the_word(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    with LabHub() as scope:
        files = dict(content)
        files["config.json"] = b"something else, of its own"
        write(tmp_path / "scope", files)
        scope.add(MODEL, tmp_path / "scope")
        endpoints = [
            HubEndpoint(url=scope.url, kind="modelscope"),
            HubEndpoint(url=hub.url),
        ]
        ModelHub(endpoints=endpoints).save("lab-hub", overwrite=True)
        result = fetch(tmp_path / "models")
    assert contents(Path(result.path)) == content
    assert scope.sent >= 2 * SHARD


@pytest.mark.parametrize(
    ("model", "parameters", "said"),
    [
        ("lab/unknown", {}, "lab/unknown"),
        (MODEL, {"revision": "mian"}, "It has main"),
        ("lab / chat", {}, "no name of a model"),
        (MODEL, {"include": ["*.gguf"]}, "none of its 6 files fits"),
        (MODEL, {"destination": "/proc/nothing"}, "/proc/nothing"),
    ],
)
def test_what_cannot_be_is_said_clearly(
    tmp_path: Path, content: dict[str, bytes], model: str, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(SeveralFailures) as raised:
        fetch_model(model, hub="lab-hub", **{"destination": str(tmp_path / "m"), **parameters})
    assert said in str(raised.value)
    assert content


def test_a_gated_model_wants_a_token_and_takes_the_right_one(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    hub.add(MODEL, tmp_path / "origin", gated=True)
    hub.tokens["hf_right"] = {MODEL}
    hub.tokens["hf_other"] = set()
    assert "token" in failure(tmp_path / "models")
    save_hub(hub.url, token=SecretStr("hf_other"))
    assert "access" in failure(tmp_path / "models")
    save_hub(hub.url, token=SecretStr("hf_right"))
    assert contents(Path(fetch(tmp_path / "models").path)) == content
    assert "hf_right" not in summary()


def test_something_else_in_the_way_is_left_alone(tmp_path: Path, content: dict[str, bytes]) -> None:
    commit = fetch_model(
        MODEL, hub="lab-hub", destination=str(tmp_path / "models"), dry_run=True
    ).commit
    foreign = tmp_path / "models" / MODEL / commit
    write(foreign, {"precious.txt": b"mine"})
    assert "did not make" in failure(tmp_path / "models")
    assert contents(foreign) == {"precious.txt": b"mine"}
    assert content


def test_a_run_that_fails_leaves_nothing_in_view_and_goes_on_later(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    fault = Fault("status", path="00001", status=404)
    hub.faults.append(fault)
    failure(tmp_path / "models")
    assert [path.name for path in (tmp_path / "models" / MODEL).iterdir()] == [OWN_FOLDER]
    hub.faults.remove(fault)
    result = fetch(tmp_path / "models")
    assert contents(Path(result.path)) == content
    assert result.bytes_fetched == len(content["model-00001-of-00002.safetensors"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is waited for in minutes waited for in moments."""
    of = Hub.of
    monkeypatch.setattr(Hub, "of", lambda block: of(block, stall_seconds=1))
    monkeypatch.setattr(places, "_TRICKLE_SECONDS", 1.0)
    monkeypatch.setattr(turns, "_FIRST_WAIT", 0.1)
    monkeypatch.setattr(steps.check_way, "retries", 0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("stall", path="/cdn/", after=MB, times=4), "it sent nothing for 1 s"),
        (Fault("trickle", path="/cdn/", after=MB, times=4), "it gave only"),
        (Fault("stall", path="/resolve/.*json", after=-1, times=2), "it sent nothing for 1 s"),
    ],
    ids=["stall", "trickle", "no-answer"],
)
def test_a_connection_that_goes_silent_is_given_up(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub, fault: Fault, said: str
) -> None:
    hub.faults.append(fault)
    result = fetch(tmp_path / "models")
    assert contents(Path(result.path)) == content
    assert said in summary()


@pytest.mark.usefixtures("impatient")
def test_a_mirror_that_sends_on_to_a_host_out_of_reach_is_found_out_at_once(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    hub.faults.append(Fault("redirect", path="/resolve/.*safetensors"))
    said = failure(tmp_path / "models")
    assert f"from {hub.url.partition('://')[2]}, which sends on to elsewhere.invalid" in said
    assert "have that host opened in the firewall" in said
    assert hub.sent == 0
    assert content


def test_a_file_list_of_several_pages_comes_from_the_mirror_alone(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    hub.page_size = 2
    fault = Fault("next-page", path="/tree/", times=2)
    hub.faults.append(fault)
    result = fetch(tmp_path / "models")
    assert contents(Path(result.path)) == content
    assert fault.times == 0


def test_a_certificate_of_the_sites_own_is_trusted_once_it_is_named(tmp_path: Path) -> None:
    authority = LabAuthority(tmp_path)
    files = make_model(tmp_path / "origin")
    with LabHub(authority=authority, cdn=True) as hub:
        hub.add(MODEL, tmp_path / "origin")
        save_hub(hub.url)
        said = failure(tmp_path / "models")
        assert "its certificate is not trusted" in said
        assert "ca_bundle" in said
        assert hub.seen == []
        save_hub(hub.url, ca_bundle=str(authority.bundle))
        result = fetch(tmp_path / "models")
    assert contents(Path(result.path)) == files


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"path": "../../evil.py", "size": 4, "oid": "0" * 40}, "leads out of the folder"),
        ({"path": "/etc/cron.d/evil", "size": 4, "oid": "0" * 40}, "leads out of the folder"),
        ({"path": "weights.bin", "oid": "0" * 40}, "without size or hash"),
        ({"path": "weights.bin", "size": 4}, "without size or hash"),
    ],
    ids=["above", "absolute", "no-size", "no-hash"],
)
def test_a_file_list_that_cannot_be_trusted_is_refused(
    tmp_path: Path, content: dict[str, bytes], hub: LabHub, entry: dict[str, Any], said: str
) -> None:
    def rewrite(path: str, document: Any) -> Any:
        return [*document, {"type": "file", **entry}] if "/tree/" in path else document

    hub.rewrite = rewrite
    assert said in failure(tmp_path / "models", exclude=["weights.bin"])
    assert hub.sent == 0
    assert content


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("no disk can be mounted")
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk that others may be writing to, and return the file that does."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while (room := os.statvfs(disk)).f_bavail * room.f_frsize > leave:
            with suppress(OSError):
                file.write(bytes(min(MB, room.f_bavail * room.f_frsize - leave)))
    return ballast


def test_a_disk_here_that_is_too_small_is_found_out_before_the_first_byte(
    small_disk: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    fill(small_disk, 8 * MB)
    assert f"needs 12.6 MB but {small_disk} has" in failure(small_disk / "models")
    assert hub.sent == 0
    assert content


def test_a_disk_here_that_fills_up_costs_nothing_that_had_arrived(
    small_disk: Path, content: dict[str, bytes], hub: LabHub
) -> None:
    save_hub(hub.url, connections_per_file=2)
    hub.rate = 2e6

    def fill_on_the_way() -> Path:
        while hub.sent < 7 * MB:
            time.sleep(0.01)
        return fill(small_disk, 0)

    with ThreadPoolExecutor() as pool:
        filling = pool.submit(fill_on_the_way)
        said = failure(small_disk / "models")
    assert "the disk here filled up" in said
    assert [path.name for path in (small_disk / "models" / MODEL).iterdir()] == [OWN_FOLDER]
    filling.result().unlink()
    hub.rate = None
    # Room for what is missing, but not for all of it.
    fill(small_disk, 8 * MB)
    result = fetch(small_disk / "models")
    assert contents(Path(result.path)) == content
    assert hub.sent < 2 * SHARD + 4 * MB
