"""The lab's hub: the real client gets models from it, and each fault shows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import quote

import pytest
import urllib3
from huggingface_hub import HfApi, RepoFile, RepoFolder, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.lab import hub_body
from tests.lab.hub import LabHub
from tests.lab.hub_faults import Fault, Kind
from tests.lab.models import CHINESE_FILE, make_tiny_model
from tests.lab.registry import LabAuthority

TINY = "lab/tiny"
SHARD = "model-00001-of-00003.safetensors"
REPO = Path(__file__).resolve().parents[2]
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model(folder)
    return folder


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def hub(folder: Path) -> Iterator[LabHub]:
    with LabHub() as hub:
        hub.add(TINY, folder)
        yield hub


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    retries = urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=5)
    with urllib3.PoolManager(retries=retries, timeout=10) as http:
        yield http


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def resolve(hub: LabHub, path: str = SHARD, revision: str = "main") -> str:
    return f"{hub.url}/{TINY}/resolve/{revision}/{quote(path)}"


def download(hub: LabHub, target: Path, **further: Any) -> dict[str, bytes]:
    given = {"token": False, "local_dir": target, "endpoint": hub.url, **further}
    snapshot_download(given.pop("model", TINY), **given)
    return contents(target)


# The real client


@pytest.mark.parametrize("setting", [{}, {"cdn": True}, {"resolve_cache": False}])
def test_the_real_client_gets_a_whole_model(
    folder: Path, tmp_path: Path, setting: dict[str, bool]
) -> None:
    with LabHub(**setting) as hub:  # type: ignore[arg-type]
        hub.add(TINY, folder)
        got = download(hub, tmp_path / "got")
        servers = {seen.server for seen in hub.asked("/cdn/")}
    assert got == contents(folder)
    assert CHINESE_FILE in got
    assert servers == {"cdn" if "cdn" in setting else "hub"}


def test_the_command_of_the_real_client_gets_chosen_files(hub: LabHub, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("hf")
    shown = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
    subprocess.run(
        [command, "download", TINY, "--include", "*.json", "--local-dir", tmp_path / "got"],
        env=shown | settings,
        check=True,
        capture_output=True,
        timeout=60,
    )
    got = contents(tmp_path / "got")
    assert "config.json" in got
    assert all(path.endswith(".json") for path in got)


def test_the_real_client_gets_files_by_their_patterns(hub: LabHub, tmp_path: Path) -> None:
    got = download(hub, tmp_path / "got", allow_patterns=["文档/*", "config.json"])
    assert set(got) == {CHINESE_FILE, "config.json"}


@pytest.mark.parametrize("expand", [False, True])
def test_a_listing_comes_in_pages(folder: Path, expand: bool) -> None:
    with LabHub(page_size=2) as hub:
        commit = hub.add(TINY, folder)
        api = HfApi(endpoint=hub.url, token=False)
        entries = list(api.list_repo_tree(TINY, recursive=True, expand=expand))
        pages = hub.asked("/tree/")
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    assert len(pages) == (len(entries) + 1) // 2
    assert [entry.path for entry in entries if isinstance(entry, RepoFolder)] == ["文档"]
    for path, content in contents(folder).items():
        file = files[path]
        assert file.size == len(content)
        if file.lfs:
            assert file.lfs.sha256 == hashlib.sha256(content).hexdigest()
        else:
            blob = b"blob %d\0" % len(content) + content
            assert file.blob_id == hashlib.sha1(blob, usedforsecurity=False).hexdigest()
        if expand:
            assert file.last_commit
            assert file.last_commit.oid == commit
    assert {path for path, file in files.items() if file.lfs} == {
        path for path in files if path.endswith(".safetensors")
    }


def test_a_folder_is_listed_by_itself(hub: LabHub) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    assert [entry.path for entry in api.list_repo_tree(TINY, "文档")] == [CHINESE_FILE]
    flat = {entry.path for entry in api.list_repo_tree(TINY)}
    assert "文档" in flat
    assert CHINESE_FILE not in flat
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(TINY, "missing"))


def test_a_model_is_described_with_its_files(hub: LabHub, folder: Path) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info(TINY, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or []}
    shard = files[SHARD]
    assert set(files) == set(contents(folder))
    assert shard.lfs
    assert shard.lfs.sha256 == hashlib.sha256((folder / SHARD).read_bytes()).hexdigest()
    assert shard.size == (folder / SHARD).stat().st_size
    (main,) = api.list_repo_refs(TINY).branches
    assert (main.name, main.target_commit) == ("main", info.sha)


def test_an_older_commit_stays_reachable(folder: Path, tmp_path: Path) -> None:
    changing = tmp_path / "model"
    make_tiny_model(changing)
    with LabHub() as hub:
        first = hub.add(TINY, changing)
        assert hub.add(TINY, changing) == first
        (changing / "README.md").write_text("other")
        (changing / "new.txt").write_text("new")
        second = hub.add(TINY, changing)
        hub.add(TINY, folder, branch="side")
        assert download(hub, tmp_path / "1", revision=first) == contents(folder)
        assert download(hub, tmp_path / "2") == contents(changing)
        assert HfApi(endpoint=hub.url).model_info(TINY, revision="side").sha == first
    assert re.fullmatch("[0-9a-f]{40}", second)
    assert first != second


def test_what_is_not_there_is_told_apart(hub: LabHub) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    hub.tokens["known"] = set()
    with pytest.raises(RevisionNotFoundError):
        api.model_info(TINY, revision="missing")
    with pytest.raises(RepositoryNotFoundError) as anonymous:
        api.model_info("lab/missing")
    with pytest.raises(RepositoryNotFoundError) as known:
        api.model_info("lab/missing", token="known")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(TINY, "missing.json", endpoint=hub.url, token=False)
    assert (anonymous.value.response.status_code, known.value.response.status_code) == (401, 404)


def test_gated_private_and_refused_tokens_are_told_apart(
    hub: LabHub, folder: Path, tmp_path: Path
) -> None:
    hub.add("lab/gated", folder, gated=True)
    hub.add("lab/private", folder, private=True)
    hub.tokens = {"in": {"lab/gated", "lab/private"}, "out": set()}
    api = HfApi(endpoint=hub.url)
    got = tmp_path / "got"
    for token, status in ((False, 401), ("out", 403)):
        with pytest.raises(GatedRepoError) as gated:
            download(hub, tmp_path / str(token), model="lab/gated", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("lab/private", token=token)
        assert gated.value.response.status_code == status
        assert api.model_info("lab/gated", token=token).gated == "manual"
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info(TINY, token="made-up")
    assert download(hub, got, model="lab/gated", token="in") == contents(folder)
    assert api.model_info("lab/private", token="in").private
    with_token = [seen for seen in hub.asked("lab/gated/resolve") if seen.authorization]
    assert {seen.authorization for seen in with_token} == {"Bearer out", "Bearer in"}


# ModelScope


def test_modelscope_lists_and_gives_the_same_bytes(
    hub: LabHub, folder: Path, http: urllib3.PoolManager
) -> None:
    begin = f"{hub.url}/api/v1/models/{TINY}/repo"
    listed = http.request("GET", f"{begin}/files?Revision=master&Recursive=true").json()
    files = {file["Path"]: file for file in listed["Data"]["Files"] if file["Type"] == "blob"}
    assert listed["Success"]
    assert set(files) == set(contents(folder))
    for path, content in contents(folder).items():
        got = http.request("GET", f"{begin}?Revision=master&FilePath={quote(path)}")
        also = http.request("GET", f"{hub.url}/models/{TINY}/resolve/master/{quote(path)}")
        assert got.data == also.data == content
        assert files[path]["Sha256"] == hashlib.sha256(content).hexdigest()
        assert files[path]["Size"] == len(content)


def test_modelscope_does_not_know_the_hubs_commits(hub: LabHub, http: urllib3.PoolManager) -> None:
    commit = HfApi(endpoint=hub.url, token=False).model_info(TINY).sha
    begin = f"{hub.url}/api/v1/models"
    unknown = http.request("GET", f"{begin}/{TINY}/repo/files?Revision={commit}")
    missing = http.request("GET", f"{begin}/lab/missing/repo/files?Revision=master")
    own = http.request("GET", f"{begin}/{TINY}/repo/files").json()["Data"]["Files"][0]["Revision"]
    again = http.request("GET", f"{begin}/{TINY}/repo/files?Revision={own}")
    assert (unknown.status, missing.status, again.status) == (404, 404, 200)
    assert not unknown.json()["Success"]


# Bytes


def test_a_large_file_is_led_to_by_a_signed_link(folder: Path, http: urllib3.PoolManager) -> None:
    content = (folder / SHARD).read_bytes()
    with LabHub(cdn=True) as hub:
        commit = hub.add(TINY, folder)
        answer = http.request("HEAD", resolve(hub), redirect=False)
        link = answer.headers["Location"]
        got = http.request("GET", link)
        forged = http.request("GET", re.sub("Signature=.", "Signature=x", link))
        elsewhere = http.request("GET", f"{hub.cdn_url}/api/models/{TINY}")
    assert answer.status == 302
    assert answer.headers["X-Repo-Commit"] == commit
    assert answer.headers["X-Linked-Size"] == str(len(content))
    assert answer.headers["X-Linked-Etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert got.data == content
    assert link.startswith(hub.cdn_url)
    assert hub.cdn_url != hub.url
    assert (forged.status, elsewhere.status) == (403, 404)


@pytest.mark.parametrize(
    ("asked", "status", "begin", "end"),
    [
        ("bytes=10-19", 206, 10, 20),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-", 206, 100, None),
        ("bytes=-7", 206, -7, None),
        ("bytes=5-99999999", 206, 5, None),
        ("bytes=9-3", 200, 0, None),
        ("bytes=0-1,4-5", 200, 0, None),
    ],
)
@pytest.mark.parametrize("path", [SHARD, "config.json"])
def test_parts_of_files_are_given(
    hub: LabHub,
    folder: Path,
    http: urllib3.PoolManager,
    path: str,
    asked: str,
    status: int,
    begin: int,
    end: int | None,
) -> None:
    content = (folder / path).read_bytes()
    answer = http.request("GET", resolve(hub, path), headers={"Range": asked})
    assert answer.status == status
    assert answer.data == content[begin:end]
    if status == 206:
        first = begin % len(content)
        said = f"bytes {first}-{first + len(answer.data) - 1}/{len(content)}"
        assert answer.headers["Content-Range"] == said


def test_a_part_that_is_not_there_is_refused(
    hub: LabHub, folder: Path, http: urllib3.PoolManager
) -> None:
    size = (folder / SHARD).stat().st_size
    answer = http.request("GET", resolve(hub), headers={"Range": f"bytes={size}-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    changed = {"Range": "bytes=5-9", "If-Range": '"other"'}
    assert http.request("GET", resolve(hub), headers=changed).status == 200


def test_what_was_asked_and_sent_is_counted(
    hub: LabHub, folder: Path, http: urllib3.PoolManager
) -> None:
    hub.faults.append(Fault("stall", after=100, times=3))

    barrier = Barrier(3, timeout=20)
    commit = hub.models[TINY].branches["main"]
    port = int(hub.url.rpartition(":")[2])

    def stall(_: int) -> None:
        path = hub.sign_link(TINY, commit, commit.files[SHARD]).removeprefix(hub.url)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
            got = b""
            while len(got.partition(b"\r\n\r\n")[2]) < 100:
                got += client.recv(1 << 16)
            barrier.wait()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(stall, range(3)))
    part = http.request("GET", resolve(hub), headers={"Range": "bytes=0-9"})
    assert part.status == 206
    assert hub.most_connections >= 3
    assert hub.sent_by_file == {f"{TINY}/{SHARD}": 310}
    assert hub.sent == 310
    assert [seen.range for seen in hub.asked(r"/cdn/.*00001")] == ["", "", "", "bytes=0-9"]


def test_links_end_by_use_and_by_time(hub: LabHub, http: urllib3.PoolManager) -> None:
    hub.link_uses = 1
    link = http.request("HEAD", resolve(hub), redirect=False).headers["Location"]
    assert [http.request("GET", link).status for _ in range(2)] == [200, 403]
    hub.link_uses, hub.link_seconds = None, 0
    assert http.request("GET", resolve(hub)).status == 403


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.waited += seconds
        return False


@pytest.mark.parametrize(
    ("rate", "fault", "seconds"),
    [
        (10_000.0, None, 5.0),
        (None, None, 0.0),
        (None, Fault("trickle", after=20_000, rate=1000.0), 30.0),
        (10_000.0, Fault("trickle", after=20_000, rate=1000.0), 32.0),
    ],
)
def test_a_connection_gets_as_much_as_it_should(
    monkeypatch: pytest.MonkeyPatch, rate: float | None, fault: Fault | None, seconds: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(hub_body, "time", clock)
    content = os.urandom(50_000)
    mine, yours = socket.socketpair()
    with yours.makefile("rb") as arrived, yours, ThreadPoolExecutor(1) as reader:
        reading = reader.submit(arrived.read)
        with mine:
            body = hub_body.Body(mine, clock, lambda _size: None)  # type: ignore[arg-type]
            body.send(content, 0, len(content), rate, fault)
        assert reading.result(20) == content
    assert clock.waited == pytest.approx(seconds, abs=0.05)


# Faults


def test_a_status_comes_with_its_headers_as_often_as_wanted(
    hub: LabHub, http: urllib3.PoolManager
) -> None:
    hub.faults.append(Fault("status", status=429, headers={"Retry-After": "7"}, times=2))
    hub.faults.append(Fault("status", "/api/models", status=503))
    answers = [http.request("GET", resolve(hub)) for _ in range(3)]
    assert [answer.status for answer in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "7"
    assert http.request("GET", f"{hub.url}/api/models/{TINY}").status == 503


def test_a_link_can_be_refused_and_resolved_anew(hub: LabHub, http: urllib3.PoolManager) -> None:
    hub.faults.append(Fault("status", "/cdn/.*00001", status=403, times=1))
    assert [http.request("GET", resolve(hub)).status for _ in range(2)] == [403, 200]


@pytest.mark.parametrize("path", [SHARD, "config.json"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [("reset", "reset by peer"), ("cut", "100 bytes read"), ("stall", "timed out")],
)
def test_an_answer_ends_early(
    hub: LabHub,
    http: urllib3.PoolManager,
    kind: Kind,
    said: str,
    path: str,
) -> None:
    hub.faults.append(Fault(kind, after=100, times=1))
    answer = http.request("GET", resolve(hub, path), preload_content=False, timeout=0.5)
    with pytest.raises(urllib3.exceptions.HTTPError, match=said):
        answer.read()
    assert hub.sent == 100
    assert len(http.request("GET", resolve(hub, path)).data) > 100


@pytest.mark.parametrize("kind", ["reset", "cut", "stall"])
def test_an_answer_does_not_even_begin(hub: LabHub, http: urllib3.PoolManager, kind: Kind) -> None:
    hub.faults.append(Fault(kind, "/api/models", after=-1, times=1))
    with pytest.raises(urllib3.exceptions.HTTPError):
        http.request("GET", f"{hub.url}/api/models/{TINY}", timeout=0.5)
    assert http.request("GET", f"{hub.url}/api/models/{TINY}").status == 200


def test_one_byte_is_wrong(hub: LabHub, folder: Path, http: urllib3.PoolManager) -> None:
    content = (folder / SHARD).read_bytes()
    hub.faults.append(Fault("flip", after=1000, times=1))
    before = http.request("GET", resolve(hub), headers={"Range": "bytes=0-999"})
    wrong = http.request("GET", resolve(hub), headers={"Range": "bytes=900-1099"})
    right = http.request("GET", resolve(hub))
    assert before.data == content[:1000]
    differing = [
        i
        for i, pair in enumerate(zip(wrong.data, content[900:1100], strict=True))
        if pair[0] != pair[1]
    ]
    assert differing == [100]
    assert right.data == content


def test_a_web_page_comes_instead(hub: LabHub, http: urllib3.PoolManager) -> None:
    hub.faults.append(Fault("page", "."))
    for url in (resolve(hub), f"{hub.url}/api/models/{TINY}"):
        answer = http.request("GET", url)
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/html")


def test_ranges_are_ignored_or_not_called_so(
    hub: LabHub, folder: Path, http: urllib3.PoolManager
) -> None:
    content = (folder / SHARD).read_bytes()
    hub.faults += [Fault("ignore-range", times=1), Fault("range-as-200", times=1)]
    assert http.request("GET", resolve(hub)).data == content  # concerns no ranges
    whole, part = (
        http.request("GET", resolve(hub), headers={"Range": "bytes=10-19"}) for _ in range(2)
    )
    assert (whole.status, whole.data) == (200, content)
    assert (part.status, part.data) == (200, content[10:20])


def test_sizes_are_lied_about(hub: LabHub, folder: Path, http: urllib3.PoolManager) -> None:
    size = (folder / SHARD).stat().st_size
    part = {"Range": "bytes=10-19"}
    hub.faults.append(Fault("content-range", by=-5, times=1))
    answer = http.request("GET", resolve(hub), headers=part)
    assert answer.headers["Content-Range"] == f"bytes 10-19/{size - 5}"
    hub.faults.append(Fault("content-length", by=-4, times=1))
    assert len(http.request("GET", resolve(hub), headers=part).data) == 6
    http.clear()  # the connection still holds what was not announced
    hub.faults.append(Fault("content-length", by=4, times=1))
    with pytest.raises(urllib3.exceptions.ProtocolError, match="4 more expected"):
        http.request("GET", resolve(hub), headers=part, preload_content=False).read()
    http.clear()
    assert http.request("GET", resolve(hub), headers=part).status == 206


def test_pages_and_files_lead_off_the_mirror(folder: Path, http: urllib3.PoolManager) -> None:
    with LabHub(Fault("next-page", "/tree/"), Fault("redirect"), page_size=2) as hub:
        hub.add(TINY, folder)
        page = http.request("GET", f"{hub.url}/api/models/{TINY}/tree/main?recursive=true")
        file = http.request("HEAD", resolve(hub), redirect=False)
    assert page.headers["Link"].startswith("<http://elsewhere.invalid/api/models/")
    assert file.headers["Location"].startswith(f"http://elsewhere.invalid/{TINY}/resolve/")
    assert "X-Linked-Size" in file.headers


def test_documents_can_be_changed(hub: LabHub, http: urllib3.PoolManager) -> None:
    hub.rewrite = lambda path, document: [{"path": "../evil"}] if "/tree/" in path else document
    url = f"{hub.url}/api/models/{TINY}"
    assert http.request("GET", f"{url}/tree/main").json() == [{"path": "../evil"}]
    assert http.request("GET", url).json()["id"] == TINY


def test_a_hub_has_a_certificate_of_an_authority(
    folder: Path, tmp_path: Path, http: urllib3.PoolManager
) -> None:
    authority = LabAuthority(tmp_path)
    with LabHub(authority=authority, cdn=True) as hub:
        hub.add(TINY, folder)
        with urllib3.PoolManager(ca_certs=str(authority.bundle), timeout=10) as trusting:
            got = trusting.request("GET", resolve(hub)).data
        with pytest.raises(urllib3.exceptions.MaxRetryError, match="certificate verify failed"):
            http.request("GET", resolve(hub))
    assert got == (folder / SHARD).read_bytes()


def test_a_hub_runs_in_a_process_of_its_own(
    folder: Path, tmp_path: Path, http: urllib3.PoolManager
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / TINY).symlink_to(folder)
    sums = tmp_path / "sums"
    sums.write_text(f"{'a' * 64}  {TINY}/{SHARD}\n")
    command = [sys.executable, "-m", "tests.lab.hub"]
    command += ["--folder", str(tmp_path), "--sums", str(sums)]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        answer = http.request("GET", f"{url}/{TINY}/resolve/main/{SHARD}")
        counted = json.loads(http.request("GET", f"{url}/_lab/counters").data)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert answer.data == (folder / SHARD).read_bytes()
    assert answer.headers["ETag"] == f'"{"a" * 64}"'  # what it was told, not what it hashed
    assert counted["sent_by_file"] == {f"{TINY}/{SHARD}": len(answer.data)}
