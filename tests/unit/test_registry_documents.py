"""Manifests and configurations of registries, the good and the odd."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from blocks.errors import CrossgapError, Damaged, InvalidInput, WrongArchitecture
from tasks.images.blobs import Descriptor, Layer
from tasks.images.names import parse_reference
from tasks.images.registry.documents import (
    Manifest,
    assemble,
    has_digest,
    index_entries,
    parse_document,
    parse_manifest,
    shown,
)

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"


def manifest(*layer_types: str, config: str = f"{OCI}.config.v1+json") -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "config": {"mediaType": config, "digest": A, "size": 7},
        "layers": [{"mediaType": kind, "digest": B, "size": 9} for kind in layer_types],
    }


@pytest.mark.parametrize(
    ("kind", "compression"),
    [
        (f"{OCI}.layer.v1.tar", "none"),
        (f"{OCI}.layer.v1.tar+gzip", "gzip"),
        (f"{OCI}.layer.v1.tar+zstd", "zstd"),
        (f"{DOCKER}.image.rootfs.diff.tar", "none"),
        (f"{DOCKER}.image.rootfs.diff.tar.gzip", "gzip"),
        (f"{DOCKER}.image.rootfs.diff.tar.zstd", "zstd"),
    ],
)
def test_each_kind_of_layer_is_known_by_its_compression(kind: str, compression: str) -> None:
    read = parse_manifest(manifest(kind, config=f"{DOCKER}.container.image.v1+json"), "x")
    assert read == Manifest(Descriptor(A, 7), ((compression, Descriptor(B, 9)),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("document", "kind", "words"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, InvalidInput, "schema 1"),
        (manifest(f"{DOCKER}.image.rootfs.foreign.diff.tar.gzip"), InvalidInput, "from its maker"),
        (manifest(f"{OCI}.layer.nondistributable.v1.tar"), InvalidInput, "from its maker"),
        (manifest(f"{OCI}.layer.v1.tar+gzip+encrypted"), InvalidInput, r"unknown kind .*encrypted"),
        (manifest(config="application/vnd.cncf.helm.config.v1+json"), InvalidInput, "helm"),
        (manifest() | {"config": None}, Damaged, "no configuration"),
        (manifest() | {"layers": {}}, Damaged, "no configuration or layers"),
        (manifest() | {"layers": ["x"]}, InvalidInput, "unknown kind"),
    ],
)
def test_what_hosts_cannot_be_given_is_refused(
    document: dict[str, Any], kind: type[CrossgapError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        parse_manifest(document, "image 'a:1'")


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "sha256:../../etc/passwd"},
        {"digest": "md5:0"},
        {"digest": None},
        {"size": -1},
        {"size": "9"},
        {"size": True},
    ],
)
def test_a_descriptor_that_is_none_is_damage(changes: dict[str, Any]) -> None:
    document = manifest(f"{OCI}.layer.v1.tar")
    document["layers"][0] |= changes
    with pytest.raises(Damaged, match="without SHA-256 or size"):
        parse_manifest(document, "image 'a:1'")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><title>Login</title>", "a web page titled 'Login'"),
        ("<html><title>登录</title>".encode(), "a web page titled '登录'"),
        (b"[]", r"'\[\]'"),
        (b"\xff\x00", "no manifest"),
        (b"", "no manifest"),
    ],
)
def test_an_answer_that_is_no_manifest_is_shown(content: bytes, told: str) -> None:
    with pytest.raises(Damaged, match=told):
        parse_document(content, "image 'a:1' from m")


def test_an_index_is_told_from_a_manifest_whatever_it_calls_itself() -> None:
    assert index_entries({"schemaVersion": 2, "manifests": [{"digest": A}, "x"]}) == [{"digest": A}]
    assert index_entries(manifest()) is None


def config(diff_ids: list[Any], architecture: str = "amd64") -> bytes:
    document = {"architecture": architecture, "os": "linux", "rootfs": {"diff_ids": diff_ids}}
    return json.dumps(document).encode()


def put_together(content: bytes, layers: int = 2, architecture: str = "amd64") -> Any:
    read = Manifest(Descriptor(A, 7), (("gzip", Descriptor(C, 9)),) * layers)
    return assemble(parse_reference("a:1"), A, B, read, content, architecture)


def test_layers_and_diff_ids_are_matched_in_order_duplicates_included() -> None:
    image = put_together(config([B, B]))
    assert image.layers == (Layer(B, "gzip", Descriptor(C, 9)),) * 2
    assert image.config_digest == f"sha256:{hashlib.sha256(config([B, B])).hexdigest()}"
    assert (image.name, image.index_digest) == ("a:1", B)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (config([B]), "has 2 layers, its configuration 1"),
        (config([B, "sha256:x"]), "has 2 layers"),
        (config([B, None]), "has 2 layers"),
        (b"{}", "none of an image"),
        (b"\xff", "none of an image"),
        (b'{"rootfs": []}', "has 2 layers"),
        (b'{"rootfs": "x"}', "none of an image"),
    ],
)
def test_a_configuration_that_contradicts_the_manifest_is_damage(
    content: bytes, words: str
) -> None:
    with pytest.raises(Damaged, match=words):
        put_together(content)


def test_an_image_for_one_platform_is_refused_for_another() -> None:
    with pytest.raises(WrongArchitecture, match="not made for linux/arm64, but for linux/amd64"):
        put_together(config([B, B]), architecture="arm64")
    assert put_together(config([B, B], "arm64"), architecture="arm64/v8").layers


def test_a_digest_may_be_of_any_algorithm_that_names_know() -> None:
    assert has_digest(b"x", f"sha512:{hashlib.sha512(b'x').hexdigest()}")
    assert not has_digest(b"x", f"sha256:{hashlib.sha256(b'y').hexdigest()}")


def test_control_characters_of_an_answer_do_not_reach_the_log() -> None:
    assert "\x1b" not in shown(b"\x1b[31mred")
