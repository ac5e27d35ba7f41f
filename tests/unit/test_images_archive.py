"""Image archives: whole ones are described, broken ones are named."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import Damaged, InvalidInput, NotFound, SeveralFailures
from tasks.images.archive import read_archive, read_archives

Members = list[tuple[str, bytes | str]]


def tar(members: Members) -> bytes:
    """A tar of files; text instead of bytes is the target of a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def layer(seed: int, size: int = 20_000) -> bytes:
    return tar([(f"data{seed}", random.Random(seed).randbytes(size))])


def config(layers: list[bytes], **changes: Any) -> bytes:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-02T03:04:05.600Z",
        "config": {"Cmd": ["/bin/sh"], "Env": None},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest(one) for one in layers]},
    }
    return json.dumps(document | changes).encode()


def entry(config_name: str, tags: list[str] | None, layers: list[str]) -> dict[str, Any]:
    return {"Config": config_name, "RepoTags": tags, "Layers": layers}


def manifest(*entries: dict[str, Any]) -> tuple[str, bytes]:
    return "manifest.json", json.dumps(entries).encode()


BASE, TOP_A, TOP_B = layer(1), layer(2), layer(3)


def legacy() -> Members:
    """Two images with a shared base, as Docker 20.10 saves them: a link for the second."""
    one, two = config([BASE, TOP_A]), config([BASE, TOP_B], architecture="arm64", variant="v8")
    a, b = digest(one) + ".json", digest(two) + ".json"
    return [
        ("x1/VERSION", b"1.0"),
        ("x1/layer.tar", BASE),
        ("x2/layer.tar", TOP_A),
        ("x3/layer.tar", "../x1/layer.tar"),
        ("x4/layer.tar", TOP_B),
        (a, one),
        (b, two),
        manifest(
            entry(a, ["app:1", "docker.io/library/app:2"], ["x1/layer.tar", "x2/layer.tar"]),
            entry(b, ["team/other:1"], ["x3/layer.tar", "x4/layer.tar"]),
        ),
    ]


def oci(layers: list[bytes], stored: list[bytes]) -> Members:
    """One image as Docker 25 and later saves it, with its blobs stored as given."""
    document = config(layers)
    names = [f"blobs/sha256/{digest(blob)}" for blob in stored]
    config_name = f"blobs/sha256/{digest(document)}"
    return [
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        (config_name, document),
        *zip(names, stored, strict=True),
        ("index.json", b'{"schemaVersion":2,"manifests":[]}'),
        manifest(entry(config_name, ["app:1"], names)),
    ]


def written(folder: Path, content: bytes, name: str = "images.tar") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def replaced(members: Members, name: str, content: bytes) -> Members:
    return [(n, content if n == name else c) for n, c in members]


def test_a_legacy_archive_of_two_images_is_described_with_its_own_hash(tmp_path: Path) -> None:
    content = tar(legacy())
    facts = read_archive(written(tmp_path, content))
    assert (facts.size, facts.sha256) == (len(content), digest(content))
    assert facts.compression == "none"
    assert [image.name for image in facts.images] == ["app:1", "app:2", "team/other:1"]
    app, again, other = facts.images
    assert app.config_digest == again.config_digest == "sha256:" + digest(config([BASE, TOP_A]))
    assert app.diff_ids == ("sha256:" + digest(BASE), "sha256:" + digest(TOP_A))
    assert app.layer_sizes == (len(BASE), len(TOP_A))
    assert app.size == len(BASE) + len(TOP_A)
    assert app.created == "2026-01-02T03:04:05.6Z"
    assert (other.architecture, other.variant) == ("arm64", "v8")
    assert other.diff_ids[0] == app.diff_ids[0]


@pytest.mark.parametrize("level", [1, 9])
def test_a_gzipped_archive_is_recognised_by_content_not_by_name(tmp_path: Path, level: int) -> None:
    content = gzip.compress(tar(legacy()), level)
    facts = read_archive(written(tmp_path, content, "images.tar"))
    assert (facts.compression, facts.size, facts.sha256) == ("gzip", len(content), digest(content))
    assert len(facts.images) == 3


def test_a_gzip_file_of_several_members_with_padding_is_read_to_its_end(tmp_path: Path) -> None:
    content = tar(legacy())
    halves = gzip.compress(content[:30_000]) + gzip.compress(content[30_000:]) + bytes(700)
    assert len(read_archive(written(tmp_path, halves)).images) == 3


def test_an_oci_layout_with_plain_and_gzipped_layers_is_checked_by_diff_id(tmp_path: Path) -> None:
    blobs = [BASE, gzip.compress(TOP_A)]
    facts = read_archive(written(tmp_path, tar(oci([BASE, TOP_A], blobs))))
    assert facts.images[0].layer_sizes == (len(BASE), len(TOP_A))


