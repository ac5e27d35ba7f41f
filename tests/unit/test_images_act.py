"""What is made of the answers of hosts that a lab cannot be brought to give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from blocks.errors import CommandFailed, DiskFull, EngineUnavailable, WrongArchitecture
from blocks.remote_job import JobResult
from tasks.images.act import load, verify_start
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
    """A job that ended as given."""

    result: JobResult
    forgotten: bool = False

    def wait(self, **_: Any) -> JobResult:
        return self.result

    def forget(self) -> None:
        self.forgotten = True


class LoadingHost(AnsweringHost):
    """A host whose jobs end as given."""

    def __init__(self, result: JobResult) -> None:
        super().__init__({})
        self.result = result
        self.started: list[Sequence[str]] = []

    def find_job(self, name: str, *, sudo: bool = False) -> Any:
        return None

    def start_job(self, argv: Sequence[str], *, name: str, sudo: bool = False) -> Any:
        self.started.append(argv)
        return EndedJob(self.result)


def test_a_load_is_a_job_named_by_the_archives_hash() -> None:
    host = LoadingHost(JobResult(0, "Loaded image: app:1\n"))
    load(host, "/stage/images.tar", load_job_name("ab" * 32), timeout=5)
    assert host.started == [["docker", "load", "-i", "/stage/images.tar"]]
    assert load_job_name("ab" * 32) != load_job_name("ac" * 32)


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
        load(host, "/stage/images.tar", "load-1", timeout=5)


def test_an_engine_that_dies_during_a_load_may_be_back_at_the_next_try() -> None:
    host = LoadingHost(JobResult(1, 'error during connect: Post "http://x/images/load": EOF'))
    with pytest.raises(EngineUnavailable) as failed:
        load(host, "/stage/images.tar", "load-1", timeout=5)
    assert failed.value.retryable


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
