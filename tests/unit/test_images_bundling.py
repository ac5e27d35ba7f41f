"""Which layers go into a bundle, and how load.sh makes archives of them again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace

import pytest

from blocks.content import Content
from blocks.errors import Damaged, NotFound
from tasks.images.blobs import Blob, Layer
from tasks.images.bundling import (
    BundledImage,
    compose_images,
    describe_files,
    files_of,
    items_of,
    lacking_base,
    open_images,
    parse_items,
    plan_packing,
)
from tasks.images.facts import ImageFacts, parse_image_config
from tasks.images.layout import blob_path, digest_of

HALF = 700
BASE, APP, NEW, TOP = (os.urandom(size) for size in (1500, 512, 100, 700))


def config_of(*layers: bytes) -> bytes:
    diff_ids = [digest_of(layer) for layer in layers]
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": diff_ids}}
    return json.dumps(document).encode()


def image(name: str, *layers: bytes) -> ImageFacts:
    return parse_image_config(config_of(*layers), name, [len(layer) for layer in layers])


def carried(*layers: bytes) -> dict[str, Layer]:
    digests = [(digest_of(layer), layer) for layer in layers]
    return {
        digest: Layer(digest, "none", Blob(digest, len(layer), Content((layer,))))
        for digest, layer in digests
    }


def packed(
    images: Sequence[tuple[str, tuple[bytes, ...]]], known: Sequence[BundledImage] = ()
) -> tuple[tuple[BundledImage, ...], dict[str, Content]]:
    """Return the items and the files of a bundle."""
    plan = plan_packing([image(name, *layers) for name, layers in images], known)
    configs = {name: config_of(*layers) for name, layers in images}
    layout = compose_images(plan, configs, carried(BASE, APP, NEW, TOP))
    items = parse_items(items_of(plan, layout), "b")
    base = "bundle 2024-01-01-abcdef" if known else ""
    return items, files_of(layout, base, parts_of)


def parts_of(path: str, size: int) -> list[str]:
    return [path] if size <= HALF else [f"{path}.001", f"{path}.002"]


def test_without_anything_known_each_layer_goes_in_once() -> None:
    items, files = packed([("app:1", (BASE, APP)), ("top:1", (BASE, TOP))])
    blobs = {blob_path(digest_of(layer)) for layer in (BASE, APP, TOP)}
    assert blobs < files.keys()
    assert all(layer.carried for one in items for layer in one.layers)
    assert "load/base" not in files


def test_of_no_images_there_is_only_what_loads_the_rest() -> None:
    _, files = packed([])
    assert set(files) == {"load.sh"}


def test_what_the_far_side_has_is_left_out() -> None:
    known, _ = packed([("app:1", (BASE, APP))])
    items, files = packed([("app:2", (BASE, APP, NEW))], known)
    assert [layer.carried for layer in items[0].layers] == [False, False, True]
    assert blob_path(digest_of(BASE)) not in files
    assert b"".join(files["load/base"].chunks()) == b"bundle 2024-01-01-abcdef\n"


def test_an_image_that_did_not_change_takes_no_layers() -> None:
    known, _ = packed([("app:1", (BASE, APP))])
    items, files = packed([("app:1", (BASE, APP))], known)
    assert not any(layer.carried for layer in items[0].layers)
    assert items[0].config_digest == known[0].config_digest
    assert sum(content.size for path, content in files.items() if "blobs" in path) < 2000


def test_a_layer_that_lies_on_others_there_is_not_left_out() -> None:
    """Engines with graph drivers look a layer up together with what is below it."""
    known, _ = packed([("app:1", (BASE, APP))])
    plan = plan_packing([image("app:2", NEW, APP), image("app:3", BASE, NEW)], known)
    assert plan[0].carried == (digest_of(NEW), digest_of(APP))
    assert plan[1].carried == (digest_of(NEW),)


def test_a_layer_left_out_keeps_the_form_in_which_the_far_side_has_it() -> None:
    """A containerd store looks for the digest that the manifest names."""
    (one,), _ = packed([("app:1", (BASE,))])
    packed_form = replace(
        one.layers[0].form, compression="gzip", blob=Blob("sha256:" + "1" * 64, 9, Content(()))
    )
    known = replace(one, layers=(replace(one.layers[0], form=packed_form),))
    items, files = packed([("app:2", (BASE, NEW))], [known])
    assert items[0].layers[0].form.blob.digest == "sha256:" + "1" * 64
    manifest = b"".join(files[blob_path(items[0].manifest_digest)].chunks())
    assert json.loads(manifest)["layers"][0]["mediaType"].endswith("tar+gzip")


def test_an_image_asked_for_by_digest_gets_a_tag() -> None:
    name = "app@sha256:" + "a" * 64
    items, _ = packed([(name, (BASE,))])
    assert items[0].name == "app:sha256-aaaaaaaaaaaa"


def test_every_file_is_described_by_what_it_is() -> None:
    items, files = packed([("app:1", (BASE, APP)), ("top:1", (BASE, TOP))])
    about = describe_files(items)
    shared = about[blob_path(digest_of(BASE))]
    assert shared == f"layer {digest_of(BASE)[7:19]} of app:1 and top:1"
    assert {path for path in files if path.startswith("blobs")} <= about.keys()


def test_a_bundle_gives_its_images_back() -> None:
    items, files = packed([("app:1", (BASE, APP)), ("top:1", (BASE, TOP))])
    opened = open_images(items, files.get, "b")
    assert opened.images == (image("app:1", BASE, APP), image("top:1", BASE, TOP))
    layer = opened.layers[digest_of(TOP)]
    assert isinstance(layer.blob, Blob)
    assert b"".join(layer.blob.content.chunks()) == TOP
    assert opened.known == {}


@pytest.mark.parametrize("fault", ["config gone", "layer gone", "other config", "other layers"])
def test_a_manifest_that_contradicts_its_files_is_damage(fault: str) -> None:
    items, files = packed([("app:1", (BASE, APP))])
    one = items[0]
    if fault == "config gone":
        del files[blob_path(one.config_digest)]
    elif fault == "layer gone":
        del files[blob_path(digest_of(APP))]
    elif fault == "other config":
        files[blob_path(one.config_digest)] = Content((config_of(APP, BASE),))
    else:
        items = (replace(one, layers=one.layers[::-1]),)
    with pytest.raises(Damaged):
        open_images(items, files.get, "b")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "$(reboot)"}, {"config": "sha256:../../x"}, {"manifest": None}, {"layers": None},
        {"layers": [{"diff_id": "sha256:1"}]},
    ],
)  # fmt: skip
def test_items_that_nobody_wrote_are_refused(change: dict[str, object]) -> None:
    items, _ = packed([("app:1", (BASE,))])
    with pytest.raises(Damaged):
        parse_items([items[0].item() | change], "b")


def test_a_base_that_is_not_there_is_named_with_what_to_bring() -> None:
    app = image("app:2", BASE, NEW)
    error = lacking_base(app, app.diff_ids, carried(NEW), "bundle 2024-01-01-abcdef", "gpu1")
    assert isinstance(error, NotFound)
    assert digest_of(BASE)[:19] in str(error)
    assert "bundle 2024-01-01-abcdef" in str(error)
    assert lacking_base(app, [digest_of(NEW)], carried(NEW), "", "gpu1") is None
