"""Nothing of a bundle is used before all of it was found right."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.content import Content
from blocks.errors import (
    AuthenticationRefused,
    Damaged,
    InvalidInput,
    NotFound,
    PassphraseNeeded,
    SeveralFailures,
)
from tasks.bundles import signing
from tasks.bundles.manifest import Manifest
from tasks.bundles.reading import OpenBundle, open_bundle
from tasks.bundles.signing import Signer
from tasks.bundles.writing import Recipe, Source, write_bundle

MIB = 1 << 20
LAYER = "blobs/sha256/bb"


def about(_: Manifest) -> dict[str, str]:
    return {LAYER: "layer bb of app:1"}


def opened(folder: Path, keys: str = "") -> OpenBundle:
    return open_bundle(str(folder), keys, about)


def pack(folder: Path, key: str = "") -> Path:
    layer = os.urandom(2 * MIB + 1000)
    contents = (("blobs/sha256/aa", b"a configuration"), (LAYER, layer))
    sources = tuple(
        Source(path, Content((content,)), hashlib.sha256(content).hexdigest())
        for path, content in contents
    )
    write_bundle(folder, Recipe(sources, {}, (), None, MIB, key))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return pack(tmp_path / "五月")


Key = Callable[..., Path]


@pytest.fixture
def make_key(tmp_path: Path) -> Key:
    def make(name: str, passphrase: str = "") -> Path:
        path = tmp_path / name
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)]
        subprocess.run(command, check=True)
        return path

    return make


def alter_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as somebody would who knows how bundles are made."""
    path = bundle / "bundle.json"
    document = json.loads(path.read_bytes())
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    change(document)
    path.write_text(json.dumps(document))
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    sums = bundle / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, after))


def test_a_whole_bundle_gives_its_files(bundle: Path) -> None:
    calls: list[tuple[int, int]] = []
    found = open_bundle(str(bundle), progress=lambda done, total: calls.append((done, total)))
    layer = next(file for file in found.manifest.files if file.path == LAYER)
    content = found.content(LAYER)
    assert content is not None
    assert content.sha256() == layer.sha256
    assert found.content("no/such/file") is None
    assert found.signer is None
    assert calls == sorted(calls)
    assert calls[-1] == (found.manifest.size, found.manifest.size)


def test_what_a_machine_drops_on_a_disk_does_no_harm(bundle: Path) -> None:
    (bundle / "System Volume Information").mkdir()
    (bundle / "inventory-站点.json").write_text("{}")
    opened(bundle)


def test_a_missing_part_is_named_with_what_it_holds(bundle: Path) -> None:
    (bundle / f"{LAYER}.002").unlink()
    with pytest.raises(NotFound, match=r"bb\.002 \(1\.05 MB, layer bb of app:1\) is missing"):
        opened(bundle)


