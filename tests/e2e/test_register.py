"""`make register` may be repeated at any time."""

from __future__ import annotations

import os
import subprocess
import sys

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate

from blocks.model_hub import HubEndpoint, ModelHub
from deployments.register import ready_made_blocks, register
from deployments.server import ROOT, WORK_POOL, PrivateServer


def test_registering_again_changes_neither_deployments_nor_the_operators_limits(
    client: SyncPrefectClient,
):
    before = {deployment.id for deployment in client.read_deployments()}
    client.update_work_pool(WORK_POOL, WorkPoolUpdate(concurrency_limit=7))
    register()
    assert {deployment.id for deployment in client.read_deployments()} == before
    assert client.read_work_pool(WORK_POOL).concurrency_limit == 7


def test_a_mirror_is_ready_and_an_operators_changes_to_it_stay(client: SyncPrefectClient):
    made = client.read_block_document_by_name("hf-mirror", "model-hub").data
    urls = [one["url"] for one in made["endpoints"]]
    assert urls == ["https://hf-mirror.com", "https://www.modelscope.cn"]
    ModelHub(endpoints=[HubEndpoint(url="http://hub.lan")]).save("hf-mirror", overwrite=True)
    try:
        register()
        kept = client.read_block_document_by_name("hf-mirror", "model-hub").data
        assert [one["url"] for one in kept["endpoints"]] == ["http://hub.lan"]
    finally:
        ready_made_blocks()["hf-mirror"].save("hf-mirror", overwrite=True)


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
