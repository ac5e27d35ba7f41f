"""Image names: accepted as Docker accepts them, refused with a reason."""

from __future__ import annotations

import pytest

from blocks.errors import InvalidInput, SeveralFailures
from tasks.images.names import Reference, parse_reference, parse_references

DIGEST = "sha256:" + "a1" * 32

ACCEPTED = [
    ("ubuntu", "ubuntu:latest"),
    ("  ubuntu:22.04\n", "ubuntu:22.04"),
    ("library/ubuntu", "ubuntu:latest"),
    ("docker.io/library/ubuntu:22.04", "ubuntu:22.04"),
    ("docker.io/ubuntu", "ubuntu:latest"),
    ("index.docker.io/infiniflow/ragflow:v0.27.0", "infiniflow/ragflow:v0.27.0"),
    ("infiniflow/ragflow:v0.27.0-slim", "infiniflow/ragflow:v0.27.0-slim"),
    ("localhost/app", "localhost/app:latest"),
    ("localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x"),
    ("registry.example.com:5000/team/app", "registry.example.com:5000/team/app:latest"),
    ("[2001:db8::1]:5000/app:1", "[2001:db8::1]:5000/app:1"),
    ("a__b/c.d-e--f:TAG_1.2", "a__b/c.d-e--f:TAG_1.2"),
    (f"ubuntu@{DIGEST}", f"ubuntu@{DIGEST}"),
    (f"ubuntu:22.04@{DIGEST}", f"ubuntu@{DIGEST}"),
]

REFUSED = [
    "",
    "   ",
    "Ubuntu",
    "ubuntu:",
    "ubuntu:-x",
    "ubuntu:" + "x" * 129,
    "/ubuntu",
    "ubuntu/",
    "a//b",
    "a..b",
    "../../etc/passwd",
    "-v",
    "--help",
    "$(reboot)",
    "ubuntu:$(reboot)",
    "`id`",
    "ubuntu;reboot",
    "ubuntu|sh",
    "ubuntu&",
    "ubuntu>x",
    "'ubuntu'",
    'ubuntu"',
    "ubuntu\\x",
    "ubuntu 22.04",
    "ubuntu\nreboot",
    "ubuntu\x00",
    "ubuntu\u200b",
    "ubuntu,redis",
    "ubuntu@sha256:abc",
    "ubuntu@sha256:" + "A1" * 32,
    "ubuntu@",
    "a1" * 32,
    "my_.registry.com:port/app",
    "registry.com:/app",
    "x/" * 130 + "y",
    "镜像:latest",
]


@pytest.mark.parametrize(("text", "familiar"), ACCEPTED)
def test_a_valid_name_is_shown_as_docker_shows_it(text: str, familiar: str) -> None:
    assert parse_reference(text).familiar == familiar


@pytest.mark.parametrize("text", REFUSED)
def test_a_name_docker_would_not_accept_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_reference(text)
    message = str(refused.value)
    assert repr(text.strip()) in message
    assert "A name looks like" in message
    assert "\n" not in message


def test_a_name_is_taken_apart_with_dockers_defaults() -> None:
    assert parse_reference("ubuntu") == Reference("docker.io", "library/ubuntu", "latest")
    assert parse_reference(f"r.io:5/a/b@{DIGEST}") == Reference("r.io:5", "a/b", "", DIGEST)


def test_what_docker_shows_is_parsed_to_the_same_reference_again() -> None:
    for text, _ in ACCEPTED:
        reference = parse_reference(text)
        again = parse_reference(reference.familiar)
        assert again.familiar == reference.familiar


@pytest.mark.parametrize("text", ["redis：7.2", "ｕbuntu:22.04", "a／b"])
def test_full_width_characters_get_the_name_that_was_meant(text: str) -> None:
    with pytest.raises(InvalidInput, match="full-width") as refused:
        parse_reference(text)
    assert "English keyboard" in refused.value.remedy


def test_chinese_characters_are_named_in_the_complaint() -> None:
    with pytest.raises(InvalidInput, match="contains '镜'"):
        parse_reference("镜像")


def test_capital_letters_get_the_name_in_small_letters() -> None:
    with pytest.raises(InvalidInput, match="'infiniflow/ragflow:v1'"):
        parse_reference("infiniflow/RAGFlow:v1")


def test_a_name_that_comes_twice_is_kept_once_where_it_came_first() -> None:
    names = [
        r.familiar for r in parse_references(["b", "a:1", " b:latest ", "docker.io/library/b"])
    ]
    assert names == ["b:latest", "a:1"]


def test_every_malformed_name_of_a_list_is_reported() -> None:
    with pytest.raises(SeveralFailures) as refused:
        parse_references(["ok", "Bad", "wor;se"])
    assert "'Bad'" in str(refused.value)
    assert "'wor;se'" in str(refused.value)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        parse_references([])
