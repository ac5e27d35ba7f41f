"""The archive that every engine loads, and how a host puts it together."""

from __future__ import annotations

import io
import json
import random
import shlex
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.content import Content, FileRange
from tasks.images.assembly import Assembly, assemble
from tasks.images.blobs import Blob, Descriptor, Layer
from tasks.images.layout import (
    BLOCK,
    LayoutImage,
    carried_layers,
    chain_ids,
    compose,
    digest_of,
    documents,
)
from tests.unit.conftest import Shell

NAMES = ["plain", "a b", 'it\'s "x"', "镜像", "-rf", "*", "$(touch x)", "new\nline"]

BASE, APP, ODD, SMALL = (random.Random(size).randbytes(size) for size in (4096, 512, 5001, 1))


def layer(data: bytes) -> Layer:
    digest = digest_of(data)
    return Layer(digest, "none", Blob(digest, len(data), Content((data,))))


def absent(data: bytes) -> Layer:
    digest = digest_of(data)
    return Layer(digest, "none", Descriptor(digest, len(data)))


def image(*layers: Layer, name: str = "app:1", **config: Any) -> LayoutImage:
    document = {"architecture": "amd64", "rootfs": {"diff_ids": [one.diff_id for one in layers]}}
    return LayoutImage(name, json.dumps(document | config).encode(), layers)


def bytes_of(content: Content) -> bytes:
    return b"".join(content.chunks())


def members_of(content: Content) -> dict[str, bytes]:
    """Read an archive as any tar would."""
    with tarfile.open(fileobj=io.BytesIO(bytes_of(content))) as tar:
        return {info.name: file.read() if (file := tar.extractfile(info)) else b"" for info in tar}


def json_of(members: dict[str, bytes], name: str) -> Any:
    return json.loads(members[name])


# What is in it


def test_an_archive_is_a_layout_with_a_manifest_and_each_blob_is_what_its_name_says() -> None:
    whole = compose([image(layer(BASE), layer(APP)), image(layer(BASE), layer(ODD), name="x/y:2")])
    members = members_of(whole)
    assert json_of(members, "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    blobs = {name: data for name, data in members.items() if name.startswith("blobs/sha256/")}
    assert len(blobs) == 3 + 2 + 2
    for name, data in blobs.items():
        assert name == f"blobs/sha256/{digest_of(data).removeprefix('sha256:')}"
    for descriptor in json_of(members, "index.json")["manifests"]:
        manifest = json.loads(blobs["blobs/" + descriptor["digest"].replace(":", "/")])
        for one in (manifest["config"], *manifest["layers"]):
            assert len(blobs["blobs/" + one["digest"].replace(":", "/")]) == one["size"]


def test_both_descriptions_name_the_same_configuration_and_layers() -> None:
    one = image(layer(BASE), absent(APP))
    members = members_of(compose([one]))
    (entry,) = json_of(members, "manifest.json")
    (described,) = json_of(members, "index.json")["manifests"]
    manifest = json_of(members, "blobs/" + described["digest"].replace(":", "/"))
    assert entry["Config"] == "blobs/" + one.config_digest.replace(":", "/")
    assert manifest["config"]["digest"] == one.config_digest
    assert entry["Layers"] == [
        "blobs/" + one["digest"].replace(":", "/") for one in manifest["layers"]
    ]
    assert entry["RepoTags"] == ["app:1"]
    assert members[entry["Config"]] == one.config


def test_layers_without_bytes_are_named_and_left_out() -> None:
    one = image(absent(BASE), layer(APP))
    members = members_of(compose([one]))
    (entry,) = json_of(members, "manifest.json")
    assert len(entry["Layers"]) == 2
    assert entry["Layers"][0] not in members
    assert members[entry["Layers"][1]] == APP


def test_a_layer_that_is_there_twice_is_carried_once_and_named_twice() -> None:
    one = image(layer(BASE), layer(SMALL), layer(BASE))
    assert [blob.digest for blob in carried_layers([one, one])] == [
        digest_of(BASE),
        digest_of(SMALL),
    ]
    (entry,) = json_of(members_of(compose([one])), "manifest.json")
    assert entry["Layers"][0] == entry["Layers"][2]


def test_the_form_of_a_layer_is_told_by_its_media_type() -> None:
    packed = [replace(layer(BASE), compression="gzip"), replace(layer(APP), compression="zstd")]
    packed.append(layer(ODD))
    manifest = json.loads(image(*packed).manifest())
    assert [one["mediaType"].rpartition(".")[2] for one in manifest["layers"]] == [
        "tar+gzip",
        "tar+zstd",
        "tar",
    ]


@pytest.mark.parametrize(
    ("name", "full", "tag"),
    [
        ("app:1", "docker.io/library/app:1", "1"),
        ("team/app:v2", "docker.io/team/app:v2", "v2"),
        ("reg.lan:5000/a/b:1", "reg.lan:5000/a/b:1", "1"),
    ],
)
def test_the_index_has_the_full_name_for_containerd(name: str, full: str, tag: str) -> None:
    index = json.loads(documents([image(layer(APP), name=name)])["index.json"])
    assert index["manifests"][0]["annotations"] == {
        "io.containerd.image.name": full,
        "org.opencontainers.image.ref.name": tag,
    }


def test_an_image_without_a_name_has_none_anywhere() -> None:
    files = documents([image(layer(APP), name="")])
    assert json.loads(files["manifest.json"])[0]["RepoTags"] is None
    assert "annotations" not in json.loads(files["index.json"])["manifests"][0]


def test_a_configuration_is_kept_to_the_byte() -> None:
    odd = LayoutImage("app:1", b'{"b": 1 ,\n "a":"\xe9\xff"}', ())
    assert odd.config in members_of(compose([odd])).values()


def test_an_image_of_sixty_layers() -> None:
    layers = [layer(bytes([number]) * (number * 37)) for number in range(60)]
    members = members_of(compose([image(*layers)]))
    assert sum(name.startswith("blobs/sha256/") for name in members) == 62


def test_equal_images_make_equal_archives_and_others_make_others() -> None:
    first, second = (
        compose([image(layer(BASE), layer(ODD)), image(absent(APP), name="b:1")]) for _ in "12"
    )
    assert bytes_of(first) == bytes_of(second)
    assert first.size == len(bytes_of(first))
    renamed = compose([image(layer(BASE), layer(ODD), name="app:2")])
    assert bytes_of(renamed) != bytes_of(first)


def test_layers_stay_where_they_are() -> None:
    path = Path("/nowhere/layer")
    digest = digest_of(BASE)
    far = Layer(digest, "none", Blob(digest, 4096, Content((FileRange(path, 7, 4096),))))
    pieces = compose([image(far)]).pieces
    assert FileRange(path, 7, 4096) in pieces


def test_chain_ids_are_those_of_the_specification() -> None:
    a, b, c = ("sha256:" + letter * 64 for letter in "abc")
    ab = digest_of(f"{a} {b}".encode())
    assert chain_ids([a, b, c]) == (a, ab, digest_of(f"{ab} {c}".encode()))
    assert chain_ids([]) == ()


# How a host puts it together


LAYER_SETS = [
    [],
    [BASE],
    [ODD],
    [SMALL, BASE, ODD],
    [b"", APP, b""],
]


def staged_in(folder: Path, images: Sequence[LayoutImage]) -> dict[str, str]:
    """Stage the layers of images in a folder, under names that need quotes."""
    paths = {}
    for number, blob in enumerate(carried_layers(images)):
        path = folder / f"{number} {NAMES[number % len(NAMES)]}.tar"
        path.write_bytes(bytes_of(blob.content))
        paths[blob.digest] = str(path)
    return paths


def load(shell: Shell, assembly: Assembly, folder: Path) -> tuple[bytes, bytes]:
    """Return complaints, and what docker was given by the command that loads an archive."""
    tools = folder / "tools"
    tools.mkdir()
    docker = tools / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = load ] && cat >"$LOADED"\n')
    docker.chmod(0o755)
    glue = folder / assembly.key
    glue.write_bytes(assembly.glue)
    argv = assembly.load_argv(str(glue))
    assert argv[:2] == ["sh", "-c"]
    script = f"LOADED={shlex.quote(f'{tools}/loaded')}; export LOADED\n{argv[2]}"
    done = shell.run(script, *argv[4:], path=f"{tools}:{shell.path}")
    return done.stderr, (tools / "loaded").read_bytes()


