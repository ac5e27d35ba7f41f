"""The source engine: who it is, and what is said when it is not there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from blocks.errors import EngineUnavailable, InvalidInput, SeveralFailures
from tasks.images.engine import close_names, not_found, open_engine, several


def test_other_tags_of_the_same_repository_are_offered_first() -> None:
    known = ["infiniflow/ragflow:v0.26.0", "infiniflow/ragflaw:v0.27.0", "redis:7"]
    assert close_names("infiniflow/ragflow:v0.27.0", known) == known[:2]
    assert close_names("mysql:8", known) == []


def test_a_missing_image_is_reported_with_what_to_do_and_what_is_there() -> None:
    error = not_found("redis:8", ["redis:7"])
    assert "docker pull redis:8" in error.remedy
    assert "It has redis:7." in error.remedy


def test_several_missing_images_are_one_error() -> None:
    failures = [not_found("a:1", ()), not_found("b:1", ())]
    assert several(failures[:1]) is failures[0]
    assert isinstance(several(failures), SeveralFailures)


def test_an_engine_that_does_not_run_is_reported_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(EngineUnavailable, match=r"docker\.sock.*does not answer"), open_engine():
        pass


def test_a_port_where_nothing_listens_is_reported_whatever_proxy_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as unused, socket.create_server(("127.0.0.1", 0)) as proxy:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        with pytest.raises(EngineUnavailable, match="does not answer"), open_engine():
            pass
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("address", ["garbage", "tcp://", "ftp://x:1"])
def test_an_address_that_is_none_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(InvalidInput, match="DOCKER_HOST is not an address"), open_engine():
        pass
