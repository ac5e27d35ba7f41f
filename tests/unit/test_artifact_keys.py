"""Artifact keys that Prefect accepts and that no two names share."""

import re

import pytest
from prefect.client.schemas.actions import ArtifactCreate

from tasks.common.artifact_keys import artifact_key, slug

NAMES = [
    "gpu1",
    "GPU1",
    "gpu.1",
    "gpu-1",
    "10.0.0.1",
    "10-0-0-1",
    "图像",
    "图",
    "--",
    "",
    "ß" * 300,
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_becomes_a_key_that_prefect_accepts(name: str) -> None:
    key = artifact_key("ship-images", "progress", name)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
    assert ArtifactCreate(key=key).key == key


def test_no_two_names_share_a_key() -> None:
    assert len({slug(name) for name in NAMES}) == len(NAMES)


def test_a_name_that_is_a_slug_already_stays_readable() -> None:
    assert artifact_key("ship-images", "progress", "gpu1") == "ship-images-progress-gpu1"
    assert artifact_key("ship-images", "summary") == "ship-images-summary"
