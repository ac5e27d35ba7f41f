"""Progress, table and summary as the API shows them afterwards."""

from __future__ import annotations

from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run

from blocks.errors import ConnectionLost, Unreachable
from tasks.common.failures import Collected, collect
from tasks.common.progress import HostProgress
from tasks.common.report import Summary, publish_summary, publish_table, table_of
from tasks.common.retry import retrying


def artifacts_of(run_id: str) -> dict[str, Artifact]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)]))
        )
    assert len({artifact.key for artifact in found}) == len(found)
    return {str(artifact.key): artifact for artifact in found}


def test_hosts_are_worked_on_side_by_side_in_one_run_with_a_bar_each(prefect_api: None) -> None:
    hosts = [f"gpu{n}" for n in range(8)]

    @task
    def send(host: str) -> str:
        with HostProgress("ship-images", host, every=0.05) as progress:
            progress(30, 100)
            if host == "gpu3":
                raise Unreachable("no answer", host, "Look.")
            progress.done()
        return str(flow_run.id)

    @flow
    def ship() -> tuple[str, Collected[str]]:
        return str(flow_run.id), collect(send, hosts, name=str, at_once=4)

    run_id, collected = ship()
    assert collected.results == (run_id,) * 7
    assert [failure.where for failure in collected.failures] == ["gpu3"]
    artifacts = artifacts_of(run_id)
    assert set(artifacts) == {f"ship-images-progress-{host}" for host in hosts}
    percents = {key: artifact.data for key, artifact in artifacts.items()}
    assert percents.pop("ship-images-progress-gpu3") == 30
    assert set(percents.values()) == {100}


def test_a_retried_task_goes_on_with_the_same_bar(prefect_api: None) -> None:
    tries = 0

    @task(**retrying(first_delay=0.01))
    def send() -> None:
        nonlocal tries
        tries += 1
        with HostProgress("ship-images", "gpu1", every=0.05) as progress:
            progress(80 if tries == 1 else 20, 100)
            if tries == 1:
                raise ConnectionLost("cut", "gpu1")

    @flow
    def ship() -> str:
        send()
        return str(flow_run.id)

    assert artifacts_of(ship())["ship-images-progress-gpu1"].data == 80


def test_table_and_summary_belong_to_the_run(prefect_api: None) -> None:
    @flow
    def ship() -> str:
        table = table_of([{"image": "a|b", "sent": 7}], {"image": "image", "sent": "bytes sent"})
        publish_table("ship-images", table)
        publish_summary("ship-images", Summary("Ship 1 image", 1, table=table))
        return str(flow_run.id)

    artifacts = artifacts_of(ship())
    assert artifacts["ship-images-table"].data == '[{"image": "a|b", "bytes sent": 7}]'
    assert str(artifacts["ship-images-summary"].data).startswith("**Done: Ship 1 image.**")


def test_an_api_that_is_away_fails_neither_the_work_nor_the_report(
    prefect_api: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("no API")

    for name in ("create_progress_artifact", "create_table_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(f"prefect.artifacts.{name}", away)

    @flow
    def ship() -> str:
        with HostProgress("ship-images", "gpu1", every=0.05) as progress:
            progress.done()
        publish_table("ship-images", table_of([], {"image": "image"}))
        publish_summary("ship-images", Summary("Ship 1 image", 1))
        return str(flow_run.id)

    assert artifacts_of(ship()) == {}