@pytest.mark.parametrize("offset", [0, MIB - 1, MIB // 2])
def test_a_flipped_byte_is_found_and_named(bundle: Path, offset: int) -> None:
    path = bundle / f"{LAYER}.002"
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"bb\.002 \(layer bb of app:1\) is damaged"):
        opened(bundle)


def test_a_part_that_is_cut_off_says_how_long_it_should_be(bundle: Path) -> None:
    os.truncate(bundle / f"{LAYER}.001", 10)
    with pytest.raises(Damaged, match="10 bytes instead of 1,048,576"):
        opened(bundle)


def test_all_that_is_wrong_is_said_at_once(bundle: Path) -> None:
    (bundle / f"{LAYER}.001").unlink()
    (bundle / "blobs/sha256/aa").write_bytes(b"b configuration")
    with pytest.raises(SeveralFailures) as caught:
        opened(bundle)
    assert {type(failure) for failure in caught.value.failures} == {NotFound, Damaged}


@pytest.mark.parametrize("name", ["bundle.json", "SHA256SUMS"])
def test_its_own_documents_may_not_be_missing(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(NotFound, match=name):
        opened(bundle)


@pytest.mark.parametrize("name", ["bundle.json", "SHA256SUMS"])
def test_its_own_documents_may_not_be_altered(bundle: Path, name: str) -> None:
    path = bundle / name
    text = path.read_text()
    digest = hashlib.sha256((bundle / "blobs/sha256/aa").read_bytes()).hexdigest()
    assert digest in text
    path.write_text(text.replace(digest, "0" * 64))
    with pytest.raises(Damaged):
        opened(bundle)


@pytest.mark.parametrize(
    "path",
    [
        "../outside", "/etc/passwd", "blobs/../../outside", "a\\..\\b", "C:evil", "a//b", ".hidden",
        "a/./b", "", "a\nb", "blobs/sha256/盘",
    ],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused_before_anything_is_read(
    bundle: Path, path: str
) -> None:
    alter_manifest(bundle, lambda document: document["files"][0].update(path=path))
    with pytest.raises(Damaged, match="which no bundle has"):
        opened(bundle)


def test_two_files_that_are_one_on_such_a_disk_are_refused(bundle: Path) -> None:
    alter_manifest(bundle, lambda document: document["files"][0].update(path="BLOBS/SHA256/BB.001"))
    with pytest.raises(Damaged, match="twice"):
        opened(bundle)


@pytest.mark.parametrize("what", ["file", "folder", "manifest"])
def test_links_are_not_followed(bundle: Path, tmp_path: Path, what: str) -> None:
    place = {"file": "blobs/sha256/aa", "folder": "blobs", "manifest": "bundle.json"}[what]
    moved = tmp_path / "elsewhere"
    (bundle / place).rename(moved)
    (bundle / place).symlink_to(moved)
    with pytest.raises(InvalidInput, match="link"):
        opened(bundle)


def test_a_pipe_in_place_of_a_file_does_not_hang(bundle: Path) -> None:
    (bundle / "blobs/sha256/aa").unlink()
    os.mkfifo(bundle / "blobs/sha256/aa")
    with pytest.raises(InvalidInput):
        opened(bundle)


def test_a_newer_format_is_told_from_damage(bundle: Path) -> None:
    alter_manifest(bundle, lambda document: document.update(format=2))
    with pytest.raises(InvalidInput, match=r"format 2.*Update crossgap"):
        opened(bundle)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"format": 1}', b"[" * 9999])
def test_a_manifest_that_is_none_is_damage(bundle: Path, content: bytes) -> None:
    (bundle / "bundle.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"bundle\.json"):
        opened(bundle)


def test_a_folder_above_it_says_where_bundles_are(bundle: Path) -> None:
    with pytest.raises(NotFound, match="There is one in 五月"):
        opened(bundle.parent)
    with pytest.raises(NotFound, match="Mount the disk"):
        opened(bundle.parent / "usb")


def test_a_signature_is_proven_with_a_public_key_or_a_list_of_them(
    tmp_path: Path, make_key: Key
) -> None:
    key = make_key("key")
    public = key.with_suffix(".pub")
    bundle = pack(tmp_path / "b", str(key))
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(f"{make_key('other').with_suffix('.pub').read_text()}")
    with allowed.open("a") as file:
        file.write(f'# 运维\nops@example.com namespaces="crossgap-bundle" {public.read_text()}')

    unchecked = opened(bundle).signer
    assert unchecked is not None
    assert unchecked.name == ""
    assert "not compared" in unchecked.words
    for keys, name in (
        (str(public), "a trusted key"),
        (public.read_text(), "a trusted key"),
        (str(allowed), "ops@example.com"),
    ):
        assert opened(bundle, keys).signer == Signer(unchecked.key, name)


def test_a_foreign_signature_is_refused(tmp_path: Path, make_key: Key) -> None:
    bundle = pack(tmp_path / "b", str(make_key("theirs")))
    with pytest.raises(AuthenticationRefused, match="none of the trusted ones"):
        opened(bundle, str(make_key("ours")) + ".pub")


def test_an_unsigned_bundle_is_refused_where_a_signature_is_wanted(
    bundle: Path, make_key: Key
) -> None:
    with pytest.raises(AuthenticationRefused, match="not signed"):
        opened(bundle, str(make_key("ours")) + ".pub")


def test_an_altered_bundle_does_not_pass_with_the_old_signature(
    tmp_path: Path, make_key: Key
) -> None:
    key = make_key("key")
    bundle = pack(tmp_path / "b", str(key))
    alter_manifest(bundle, lambda document: document.update(created="2020-01-01"))
    for keys in ("", f"{key}.pub"):
        with pytest.raises(Damaged, match="signature"):
            opened(bundle, keys)


def test_a_signature_for_another_purpose_does_not_count(
    bundle: Path, tmp_path: Path, make_key: Key
) -> None:
    key = make_key("key")
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "git"]
    subprocess.run([*command, str(bundle / "SHA256SUMS")], check=True, capture_output=True)
    with pytest.raises(Damaged, match="signature"):
        opened(bundle, f"{key}.pub")


@pytest.mark.parametrize("keys", ["/no/such/file", "ops@example.com", "ssh-ed25519"])
def test_keys_that_are_none_are_refused(tmp_path: Path, make_key: Key, keys: str) -> None:
    bundle = pack(tmp_path / "b", str(make_key("key")))
    with pytest.raises(NotFound, match="verify_with"):
        opened(bundle, keys)


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path: Path, make_key: Key) -> None:
    key = make_key("key")
    bundle = pack(tmp_path / "b", str(key))
    with pytest.raises(InvalidInput) as caught:
        opened(bundle, str(key))
    assert "PRIVATE" not in str(caught.value)


def test_a_key_with_a_passphrase_is_asked_for_at_an_agent(tmp_path: Path, make_key: Key) -> None:
    with pytest.raises(PassphraseNeeded, match="agent"):
        signing.sign(b"", str(make_key("key", "secret words")))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, make_key: Key) -> None:
    key = make_key("key")
    key.chmod(0o644)
    with pytest.raises(InvalidInput, match="chmod 600"):
        signing.sign(b"", str(key))


def test_what_is_no_key_cannot_sign(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("hello")
    path.chmod(0o600)
    with pytest.raises(InvalidInput, match="cannot sign"):
        signing.sign(b"", str(path))
