"""ship-images as operators run it: deployed, by a worker, through bad days."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment as start_run
from prefect.states import Cancelling

from blocks.ssh_host import SSHHost
from deployments.runs import run_deployment, table_rows
from deployments.server import PrivateServer
from tests.e2e.held_engine import HeldEngine
from tests.lab import ImageShelf, ImageSpec, LabHost, LayerSpec

MB = 1_000_000
DEPLOYMENT = "ship-images/manual"
BASE = LayerSpec({"base": 4 * MB}, seed=7)
_SEEDS = count(100)

# On a host, holds up a command from when /tmp/hold is there until it is gone.
HOLD = """\
#!/bin/sh
case "$*" in {arguments}) if [ -e /tmp/hold ]; then
    : >>/tmp/reached
    while [ -e /tmp/hold ]; do sleep 0.1; done
fi ;; esac
exec /usr/bin/{program} "$@"
"""
# The most that the next run sends again of what one stream had on its way.
SENT_AGAIN = 8 << 20
HELD_UP = {"verifying": ("docker", "'image inspect'*"), "cleaning": ("rmdir", "*/staging")}

T = TypeVar("T")


@pytest.fixture(scope="module")
def source(engine: str) -> Iterator[HeldEngine]:
    """The source engine, whose answers can be held up."""
    # The path of a socket may have no more than 107 bytes.
    with (
        TemporaryDirectory(prefix="held-") as folder,
        HeldEngine(engine, Path(folder) / "docker.sock") as held,
    ):
        yield held


@pytest.fixture(scope="module")
def worker(
    server: PrivateServer, source: HeldEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrivateServer]:
    """A worker beside the source engine, with a store of its own."""
    store = tmp_path_factory.mktemp("store")
    # The engine has to save, as some of these runs are to be killed meanwhile.
    settings = {"CROSSGAP_STORE": str(store), "CROSSGAP_DOCKER_FILES": "no"}
    server.start_worker({"DOCKER_HOST": source.url, **settings})
    yield server
    server.stop_worker()


@pytest.fixture
def block(client: SyncPrefectClient) -> Callable[..., str]:
    """Save a block for a host of the lab and return its name."""

    def save(host: LabHost, name: str = "") -> str:
        name = name or f"e2e-{host.name}"
        SSHHost(**host.block_fields()).save(name, overwrite=True)
        return name

    return save


@pytest.fixture
def large(images: ImageShelf) -> str:
    """An image of 40 MB that no test before had."""
    spec = _large("lab/large:1")
    images.make_all([spec])
    return spec.name


def start(image: str, *hosts: str) -> FlowRun:
    run = start_run(DEPLOYMENT, parameters={"images": [image], "hosts": list(hosts)}, timeout=0)
    assert isinstance(run, FlowRun)
    return run


def ended(client: SyncPrefectClient, run_id: UUID, seconds: float = 240) -> FlowRun:
    def finished() -> FlowRun | None:
        run = client.read_flow_run(run_id)
        return run if run.state and run.state.is_final() else None

    return wait_for(finished, seconds)


def wait_for(look: Callable[[], T | None], seconds: float = 60) -> T:
    """Return what `look` finds, as soon as it finds something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"it did not come to be within {seconds} s")


def logs_of(client: SyncPrefectClient, run_id: UUID) -> str:
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    return "\n".join(log.message for log in client.read_logs(wanted, limit=200))


def artifacts_of(client: SyncPrefectClient, run_id: UUID) -> dict[str, Any]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    return {str(item.key): item.data for item in client.read_artifacts(artifact_filter=wanted)}


