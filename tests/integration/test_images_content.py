"""What engines make of the archives that are sent: compared with the source file by file."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import docker
import pytest

from blocks.content import Content
from tasks.images.blobs import Blob, Compression, Descriptor, Layer
from tasks.images.layout import LayoutImage, compose, digest_of
from tests.lab import (
    OPAQUE,
    File,
    Folder,
    HardLink,
    ImageShelf,
    ImageSpec,
    LabError,
    LabHost,
    LayerSpec,
    Symlink,
    container_digest,
    container_files,
    image_names,
    load_archive,
    whiteout,
    write_archive,
)

pytestmark = pytest.mark.integration

# cap_net_bind_service, effective and permitted.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
EMPTY = LayerSpec({})
BASE = LayerSpec(
    {
        "opt/数据/模型 一.bin": 300_000,
        "opt/a'b\"c $x;#&\\d": b"odd",
        "opt/" + "long-" * 40: b"long",
        "opt/bytes-\udcff\udcfe": b"not UTF-8",
        "opt/removed": b"removed later",
        "opt/folder/removed": b"with its folder",
        "opt/hidden/below": b"hidden later",
        "opt/replaced": b"a file",
        "opt/first": b"one file",
        "opt/second": HardLink("opt/first"),
        "opt/dangling": Symlink("/no/such/place"),
        "opt/relative": Symlink("../bin/sh"),
        "opt/tool": File(b"#!/bin/sh\n", mode=0o4755, xattrs={"security.capability": CAPABILITY}),
        "opt/shared": Folder(mode=0o3777),
    },
    seed=71,
)
CHANGES = LayerSpec(
    {
        whiteout("opt/removed"): b"",
        whiteout("opt/folder"): b"",
        f"opt/hidden/{OPAQUE}": b"",
        "opt/hidden/above": b"in its place",
        "opt/replaced": Symlink("first"),
        "opt/first": b"no longer the second's",
    }
)
TWICE = LayerSpec({"opt/removed": b"back again", "srv/twice": 50_000}, seed=72)
# Taken away between the two layers that are the same, so that each of them matters.
BETWEEN = LayerSpec({whiteout("srv/twice"): b"", whiteout("opt/removed"): b""})
APP = ImageSpec(
    "crossgap-content/app:1", [BASE, EMPTY, TWICE, CHANGES, BETWEEN, TWICE, EMPTY], env=["名=值"]
)
LOWER = ImageSpec("crossgap-content/lower:1", [BASE, EMPTY, TWICE])
PORT = replace(LOWER, name="registry.example.com:5000/team/crossgap-content:1.2_x-y")


@dataclass(frozen=True)
class Packed:
    """An image whose blobs lie in files here, to be put into archives in part or in whole."""

    name: str
    config: bytes
    diff_ids: tuple[str, ...]
    blobs: tuple[Path, ...]
    compression: Compression = "none"

    def image(self, absent: Collection[int] = ()) -> LayoutImage:
        """Make the image of an archive, without the bytes of the layers at some places."""
        layers = [self._layer(place, place in absent) for place in range(len(self.diff_ids))]
        return LayoutImage(self.name, self.config, tuple(layers))

    def _layer(self, place: int, absent: bool) -> Layer:
        path = self.blobs[place]
        content = Content.of_file(path)
        digest = f"sha256:{content.sha256()}"
        blob = Blob(digest, content.size, content)
        left_out = Descriptor(digest, content.size)
        return Layer(self.diff_ids[place], self.compression, left_out if absent else blob)

    def gzipped(self) -> Packed:
        """Return it with its layers compressed."""
        blobs = []
        for path in self.blobs:
            beside = path.with_name(f"{path.name}.gz")
            beside.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            blobs.append(beside)
        return replace(self, blobs=tuple(blobs), compression="gzip")


def packed(folder: Path, specs: Sequence[ImageSpec]) -> list[Packed]:
    """Write images to files, a file per layer."""
    archive = folder / "made.tar"
    made = write_archive(archive, specs, form="oci")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    return [
        Packed(
            image.name,
            (folder / entry["Config"]).read_bytes(),
            image.diff_ids,
            tuple(folder / layer for layer in entry["Layers"]),
        )
        for image, entry in zip(made, manifest, strict=True)
    ]


def load(host: LabHost, *images: LayoutImage) -> None:
    load_archive(host.docker_host, compose(images).chunks())


def loaded_layers(host: LabHost, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the config digest and diff ids of an image on a host's engine."""
    with docker.APIClient(base_url=host.docker_host, timeout=60, version="1.41") as engine:
        inspected = engine.inspect_image(name)
    return inspected["Id"], tuple(inspected["RootFS"]["Layers"])


