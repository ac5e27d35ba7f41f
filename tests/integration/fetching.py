"""A model, a hub's block, and what comes of fetching one from the other."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import SeveralFailures
from blocks.model_hub import HubEndpoint, ModelHub
from flows.fetch_model import fetch_model
from tasks.models.files import MANIFEST
from tasks.models.results import FetchedModel

MB = 1 << 20
MODEL = "lab/tiny-chat"
SHARD = 6 * MB


def make_model(folder: Path, *, shard: int = SHARD, shards: int = 2) -> dict[str, bytes]:
    """Write the files of a model, and return them; no two shards have the same size."""
    files = {
        "config.json": b'{"model_type": "qwen2"}',
        "tokenizer.json": '{"词": 1}'.encode(),
        "说明/README 中文.md": "你好".encode(),
        "empty.txt": b"",
    }
    for number in range(1, shards + 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        files[name] = os.urandom(shard + number)
    write(folder, files)
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, with their folders."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def save_hub(*urls: str, name: str = "lab-hub", **fields: Any) -> str:
    """Save a block for hubs at these addresses, and return its name."""
    endpoints = [HubEndpoint(url=url) for url in urls]
    ModelHub(endpoints=endpoints, **fields).save(name, overwrite=True)
    return name


def fetch(root: Path, model: str = MODEL, **parameters: Any) -> FetchedModel:
    """Run the flow, which succeeds."""
    given = {"hub": "lab-hub", "destination": str(root), **parameters}
    result = fetch_model(model, **given)
    assert isinstance(result, FetchedModel)
    return result


def failure(root: Path, model: str = MODEL, **parameters: Any) -> str:
    """Run the flow, which fails, and return what it says."""
    with pytest.raises(SeveralFailures) as raised:
        fetch(root, model, **parameters)
    return str(raised.value)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder but its manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def check_manifest(folder: Path) -> None:
    """See that sha256sum finds every file right."""
    subprocess.run(["sha256sum", "-c", "--quiet", "--strict", MANIFEST], cwd=folder, check=True)
