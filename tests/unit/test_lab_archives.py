"""Archives made to measure are the same every time, and shaped as Docker shapes them."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.lab import (
    OPAQUE,
    File,
    Folder,
    HardLink,
    ImageSpec,
    LabError,
    LayerSpec,
    Symlink,
    whiteout,
    write_archive,
)
from tests.lab.archives import Form
from tests.lab.layers import Entry

BASE = LayerSpec({"data/base.bin": 300_000}, seed=1)
APP = LayerSpec({"app/run": b"#!/bin/sh\n"})


def specs() -> list[ImageSpec]:
    return [
        ImageSpec("crossgap.test/app:1", [BASE, APP], busybox=False),
        ImageSpec("crossgap.test/base:1", [BASE], busybox=False, architecture="arm64"),
    ]


def loaded(tar: tarfile.TarFile, name: str) -> Any:
    member = tar.extractfile(name)
    assert member
    return json.load(member)


@pytest.mark.parametrize("form", ["legacy", "oci"])
def test_the_same_specs_give_the_same_file(tmp_path: Path, form: Form) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert write_archive(first, specs(), "gzip", form) == write_archive(
        second, specs(), "gzip", form
    )
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_gives_another_layer(tmp_path: Path) -> None:
    def diff_id(seed: int) -> str:
        layer = LayerSpec({"data": 1000}, seed=seed)
        spec = ImageSpec("crossgap.test/one:1", [layer], busybox=False)
        return write_archive(tmp_path / "archive", [spec])[0].diff_ids[0]

    assert diff_id(1) == diff_id(1)
    assert diff_id(1) != diff_id(2)


def test_random_content_has_the_size_asked_for_and_does_not_compress(tmp_path: Path) -> None:
    spec = ImageSpec("crossgap.test/one:1", [LayerSpec({"data": 3_000_001})], busybox=False)
    made = write_archive(tmp_path / "plain", [spec])[0]
    write_archive(tmp_path / "packed", [spec], "gzip")

    assert 3_000_001 < made.layer_bytes[0] < 3_000_001 + 20_000
    assert (tmp_path / "packed").stat().st_size > 2_990_000


@pytest.mark.parametrize("form", ["legacy", "oci"])
def test_digests_are_those_of_what_is_in_the_archive(tmp_path: Path, form: Form) -> None:
    made = write_archive(tmp_path / "archive", specs(), form=form)
    with tarfile.open(tmp_path / "archive") as tar:
        for image, entry in zip(made, loaded(tar, "manifest.json"), strict=True):
            assert entry["RepoTags"] == [image.name]
            config = tar.extractfile(entry["Config"])
            assert config
            assert f"sha256:{hashlib.sha256(config.read()).hexdigest()}" == image.config_digest
            for name, diff_id in zip(entry["Layers"], image.diff_ids, strict=True):
                layer = tar.extractfile(name)  # follows a symbolic link
                assert layer
                assert f"sha256:{hashlib.sha256(layer.read()).hexdigest()}" == diff_id
        assert loaded(tar, loaded(tar, "manifest.json")[1]["Config"])["architecture"] == "arm64"


def test_a_legacy_archive_stores_a_shared_layer_once_and_links_to_it(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", specs())
    with tarfile.open(tmp_path / "archive") as tar:
        layers = [m for m in tar.getmembers() if m.name.endswith("/layer.tar")]
    links = [m for m in layers if m.issym()]
    assert len(layers) == 3
    assert len(links) == 1
    assert links[0].linkname.startswith("../")


def test_an_oci_archive_names_every_blob_by_its_digest(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", specs(), form="oci")
    with tarfile.open(tmp_path / "archive") as tar:
        assert loaded(tar, "oci-layout") == {"imageLayoutVersion": "1.0.0"}
        for descriptor in loaded(tar, "index.json")["manifests"]:
            manifest = loaded(tar, f"blobs/sha256/{descriptor['digest'][7:]}")
            for blob in [manifest["config"], *manifest["layers"]]:
                content = tar.extractfile(f"blobs/sha256/{blob['digest'][7:]}")
                assert content
                data = content.read()
                assert len(data) == blob["size"]
                assert f"sha256:{hashlib.sha256(data).hexdigest()}" == blob["digest"]


def test_a_compressed_archive_is_the_plain_one_compressed(tmp_path: Path) -> None:
    write_archive(tmp_path / "plain", specs())
    write_archive(tmp_path / "packed", specs(), "gzip")
    assert gzip.decompress((tmp_path / "packed").read_bytes()) == (tmp_path / "plain").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "plain"]


def test_a_name_without_a_tag_is_refused() -> None:
    with pytest.raises(LabError, match="tag"):
        ImageSpec("localhost:5000/app")


ODD: dict[str, Entry] = {
    "opt/数据/说明.txt": b"text",
    "opt/tool": File(b"#!/bin/sh\n", mode=0o4755, xattrs={"security.capability": b"\x01\x00"}),
    "opt/again": HardLink("opt/tool"),
    "opt/link": Symlink("../no/such/place"),
    "opt/empty": Folder(mode=0o1777),
    whiteout("etc/gone"): b"",
    f"var/{OPAQUE}": b"",
}


def layer_of(path: Path, *layers: LayerSpec) -> list[tarfile.TarInfo]:
    spec = ImageSpec("crossgap.test/odd:1", layers, busybox=False)
    write_archive(path, [spec], form="oci")
    with tarfile.open(path) as tar:
        file = tar.extractfile(loaded(tar, "manifest.json")[0]["Layers"][-1])
        with tarfile.open(fileobj=file) as layer:
            return layer.getmembers()


def test_a_layer_can_hold_links_rights_attributes_and_what_takes_files_away(
    tmp_path: Path,
) -> None:
    members = layer_of(tmp_path / "archive", LayerSpec(ODD))
    by_name = {member.name: member for member in members}
    assert set(ODD) <= set(by_name)
    assert by_name["opt/tool"].mode == 0o4755
    assert by_name["opt/tool"].pax_headers["SCHILY.xattr.security.capability"] == "\x01\x00"
    assert by_name["opt/again"].islnk()
    assert by_name["opt/link"].linkname == "../no/such/place"
    assert (by_name["opt/empty"].isdir(), by_name["opt/empty"].mode) == (True, 0o1777)
    assert members[-1].name == "opt/again", "a hard link follows what it links to"
    assert by_name["etc/.wh.gone"].size == by_name["var/.wh..wh..opq"].size == 0


def test_a_layer_without_files_is_the_one_that_engines_know(tmp_path: Path) -> None:
    spec = ImageSpec("crossgap.test/empty:1", [LayerSpec({})], busybox=False)
    (made,) = write_archive(tmp_path / "archive", [spec])
    known = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
    assert made.diff_ids == (known,)


def test_two_images_that_differ_in_their_date_only_have_layers_in_common(tmp_path: Path) -> None:
    layers = [APP]
    old, new = write_archive(
        tmp_path / "archive",
        [
            ImageSpec("crossgap.test/a:1", layers, busybox=False, created="2023-05-01T00:00:00Z"),
            ImageSpec("crossgap.test/a:2", layers, busybox=False),
        ],
    )
    assert old.diff_ids == new.diff_ids
    assert old.config_digest != new.config_digest
