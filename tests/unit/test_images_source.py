"""The spool: found again by content, void when altered, cleaned of leftovers."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from blocks.errors import CommandFailed, Damaged, DiskFull, NotFound
from tasks.images import source
from tasks.images.archive import ArchiveFacts
from tasks.images.facts import ImageFacts
from tasks.images.source import (
    drop_spool,
    hold_spool,
    save_images,
    spool_dir,
    spool_path,
    sweep_spool,
)

APP = ImageFacts("app:1", "sha256:a", "sha256:a", ("l1",), "amd64", size=1000)
BASE = ImageFacts("base:1", "sha256:b", "sha256:b", ("l2",), "amd64", size=1000)
TAR = os.urandom(300_000) + bytes(1024)


@dataclass
class Engine:
    """What the pretend engine answers, and how often it was asked."""

    status: int = 200
    body: bytes = TAR
    cut: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine's HTTP side, for the answers that a real one cannot be made to give."""
    state = Engine()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.endswith("/version"):
                self.answer(200, b'{"ApiVersion":"1.41"}')
            else:
                state.asked.append(self.path)
                self.answer(state.status, state.body, cut=state.cut)

        def answer(self, status: int, body: bytes, cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
            if cut:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_spool_is_in_the_home_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CROSSGAP_SPOOL", raising=False)
    assert spool_dir() == Path.home() / ".crossgap" / "spool"
    monkeypatch.setenv("CROSSGAP_SPOOL", str(tmp_path))
    assert spool_dir() == tmp_path


def test_an_archive_is_named_by_names_and_content_whatever_their_order(tmp_path: Path) -> None:
    assert spool_path([APP, BASE], tmp_path) == spool_path([BASE, APP], tmp_path)
    assert spool_path([APP], tmp_path) != spool_path([APP, BASE], tmp_path)
    renewed = replace(APP, config_digest="sha256:c")
    assert spool_path([APP], tmp_path) != spool_path([renewed], tmp_path)
    renamed = replace(APP, name="app:2")
    assert spool_path([APP], tmp_path) != spool_path([renamed], tmp_path)


def test_all_images_are_saved_in_one_request_and_hashed(engine: Engine, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    folder = tmp_path / "new" / "spool"
    saved = save_images([APP, BASE], folder, lambda done, total: calls.append((done, total)))
    assert saved.path.read_bytes() == TAR
    assert (saved.size, saved.sha256) == (len(TAR), hashlib.sha256(TAR).hexdigest())
    assert saved.images == (APP, BASE)
    assert engine.asked == ["/v1.41/images/get?names=app%3A1&names=base%3A1"]
    assert calls[-1] == (len(TAR), len(TAR))
    assert names(folder) == {saved.path.name, saved.path.name + ".json"}


def test_a_finished_archive_is_found_again(engine: Engine, tmp_path: Path) -> None:
    first = save_images([APP], tmp_path)
    second = save_images([APP], tmp_path)
    assert first == second
    assert len(engine.asked) == 1


@pytest.mark.parametrize("change", ["content", "size", "file", "record"])
def test_an_altered_archive_is_saved_anew(engine: Engine, tmp_path: Path, change: str) -> None:
    path = save_images([APP], tmp_path).path
    if change == "content":
        path.write_bytes(TAR[:-1] + b"x")
    elif change == "size":
        with path.open("ab") as file:
            file.write(b"x")
    elif change == "file":
        status = path.stat()
        other = tmp_path / "other"
        other.write_bytes(TAR)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
    else:
        path.with_name(path.name + ".json").write_text("[1")
    again = save_images([APP], tmp_path)
    assert len(engine.asked) == 2
    assert again.path.read_bytes() == TAR


def test_an_answer_that_is_cut_off_leaves_nothing_and_may_be_tried_again(
    engine: Engine, tmp_path: Path
) -> None:
    engine.cut = True
    with pytest.raises(Damaged, match="stopped sending") as failed:
        save_images([APP], tmp_path)
    assert failed.value.retryable
    assert names(tmp_path) == set()


def test_an_answer_that_ends_well_but_is_no_whole_tar_is_refused(
    engine: Engine, tmp_path: Path
) -> None:
    engine.body = TAR[:-600]
    with pytest.raises(Damaged, match="before the end"):
        save_images([APP], tmp_path)
    engine.body = TAR[:9000] + b'{"errorDetail":{"message":"boom"},"error":"boom"}\r\n'
    with pytest.raises(CommandFailed, match=r"could not save the images \(boom\)"):
        save_images([APP], tmp_path)
    assert names(tmp_path) == set()


def test_a_full_disk_of_the_engine_is_told_from_ours(engine: Engine, tmp_path: Path) -> None:
    engine.status = 500
    engine.body = b'{"message":"write /x/layer.tar: no space left on device"}'
    with pytest.raises(DiskFull, match="source engine's own disk"):
        save_images([APP], tmp_path)


def test_an_image_removed_meanwhile_is_reported(engine: Engine, tmp_path: Path) -> None:
    engine.status, engine.body = 404, b'{"message":"No such image: app:1"}'
    with pytest.raises(NotFound, match="No such image: app:1"):
        save_images([APP], tmp_path)


def test_of_two_runs_that_save_the_same_at_once_the_later_takes_what_the_earlier_saved(
    engine: Engine, tmp_path: Path
) -> None:
    inodes: list[int] = []

    def other_run(_done: int, _total: int) -> None:
        if not inodes:
            inodes.append(0)
            inodes[0] = save_images([APP], tmp_path).path.stat().st_ino

    saved = save_images([APP], tmp_path, other_run)
    assert len(engine.asked) == 2
    assert saved.path.stat().st_ino == inodes[0]
    assert names(tmp_path) == {saved.path.name, saved.path.name + ".json"}


def test_room_is_checked_before_the_engine_is_asked(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="CROSSGAP_SPOOL"):
        save_images([replace(APP, size=1 << 60)], tmp_path)
    assert engine.asked == []


def test_a_disk_that_becomes_full_while_writing_leaves_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.images.source.os.fsync", full)
    with pytest.raises(DiskFull, match="became full"):
        save_images([APP], tmp_path)
    assert names(tmp_path) == set()


def test_a_spool_folder_that_cannot_be_made_is_reported(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed, match="cannot be used"):
        save_images([APP], tmp_path / "file" / "spool")


def archive(path: Path) -> ArchiveFacts:
    path.write_bytes(b"x")
    path.with_name(path.name + ".json").write_text(json.dumps({}))
    return ArchiveFacts(path, 1, "00", "none", ())


def test_an_archive_is_dropped_with_its_record_and_dropping_twice_is_no_error(
    tmp_path: Path,
) -> None:
    saved = archive(tmp_path / "images-1.tar")
    drop_spool(saved)
    drop_spool(saved)
    assert names(tmp_path) == set()


def test_an_archive_that_another_run_sends_stays(tmp_path: Path) -> None:
    saved = archive(tmp_path / "images-1.tar")
    with hold_spool(saved), hold_spool(saved):
        drop_spool(saved)
        assert saved.path.exists()
    drop_spool(saved)
    assert not saved.path.exists()
    with pytest.raises(NotFound), hold_spool(saved):
        pass


def test_leftovers_are_swept_and_what_is_in_use_or_not_ours_stays(tmp_path: Path) -> None:
    old = time.time() - source.KEPT_SECONDS - 60
    forgotten = archive(tmp_path / "images-1.tar")
    held = archive(tmp_path / "images-2.tar")
    for path in (forgotten.path, held.path):
        os.utime(path, (old, old))
    archive(tmp_path / "images-3.tar")
    (tmp_path / "images-4.tar.77.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    os.utime(tmp_path / "notes.txt", (old, old))
    with (tmp_path / "images-5.tar.78.part").open("wb") as writing, hold_spool(held):
        fcntl.flock(writing, fcntl.LOCK_EX)
        sweep_spool(tmp_path)
    assert names(tmp_path) == {
        "images-2.tar",
        "images-2.tar.json",
        "images-3.tar",
        "images-3.tar.json",
        "images-5.tar.78.part",
        "notes.txt",
    }
