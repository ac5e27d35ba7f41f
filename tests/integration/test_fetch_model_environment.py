"""fetch-model where the environment is set up for other programs, or for another hub."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
from prefect.settings import get_current_settings

from tests.integration.fetching import (
    MODEL,
    check_manifest,
    contents,
    failure,
    fetch,
    make_model,
    save_hub,
)
from tests.lab.hub import LabHub

pytestmark = pytest.mark.usefixtures("prefect_api")

NOBODY = "127.0.0.1:9"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
# The hub is asked for as localhost, so that what follows is for Prefect's server alone.
NO_PROXY = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
RUN = textwrap.dedent("""
    import sys
    from huggingface_hub import constants
    from pathlib import Path

    assert constants.HF_HUB_OFFLINE
    assert "127.0.0.1:9" in constants.ENDPOINT
    from tests.integration.fetching import fetch

    print("fetched to", fetch(Path(sys.argv[1])).path)
""")


class Proxy(ThreadingHTTPServer):
    """An http proxy for GET, on 127.0.0.1.

    Attributes:
        asked: The addresses that were asked for through it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.asked: list[str] = []
        self.http = urllib3.PoolManager(retries=False)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Forwarding(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answer = self.server.http.request(
            "GET", self.path, headers=dict(self.headers), redirect=False, decode_content=False
        )
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def hub() -> Iterator[LabHub]:
    with LabHub() as running:
        running.url = running.cdn_url = running.url.replace("127.0.0.1", "localhost")
        yield running


@pytest.fixture
def content(tmp_path: Path, hub: LabHub) -> dict[str, bytes]:
    files = make_model(tmp_path / "origin")
    hub.add(MODEL, tmp_path / "origin")
    return files


@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_proxies_and_settings_of_the_hubs_own_client_are_left_alone(
    tmp_path: Path, hub: LabHub, content: dict[str, bytes], kind: str
) -> None:
    save_hub(hub.url)
    hostile = dict.fromkeys(PROXIES, f"{kind}://{NOBODY}")
    hostile |= {"HF_ENDPOINT": f"http://{NOBODY}", "HF_HUB_OFFLINE": "1"}
    settings = get_current_settings().to_environment_variables(exclude_unset=True)

    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "models")],
        env={**os.environ, **settings, **NO_PROXY, **hostile},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("fetched to ")]
    folder = Path(line.removeprefix("fetched to "))
    assert contents(folder) == content
    check_manifest(folder)


def test_the_proxy_is_used_for_every_request_where_the_block_says_so(
    tmp_path: Path,
    hub: LabHub,
    content: dict[str, bytes],
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**dict.fromkeys(PROXIES, proxy.url), **NO_PROXY}.items():
        monkeypatch.setenv(name, value)

    save_hub(hub.url)
    fetch(tmp_path / "without")
    assert proxy.asked == []

    before = len(hub.seen)
    save_hub(hub.url, use_proxy=True)
    result = fetch(tmp_path / "with")
    assert contents(Path(result.path)) == content
    assert len(proxy.asked) == len(hub.seen) - before
    assert all(url.startswith(hub.url) for url in proxy.asked)


def test_a_proxy_that_is_down_is_named(
    tmp_path: Path, hub: LabHub, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**dict.fromkeys(PROXIES, f"http://{NOBODY}"), **NO_PROXY}.items():
        monkeypatch.setenv(name, value)
    save_hub(hub.url, use_proxy=True)
    said = failure(tmp_path / "models")
    assert "the proxy failed" in said
    assert "unset use_proxy" in said


def test_two_runs_with_two_mirrors_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    found: dict[str, dict[str, bytes]] = {}
    wanted: dict[str, dict[str, bytes]] = {}

    def run(name: str) -> None:
        found[name] = contents(Path(fetch(tmp_path / name, hub=f"hub-{name}").path))

    with LabHub(rate=4e6) as one, LabHub(rate=4e6) as other:
        for name, hub in {"one": one, "other": other}.items():
            wanted[name] = make_model(tmp_path / f"origin-{name}")
            hub.add(MODEL, tmp_path / f"origin-{name}")
            save_hub(hub.url, name=f"hub-{name}")
        threads = [threading.Thread(target=run, args=(name,)) for name in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert wanted["one"] != wanted["other"]
    assert found == wanted
