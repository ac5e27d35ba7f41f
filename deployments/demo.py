"""The newcomer's first run: two pretend servers, with images and a model brought to them.

Everything is real (sshd, dockerd, a Prefect server and worker) and private to the
demo, but for the hub that the model comes from, which is the lab's stand-in; nothing is
left running. The history stays for `make ui`.

    python -m deployments.demo
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.errors import CommandFailed, CrossgapError
from deployments.register import register
from deployments.runs import WatchedRun, run_deployment, run_seconds, table_rows
from deployments.server import PrivateServer, exit_on_signals
from deployments.text_table import text_table
from deployments.ui import NAME, PORT
from tasks.common.units import bytes_text, duration_text
from tests.lab import (
    HostSpec,
    ImageSpec,
    Lab,
    LabError,
    LabUnavailable,
    LayerSpec,
    make_images,
    remove_images,
)
from tests.lab.packages import ensure_packages, missing_packages

HOSTS = ("gpu1", "gpu2")
DEPLOYMENT = "ship-images/manual"
TABLE = "ship-images-table"
SUMMARY = "ship-images-summary"
MODEL = "crossgap-demo/tiny-chat"
MODEL_DEPLOYMENT = "fetch-model/manual"
MODEL_SUMMARY = "fetch-model-summary"

_MB = 1_000_000
_BASE = LayerSpec({"usr/lib/base.bin": 12 * _MB})
_PYTHON = LayerSpec({"usr/lib/python3/site-packages.bin": 9 * _MB})
_IMAGES = (
    ImageSpec(
        "crossgap-demo/ragflow:v0.27.0", [_BASE, _PYTHON, LayerSpec({"ragflow/app": 6 * _MB})]
    ),
    ImageSpec("crossgap-demo/mysql:8.0", [_BASE, LayerSpec({"usr/sbin/mysqld": 10 * _MB})]),
    ImageSpec("crossgap-demo/redis:7.2-alpine", [_BASE, LayerSpec({"usr/bin/redis": 2 * _MB})]),
)


@dataclass(frozen=True)
class Shipment:
    """One run of `ship-images`, as the API tells it afterwards.

    Args:
        rows: Its table, one row per image and host.
        seconds: How long the flow run took.
        wire_bytes: What left this machine towards the hosts meanwhile.
        url: Its page in the UI.
    """

    rows: list[dict[str, Any]]
    seconds: float
    wire_bytes: int
    url: str


def demo() -> None:
    """Run the demo.

    Raises:
        CrossgapError: A part of it failed.
        LabUnavailable: This machine cannot hold pretend servers.
        LabError: The pretend servers did not come up.
    """
    started = time.monotonic()
    _prepare_machine()
    _say("Starting two pretend servers, a Prefect server and a worker ...")
    server, lab = PrivateServer(NAME, port=PORT), Lab(NAME)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.launch()  # gets ready while the hosts boot
        stack.enter_context(lab)
        # Always from nothing: the hosts have no image, whatever an earlier run left.
        lab.up([HostSpec(name) for name in HOSTS])
        images = [image.name for image in make_images(lab.engine, _IMAGES)]
        stack.callback(remove_images, lab.engine, images)
        server.wait_until_healthy()
        _offer(server, lab)
        _say(f"Shipping {len(images)} images to {' and '.join(HOSTS)} ...")
        first = _ship(server, lab, images)
        _say("The same run again ...")
        second = _ship(server, lab, images)
        _require_nothing_sent(second)
        _say(f"Fetching a model from a hub, and bringing it to {' and '.join(HOSTS)} ...")
        model = _fetch_model(server)
    _report(first, second, model)
    _say(f"Done in {duration_text(time.monotonic() - started)}; nothing is left running.")


def _say(message: str) -> None:
    print(f"==> {message}", flush=True)


def _prepare_machine() -> None:
    if missing := missing_packages():
        _say(f"Debian packages needed: {' '.join(missing)}")
    ensure_packages()


def _offer(server: PrivateServer, lab: Lab) -> None:
    _say("Registering blocks and deployments ...")
    with server.connected():
        from blocks.ssh_host import SSHHost

        register()
        _free_limits()
        for name in HOSTS:
            SSHHost(**lab.host(name).block_fields()).save(name, overwrite=True)
    server.start_worker({"DOCKER_HOST": lab.engine})


def _free_limits() -> None:
    """Give back the slots that a killed demo still holds: no run of this server is alive now."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for limit in client.read_global_concurrency_limits():
            client.delete_global_concurrency_limit_by_name(limit.name)


