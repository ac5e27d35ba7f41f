"""What is made of the answers of hosts that a lab cannot be brought to give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from blocks.content import Content
from blocks.errors import (
    CommandFailed,
    CrossgapError,
    DiskFull,
    EngineUnavailable,
    NotFound,
    WrongArchitecture,
)
from blocks.host import CommandResult
from blocks.remote_job import JobResult
from tasks.images import act
from tasks.images.act import differences, load, load_stream, not_as_wanted, verify_start
from tasks.images.facts import ImageFacts
from tasks.images.staging import load_job_name
from tests.unit.images_doubles import AnsweringHost, answer

IMAGE = ImageFacts("app:1", "sha256:a", "sha256:a", ("l1",), "amd64")
STARTED = {"StartedAt": "2026-01-01T00:00:00Z", "Running": True, "ExitCode": 0, "Error": ""}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.images.act._SETTLE_SECONDS", 0.0)


@dataclass
class EndedJob:
    """A job that ended, or will end, as given."""

    result: JobResult
    state: str = "running"
    forgotten: bool = False

    def look(self) -> Any:
        return SimpleNamespace(state=self.state)

    def wait(self, **_: Any) -> JobResult:
        return self.result

    def forget(self) -> None:
        self.forgotten = True


class LoadingHost(AnsweringHost):
    """A host whose jobs end as given."""

    def __init__(self, result: JobResult, found: str = "") -> None:
        super().__init__({})
        self.job = EndedJob(result, found)
        self.started: list[tuple[Sequence[str], str, bool]] = []

    def find_job(self, name: str, *, sudo: bool = False) -> Any:
        return self.job if self.job.state else None

    def start_job(self, argv: Sequence[str], *, name: str, sudo: bool = False) -> Any:
        self.started.append((argv, name, sudo))
        return self.job


ARGV = ["sh", "-c", "cat layer | docker load"]


def test_a_load_is_a_job_named_by_the_archives_key() -> None:
    host = LoadingHost(JobResult(0, "Loaded image: app:1\n"))
    load(host, ARGV, load_job_name("ab" * 16), timeout=5)
    assert host.started == [(ARGV, load_job_name("ab" * 16), True)]
    assert load_job_name("ab" * 16) != load_job_name("ac" * 16)
    assert host.job.forgotten


def test_a_load_that_an_earlier_run_began_is_waited_for() -> None:
    host = LoadingHost(JobResult(0, "Loaded image: app:1\n"), found="running")
    load(host, ARGV, "load-1", timeout=5)
    assert host.started == []
    assert host.job.forgotten


@pytest.mark.parametrize("state", ["exited", "gone"])
def test_a_load_that_has_ended_is_no_proof_and_begun_again(state: str) -> None:
    host = LoadingHost(JobResult(0, "Loaded image: app:1\n"), found=state)
    load(host, ARGV, "load-1", timeout=5)
    assert len(host.started) == 1


@pytest.mark.parametrize(
    "said",
    [
        # Graph drivers of 20.10 and 24, and containerd's store.
        "open /var/lib/docker/tmp/docker-import-42/blobs/sha256/ab: no such file or directory",
        "open /data1/docker/tmp/docker-import-42/ab/layer.tar: no such file or directory",
        "lstat /var/lib/docker/tmp/docker-import-1/blobs/sha256: no such file or directory",
        'failed to get reader: content digest sha256:ab: digest "sha256:ab" not found',
        'layer "sha256:ab" not found',
        "content digest sha256:ab not found",
    ],
)
def test_a_base_that_is_not_there_any_more_is_told_as_such(said: str) -> None:
    with pytest.raises(NotFound, match="lacks a layer that it had before"):
        load(LoadingHost(JobResult(1, said)), ARGV, "load-1", timeout=5)


def test_other_files_that_are_not_there_are_no_lost_base() -> None:
    with pytest.raises(CommandFailed):
        load(LoadingHost(JobResult(1, "sh: docker: no such file")), ARGV, "load-1", timeout=5)


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("Error unpacking image app:1: apply layer error: wrong checksum", CommandFailed),
        ("Error unpacking image app:1: write /x: no space left on device", DiskFull),
    ],
)
def test_a_load_that_fails_silently_is_seen_in_its_log(log: str, kind: type[Exception]) -> None:
    host = LoadingHost(JobResult(0, f"{log}\nLoaded image: app:1\n"))
    with pytest.raises(kind):
        load(host, ARGV, "load-1", timeout=5)


def test_an_engine_that_dies_during_a_load_may_be_back_at_the_next_try() -> None:
    host = LoadingHost(JobResult(1, 'error during connect: Post "http://x/images/load": EOF'))
    with pytest.raises(EngineUnavailable) as failed:
        load(host, ARGV, "load-1", timeout=5)
    assert failed.value.retryable


# Streams


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is fed to hosts, which answer with what is put into `RESULT`."""
    fed: list[dict[str, Any]] = []

    def feed(host: Any, argv: Sequence[str], content: Content, **how: Any) -> CommandResult:
        fed.append({"argv": argv, "content": content, **how})
        return RESULT

    monkeypatch.setattr(act, "feed", feed)
    return fed