def test_a_zstd_layer_is_checked_by_the_digest_in_its_name(tmp_path: Path) -> None:
    blob = b"\x28\xb5\x2f\xfd" + random.Random(5).randbytes(5000)
    members = oci([TOP_A], [blob])
    assert read_archive(written(tmp_path, tar(members))).images[0].name == "app:1"
    name = f"blobs/sha256/{digest(blob)}"
    with pytest.raises(Damaged, match=digest(blob)[:12]):
        read_archive(written(tmp_path, tar(replaced(members, name, blob[:-1] + b"!"))))


def test_members_with_long_names_and_the_manifest_first_are_read_alike(tmp_path: Path) -> None:
    long = "x" * 150 + "/layer.tar"
    document = config([BASE])
    name = digest(document) + ".json"
    members: Members = [manifest(entry(name, ["app:1"], [long])), (name, document), (long, BASE)]
    assert read_archive(written(tmp_path, tar(members))).images[0].size == len(BASE)


def test_an_image_without_a_name_goes_by_its_config_digest(tmp_path: Path) -> None:
    document = config([BASE])
    name = digest(document) + ".json"
    members: Members = [(name, document), ("l", BASE), manifest(entry(name, None, ["l"]))]
    assert read_archive(written(tmp_path, tar(members))).images[0].name == "sha256:" + digest(
        document
    )


def test_progress_ends_with_every_byte_read(tmp_path: Path) -> None:
    path = written(tmp_path, tar(legacy()))
    calls: list[tuple[int, int]] = []
    read_archive(path, lambda read, total: calls.append((read, total)))
    size = path.stat().st_size
    assert calls[-1] == (size, size)
    assert calls == sorted(calls)


@pytest.mark.parametrize("zipped", [False, True], ids=["tar", "gzip"])
def test_a_file_cut_off_anywhere_is_damaged(tmp_path: Path, zipped: bool) -> None:
    content = tar(legacy())
    # tarfile pads to 10,240 bytes; docker save ends after two empty blocks.
    content = content.rstrip(b"\0")
    content += bytes(-len(content) % 512 + 1024)
    if zipped:
        content = gzip.compress(content)
    assert len(read_archive(written(tmp_path, content)).images) == 3
    rng = random.Random(7)
    cuts = {1, 511, 512, 513, 1024, len(content) - 1, len(content) - 8, len(content) - 512}
    cuts |= {512 * rng.randrange(1, len(content) // 512) for _ in range(40)}
    cuts |= {rng.randrange(1, len(content)) for _ in range(40)}
    for cut in sorted(cuts):
        path = written(tmp_path, content[:cut])
        with pytest.raises((Damaged, InvalidInput)) as found:
            read_archive(path)
        assert str(path) in str(found.value), cut
        assert cut < 512 or isinstance(found.value, Damaged), cut
        assert found.value.remedy


def test_one_flipped_byte_of_a_layer_is_told_with_the_layers_name(tmp_path: Path) -> None:
    content = bytearray(tar(legacy()))
    content[content.index(TOP_A) + 5_000] ^= 1
    with pytest.raises(Damaged, match=r"x2/layer\.tar .* is altered"):
        read_archive(written(tmp_path, bytes(content)))


def test_one_flipped_byte_anywhere_in_headers_or_content_is_found(tmp_path: Path) -> None:
    members = [member for member in legacy() if member[0] != "x1/VERSION"]
    content = tar(members)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        infos = archive.getmembers()
    rng = random.Random(3)
    for info in infos:
        for place in (
            info.offset + 1,
            info.offset + 130,
            info.offset_data + rng.randrange(max(1, info.size)),
        ):
            flipped = bytearray(content)
            flipped[place] ^= 0x10
            with pytest.raises((Damaged, InvalidInput)):
                read_archive(written(tmp_path, bytes(flipped)))


def test_one_flipped_byte_of_a_gzip_file_is_found(tmp_path: Path) -> None:
    content = gzip.compress(tar(legacy()))
    for place in (len(content) // 2, len(content) - 6):
        flipped = bytearray(content)
        flipped[place] ^= 1
        with pytest.raises(Damaged):
            read_archive(written(tmp_path, bytes(flipped)))


def test_a_configuration_that_does_not_fit_its_name_is_damaged(tmp_path: Path) -> None:
    members = legacy()
    name = members[5][0]
    changed = replaced(members, name, config([BASE, TOP_A], architecture="arm64"))
    with pytest.raises(Damaged, match=name):
        read_archive(written(tmp_path, tar(changed)))


def test_a_gzipped_layer_that_unpacks_to_something_else_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="is altered"):
        read_archive(written(tmp_path, tar(oci([TOP_A], [gzip.compress(TOP_B)]))))
    with pytest.raises(Damaged, match="is altered"):
        read_archive(written(tmp_path, tar(oci([TOP_A], [gzip.compress(TOP_A)[:-9]]))))


def test_a_layer_that_is_not_in_the_archive_is_named(tmp_path: Path) -> None:
    members = [member for member in legacy() if member[0] != "x4/layer.tar"]
    with pytest.raises(Damaged, match=r"x4/layer\.tar is missing"):
        read_archive(written(tmp_path, tar(members)))


def test_links_in_a_circle_do_not_hang(tmp_path: Path) -> None:
    members = [m for m in legacy() if m[0] != "x1/layer.tar"] + [
        ("x1/layer.tar", "../x3/layer.tar")
    ]
    with pytest.raises(Damaged, match="is missing"):
        read_archive(written(tmp_path, tar(members)))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="leads out"):
        read_archive(written(tmp_path, tar([*legacy(), (name, b"x")])))
    with pytest.raises(InvalidInput, match="leads out"):
        read_archive(written(tmp_path, tar([*legacy(), ("link", "../../" + name.lstrip("/"))])))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04" + bytes(600), "a zip file"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(600), "a rar file"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "a 7z file"),
        (b"\xfd7zXZ\x00" + bytes(600), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        (b"BZh91AY" + bytes(600), "bzip2"),
        (b"\n<!DOCTYPE html><html>" + b"x" * 600, "web page"),
        (b"hello world" * 100, "no tar file"),
        (tar([("readme.txt", b"hello")]), "holds no images"),
        (tar([("etc/passwd", b"root"), ("bin/sh", b"x")]), "docker export"),
        (tar([("oci-layout", b"{}"), ("index.json", b"{}")]), "OCI layout without manifest"),
        (tar([("manifest.json", b"[]")]), "manifest.json is not readable"),
        (tar([("manifest.json", b"[7]")]), "manifest.json is not readable"),
        (tar([("manifest.json", b"{")]), "manifest.json is not readable"),
        (gzip.compress(b"no tar at all" * 100), "damaged"),
    ],
)
def test_what_is_no_image_archive_is_told_by_what_it_is(
    tmp_path: Path, content: bytes, says: str
) -> None:
    with pytest.raises((InvalidInput, Damaged), match=says) as refused:
        read_archive(written(tmp_path, content))
    assert refused.value.remedy


