"""Where an image may be had, and how mirrors are named."""

from __future__ import annotations

import pytest

from blocks.errors import InvalidInput
from tasks.images.names import parse_reference
from tasks.images.registry.places import HUB_HOST, Place, find_places

HUB = Place(HUB_HOST, "library/ubuntu", ("https",), own=True)


@pytest.mark.parametrize(
    ("mirror", "host", "repository", "schemes"),
    [
        ("m.example", "m.example", "library/ubuntu", ("https",)),
        (" M.example:5000/ ", "m.example:5000", "library/ubuntu", ("https",)),
        ("http://10.0.0.5:5000", "10.0.0.5:5000", "library/ubuntu", ("http",)),
        ("https://m.example/a/b", "m.example", "a/b/library/ubuntu", ("https",)),
        ("127.0.0.9:5000", "127.0.0.9:5000", "library/ubuntu", ("https", "http")),
        ("localhost", "localhost", "library/ubuntu", ("https", "http")),
        ("[::1]:5000", "[::1]:5000", "library/ubuntu", ("https", "http")),
        ("https://127.0.0.1", "127.0.0.1", "library/ubuntu", ("https",)),
    ],
)
def test_a_mirror_comes_before_the_hub_and_only_the_loopback_is_trusted_unencrypted(
    mirror: str, host: str, repository: str, schemes: tuple[str, ...]
) -> None:
    places = find_places(parse_reference("ubuntu"), [mirror, ""])
    assert places == (Place(host, repository, schemes), HUB)


def test_other_registries_have_no_mirrors() -> None:
    places = find_places(parse_reference("quay.io/a/b"), ["m.example"])
    assert places == (Place("quay.io", "a/b", ("https",), own=True),)


@pytest.mark.parametrize(
    ("mirror", "words"),
    [
        ("ftp://m.example", "begins with ftp"),
        ("m.example:port", "has a port"),
        ("m.example:99999", "has a port"),
        ("https://m.example/?a=b", "has a path"),
        ("https://m.example/../x", "has a path"),
        ("https://", "no host name"),
        ("镜像.example", "no host name"),
        ("m.example m2.example", "no host name"),
    ],
)
def test_what_is_no_mirror_is_refused_also_for_other_registries(mirror: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        find_places(parse_reference("quay.io/a/b"), [mirror])


def test_a_password_in_a_mirror_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidInput, match="user name in it") as failed:
        find_places(parse_reference("ubuntu"), ["https://me:secret@m.example"])
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (Place("m.example", "a", ("https",)), "m.example/a"),
        (Place("mirror", "a", ("https",)), "mirror:443/a"),
        (Place("m.example", "a", ("http",)), "m.example:80/a"),
        (Place("m.example:5000", "a", ("http",)), "m.example:5000/a"),
        (Place("[::1]", "a", ("https",)), "[::1]:443/a"),
        (Place("localhost", "a", ("https", "http")), "localhost/a"),
    ],
)
def test_an_engine_is_told_a_name_that_it_takes_for_a_registry(place: Place, name: str) -> None:
    assert place.engine_repository == name