def assert_arrived(host: LabHost, source: str, image: Packed) -> None:
    """Compare a host's image with the source's: configuration, layers, every file."""
    assert loaded_layers(host, image.name) == (digest_of(image.config), image.diff_ids)
    there = container_files(host.docker_host, image.name)
    assert there == container_files(source, image.name)


@pytest.fixture
def app(tmp_path: Path, images: ImageShelf) -> Packed:
    """The image with everything in it, which the source engine has too."""
    images.make_all([APP])
    return packed(tmp_path, [APP])[0]


@pytest.fixture
def lower(tmp_path: Path) -> Packed:
    """An image of the lowest layers of the other one."""
    (tmp_path / "lower").mkdir()
    return packed(tmp_path / "lower", [LOWER])[0]


Form = Callable[[Packed], Packed]
FORMS: list[Form] = [lambda image: image, Packed.gzipped]
in_each_form = pytest.mark.parametrize("form", FORMS, ids=["plain", "gzip"])


@in_each_form
def test_a_whole_image_has_the_source_s_content(
    plain: LabHost, app: Packed, engine: str, form: Form
) -> None:
    load(plain, form(app).image())
    assert_arrived(plain, engine, app)


def test_the_content_is_what_the_layers_say(plain: LabHost, app: Packed) -> None:
    load(plain, app.image())
    files = container_files(plain.docker_host, app.name)

    assert files["opt/removed"].startswith("file 644"), "whited out and put back"
    assert files["srv/twice"].startswith("file 644")
    assert "opt/folder/removed" not in files
    assert "opt/hidden/below" not in files
    assert "opt/hidden/above" in files
    assert not [name for name in files if ".wh." in name]
    assert files["opt/replaced"].endswith("to first")
    assert files["opt/dangling"].endswith("to /no/such/place")
    assert files["opt/tool"].startswith("file 4755")
    assert "xattr.security.capability" in files["opt/tool"]
    assert files["opt/shared"].startswith("folder 3777")
    assert {"opt/数据/模型 一.bin", "opt/a'b\"c $x;#&\\d", "opt/bytes-\udcff\udcfe"} <= set(files)
    assert files["opt/first"] != files["opt/second"]


def test_one_hash_tells_contents_apart(plain: LabHost, images: ImageShelf, engine: str) -> None:
    one, same, other = (
        ImageSpec(f"crossgap-content/{name}:1", [LayerSpec({"opt/data": content})], busybox=False)
        for name, content in (("one", b"x"), ("same", b"x"), ("other", b"y"))
    )
    images.make_all([one, same, other])
    digest = container_digest(engine, one.name)
    assert digest == container_digest(engine, same.name)
    assert digest != container_digest(engine, other.name)


@in_each_form
def test_layers_that_the_host_has_are_left_out(
    plain: LabHost, app: Packed, lower: Packed, engine: str, form: Form
) -> None:
    load(plain, lower.image())
    delta = form(app).image(absent=range(len(lower.diff_ids)))
    assert compose([delta]).size < 100_000 < compose([app.image()]).size
    load(plain, delta)
    assert_arrived(plain, engine, app)


