"""Under which name an image arrives."""

from __future__ import annotations

from tasks.images.arrival import arrival_name, arrival_note
from tasks.images.names import parse_reference

DIGEST = f"sha256:{'0123456789abcdef' * 4}"


def test_a_tag_stays_as_it_is() -> None:
    for name in ("ubuntu:22.04", "r.example:5000/team/app:1"):
        assert arrival_name(parse_reference(name)) == name
        assert arrival_note(parse_reference(name)) == ""


def test_a_digest_becomes_a_tag_that_docker_accepts_and_that_is_always_the_same() -> None:
    name = arrival_name(parse_reference(f"r.example:5000/team/app@{DIGEST}"))
    assert name == "r.example:5000/team/app:sha256-0123456789ab"
    assert parse_reference(name).familiar == name
    # Docker, too, ignores the tag beside a digest.
    assert arrival_name(parse_reference(f"app:1@{DIGEST}")) == "app:sha256-0123456789ab"


def test_what_compose_has_to_use_is_said() -> None:
    note = arrival_note(parse_reference(f"app@{DIGEST}"))
    assert note.startswith(f"app@{DIGEST} arrived as app:sha256-0123456789ab")
    assert "compose" in note
