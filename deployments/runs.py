"""Flow runs as an operator has them: started by Prefect's command line, read back by its API."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from blocks.errors import CommandFailed, NotFound
from deployments.server import ROOT, PrivateServer, prefect_command

_RUN_ID = re.compile(r"UUID: ([0-9a-f-]{36})")


@dataclass(frozen=True)
class WatchedRun:
    """A flow run that `prefect deployment run --watch` has seen to its end.

    Args:
        id: The flow run's id.
        exit_code: Of the command: 0 when the run completed.
        output: All it printed.
    """

    id: UUID
    exit_code: int
    output: str


def run_deployment(
    server: PrivateServer,
    deployment: str,
    parameters: Mapping[str, Any],
    *,
    on_line: Callable[[str], None] | None = None,
    timeout: int = 900,
) -> WatchedRun:
    """Start a deployment with `prefect deployment run … --watch` and wait for its end.

    Args:
        server: Where the deployment is registered.
        deployment: `FLOW/DEPLOYMENT`.
        parameters: The flow's parameters.
        on_line: Is given each line of output when it is printed.
        timeout: Seconds after which the command stops watching and fails.

    Returns:
        The run, whether it completed or failed.

    Raises:
        CommandFailed: No run was started.
    """
    with _started(server, deployment, parameters, timeout) as command:
        lines = []
        for line in command.stdout or ():
            lines.append(line)
            if on_line:
                on_line(line.rstrip("\n"))
        exit_code = command.wait()
    output = "".join(lines)
    found = _RUN_ID.search(output)
    if not found:
        raise CommandFailed(
            f"it started no run and ended with exit code {exit_code}",
            f"prefect deployment run {deployment}",
            f"It said:\n{output.strip()}",
        )
    return WatchedRun(UUID(found[1]), exit_code, output)


@contextmanager
def _started(
    server: PrivateServer, deployment: str, parameters: Mapping[str, Any], timeout: int
) -> Iterator[subprocess.Popen[str]]:
    given = [f"--param={name}={json.dumps(value)}" for name, value in parameters.items()]
    watch = ["--watch", f"--watch-timeout={timeout}"]
    command = subprocess.Popen(
        prefect_command("deployment", "run", deployment, *given, *watch),
        cwd=ROOT,
        # Else rich folds lines at 80 columns where there is no terminal.
        env={**server.environment, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield command
    finally:
        if command.poll() is None:
            command.kill()
        command.wait()
        if command.stdout:
            command.stdout.close()


def table_rows(run_id: UUID, key: str) -> list[dict[str, Any]]:
    """Read a table artifact of a flow run; call it inside `PrivateServer.connected()`.

    Args:
        run_id: The flow run.
        key: The artifact's key, e.g. `ship-images-table`.

    Returns:
        One dictionary per row, from column title to cell.

    Raises:
        NotFound: The run left no such table.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterFlowRunId,
        ArtifactFilterKey,
    )

    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(any_=[key])
    )
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted)
    if not found:
        raise NotFound(
            f"it left no table {key!r}", f"flow run {run_id}", "Its log says why it ended early."
        )
    return list(json.loads(str(found[0].data)))


def run_seconds(run_id: UUID) -> float:
    """Return how long a flow run took; call it inside `PrivateServer.connected()`.

    Args:
        run_id: The flow run.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).total_run_time.total_seconds()
