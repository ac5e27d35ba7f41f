"""`make register` may be repeated at any time."""

from __future__ import annotations

import os
import subprocess
import sys

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate

from deployments.register import register
from deployments.server import ROOT, WORK_POOL, PrivateServer


def test_registering_again_changes_neither_deployments_nor_the_operators_limits(
    client: SyncPrefectClient,
):
    before = {deployment.id for deployment in client.read_deployments()}
    client.update_work_pool(WORK_POOL, WorkPoolUpdate(concurrency_limit=7))
    register()
    assert {deployment.id for deployment in client.read_deployments()} == before
    assert client.read_work_pool(WORK_POOL).concurrency_limit == 7


def test_the_deployment_refuses_parameters_the_flow_does_not_have(server: PrivateServer):
    command = ["-m", "prefect", "deployment", "run", "ship-images/manual", "--param", "imagse=[]"]
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=server.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "imagse" in ended.stdout + ended.stderr


def test_without_a_server_it_says_which_setting_is_missing():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    ended = subprocess.run(
        [sys.executable, "-m", "deployments.register"],
        cwd=ROOT,
        env={**environment, "PREFECT_PROFILES_PATH": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("PREFECT_API_URL: it is not set")