@pytest.mark.parametrize(
    "sizes", LAYER_SETS, ids=lambda layers: "+".join(str(len(one)) for one in layers)
)
def test_what_a_host_puts_together_is_the_archive_to_the_byte(
    shell: Shell, tmp_path: Path, sizes: list[bytes]
) -> None:
    images = [image(*map(layer, sizes), absent(b"far")), image(*map(layer, sizes[:1]), name="b:1")]
    paths = staged_in(tmp_path, images)
    assembly = assemble(images, lambda blob: paths[blob.digest])
    assert load(shell, assembly, tmp_path) == (b"", bytes_of(compose(images)))


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name_hold_layers_and_glue(shell: Shell, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    images = [image(layer(BASE), layer(ODD), Labels={"什么": "镜像"})]
    paths = staged_in(folder, images)
    assembly = assemble(images, lambda blob: paths[blob.digest])
    assert load(shell, assembly, folder) == (b"", bytes_of(compose(images)))


def test_a_layer_that_is_gone_ends_the_archive_before_its_end(shell: Shell, tmp_path: Path) -> None:
    images = [image(layer(BASE), layer(ODD))]
    paths = staged_in(tmp_path, images)
    Path(paths[digest_of(ODD)]).unlink()
    said, loaded = load(shell, assemble(images, lambda blob: paths[blob.digest]), tmp_path)
    assert b"No such file" in said
    whole = bytes_of(compose(images))
    assert loaded == whole[: len(loaded)]
    assert len(loaded) < len(whole) - len(ODD)


def test_only_what_is_around_the_layers_is_sent_as_glue() -> None:
    images = [image(layer(BASE), layer(ODD))]
    assembly = assemble(images, lambda _: "/layer")
    assert len(assembly.glue) % BLOCK == 0
    # The zeros that fill up the last block of a layer are made on the host.
    assert len(assembly.glue) == compose(images).size - len(BASE) - len(ODD) - -len(ODD) % BLOCK
    assert BASE not in assembly.glue


def test_equal_archives_have_equal_keys_and_others_have_others() -> None:
    def key(folder: str, *layers: Layer, name: str = "app:1") -> str:
        return assemble([image(*layers, name=name)], lambda blob: f"{folder}/{blob.hex}").key

    first = key("/s", layer(BASE))
    assert key("/s", layer(BASE)) == first
    others = {key("/s", absent(BASE)), key("/s", layer(BASE), name="b:1"), key("/t", layer(BASE))}
    assert len(others | {first}) == 4
