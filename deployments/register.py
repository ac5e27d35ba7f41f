"""Tells a Prefect server what crossgap offers: block types and blocks, the work pool, deployments.

Safe to repeat: what is there is brought up to date.

    PREFECT_API_URL=http://ADDRESS:4200/api python -m deployments.register
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from blocks.errors import CommandFailed, CrossgapError, InvalidInput, Unreachable
from deployments.logos import publish_logos
from deployments.server import ROOT, WORK_POOL, prefect_command

if TYPE_CHECKING:
    from prefect.blocks.core import Block

PREFECT_FILE = ROOT / "deployments" / "prefect.yaml"
_DEPLOY_DEADLINE = 300.0


def register() -> bool:
    """Register everything with the server of the current Prefect settings.

    Returns:
        Whether the block types' pictures were published too; they are not when
        the server runs on another machine.

    Raises:
        InvalidInput: No server is set, so there is nothing to register with.
        Unreachable: The server does not answer.
        CommandFailed: `prefect deploy` failed.
    """
    _require_server()
    for block in block_types():
        block.register_type_and_schema()
    _save_ready_made()
    _make_work_pool()
    _deploy()
    return publish_logos()


def block_types() -> list[type[Block]]:
    """Return the blocks that operators fill in."""
    from blocks.local_host import LocalHost
    from blocks.model_hub import ModelHub
    from blocks.ssh_host import JumpHost, SSHHost

    return [SSHHost, JumpHost, LocalHost, ModelHub]


def ready_made_blocks() -> dict[str, Block]:
    """Return, by name, the blocks that are of use to everybody as they are."""
    from blocks.model_hub import HubEndpoint, ModelHub

    mirrors = [
        HubEndpoint(url="https://hf-mirror.com"),
        HubEndpoint(url="https://www.modelscope.cn", kind="modelscope"),
    ]
    return {"hf-mirror": ModelHub(endpoints=mirrors)}


def _require_server() -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise InvalidInput(
            "it is not set, so there is no server to register with",
            "PREFECT_API_URL",
            "Set it to the server's API, e.g. PREFECT_API_URL=http://127.0.0.1:4200/api.",
        )
    with get_client(sync_client=True) as client:
        if problem := client.api_healthcheck():
            raise Unreachable(
                f"the Prefect server does not answer ({problem})",
                url,
                "Start it, or set PREFECT_API_URL to the right address.",
            )


def _save_ready_made() -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        for name, block in ready_made_blocks().items():
            try:
                client.read_block_document_by_name(name, block.get_block_type_slug())
            except ObjectNotFound:
                block.save(name)
            # What is there stays as an operator left it.


def _make_work_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
        except ObjectAlreadyExists:
            return  # with the limits an operator gave it


def _deploy() -> None:
    ended = subprocess.run(
        [
            *prefect_command("--no-prompt", "deploy", "--all", "--prefect-file"),
            str(PREFECT_FILE.relative_to(ROOT)),
        ],
        cwd=ROOT,
        env=os.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DEPLOY_DEADLINE,
        check=False,
    )
    if ended.returncode:
        raise CommandFailed(
            f"it ended with exit code {ended.returncode}",
            "prefect deploy",
            f"It said:\n{(ended.stdout + ended.stderr).strip()}",
        )


def main() -> int:
    """Register with the server that the Prefect settings name, and return the exit code."""
    try:
        with_logos = register()
    except CrossgapError as error:
        print(error, file=sys.stderr)
        return 1
    print("Block types and deployments are registered.")
    if not with_logos:
        print("Run `make register` on the server's own machine for the pictures of the blocks.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
