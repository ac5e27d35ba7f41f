"""Which images newer ones have superseded, from facts as data; and how they are removed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from blocks.errors import CommandFailed, EngineUnavailable, InvalidInput
from blocks.host import CommandResult
from tasks.images.facts import ImageFacts
from tasks.images.prune import (
    Container,
    Inventory,
    Removal,
    StoredImage,
    Superseded,
    parse_inventory,
    read_inventory,
    removable,
    remove,
    superseded,
)
from tests.unit.images_doubles import AnsweringHost, answer

MAY, JUNE, JULY = (f"2025-0{month}-01T08:00:00Z" for month in (5, 6, 7))


def wanted(name: str, created: str = JULY) -> ImageFacts:
    digest = f"sha256:{name}"
    return ImageFacts(name, digest, digest, ("l1",), "amd64", created=created)


def stored(name: str, created: str = JUNE, *more: str, image_id: str = "") -> StoredImage:
    names = (name, *more) if name else ()
    return StoredImage(image_id or f"sha256:{name}", names, created, 1000)


def names(found: Sequence[Superseded]) -> list[str]:
    return [image.label for image in found]


V2 = wanted("ragflow:v2")
HERE = stored("ragflow:v2", JULY)


def test_an_older_tag_of_a_wanted_repository_is_superseded_and_says_by_what() -> None:
    found = superseded([V2], Inventory((HERE, stored("ragflow:v1"))))
    assert found == (Superseded("ragflow:v1", "sha256:ragflow:v1", 1000, "older than ragflow:v2"),)
    assert removable(found) == found


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (stored("mysql:8"), "another repository"),
        (stored("ragflow-base:v1"), "another repository with a similar name"),
        (stored("registry.example.com:5000/ragflow:v1"), "another registry"),
        (stored("team/ragflow:v1"), "another folder"),
        (stored("ragflow:v3", "2025-08-01T08:00:00Z"), "newer"),
        (stored("ragflow:same", JULY), "as old"),
        (stored("ragflow:v1", ""), "age not known"),
        (stored("ragflow:v1", "0001-01-01T00:00:00Z"), "age never set"),
        (stored("ragflow:v1", "1980-01-01T00:00:01Z"), "date of a build tool"),
        (stored("", MAY, image_id="sha256:dangling"), "nameless, and not by this run"),
        (stored("Odd/Name:1", MAY), "a name that is none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_else_is(other: StoredImage, why: str) -> None:
    assert superseded([V2], Inventory((HERE, other))) == ()


@pytest.mark.parametrize("created", ["", "1970-01-01T00:00:00Z"])
def test_nothing_is_superseded_by_an_image_whose_age_is_not_known(created: str) -> None:
    image = wanted("ragflow:v2", created)
    assert superseded([image], Inventory((stored("ragflow:v1"),))) == ()
    assert superseded([image, wanted("ragflow:v3")], Inventory((stored("ragflow:v1"),))) == ()


def test_of_two_wanted_tags_both_are_kept_and_what_lies_between_them() -> None:
    old, new = wanted("redis:6", MAY), wanted("redis:7", JULY)
    between, before = stored("redis:6.2", JUNE), stored("redis:5", "2024-01-01T00:00:00Z")
    inventory = Inventory((stored("redis:6", MAY), stored("redis:7", JULY), between, before))
    found = superseded([old, new], inventory)
    assert names(found) == ["redis:5"]
    assert found[0].why == "older than redis:6, redis:7"


def test_ages_are_compared_as_times_and_not_as_text() -> None:
    v2 = wanted("app:2", "2025-06-01T08:00:00.5+08:00")
    earlier = stored("app:1", "2025-06-01T00:00:00.123456789Z")
    later = stored("app:3", "2025-06-01T01:00:00Z")
    assert names(superseded([v2], Inventory((earlier, later)))) == ["app:1"]


def test_names_are_compared_by_what_docker_takes_them_for() -> None:
    v2 = wanted("docker.io/library/redis:7")
    inventory = Inventory((stored("redis:7", MAY), stored("redis:6", MAY)))
    assert names(superseded([v2], inventory)) == ["redis:6"]


def test_only_the_names_of_the_repository_go_when_an_image_has_others() -> None:
    shared = stored("ragflow:v1", MAY, "mirror.example.com/ragflow:v1", "ragflow:old")
    assert names(superseded([V2], Inventory((HERE, shared)))) == ["ragflow:v1", "ragflow:old"]


def test_what_this_run_took_a_wanted_name_from_is_superseded_once_nameless() -> None:
    before = {"ragflow:v2": wanted("old"), "ragflow:latest": wanted("old")}
    left = stored("", "", image_id="sha256:old")
    (found,) = superseded([V2], Inventory((HERE, left)), before)
    assert (found.name, found.image_id) == ("", "sha256:old")
    assert found.why in {f"was {name} until this run" for name in before}
    renamed = stored("keep:1", MAY, image_id="sha256:old")
    assert superseded([V2], Inventory((HERE, renamed)), before) == ()
    assert superseded([V2], Inventory((HERE,)), {"ragflow:v2": wanted("ragflow:v2")}) == ()


@pytest.mark.parametrize("state", ["running", "exited", "created", "paused"])
@pytest.mark.parametrize(
    ("image_id", "image_name"),
    [("sha256:ragflow:v1", "sha256:ragflow:v1"), ("sha256:other", "ragflow:v1")],
    ids=["by id", "by name"],
)
def test_what_a_container_uses_is_listed_and_not_removable(
    state: str, image_id: str, image_name: str
) -> None:
    user = Container("web-1", image_id, image_name, state)
    inventory = Inventory((HERE, stored("ragflow:v1"), stored("ragflow:v0", MAY)), (user,))
    found = superseded([V2], inventory)
    assert [(image.name, image.used_by) for image in found] == [
        ("ragflow:v1", (f"web-1 ({state})",)),
        ("ragflow:v0", ()),
    ]
    assert names(removable(found)) == ["ragflow:v0"]


def test_a_container_of_one_name_keeps_the_image_s_other_names_too() -> None:
    image = stored("ragflow:v1", MAY, "ragflow:old", image_id="sha256:a")
    user = Container("web", "sha256:a", "ragflow:v1", "running")
    assert removable(superseded([V2], Inventory((HERE, image), (user,)))) == ()


def test_a_container_keeps_a_nameless_image() -> None:
    left = stored("", MAY, image_id="sha256:old")
    user = Container("web", "sha256:old", "ragflow:v2", "running")
    found = superseded([V2], Inventory((HERE, left), (user,)), {"ragflow:v2": wanted("old")})
    assert [image.used_by for image in found] == [("web (running)",)]


# Reading.


def row(image: str, *tags: str, created: str | None = MAY) -> str:
    return json.dumps({"image": image, "names": list(tags) or None, "created": created, "size": 7})


PRINTED = "\n".join(
    [
        row("sha256:a", "app:1", "app:2"),
        row("sha256:b", created=None),
        row("sha256:c", "<none>:<none>"),
        row("sha256:a", "app:1", "app:2"),
        '{"container":"/web-1","of":"sha256:a","called":"app:1","state":"running"}',
    ]
)


def test_an_inventory_is_read_from_what_docker_prints() -> None:
    assert parse_inventory(PRINTED + "\n", "gpu1") == Inventory(
        (
            StoredImage("sha256:a", ("app:1", "app:2"), MAY, 7),
            StoredImage("sha256:b", (), "", 7),
            StoredImage("sha256:c", (), MAY, 7),
        ),
        (Container("web-1", "sha256:a", "app:1", "running"),),
    )
    assert parse_inventory("", "gpu1") == Inventory()


@pytest.mark.parametrize("text", ["Emulate Docker CLI using podman", "[1]", '{"container":"x"}'])
def test_what_is_no_inventory_is_told(text: str) -> None:
    with pytest.raises(CommandFailed, match="gpu1: the answer of docker is not understood"):
        parse_inventory(text, "gpu1")


class Answers(AnsweringHost):
    """Answers from a list in turn, whatever is asked."""

    def __init__(self, *results: CommandResult) -> None:
        super().__init__({})
        self.results = list(results)

    def run(self, argv: Sequence[str], *, sudo: bool = False, **_: Any) -> CommandResult:
        self.asked.append((list(argv), sudo))
        return self.results.pop(0)


GONE = answer(row("sha256:b", "app:3"), "Error: No such image: sha256:a", 1)


def test_a_host_is_read_in_one_command_as_root() -> None:
    host = Answers(answer(PRINTED))
    assert len(read_inventory(host).images) == 3
    assert [sudo for _, sudo in host.asked] == [True]


def test_a_reading_in_which_something_went_away_is_not_trusted() -> None:
    host = Answers(GONE, GONE, answer(PRINTED))
    assert len(read_inventory(host).containers) == 1
    with pytest.raises(CommandFailed, match="could not list images and containers"):
        read_inventory(Answers(GONE, GONE, GONE))


def test_an_engine_that_is_not_there_is_told_at_once() -> None:
    said = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."
    with pytest.raises(EngineUnavailable):
        read_inventory(Answers(answer("", said, 1)))
    with pytest.raises(EngineUnavailable, match="not installed"):
        read_inventory(Answers(answer("", "sh: 1: docker: not found", 127)))


# Removing.

OLD = Superseded("app:1", "sha256:a", 7, "older than app:2")
LEFT = Superseded("", "sha256:a", 7, "was app:2 until this run")
NO_USERS = answer("")


def asked(host: AnsweringHost) -> list[str]:
    return [" ".join(argv[1:2]) for argv, _ in host.asked]


@pytest.mark.parametrize(
    ("image", "tags", "handle"), [(OLD, ["app:1", "x:1"], "app:1"), (LEFT, [], "sha256:a")]
)
def test_an_image_is_removed_by_its_name_or_id_and_without_force(
    image: Superseded, tags: list[str], handle: str
) -> None:
    host = Answers(answer(row("sha256:a", *tags)), NO_USERS, answer("Untagged: app:1"))
    assert remove(host, image) == Removal(image, removed=True)
    assert host.asked[-1] == (["docker", "rmi", handle], True)


@pytest.mark.parametrize("at", [0, 2])
def test_an_image_that_is_gone_already_is_removed(at: int) -> None:
    results = [answer(row("sha256:a", "app:1")), NO_USERS]
    host = Answers(*results[:at], answer("", "Error: No such image: app:1", 1))
    assert remove(host, OLD).removed


@pytest.mark.parametrize(
    ("image", "now"),
    [(OLD, row("sha256:b", "app:1")), (LEFT, row("sha256:a", "rescued:1"))],
    ids=["the name belongs to another image", "the nameless image got a name"],
)
def test_what_has_changed_since_it_was_looked_at_is_left_alone(image: Superseded, now: str) -> None:
    host = Answers(answer(now))
    removal = remove(host, image)
    assert not removal.removed
    assert "another image or got a name" in removal.said
    assert "rmi" not in asked(host)


def test_an_image_that_a_container_has_begun_to_use_is_left_alone() -> None:
    host = Answers(answer(row("sha256:a", "app:1", "x:1")), answer("web-2\n"))
    assert remove(host, OLD) == Removal(OLD, removed=False, said="web-2 has begun to use it")
    assert "rmi" not in asked(host)


def test_a_refusal_is_reported_and_no_error() -> None:
    said = "Error response from daemon: conflict: image has dependent child images\n"
    host = Answers(answer(row("sha256:a", "app:1")), NO_USERS, answer("", said, 1))
    removal = remove(host, OLD)
    assert (removal.removed, removal.said) == (False, said.strip())


def test_an_image_in_use_is_never_handed_to_docker() -> None:
    host = Answers()
    with pytest.raises(InvalidInput, match="used by web"):
        remove(host, Superseded("app:1", "sha256:a", 7, "", ("web (exited)",)))
    assert host.asked == []
