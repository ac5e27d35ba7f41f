"""Sites, and what operators write where hosts are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.errors import InvalidInput, NotFound
from blocks.site import SITES, expand_hosts, load_site, schema_text

LAB = """\
name: lab
title: 实验室
groups:
  gpu: [gpu1, gpu2]
  all: [gpu1, gpu2, db1]
expected:
  gpu: {images: ["busybox:1.35"]}
"""


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CROSSGAP_SITES", str(tmp_path))
    (tmp_path / "lab.yaml").write_text(LAB, encoding="utf-8")
    return tmp_path


def existing() -> list[str]:
    return ["db1", "gpu1", "gpu2", "web"]


def test_a_site_has_groups_and_what_is_expected_on_them(sites: Path) -> None:
    site = load_site("lab")
    assert site.title == "实验室"
    assert site.groups["gpu"] == ("gpu1", "gpu2")
    assert site.expected["gpu"].images == ("busybox:1.35",)


def test_the_example_loads_and_names_its_schema() -> None:
    path = SITES / "example.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=site.schema.json"
    assert load_site("example").groups


def test_the_schema_beside_the_sites_is_up_to_date() -> None:
    assert (SITES / "site.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "run: python -m blocks.site schema > deployments/sites/site.schema.json"
    )


def test_an_unknown_site_is_answered_with_those_that_exist_the_closest_first(sites: Path) -> None:
    (sites / "aachen.yaml").write_text("name: aachen\n")
    with pytest.raises(NotFound) as caught:
        load_site("labb")
    assert "Existing sites: lab, aachen." in str(caught.value)


@pytest.mark.parametrize("name", ["", "../lab", "lab.yaml", "/etc/passwd", "*"])
def test_a_name_cannot_leave_the_folder(sites: Path, name: str) -> None:
    with pytest.raises(NotFound):
        load_site(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: lab\ngroups: {a: [x]\n  b: [y]\n", "line 3"),
        ("name: lab\n\tgroups: {}\n", "line 2"),
        ("", "holds no fields"),
        ("- lab\n", "holds no fields"),
        ("name: lab\n", "groups: Field required"),
        (LAB.replace("title", "tilte"), "tilte: there is no such field; there are title"),
        (LAB.replace("images", "image"), "expected.gpu.image: there is no such field"),
        (LAB.replace("  gpu: {", "  gpus: {"), "expected.gpus is about no group; there are gpu,"),
        (LAB.replace("[gpu1, gpu2, db1]", "[gpu1, gpu1]"), "groups.all names gpu1 twice"),
        (LAB.replace("[gpu1, gpu2, db1]", "[]"), "groups.all"),
        (LAB.replace("[gpu1, gpu2, db1]", "gpu1"), "groups.all"),
        (LAB.replace("db1", "DB_1"), "'DB_1' is no name"),
        (LAB.replace("name: lab", "name: other"), "the site calls itself other"),
        (LAB.replace("name: lab", "name: !!python/object:os.system x"), "is no YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(sites: Path, text: str, said: str) -> None:
    (sites / "lab.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        load_site("lab")
    assert said in str(caught.value)
    assert "lab.yaml" in caught.value.where
    assert caught.value.remedy


def test_a_file_that_is_not_utf_8_is_refused(sites: Path) -> None:
    (sites / "lab.yaml").write_bytes(LAB.encode("gb18030"))
    with pytest.raises(InvalidInput, match="UTF-8"):
        load_site("lab")


def test_names_and_groups_become_names_each_once_in_order(sites: Path) -> None:
    assert expand_hosts(["web", "lab:gpu", "gpu2", "lab:all"], existing) == [
        "web",
        "gpu1",
        "gpu2",
        "db1",
    ]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "no host is named"),
        ([""], "entry 1: the entry is empty"),
        (["web", " \t"], "entry 2: the entry is empty"),
        ([" web"], "Write 'web'."),
        (["web", "gpu1", "web"], "'web' is named twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(sites: Path, entries: list[str], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        expand_hosts(entries, existing)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("gpu3", "Existing hosts: gpu1, gpu2, db1, web."),
        ("lab:gp", "Existing groups: gpu, all."),
        ("lab:", "Existing groups: all, gpu."),
        (":gpu", "Existing sites: lab."),
        ("lap:gpu", "Existing sites: lab."),
    ],
)
def test_a_wrong_name_is_answered_with_those_that_exist(sites: Path, entry: str, said: str) -> None:
    with pytest.raises(NotFound) as caught:
        expand_hosts([entry], existing)
    assert said in str(caught.value)


def test_a_host_that_only_the_site_knows_is_named_with_its_group(sites: Path) -> None:
    with pytest.raises(NotFound) as caught:
        expand_hosts(["lab:all"], lambda: ["gpu1", "gpu2"])
    assert str(caught.value).startswith("db1 (from lab:all): there is no host block")