def _ship(server: PrivateServer, lab: Lab, images: Sequence[str]) -> Shipment:
    before = lab.bytes_sent()
    parameters = {"images": list(images), "hosts": list(HOSTS), "verify": "start"}
    run, url = _run(server, DEPLOYMENT, parameters)
    with server.connected():
        rows = table_rows(run.id, TABLE)
        seconds = run_seconds(run.id)
    return Shipment(rows, seconds, lab.bytes_sent() - before, url)


def _fetch_model(server: PrivateServer) -> list[dict[str, Any]]:
    """Bring a small model with random weights to the hosts; return the run's table."""
    from blocks.model_hub import HubEndpoint, ModelHub
    from tests.lab.hub import LabHub
    from tests.lab.models import make_tiny_model

    with tempfile.TemporaryDirectory(prefix="crossgap-demo-") as folder, LabHub() as hub:
        make_tiny_model(Path(folder) / "origin")
        hub.add(MODEL, Path(folder) / "origin")
        with server.connected():
            ModelHub(endpoints=[HubEndpoint(url=hub.url)]).save("demo-hub", overwrite=True)
        parameters = {"model": MODEL, "hub": "demo-hub", "hosts": list(HOSTS)}
        run, _ = _run(server, MODEL_DEPLOYMENT, {**parameters, "destination": f"{folder}/models"})
    with server.connected():
        return table_rows(run.id, "fetch-model-table")


def _run(
    server: PrivateServer, deployment: str, parameters: Mapping[str, Any]
) -> tuple[WatchedRun, str]:
    run = run_deployment(
        server, deployment, parameters, on_line=lambda line: print(line, flush=True)
    )
    url = f"{server.ui_url}/runs/flow-run/{run.id}"
    if run.exit_code:
        raise CommandFailed("it did not complete", f"flow run {url}", "Its log above says why.")
    return run, url


def _require_nothing_sent(shipment: Shipment) -> None:
    sent = [row for row in shipment.rows if row["bytes sent"] or row["action"] != "present"]
    if sent or not shipment.rows:
        raise CommandFailed(
            f"it sent layers again, though the hosts have them: {sent}",
            f"flow run {shipment.url}",
            "This is a defect of crossgap; please report it with the log above.",
        )


def _report(first: Shipment, second: Shipment, model: Sequence[Mapping[str, Any]]) -> None:
    again = {(row["image"], row["host"]): row for row in second.rows}
    rows = [
        [
            row["image"],
            row["host"],
            f"{bytes_text(row['bytes sent'])} in {row['layers sent']} layers",
            duration_text(row["seconds"]),
            bytes_text(again[row["image"], row["host"]]["bytes sent"]),
            row["verified"],
        ]
        for row in first.rows
    ]
    print()
    print(text_table(["image", "host", "sent", "took", "sent again", "verified"], rows))
    print()
    for title, run in (("first run", first), ("same again", second)):
        took, wire = duration_text(run.seconds), bytes_text(run.wire_bytes)
        print(f"{title + ':':<12}{took}, {wire} on the wire to the hosts in all")
    print(f"\nModel {MODEL}:")
    columns = ["what", "from", "to", "files", "bytes"]
    print(text_table(columns, [[str(row[name]) for name in columns] for row in model]))
    print("\nTo see all runs in the UI:  make ui")
    print(f"then open  {first.url}\n")


def main() -> int:
    """Run the demo and return the exit code."""
    exit_on_signals()
    try:
        demo()
    except (CrossgapError, LabError, LabUnavailable) as error:
        print(f"\nThe demo did not succeed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
