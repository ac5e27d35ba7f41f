"""What the tests of ship-images on real hosts have in common."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from flows.ship_images import ship_images
from tasks.images.results import ShipResult
from tests.lab import ImageShelf, ImageSpec, LabHost, LayerSpec, image_names

MB = 1_000_000
BASE = LayerSpec({"base/data.bin": 3 * MB}, seed=1)


def ship(*arguments: Any, **named: Any) -> list[ShipResult]:
    """Run the flow."""
    results = ship_images(*arguments, **named)
    assert isinstance(results, list)
    return results


def summary() -> str:
    """Return what the run before told the operator."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["ship-images-summary"]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=wanted, sort=ArtifactSort.UPDATED_DESC, limit=1
        )
    return str(found[0].data)


def three(shelf: ImageShelf) -> list[str]:
    """Make three images with a shared base, and return their names."""
    specs = [
        ImageSpec("lab/ragflow:v0.27.0", [BASE, LayerSpec({"app/ragflow": 2 * MB}, seed=2)]),
        ImageSpec("lab/mysql:8.0", [BASE, LayerSpec({"app/mysql": MB}, seed=3)]),
        ImageSpec("lab/redis:7.2-alpine", [BASE]),
    ]
    shelf.make_all(specs)
    return [spec.name for spec in specs]


def on_host(host: LabHost) -> set[str]:
    """Return the names of the images that a host has."""
    return image_names(host.docker_host)


def left_over(host: LabHost) -> list[str]:
    """Return what lies in the user's work folder."""
    found = host.run(["sh", "-c", f"find {host.home}/.crossgap -type f 2>/dev/null || true"])
    return found.split()


def when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do something once, as soon as a condition holds."""

    def watch() -> None:
        for _ in range(3000):
            if condition():
                act()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