def test_an_archive_of_changes_only_loads_where_the_layers_came_compressed(
    plain: LabHost, app: Packed, lower: Packed, engine: str
) -> None:
    load(plain, lower.gzipped().image())
    load(plain, app.image(absent=range(len(lower.diff_ids))))
    assert_arrived(plain, engine, app)


def test_an_image_that_the_host_has_under_another_name_needs_no_layer(
    plain: LabHost, app: Packed, engine: str
) -> None:
    load(plain, app.image())
    renamed = replace(app, name="localhost:5000/crossgap-content/renamed:latest")
    nothing = renamed.image(absent=range(len(app.diff_ids)))
    assert compose([nothing]).size < 20_000
    load(plain, nothing)
    assert loaded_layers(plain, renamed.name) == loaded_layers(plain, app.name)


@pytest.mark.parametrize("missing", ["lowest", "middle", "again"])
def test_a_layer_that_the_host_lacks_fails_the_load_and_makes_no_image(
    plain: LabHost, app: Packed, lower: Packed, missing: str
) -> None:
    """A layer that comes twice is there in its first place only: what counts is the chain."""
    absent = {"lowest": [0], "middle": [4], "again": [0, 1, 2, 3, 6]}[missing]
    load(plain, lower.image())
    if missing == "lowest":
        plain.reset()
    with pytest.raises(LabError, match="no such file"):
        load(plain, app.image(absent))
    assert app.name not in image_names(plain.docker_host)
    load(plain, app.image())
    assert app.name in image_names(plain.docker_host)


def test_a_flipped_byte_fails_the_load_and_makes_no_image(
    plain: LabHost, app: Packed, engine: str
) -> None:
    base = app.blobs[1]
    sound = base.read_bytes()
    position = sound.index(b"with its folder")
    base.write_bytes(sound[:position] + b"W" + sound[position + 1 :])
    layers = list(app.image().layers)
    layers[1] = replace(layers[1], blob=replace(layers[1].blob, digest=app.diff_ids[1]))
    with pytest.raises(LabError, match="invalid diffID"):
        load(plain, LayoutImage(app.name, app.config, tuple(layers)))
    assert app.name not in image_names(plain.docker_host)
    base.write_bytes(sound)
    load(plain, app.image())
    assert_arrived(plain, engine, app)


def test_an_archive_that_ends_early_makes_no_image(plain: LabHost, app: Packed) -> None:
    whole = compose([app.image()])
    with pytest.raises(LabError, match="EOF"):
        load_archive(plain.docker_host, _first(whole, whole.size - 60_000))
    assert app.name not in image_names(plain.docker_host)


def test_several_images_share_their_layers_in_one_archive(
    plain: LabHost, tmp_path: Path, images: ImageShelf, engine: str
) -> None:
    specs = [APP, LOWER, PORT]
    images.make_all(specs)
    together = packed(tmp_path, specs)
    archive = compose([image.image() for image in together])
    assert archive.size < compose([together[0].image()]).size + 20_000
    load_archive(plain.docker_host, archive.chunks())
    for image in together:
        assert_arrived(plain, engine, image)


def test_sixty_layers_arrive_whole_and_in_part(
    plain: LabHost, tmp_path: Path, images: ImageShelf, engine: str
) -> None:
    numbered = [
        LayerSpec({f"opt/{n:02}": f"{n}".encode(), "opt/last": b"%d" % n}) for n in range(57)
    ]
    layers = [*numbered[:30], EMPTY, *numbered[30:]]
    tall = ImageSpec("crossgap-content/tall:1", layers)
    taller = ImageSpec("crossgap-content/tall:2", [*layers, LayerSpec({"opt/last": b"new"})])
    images.make_all([taller])
    both = packed(tmp_path, [tall, taller])
    assert len(both[1].diff_ids) == 60
    load(plain, both[0].image())
    load(plain, both[1].image(absent=range(59)))
    assert_arrived(plain, engine, both[1])


def _first(content: Content, size: int) -> Iterator[bytes]:
    for chunk in content.chunks():
        yield chunk[:size]
        size -= min(size, len(chunk))
        if not size:
            return
