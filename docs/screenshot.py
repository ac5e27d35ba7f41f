"""Takes the pictures of the README from the demo's history, in headless Chromium.

make demo && make screenshots
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.errors import CrossgapError, NotFound
from deployments.browser import browser
from deployments.demo import DEPLOYMENT, MODEL_DEPLOYMENT, MODEL_SUMMARY, SUMMARY
from deployments.register import register
from deployments.server import PrivateServer, exit_on_signals
from deployments.ui import NAME, PORT

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = Path(__file__).resolve().parent / "images"


def take_pictures(server: PrivateServer) -> list[Path]:
    """Photograph runs, their summaries, the forms of runs and the form of a block.

    Args:
        server: It has the demo's history.

    Returns:
        The files written.

    Raises:
        NotFound: There is no history, or no Chromium.
    """
    run, summary, deployment = _subjects(server, DEPLOYMENT, SUMMARY, runs=2)
    _, model_summary, model_deployment = _subjects(server, MODEL_DEPLOYMENT, MODEL_SUMMARY, runs=1)
    pictures = {
        "run": (f"/runs/flow-run/{run}", "Completed"),
        "summary": (f"/artifacts/artifact/{summary}", SUMMARY),
        "run-form": (f"/deployments/deployment/{deployment}/run", "Parameters"),
        "block-form": ("/blocks/catalog/ssh-host/create", "Address"),
        "model-summary": (f"/artifacts/artifact/{model_summary}", MODEL_SUMMARY),
        "model-form": (f"/deployments/deployment/{model_deployment}/run", "Parameters"),
    }
    IMAGES.mkdir(exist_ok=True)
    files = []
    with browser(height=1000) as context:
        page = context.new_page()
        for name, (path, wait_for) in pictures.items():
            page.goto(server.ui_url + path)
            page.get_by_text(wait_for).first.wait_for()
            _settle(page)
            files.append(IMAGES / f"{name}.png")
            page.screenshot(path=files[-1])
    return files


def _subjects(
    server: PrivateServer, deployment_name: str, summary: str, runs: int
) -> tuple[str, str, str]:
    """Return the ids of the first of a deployment's newest runs, its summary, and the deployment.

    Args:
        server: It has the demo's history.
        deployment_name: The deployment.
        summary: The summary's key.
        runs: How many runs of it the demo makes.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterFlowRunId,
        ArtifactFilterKey,
        FlowRunFilter,
        FlowRunFilterDeploymentId,
    )
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.exceptions import ObjectNotFound

    none = NotFound("it has no run in its history", "The demo", "Run `make demo` first.")
    with server.connected(), get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(deployment_name).id
        except ObjectNotFound:
            raise none from None
        of_deployment = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
        newest = client.read_flow_runs(
            flow_run_filter=of_deployment, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=runs
        )
        if len(newest) < runs:
            raise none
        first = newest[-1].id
        summaries = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[first]),
                key=ArtifactFilterKey(any_=[summary]),
            )
        )
    return str(first), str(summaries[0].id), str(deployment)


def _settle(page: Page) -> None:
    """Wait until everything is loaded and the timeline has stopped moving."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)


def main() -> int:
    """Take the pictures and return the exit code."""
    exit_on_signals()
    try:
        with PrivateServer(NAME, port=PORT) as server:
            with server.connected():
                register()
            for file in take_pictures(server):
                print(file)
    except CrossgapError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
