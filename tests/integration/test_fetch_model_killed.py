"""fetch-model, killed without warning at the worst moments, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.settings import get_current_settings

from blocks.hosts import load_host
from tasks.common.host_limit import limit_name
from tasks.models.files import OWN_FOLDER
from tasks.models.part_file import BLOCK
from tests.integration.conftest import Block
from tests.integration.fetching import (
    MB,
    MODEL,
    check_manifest,
    contents,
    fetch,
    make_model,
    save_hub,
)
from tests.lab import LabHost
from tests.lab.hub import LabHub
from tests.lab.hub_faults import Fault

pytestmark = pytest.mark.usefixtures("prefect_api")

SIZE = 24 * MB
CONNECTIONS = 8
# The run, in a process of its own; the first argument names what it never comes back from.
RUN = textwrap.dedent("""
    import importlib, sys, time
    from pathlib import Path
    from tests.integration.fetching import fetch

    held, reached, root, *hosts = sys.argv[1:]
    if held:
        module, owner, name = held.split(":")
        def hold(*_, **__):
            Path(reached).touch()
            time.sleep(600)
        setattr(getattr(importlib.import_module(module), owner), name, hold)
    fetch(Path(root), hosts=hosts)
""")
# Stands in for mv, which brings a folder into view; it ends with the run, though killed apart.
HOLD = """#!/bin/sh
case "$*" in *incoming*)
    : >"{reached}"
    until [ -e "{reached}.over" ]; do sleep 0.05; done
    exit 1 ;;
esac
exec /bin/mv "$@"
"""


class Case:
    """A model of one large file on a hub, and a run that fetches it.

    Attributes:
        hub: The hub.
        content: The model's files.
        root: The folder of models.
        reached: Is there once a run has come to where it is held.
    """

    def __init__(self, hub: LabHub, folder: Path) -> None:
        self.hub = hub
        self.root = folder / "models"
        self.reached = folder / "reached"
        self.content = make_model(folder / "origin", shard=SIZE, shards=1)
        self.size = sum(map(len, self.content.values()))
        self._folder = folder
        hub.add(MODEL, folder / "origin")
        save_hub(hub.url, connections_per_file=CONNECTIONS)

    @contextmanager
    def running(self, held: str = "", host: str = "") -> Iterator[None]:
        """Run while the body does, then kill all that the run has started."""
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        path = f"{self._folder}:{os.environ['PATH']}"
        hosts = [host] if host else []
        command = [sys.executable, "-c", RUN, held, str(self.reached), str(self.root), *hosts]
        run = subprocess.Popen(
            command, env={**os.environ, **settings, "PATH": path}, start_new_session=True
        )
        try:
            yield
            assert run.poll() is None, "it ended before it could be killed"
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            Path(f"{self.reached}.over").touch()

    def hold_mv(self) -> None:
        """Have the run held when it brings the folder into view."""
        stand_in = self._folder / "mv"
        stand_in.write_text(HOLD.format(reached=self.reached))
        stand_in.chmod(0o755)

    def check(self) -> None:
        """Start the run again, and see that all is right and next to nothing came twice."""
        assert [path.name for path in (self.root / MODEL).iterdir()] == [OWN_FOLDER]
        self.hub.faults.clear()
        self.hub.rate = None
        result = fetch(self.root)
        folder = Path(result.path)
        assert contents(folder) == self.content
        check_manifest(folder)
        assert self.hub.sent - self.size <= max(self.size // 50, CONNECTIONS * BLOCK)


def wait_for(look: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with LabHub() as hub:
        yield Case(hub, tmp_path)


def test_before_the_first_byte(case: Case) -> None:
    case.hub.faults.append(Fault("stall", path="/cdn/", after=-1))
    with case.running():
        wait_for(lambda: case.hub.asked("/cdn/"))
    assert case.hub.sent == 0
    case.check()


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_while_a_file_comes_over_several_connections(case: Case, share: float) -> None:
    case.hub.rate = 3e6
    with case.running():
        wait_for(lambda: case.hub.sent > share * case.size)
    assert case.hub.most_connections >= CONNECTIONS
    assert case.hub.sent < case.size
    case.check()


def test_when_all_is_there_and_not_yet_proven(case: Case) -> None:
    with case.running("tasks.models.part_file:PartFile:become"):
        wait_for(case.reached.exists)
    assert case.hub.sent >= SIZE
    case.check()


def test_when_it_comes_into_view(case: Case) -> None:
    case.hold_mv()
    with case.running():
        wait_for(case.reached.exists)
    case.check()


def test_while_it_is_delivered(case: Case, plain: LabHost, block: Block) -> None:
    name = block(plain)
    plain.slow(60)
    before = plain.bytes_received()
    with case.running(host=name):
        wait_for(lambda: plain.bytes_received() - before > SIZE // 2)
    there = f"{plain.home}/models/{MODEL}"
    assert plain.run(["ls", there]) == ""
    plain.slow(None)
    # As the run that waits for the limit of a dead one says; it would be free in a minute.
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(
            limit_name(load_host(name).lock_name), GlobalConcurrencyLimitUpdate(active_slots=0)
        )

    result = fetch(case.root, hosts=[name])

    assert contents(Path(result.path)) == case.content
    assert case.hub.sent <= case.size + 2
    # What had arrived, but for a second or so and what SSH had on its way.
    assert result.bytes_delivered < case.size // 2 + 8 * MB
    plain.run(["sh", "-c", f"cd {there}/{result.commit} && sha256sum --strict -c SHA256SUMS"])
    assert contents(plain.path(f"{there}/{result.commit}")) == case.content