@pytest.mark.parametrize("content", [b"", bytes(100_000)], ids=["empty", "zeros"])
def test_a_file_of_nothing_is_damaged(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Damaged):
        read_archive(written(tmp_path, content))


def test_an_image_with_an_impossible_name_is_refused(tmp_path: Path) -> None:
    document = config([BASE])
    name = digest(document) + ".json"
    members: Members = [(name, document), ("l", BASE), manifest(entry(name, ["$(reboot)"], ["l"]))]
    with pytest.raises(InvalidInput, match=r"\$\(reboot\)"):
        read_archive(written(tmp_path, tar(members)))


def test_a_missing_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file or folder"):
        read_archives(tmp_path / "nothing.tar")
    with pytest.raises(NotFound, match="no archive in the folder"):
        read_archives(tmp_path)


def test_a_folder_gives_its_archives_sorted_and_passes_over_what_is_not_meant(
    tmp_path: Path,
) -> None:
    written(tmp_path, gzip.compress(tar(legacy())), "b.tar.gz")
    written(tmp_path, tar(oci([BASE], [BASE])).replace(b"app:1", b"app:9"), "a 镜像.tar")
    for name in (".hidden", "c.tar.part", "b.tar.gz.sha256"):
        written(tmp_path, b"no archive", name)
    (tmp_path / "folder").mkdir()
    calls: list[tuple[int, int]] = []
    found = read_archives(tmp_path, lambda read, total: calls.append((read, total)))
    assert [facts.path.name for facts in found] == ["a 镜像.tar", "b.tar.gz"]
    assert calls[-1][0] == calls[-1][1] == sum(facts.size for facts in found)
    assert calls == sorted(calls)


def test_every_bad_file_of_a_folder_is_reported_by_name(tmp_path: Path) -> None:
    written(tmp_path, tar(legacy()), "good.tar")
    written(tmp_path, tar(legacy())[:30_000], "cut.tar")
    written(tmp_path, b"hello world" * 100, "notes.txt")
    with pytest.raises(SeveralFailures) as refused:
        read_archives(tmp_path)
    assert "cut.tar" in str(refused.value)
    assert "notes.txt" in str(refused.value)


def test_two_archives_with_different_images_of_one_name_are_refused(tmp_path: Path) -> None:
    written(tmp_path, tar(oci([BASE], [BASE])), "a.tar")
    written(tmp_path, tar(oci([TOP_A], [TOP_A])), "b.tar")
    with pytest.raises(InvalidInput, match=r"another app:1 than a\.tar"):
        read_archives(tmp_path)
