"""What the docker command's complaints mean; the texts are those of real clients."""

from __future__ import annotations

import pytest

from blocks.errors import (
    CommandFailed,
    CrossgapError,
    Damaged,
    DiskFull,
    EngineUnavailable,
    NotFound,
    PermissionRefused,
    WrongArchitecture,
)
from tasks.images.docker_cli import checked, docker, explain_failure
from tests.unit.images_doubles import AnsweringHost, answer

COMPLAINTS = [
    ("sh: 1: docker: not found", EngineUnavailable),
    ("bash: docker: command not found", EngineUnavailable),
    ("sudo: docker: command not found", EngineUnavailable),
    (
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. "
            "Is the docker daemon running?"
        ),
        EngineUnavailable,
    ),
    (
        (
            'error during connect: Post "http://%2Frun%2Fdocker.sock/v1.41/images/load?quiet=1": '
            "write unix @->/run/docker.sock: write: broken pipe"
        ),
        EngineUnavailable,
    ),
    (
        (
            "permission denied while trying to connect to the Docker daemon socket at "
            'unix:///var/run/docker.sock: Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.24/info": '
            "dial unix /var/run/docker.sock: connect: permission denied"
        ),
        PermissionRefused,
    ),
    (
        (
            "Got permission denied while trying to connect to the Docker daemon socket at "
            "unix:///var/run/docker.sock"
        ),
        PermissionRefused,
    ),
    (
        "Error processing tar file(exit status 1): write /x/layer.tar: no space left on device",
        DiskFull,
    ),
    ("Error processing tar file(exit status 1): unexpected EOF", Damaged),
    ("archive/tar: invalid tar header", Damaged),
    ('invalid diffID for layer 0: expected "sha256:a", got "sha256:b"', Damaged),
    ("open /x/images.tar: no such file or directory", NotFound),
    ("exec /bin/sh: exec format error", WrongArchitecture),
]


@pytest.mark.parametrize(("text", "kind"), COMPLAINTS)
def test_a_known_complaint_becomes_its_own_error_with_a_remedy(
    text: str, kind: type[CrossgapError]
) -> None:
    error = explain_failure(text, "gpu1")
    assert type(error) is kind
    assert error.where == "gpu1"
    assert error.remedy


def test_an_unknown_complaint_is_quoted() -> None:
    assert explain_failure("the moon is full", "gpu1") is None
    with pytest.raises(CommandFailed, match=r"tag the image \(the moon is full\)"):
        checked(answer("", "the moon is full", 1), "tag the image", "gpu1")


def test_docker_runs_as_root_where_the_block_says_how() -> None:
    host = AnsweringHost({"docker version": answer("27\n")})
    result = docker(host, "version", "--format", "{{.Server.Version}}", timeout=5)
    assert result.stdout == "27\n"
    assert host.asked == [(["docker", "version", "--format", "{{.Server.Version}}"], True)]


def test_a_missing_docker_command_is_told_by_its_exit_code_too() -> None:
    host = AnsweringHost({"docker": answer("", "docker: kein Befehl", 127)})
    with pytest.raises(EngineUnavailable, match="docker is not installed"):
        docker(host, "info", timeout=5)


def test_other_failures_are_left_to_the_caller() -> None:
    host = AnsweringHost({"docker": answer("[]", "No such image: x", 1)})
    assert docker(host, "image", "inspect", "x", timeout=5).exit_code == 1