def images_on(host: LabHost) -> set[str]:
    return set(host.run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"]).split())


def staged_on(host: LabHost) -> list[str]:
    found = host.run(
        ["sh", "-c", f"find {host.home}/.crossgap/staging -type f 2>/dev/null || true"]
    )
    return [Path(path).name for path in found.split()]


def working_on(host: LabHost) -> list[str]:
    return [
        line
        for _, line in host.processes()
        if "docker load" in line or ".part" in line or "docker-untar" in line
    ]


def assert_not_sent_twice(host: LabHost, before: int) -> None:
    """See that a host received the large image once, whatever happened on the way."""
    # On the wire: the headers of TCP and SSH, and what was on its way.
    assert host.bytes_received() - before < 41 * MB * 1.05 + SENT_AGAIN


def process_of(run_id: UUID) -> int:
    """Return the pid of the process that executes a flow run."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in environment and b"python" in command:
                return int(folder.name)
    raise AssertionError(f"no process executes {run_id}")


def test_a_run_from_the_command_line_leaves_its_record(
    worker: PrivateServer,
    client: SyncPrefectClient,
    block: Callable[..., str],
    plain: LabHost,
    bare: LabHost,
    images: ImageShelf,
) -> None:
    specs = [
        ImageSpec("lab/ragflow:v0.27.0", [BASE, LayerSpec({"app": 2 * MB}, seed=2)]),
        ImageSpec("lab/redis:7.2-alpine", [BASE]),
    ]
    images.make_all(specs)
    names = [spec.name for spec in specs]
    hosts = [block(plain), block(bare)]
    parameters = {"images": names, "hosts": hosts, "verify": "start"}

    first = run_deployment(worker, DEPLOYMENT, parameters)
    again = run_deployment(worker, DEPLOYMENT, parameters)

    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    rows = table_rows(first.id, "ship-images-table")
    assert {(row["image"], row["host"]) for row in rows} == {(i, h) for i in names for h in hosts}
    # The base comes with the smaller one.
    actions = {(row["image"], row["action"]) for row in rows}
    assert actions == {(names[0], "delta"), (names[1], "full")}
    assert {row["verified"] for row in rows} == {"started"}
    rows = table_rows(again.id, "ship-images-table")
    assert {(row["action"], row["bytes sent"]) for row in rows} == {("present", 0)}

    artifacts = artifacts_of(client, first.id)
    assert artifacts["ship-images-summary"].startswith("**Done: Ship 2 images to")
    for host in hosts:
        assert artifacts[f"ship-images-progress-{host}"] == 100
    assert client.read_flow_run(first.id).name == f"Ship 2 images to {', '.join(hosts)}"

    everything = first.output + logs_of(client, first.id) + str(artifacts)
    for secret in (bare.password, bare.sudo_password, plain.private_key.splitlines()[1]):
        assert secret not in everything


def test_a_failed_run_says_why_in_its_state_and_its_summary(
    worker: PrivateServer,
    client: SyncPrefectClient,
    block: Callable[..., str],
    plain: LabHost,
    plain2: LabHost,
    large: str,
) -> None:
    hosts = [block(plain), block(plain2)]
    plain2.stop_engine()

    run = run_deployment(worker, DEPLOYMENT, {"images": [large], "hosts": hosts})

    assert run.exit_code == 1
    state = client.read_flow_run(run.id).state
    assert state
    assert state.type == StateType.FAILED
    assert "the Docker engine does not answer. Start it there" in str(state.message)
    summary = artifacts_of(client, run.id)["ship-images-summary"]
    assert summary.startswith("**Failed:")
    assert "systemctl start docker" in summary
    assert large in images_on(plain)


def test_a_link_that_is_down_for_a_minute_costs_nothing_that_had_arrived(
    worker: PrivateServer,
    client: SyncPrefectClient,
    block: Callable[..., str],
    plain: LabHost,
    bare: LabHost,
    large: str,
) -> None:
    hosts = {host: block(host) for host in (plain, bare)}
    before = {host: host.bytes_received() for host in hosts}

    def cut_for_a_minute(host: LabHost) -> None:
        wait_for(lambda: host.bytes_received() - before[host] > 10 * MB)
        host.cut()
        time.sleep(60)
        host.mend()

    for host in hosts:
        host.slow(60)
    run = start(large, *hosts.values())
    with ThreadPoolExecutor() as pool:
        list(pool.map(cut_for_a_minute, hosts))
    state = ended(client, run.id).state

    assert state
    assert state.is_completed(), state.message
    for host in hosts:
        assert large in images_on(host)
        assert_not_sent_twice(host, before[host])
    log = logs_of(client, run.id)
    assert "Waiting for it up to" in log
    assert "is back after" in log


@pytest.mark.parametrize("moment", ["sending", "loading"])
def test_a_cancelled_run_leaves_nothing_at_work_and_nothing_half_made(
    worker: PrivateServer,
    client: SyncPrefectClient,
    block: Callable[..., str],
    plain: LabHost,
    bare: LabHost,
    large: str,
    moment: str,
) -> None:
    hosts = {host: block(host) for host in (plain, bare)}
    before = {host: host.bytes_received() for host in hosts}
    run = _started_until(moment, hosts, large)

    client.set_flow_run_state(run.id, Cancelling())
    state = ended(client, run.id).state

    assert state
    assert state.is_cancelled(), state.message
    for host in hosts:
        wait_for(lambda host=host: not working_on(host))  # type: ignore[misc]
        assert images_on(host) == set()
        assert host.run(["sh", "-c", "ls -A /tmp"]) == ""
        host.slow(None)
    again = ended(client, start(large, *hosts.values()).id).state
    assert again
    assert again.is_completed(), again.message
    for host in hosts:
        assert large in images_on(host)
        assert_not_sent_twice(host, before[host])
        assert staged_on(host) == []


@pytest.mark.parametrize(
    "moments",
    [
        ("verifying", "sending", "loading"),
        pytest.param(("cleaning", "saving", "loading"), marks=pytest.mark.torture),
    ],
)
def test_runs_that_were_killed_are_taken_up_by_the_next(
    worker: PrivateServer,
    source: HeldEngine,
    client: SyncPrefectClient,
    block: Callable[..., str],
    plain: LabHost,
    bare: LabHost,
    plain2: LabHost,
    images: ImageShelf,
    moments: Sequence[str],
) -> None:
    """Side by side: it takes a minute until the server gives up the locks of the dead."""
    hosts = dict(zip((plain, bare, plain2), moments, strict=True))
    specs = {host: _large(f"lab/{host.name}:1") for host in hosts}
    images.make_all(list(specs.values()))
    before = {host: host.bytes_received() for host in hosts}

    first = {}
    for host, moment in hosts.items():
        first[host] = _brought_to(moment, host, block(host), specs[host].name, source)
        os.kill(process_of(first[host].id), signal.SIGKILL)
    source.release()
    for host in hosts:
        host.slow(None)
        host.run(["rm", "-f", "/tmp/hold"])
    killed = [ended(client, run.id).state for run in first.values()]
    second = {host: start(specs[host].name, block(host)) for host in hosts}
    for host, run in second.items():
        if hosts[host] == "loading":
            # The job of the first run still runs when the second comes to it.
            wait_for(lambda run=run: _loads(client, run.id), 180)  # type: ignore[misc]
            host.run(["pkill", "-CONT", "-x", "docker"])

    assert all(state and state.is_crashed() for state in killed)
    for host, run in second.items():
        state = ended(client, run.id).state
        assert state
        assert state.is_completed(), state.message
        assert "took over the stale lock" in logs_of(client, run.id)
        assert specs[host].name in images_on(host)
        assert_not_sent_twice(host, before[host])
        assert staged_on(host) == []


def test_two_runs_with_two_blocks_for_one_machine_take_turns(
    worker: PrivateServer,
    client: SyncPrefectClient,
    block: Callable[..., str],
    plain: LabHost,
    large: str,
) -> None:
    runs = [start(large, block(plain, name)) for name in ("e2e-one", "e2e-two")]

    states = [ended(client, run.id).state for run in runs]

    assert all(state and state.is_completed() for state in states)
    actions = [table_rows(run.id, "ship-images-table")[0]["action"] for run in runs]
    assert sorted(actions) == ["full", "present"]


def _started_until(moment: str, hosts: Mapping[LabHost, str], image: str) -> FlowRun:
    """Start a run and return when all its hosts have come to a moment, and stay there."""
    before = {host: host.bytes_received() for host in hosts}

    def under_way() -> bool:
        return all(host.bytes_received() - before[host] > 15 * MB for host in hosts)

    for host in hosts:
        host.slow(60)
    run = start(image, *hosts.values())
    wait_for(under_way)
    if moment == "loading":
        for host in hosts:
            # The load is held up for as long as the test wants.
            host.run(["pkill", "-STOP", "-x", "dockerd"])
            host.slow(None)
        for host in hosts:
            wait_for(lambda host=host: "docker" in host.run(["ps", "-eo", "comm="]).split())  # type: ignore[misc]
            host.run(["pkill", "-STOP", "-x", "docker"])
            host.run(["pkill", "-CONT", "-x", "dockerd"])
    return run


def _large(name: str) -> ImageSpec:
    """Describe an image of 40 MB that no test before had."""
    return ImageSpec(name, [LayerSpec({"data": 40 * MB}, seed=next(_SEEDS))])


def _brought_to(moment: str, host: LabHost, name: str, image: str, source: HeldEngine) -> FlowRun:
    """Start a run and return when its host has come to a moment, and stays there."""
    if moment in HELD_UP:
        return _held_up(HELD_UP[moment], host, name, image)
    if moment != "saving":
        return _started_until(moment, {host: name}, image)
    source.hold()
    run = start(image, name)
    wait_for(source.reached.is_set)
    return run


def _held_up(held: tuple[str, str], host: LabHost, name: str, image: str) -> FlowRun:
    """Start a run and return when its host holds up a command of it, after the load."""
    program, arguments = held
    script = HOLD.format(program=program, arguments=arguments)
    host.write_file(f"/usr/local/bin/{program}", script.encode(), mode=0o755)
    run = _started_until("sending", {host: name}, image)
    host.write_file("/tmp/hold", b"")
    host.slow(None)
    wait_for(host.path("tmp/reached").exists)
    return run


def _loads(client: SyncPrefectClient, run_id: UUID) -> bool:
    """Whether a load task of a run is at work."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    tasks = client.read_task_runs(flow_run_filter=wanted)
    return any(
        task.name.startswith("load") and task.state and task.state.is_running() for task in tasks
    )
