"""What an operator asked for, looked up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blocks.errors import CrossgapError, InvalidInput, NotFound, SeveralFailures
from tasks.images import wanted as module
from tasks.images.archive import ArchiveFacts
from tasks.images.facts import ImageFacts
from tasks.images.registry.auth import Credentials
from tasks.images.registry.registries import RegistryAccess
from tasks.images.sources import ArchiveSource, EngineSource, RegistrySource
from tasks.images.wanted import SourceKind, Wanted, chosen, find_source


def image(name: str) -> ImageFacts:
    return ImageFacts(name, f"sha256:{name}", f"sha256:{name}", (name,), "amd64")


RAGFLOW, MYSQL, REDIS = image("infiniflow/ragflow:v1"), image("mysql:8.0"), image("redis:7")
ARCHIVES = (
    ArchiveFacts(Path("a.tar"), 1, "1" * 64, "none", (RAGFLOW, MYSQL)),
    ArchiveFacts(Path("b.tar"), 1, "2" * 64, "none", (REDIS,)),
)


class Steps:
    """Stands for the tasks that look things up."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def read_source(self, *arguments: Any) -> tuple[ImageFacts, ...]:
        self.asked.append(arguments)
        return (MYSQL,)

    def check_archives(self, path: str) -> tuple[ArchiveFacts, ...]:
        self.asked.append(path)
        return ARCHIVES


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Steps:
    steps = Steps()
    monkeypatch.setattr(module, "steps", steps)
    monkeypatch.setenv("CROSSGAP_STORE", str(tmp_path / "store"))
    return steps


def test_the_engine_is_asked_by_the_names_that_docker_shows(steps: Steps) -> None:
    names = ["docker.io/library/mysql:8.0", " redis ", "mysql:8.0"]

    with find_source(Wanted(names, mirrors=["mirror.lan"])) as source:
        assert isinstance(source, EngineSource)
        assert source.wanted_on("amd64") == (MYSQL,)

    assert steps.asked == [(["mysql:8.0", "redis:latest"], "missing", ["mirror.lan"], None)]


def test_a_pull_gets_the_user_whose_block_was_named(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = Credentials("anna", "secret", "reg.lan")
    monkeypatch.setattr(module, "load_credentials", {"our-registry": user}.get)

    find_source(Wanted(["mysql:8.0"], pull="always", registry_credentials="our-registry"))

    assert steps.asked == [(["mysql:8.0"], "always", (), user)]


def test_of_an_archive_the_named_images_are_wanted_in_their_order(steps: Steps) -> None:
    source = find_source(Wanted(["redis:7", "library/mysql:8.0"], "archive", "/d/x.tar"))

    assert isinstance(source, ArchiveSource)
    assert source.wanted_on("arm64") == (REDIS, MYSQL)
    assert steps.asked == ["/d/x.tar"]


def test_of_an_archive_everything_is_wanted_when_nothing_is_named(steps: Steps) -> None:
    source = find_source(Wanted([], "archive", "/d"))

    assert source.wanted_on("amd64") == (RAGFLOW, MYSQL, REDIS)


def test_from_a_registry_no_engine_is_asked_and_nothing_yet(steps: Steps) -> None:
    with find_source(Wanted(["mysql:8.0"], "registry", mirrors=["mirror.lan"])) as source:
        assert isinstance(source, RegistrySource)

    assert steps.asked == []


def test_registries_are_reached_as_the_run_and_the_site_of_the_worker_say(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[RegistryAccess] = []
    monkeypatch.setattr(module, "Registry", given.append)
    wanted = Wanted(["mysql:8.0"], "registry", mirrors=["mirror.lan"])

    find_source(wanted)
    monkeypatch.setenv("CROSSGAP_CA_BUNDLE", "/etc/证书/ca.pem")
    monkeypatch.setenv("CROSSGAP_USE_PROXY", "yes")
    find_source(wanted)

    assert given == [
        RegistryAccess(("mirror.lan",)),
        RegistryAccess(("mirror.lan",), ca_bundle=Path("/etc/证书/ca.pem"), use_proxy=True),
    ]


def test_images_of_a_compose_file_are_wanted_like_named_ones(steps: Steps, tmp_path: Path) -> None:
    compose = tmp_path / "docker-compose.yml"
    compose.write_text("services: {db: {image: 'mysql:8.0'}, cache: {image: redis}}")

    find_source(Wanted([f"compose:{compose}", "redis:latest"]))

    assert steps.asked[0][0] == ["mysql:8.0", "redis:latest"]


@pytest.mark.parametrize(
    ("images", "source", "archive", "said"),
    [
        (["mysql:8.0"], "engine", "/d/x.tar", "Set source to 'archive'"),
        (["mysql:8.0"], "registry", "/d/x.tar", "Set source to 'archive'"),
        (["mysql:8.0"], "archive", "", "Give the path"),
        ([], "archive", "", "Give the path"),
        ([], "engine", "", "image"),
        ([], "registry", "", "image"),
        (["UPPER:case"], "engine", "", "UPPER:case"),
        (["a b"], "archive", "/d/x.tar", "a b"),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused_before_anything_is_read(
    steps: Steps, images: list[str], source: SourceKind, archive: str, said: str
) -> None:
    with pytest.raises(CrossgapError, match=said) as refused:
        find_source(Wanted(images, source, archive))

    assert isinstance(refused.value, InvalidInput | SeveralFailures)
    assert not refused.value.retryable
    assert steps.asked == []


def test_an_image_that_no_archive_holds_is_named_with_those_like_it() -> None:
    with pytest.raises(NotFound, match=r"'mysql:5\.7': it is in none.*They hold mysql:8\.0\.$"):
        chosen(ARCHIVES, ["mysql:5.7"])


def test_an_image_like_no_other_is_answered_with_what_there_is() -> None:
    with pytest.raises(NotFound, match=r"hold infiniflow/ragflow:v1, mysql:8\.0, redis:7\."):
        chosen(ARCHIVES, ["qdrant:1"])


def test_all_missing_images_are_named_at_once() -> None:
    with pytest.raises(SeveralFailures) as missing:
        chosen(ARCHIVES, ["qdrant:1", "mysql:8.0", "minio:2"])

    assert [one.where for one in missing.value.failures] == ["image 'qdrant:1'", "image 'minio:2'"]


def test_an_image_in_two_archives_is_wanted_once() -> None:
    assert chosen([*ARCHIVES, ARCHIVES[0]], []) == (RAGFLOW, MYSQL, REDIS)