RESULT = answer("Loaded image: app:1\n")


def test_a_stream_goes_straight_into_the_engine(streamed: list[dict[str, Any]]) -> None:
    archive = Content((b"archive",))
    said = load_stream(AnsweringHost({}), archive, pace=len)  # type: ignore[arg-type]
    assert said == "Loaded image: app:1\n"
    (fed,) = streamed
    assert (fed["argv"], fed["content"], fed["sudo"]) == (["docker", "load"], archive, True)
    assert fed["pace"] is len


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (answer("", "Error unpacking image app:1: no space left on device"), DiskFull),
        (answer("", "write /var/lib/docker/tmp/x: no space left on device", 1), DiskFull),
        (answer("", "open /d/tmp/docker-import-1/x: no such file or directory", 1), NotFound),
        (answer("", "something odd", 1), CommandFailed),
    ],
)
def test_a_stream_that_fails_is_told_as_a_load_that_fails(
    streamed: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    result: CommandResult,
    kind: type[CrossgapError],
) -> None:
    monkeypatch.setitem(globals(), "RESULT", result)
    with pytest.raises(kind):
        load_stream(AnsweringHost({}), Content((b"archive",)))


# Proof


def test_what_is_there_is_compared_by_layers_and_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = replace(IMAGE, name="other:1", config_digest="sha256:o")
    found = {
        "app:1": IMAGE,
        "layers:1": replace(IMAGE, diff_ids=("l2",)),
        "config:1": replace(IMAGE, config_digest="sha256:x"),
        "other:1": other,
    }
    monkeypatch.setattr(act, "read_images", lambda *_: found)
    names = ("app:1", "layers:1", "config:1", "gone:1")
    wanted = [replace(IMAGE, name=name) for name in names]
    assert differences(AnsweringHost({}), [*wanted, other]) == {
        "layers:1": "layers:1 has other layers than its source",
        "config:1": "config:1 has another configuration than its source",
        "gone:1": "gone:1 is not there after loading",
    }


def test_all_that_is_wrong_is_in_one_error() -> None:
    error = not_as_wanted(["a is not there", "b is wrong"], "gpu1")
    assert str(error).startswith("gpu1: a is not there; b is wrong. Start again")


# Starting


def starting(state: dict[str, Any], start: str = "", code: int = 0) -> AnsweringHost:
    return AnsweringHost(
        {
            "docker ps": answer(),
            "docker create": answer("0123\n"),
            "docker start": answer("", start, code),
            "docker inspect": answer(json.dumps(STARTED | state)),
            "docker rm": answer(),
        }
    )


def test_the_checks_container_has_no_network_a_label_of_ours_and_is_removed() -> None:
    host = starting({})
    assert verify_start(host, IMAGE, "run-1") == "started"
    asked = [argv for argv, _ in host.asked]
    (create,) = [argv for argv in asked if argv[1] == "create"]
    name = create[create.index("--name") + 1]
    assert create[create.index("--network") + 1] == "none"
    assert "io.crossgap.run=run-1" in create
    assert asked[-1] == ["docker", "rm", "-f", "-v", name]


def test_a_program_for_another_processor_is_told_as_such_and_removed() -> None:
    host = starting({"StartedAt": "0001-01-01T00:00:00Z", "Error": "exec format error"}, "x", 1)
    with pytest.raises(WrongArchitecture, match="app:1"):
        verify_start(host, IMAGE, "run-1")
    assert host.asked[-1][0][1] == "rm"


@pytest.mark.parametrize(
    "state",
    [
        {"StartedAt": "0001-01-01T00:00:00Z", "Running": False},
        {"Running": False, "ExitCode": 126},
        {"Running": False, "ExitCode": 127},
        {"Error": "failed to mount"},
    ],
)
def test_a_container_that_did_not_really_start_is_no_proof(state: dict[str, Any]) -> None:
    with pytest.raises(CommandFailed, match="does not start"):
        verify_start(starting(state), IMAGE, "run-1")


def test_a_program_that_ends_by_itself_with_any_other_code_has_started() -> None:
    assert verify_start(starting({"Running": False, "ExitCode": 1}), IMAGE, "r") == "started"
