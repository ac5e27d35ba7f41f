"""Where an image is pulled from, and what a registry's complaints mean."""

from __future__ import annotations

import pytest

from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    CrossgapError,
    DiskFull,
    NotFound,
    PermissionRefused,
    Unreachable,
    WrongArchitecture,
)
from tasks.images.names import parse_reference
from tasks.images.pull import pull_failure, pull_places


def test_mirrors_come_first_in_their_order_and_the_hub_itself_last() -> None:
    places = pull_places(
        parse_reference("ubuntu:22.04"), ["https://m1.example/", "m2.example:5000"]
    )
    assert places == ["m1.example/library/ubuntu", "m2.example:5000/library/ubuntu", "ubuntu"]


def test_mirrors_of_the_hub_are_not_asked_for_images_of_other_registries() -> None:
    assert pull_places(parse_reference("quay.io/a/b:1"), ["m1.example"]) == ["quay.io/a/b"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('Get "https://x/v2/": dial tcp: lookup x on 1.1.1.1:53: no such host', Unreachable),
        ("dial tcp 127.0.0.1:1: connect: connection refused", Unreachable),
        ("net/http: TLS handshake timeout", Unreachable),
        ("received unexpected HTTP status: 503 Service Unavailable", Unreachable),
        ("pull access denied for x, repository does not exist or may require login", NotFound),
        ("manifest for x:1 not found: manifest unknown", NotFound),
        ("Head http://x/v2/a/manifests/1: no basic auth credentials", AuthenticationRefused),
        ("http: server gave HTTP response to HTTPS client", PermissionRefused),
        ("x509: certificate signed by unknown authority", PermissionRefused),
        ("unauthorized: incorrect username or password", AuthenticationRefused),
        ("no matching manifest for linux/arm64 in the manifest list entries", WrongArchitecture),
        ("write /var/lib/docker/tmp/x: no space left on device", DiskFull),
        ("something odd", CommandFailed),
    ],
)
def test_a_registrys_complaint_becomes_its_own_error(text: str, kind: type[CrossgapError]) -> None:
    error = pull_failure(text, parse_reference("ubuntu:22.04"), "ubuntu")
    assert type(error) is kind
    assert text[-40:] in str(error)
    assert error.where == "image 'ubuntu:22.04' from docker.io"


def test_a_mirrors_failure_names_the_mirror() -> None:
    error = pull_failure("EOF", parse_reference("ubuntu"), "m1.example/library/ubuntu")
    assert error.where == "image 'ubuntu:latest' from m1.example"
