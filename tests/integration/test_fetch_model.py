"""fetch-model against the lab's stand-in for the public hub, and local folders."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
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
from tasks.models.files import MANIFEST, OWN_FOLDER
from tasks.models.results import FetchedModel, ModelPlan
from tests.lab.hub import LabHub
from tests.lab.hub_faults import Fault

pytestmark = pytest.mark.usefixtures("prefect_api")

MODEL = "lab/tiny-chat"
SHARD = 6 << 20
MB = 1 << 20


def make_model(folder: Path, *, changed: bool = False) -> dict[str, bytes]:
    """Write the files of a model, and return them."""
    noise = {
        f"model-0000{number}-of-00002.safetensors": os.urandom(SHARD + number) for number in (1, 2)
    }
    files = {
        "config.json": b'{"model_type": "qwen2"}',
        "tokenizer.json": '{"词": 1}'.encode(),
        "说明/README 中文.md": "你好".encode(),
        "empty.txt": b"",
        **noise,
    }
    if changed:
        files["config.json"] = b'{"model_type": "qwen3"}'
    write(folder, files)
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


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


def save_hub(*urls: str, **fields: Any) -> str:
    endpoints = [HubEndpoint(url=url) for url in urls]
    ModelHub(endpoints=endpoints, **fields).save("lab-hub", overwrite=True)
    return "lab-hub"


def fetch(root: Path, model: str = MODEL, **parameters: Any) -> FetchedModel:
    result = fetch_model(model, hub="lab-hub", destination=str(root), **parameters)
    assert isinstance(result, FetchedModel)
    return result


def failure(root: Path, model: str = MODEL, **parameters: Any) -> str:
    with pytest.raises(SeveralFailures) as raised:
        fetch(root, model, **parameters)
    return str(raised.value)


def summary() -> str:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["fetch-model-summary"]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=wanted, sort=ArtifactSort.UPDATED_DESC, limit=1
        )
    return str(found[0].data)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def check_manifest(folder: Path) -> None:
    subprocess.run(["sha256sum", "-c", "--quiet", "--strict", MANIFEST], cwd=folder, check=True)


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

    pruned = fetch(tmp_path / "models", prune_revisions=True)
    assert not Path(old.path).exists()
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
