"""fetch-model onto real hosts: while the model comes, and on their bad days."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.models.hub.hub import Hub
from tests.integration.conftest import Block
from tests.integration.fetching import (
    MB,
    MODEL,
    check_manifest,
    contents,
    failure,
    fetch,
    make_model,
    save_hub,
)
from tests.lab import LabHost
from tests.lab.hub import LabHub
from tests.lab.hub_faults import Fault

pytestmark = pytest.mark.usefixtures("prefect_api")

SHARDS = 3
SIZE = SHARDS * 6 * MB


@pytest.fixture
def hub() -> Iterator[LabHub]:
    with LabHub() as running:
        save_hub(running.url)
        yield running


@pytest.fixture
def content(tmp_path: Path, hub: LabHub) -> dict[str, bytes]:
    files = make_model(tmp_path / "origin", shards=SHARDS)
    hub.add(MODEL, tmp_path / "origin")
    return files


class Received:
    """What a host has received since this was made."""

    def __init__(self, host: LabHost) -> None:
        self._host = host
        self._before = host.bytes_received()

    def __call__(self) -> int:
        return self._host.bytes_received() - self._before


def wait_for(look: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


def check_host(host: LabHost, commit: str, content: dict[str, bytes]) -> None:
    """See that all of the model is there, proven by the host itself."""
    folder = f"{host.home}/models/{MODEL}"
    host.run(["sh", "-c", f"cd {folder}/{commit} && sha256sum --strict -c SHA256SUMS"])
    assert contents(host.path(f"{folder}/{commit}")) == content
    assert host.run(["readlink", f"{folder}/current"]).strip() == commit


def test_a_file_that_is_here_travels_on_while_others_still_come(
    tmp_path: Path,
    hub: LabHub,
    content: dict[str, bytes],
    bare: LabHost,
    block: Block,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = Hub.of
    monkeypatch.setattr(Hub, "of", lambda block: of(block, stall_seconds=1))
    held_up = Fault("stall", path="/cdn/.*00001")
    hub.faults.append(held_up)
    received = Received(bare)

    def let_go() -> int:
        wait_for(lambda: received() > 2 * SIZE // SHARDS)
        sent = hub.sent_by_file[f"{MODEL}/model-00001-of-00003.safetensors"]
        hub.faults.remove(held_up)
        return sent

    with ThreadPoolExecutor() as pool:
        sent = pool.submit(let_go)
        result = fetch(tmp_path / "models", hosts=[block(bare)])

    assert sent.result() == 0
    assert contents(Path(result.path)) == content
    assert result.bytes_delivered == sum(map(len, content.values()))
    check_host(bare, result.commit, content)


def test_a_host_out_of_reach_is_named_and_the_other_one_is_served(
    tmp_path: Path,
    content: dict[str, bytes],
    bare: LabHost,
    plain2: LabHost,
    block: Block,
) -> None:
    away = block(plain2, connect_timeout=2)
    plain2.cut()

    said = failure(tmp_path / "models", hosts=[away, block(bare)])

    assert away in said
    assert "bare" not in said
    folder = (tmp_path / "models" / MODEL / "current").resolve()
    assert contents(folder) == content
    check_manifest(folder)
    check_host(bare, folder.name, content)


def test_two_blocks_for_one_host_bring_it_there_once(
    tmp_path: Path, content: dict[str, bytes], plain: LabHost, block: Block
) -> None:
    received = Received(plain)

    result = fetch(tmp_path / "models", hosts=[block(plain, "one"), block(plain, "other")])

    check_host(plain, result.commit, content)
    assert result.bytes_delivered == sum(map(len, content.values()))
    assert received() < 1.5 * SIZE


def test_a_disk_that_is_too_small_is_named_before_the_first_byte(
    tmp_path: Path, hub: LabHub, content: dict[str, bytes], bare: LabHost, block: Block
) -> None:
    name = block(bare)
    bare.fill_disk(6 * MB)
    received = Received(bare)
    sent: list[int] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "needs 18.9 MB but" in record.getMessage():
                sent.append(hub.sent)

    listener = Listener()
    logging.getLogger("prefect.flow_runs").addHandler(listener)
    try:
        said = failure(tmp_path / "models", hosts=[name])
    finally:
        logging.getLogger("prefect.flow_runs").removeHandler(listener)

    assert name in said
    assert "needs 18.9 MB but" in said
    # One byte showed who gives them.
    assert sent[0] <= 1
    assert received() < MB
    bare.free_disk()
    result = fetch(tmp_path / "models", hosts=[name])
    assert result.bytes_fetched == 0
    check_host(bare, result.commit, content)


def test_a_link_that_is_cut_on_the_way_is_waited_out(
    tmp_path: Path, content: dict[str, bytes], bare: LabHost, block: Block
) -> None:
    bare.slow(60)
    received = Received(bare)

    def cut() -> None:
        wait_for(lambda: received() > SIZE // 2)
        bare.cut()
        time.sleep(3)
        bare.slow(None)
        bare.mend()

    with ThreadPoolExecutor() as pool:
        cutting = pool.submit(cut)
        result = fetch(tmp_path / "models", hosts=[block(bare)])

    cutting.result()
    check_host(bare, result.commit, content)
    # Each stream loses what was on its way.
    assert received() < SIZE * 1.05 + 8 * MB
