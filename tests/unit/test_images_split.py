"""Archives taken apart in one pass: every form, every fault, nothing read in vain."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import random
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import Cancelled, CommandFailed, Conflict, Damaged, DiskFull, NotFound
from tasks.images import split as split_module
from tasks.images.archive import read_archive
from tasks.images.blobs import Blob, Compression, Layer
from tasks.images.facts import ImageFacts
from tasks.images.layout import chain_ids
from tasks.images.split import Promise, save_into, split, split_archive
from tasks.images.store import Store, StoredImage
from tests.lab.archives import Form, ImageSpec, write_archive
from tests.lab.layers import LayerSpec

Members = list[tuple[str, bytes | str]]


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def hexed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(members: Members) -> bytes:
    """A tar of files; text instead of bytes is the target of a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def layer(seed: int, size: int = 20_000, name: str = "data") -> bytes:
    return tar([(f"{name}{seed}", random.Random(seed).randbytes(size))])


def config(layers: list[bytes], **changes: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [digest(one) for one in layers]}
    return json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs} | changes).encode()


def manifest(*entries: tuple[str, list[str], list[str]]) -> tuple[str, bytes]:
    keys = ("Config", "RepoTags", "Layers")
    return "manifest.json", json.dumps(
        [dict(zip(keys, entry, strict=True)) for entry in entries]
    ).encode()


BASE, TOP, OTHER = layer(1), layer(2), layer(3)
APP, SECOND, BARE = config([BASE, TOP]), config([BASE, OTHER]), config([BASE])


def folders(layers: list[bytes]) -> list[tuple[str, bytes]]:
    """The folder of each layer of an image and the file `json` in it, as Docker 20.10 has them."""
    made = []
    parent = ""
    for position, chain in enumerate(chain_ids([digest(one) for one in layers]), 1):
        below = {"parent": parent} if parent else {}
        hashed = {
            "created": "1970",
            "layer_id": chain,
            **{k: f"sha256:{v}" for k, v in below.items()},
        }
        if position == len(layers):
            hashed["os"] = "linux"
        name = hexed(json.dumps(dict(sorted(hashed.items())), separators=(",", ":")).encode())
        shown = {"id": name, **below, "created": "1970", "os": "linux"}
        made.append((name, json.dumps(shown).encode()))
        parent = name
    return made


def legacy() -> Members:
    """Three images with a shared base; where that is the uppermost layer, it is a link."""
    members: dict[str, bytes | str] = {}
    written: dict[bytes, str] = {}
    entries = []
    for tag, layers in (("app:1", [BASE, TOP]), ("second:1", [BASE, OTHER]), ("bare:1", [BASE])):
        names = []
        for content, (folder, document) in zip(layers, folders(layers), strict=True):
            first = written.setdefault(content, folder)
            names.append(f"{folder}/layer.tar")
            if names[-1] not in members:
                members[f"{folder}/VERSION"] = b"1.0"
                members[f"{folder}/json"] = document
                members[names[-1]] = content if first == folder else f"../{first}/layer.tar"
        document = config(layers)
        members[f"{hexed(document)}.json"] = document
        entries.append((f"{hexed(document)}.json", [tag], names))
    return [*members.items(), manifest(*entries)]


def oci(layers: list[bytes], stored: list[bytes]) -> Members:
    """One image as Docker 25 and later saves it, with its blobs stored as given."""
    document = config(layers)
    names = [f"blobs/sha256/{hexed(blob)}" for blob in stored]
    config_name = f"blobs/sha256/{hexed(document)}"
    blobs = dict(zip(names, stored, strict=True))
    return [
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        (config_name, document),
        *blobs.items(),
        manifest((config_name, ["app:1"], names)),
    ]


def facts(name: str, document: bytes, layers: list[bytes], **changes: Any) -> ImageFacts:
    made = ImageFacts(
        name,
        digest(document),
        digest(document),
        tuple(digest(one) for one in layers),
        "amd64",
        size=sum(map(len, layers)),
        layer_sizes=tuple(map(len, layers)),
    )
    return replace(made, **changes)


APP_FACTS = facts("app:1", APP, [BASE, TOP])
SECOND_FACTS = facts("second:1", SECOND, [BASE, OTHER])
# As an engine with a containerd store tells of them.
UNTOLD = [replace(image, config_digest="") for image in (APP_FACTS, SECOND_FACTS)]


class Source(io.BytesIO):
    """A stream that gives its bytes in pieces of odd sizes."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 4097))


@dataclass
class Splits:
    """A store, and what taking archives apart announced."""

    store: Store
    layers: list[Layer] = field(default_factory=list)

    def split(self, content: bytes, promise: Promise | None = None) -> tuple[StoredImage, ...]:
        self.layers.clear()
        return split(self.store, Source(content), "archive", self.layers.append, promise)

    @property
    def announced(self) -> list[str]:
        return [layer.diff_id for layer in self.layers]

    def bytes_of(self, diff_id: str) -> bytes:
        found = self.store.layer(diff_id, "none")
        assert found is not None
        assert isinstance(found.blob, Blob)
        return b"".join(self.store.read(found.blob))

    @property
    def kept(self) -> set[str]:
        names = (path.name for path in (self.store.folder / "blobs/sha256").iterdir())
        return {f"sha256:{name}" for name in names}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 10**12)


@pytest.fixture
def splits(store: Store) -> Splits:
    return Splits(store)


def test_a_legacy_archive_gives_every_layer_once_and_all_images(splits: Splits) -> None:
    images = splits.split(tar(legacy()))
    assert splits.announced == [digest(BASE), digest(TOP), digest(OTHER)]
    assert [splits.bytes_of(one) for one in splits.announced] == [BASE, TOP, OTHER]
    assert images == (
        StoredImage(APP, digest(APP), (digest(BASE), digest(TOP)), ("app:1",)),
        StoredImage(SECOND, digest(SECOND), (digest(BASE), digest(OTHER)), ("second:1",)),
        StoredImage(BARE, digest(BARE), (digest(BASE),), ("bare:1",)),
    )
    assert splits.kept == {digest(BASE), digest(TOP), digest(OTHER)}


@pytest.mark.parametrize("form", ["legacy", "oci"])
def test_what_the_lab_saves_is_taken_apart(splits: Splits, tmp_path: Path, form: Form) -> None:
    base = LayerSpec({"base": 200_000}, seed=1)
    twice = LayerSpec({"twice": 1000}, seed=2)
    specs = [
        ImageSpec("app:1", [base, LayerSpec({}), twice, base, twice]),
        ImageSpec("app:60", [LayerSpec({f"中文{n}": 700}, seed=n) for n in range(60)]),
    ]
    made = write_archive(tmp_path / "images.tar", specs, form=form)
    images = splits.split((tmp_path / "images.tar").read_bytes())
    assert [image.diff_ids for image in images] == [one.diff_ids for one in made]
    assert [image.config_digest for image in images] == [one.config_digest for one in made]
    wanted = {diff_id for one in made for diff_id in one.diff_ids}
    assert set(splits.announced) == wanted
    assert len(splits.announced) == len(wanted)
    for diff_id in wanted:
        assert digest(splits.bytes_of(diff_id)) == diff_id


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_layer_is_known_by_what_it_unpacks_to(
    splits: Splits, compression: Compression
) -> None:
    blob = gzip.compress(TOP) if compression == "gzip" else zstandard.compress(TOP)
    content = tar(oci([BASE, TOP], [BASE, blob]))
    (image,) = splits.split(content)
    assert image.diff_ids == (digest(BASE), digest(TOP))
    assert [(one.diff_id, one.compression, one.blob.digest) for one in splits.layers] == [
        (digest(BASE), "none", digest(BASE)),
        (digest(TOP), compression, digest(blob)),
    ]
    assert splits.split(content, Promise.of(UNTOLD[:1])) == (image,)
    assert splits.announced == [digest(BASE), digest(TOP)]


def test_a_layer_is_announced_before_the_next_one_is_read(store: Store) -> None:
    content = tar(legacy())
    source = Source(content)
    seen: list[int] = []
    split(store, source, "archive", lambda _: seen.append(source.tell()))
    assert seen == sorted(set(seen))
    assert content.index(TOP) < seen[1] < content.index(OTHER)


def test_odd_layers_are_layers(splits: Splits) -> None:
    """Begin like JSON, like gzip, like zstd; hold nothing at all; are not cut into blocks."""
    odd = [
        layer(1, name='{"odd'),
        layer(2, name="[1,"),
        layer(3, name="\x1f\udc8b"),
        layer(4, name="(\udcb5/\udcfd"),
        b"",
        bytes(1024),
        BASE[:-1024],
    ]
    images = splits.split(tar(oci(odd, odd)))
    assert images[0].diff_ids == tuple(digest(one) for one in odd)
    assert splits.announced == [digest(one) for one in odd]
    assert [splits.bytes_of(digest(one)) for one in odd] == odd


def test_archives_of_other_tools_are_taken_apart(splits: Splits) -> None:
    members: Members = [
        ("sha256:config", APP),
        ("base.tar.gz", gzip.compress(BASE)),
        (f"{hexed(TOP)}.tar", TOP),
        manifest(("sha256:config", ["app:1"], ["base.tar.gz", f"{hexed(TOP)}.tar"])),
    ]
    (image,) = splits.split(tar(members))
    assert splits.announced == list(image.diff_ids)


@pytest.mark.parametrize("form", ["legacy", "oci"])
def test_a_layer_that_is_not_wanted_is_passed_over(splits: Splits, form: Form) -> None:
    content = tar(legacy() if form == "legacy" else oci([BASE, TOP], [BASE, TOP]))
    found = splits.split(content, Promise.of(UNTOLD, wanted=[digest(TOP)]))
    assert splits.announced == [digest(TOP)]
    assert splits.kept == {digest(TOP)}
    assert found[0].diff_ids == (digest(BASE), digest(TOP))


@pytest.mark.parametrize("form", ["legacy", "oci"])
def test_a_layer_that_is_there_is_announced_and_not_written_again(
    splits: Splits, form: Form
) -> None:
    content = tar(legacy() if form == "legacy" else oci([BASE, TOP], [BASE, TOP]))
    splits.split(content)
    before = {path: path.stat().st_ino for path in splits.store.folder.rglob("blobs/sha256/*")}
    splits.split(content, Promise.of(UNTOLD[:1]))
    assert splits.announced[:2] == [digest(BASE), digest(TOP)]
    there = before.keys() if form == "oci" else {p for p in before if p.name != hexed(OTHER)}
    assert all(path.stat().st_ino == before[path] for path in there)


@pytest.mark.parametrize("form", ["legacy", "oci"])
def test_nothing_is_read_beyond_what_is_wanted(store: Store, form: Form) -> None:
    members = legacy() if form == "legacy" else oci([BASE, TOP], [BASE, TOP])
    (config,) = (one for one in members if one[1] == APP)
    members.remove(config)
    members.insert(2, config)
    content = tar(members)
    source = Source(content)
    layers: list[Layer] = []

    found = split(store, source, "archive", layers.append, Promise.of([APP_FACTS], [digest(TOP)]))

    assert found == (StoredImage(APP, digest(APP), APP_FACTS.diff_ids, ("app:1",)),)
    assert [one.diff_id for one in layers] == [digest(TOP)]
    end = content.index(TOP) + len(TOP)
    assert end <= source.tell() < end + 1024
    store.record_image(APP_FACTS.image_id, APP, APP_FACTS.diff_ids)
    source.seek(0)
    assert split(store, source, "archive", layers.append, Promise.of([APP_FACTS], [digest(TOP)]))
    assert source.tell() < content.index(TOP), "the layer is in the store by now"


def test_what_is_wanted_but_altered_is_looked_for_to_the_end(splits: Splits) -> None:
    content = bytearray(tar(legacy()))
    content[content.index(TOP) + 5000] ^= 1
    with pytest.raises(Damaged, match="altered"):
        splits.split(bytes(content), Promise.of([APP_FACTS], [digest(TOP)]))


def test_an_archive_of_an_unknown_engine_is_read_as_a_whole(splits: Splits) -> None:
    members: Members = [
        (name, b'{"id":"strange"}' if name.endswith("/json") else content)
        for name, content in legacy()
    ]
    splits.split(tar(members), Promise.of(UNTOLD[:1], wanted=[digest(TOP)]))
    assert digest(TOP) in splits.announced


@pytest.mark.parametrize("form", ["legacy", "oci"])
def test_an_altered_layer_is_told_and_never_trusted(splits: Splits, form: Form) -> None:
    content = bytearray(tar(legacy() if form == "legacy" else oci([BASE, TOP], [BASE, TOP])))
    place = content.index(TOP) + 5000
    content[place] ^= 1
    with pytest.raises(Damaged, match="altered"):
        splits.split(bytes(content))
    assert digest(TOP) not in splits.announced
    assert splits.store.layer(digest(TOP)) is None
    assert splits.bytes_of(digest(BASE)) == BASE


def test_an_altered_configuration_is_told(splits: Splits) -> None:
    content = tar(legacy()).replace(b'"architecture": "amd64"', b'"architecture": "amd65"')
    with pytest.raises(Damaged, match="altered"):
        splits.split(content)


@pytest.mark.parametrize("left", [511, 512, 1024, 5000])
def test_an_archive_that_is_cut_off_is_told(splits: Splits, left: int) -> None:
    content = tar(oci([BASE, TOP], [BASE, TOP])).rstrip(b"\0")
    content += bytes(-len(content) % 512)
    with pytest.raises((EOFError, tarfile.TarError)):
        splits.split(content[: -left + 512])
    assert not list((splits.store.folder / "partial").iterdir())


def test_a_member_that_leads_out_of_the_archive_is_refused(splits: Splits) -> None:
    with pytest.raises(ValueError, match=r"\.\./etc"):
        splits.split(tar([("../etc/layer.tar", BASE)]))
    assert splits.kept == set()


def test_a_flood_of_documents_is_refused(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_module, "MOST_DOCUMENTS", 10_000)
    with pytest.raises(ValueError, match="more JSON"):
        splits.split(tar([(f"{n}.json", b"[" + b"1," * 1000 + b"1]") for n in range(6)]))


def test_a_cancelled_run_stops_in_the_middle_of_a_layer(splits: Splits) -> None:
    cancellation = Cancellation()
    with cancellation_scope(cancellation):
        cancellation.cancel()
        with pytest.raises(Cancelled):
            splits.split(tar(legacy()))
    assert splits.kept == set()
    assert not list((splits.store.folder / "partial").iterdir())


def test_a_gzipped_archive_is_taken_apart(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "images.tar.gz"
    path.write_bytes(gzip.compress(tar(legacy())))
    layers: list[Layer] = []
    images: list[StoredImage] = []
    split_archive(store, path, on_layer=layers.append, on_image=images.append)
    facts = read_archive(path)
    assert tuple(images) == facts.stored
    assert [one.diff_id for one in layers] == [digest(BASE), digest(TOP), digest(OTHER)]
    path.write_bytes(gzip.compress(tar(legacy()))[:-3000])
    with pytest.raises(Damaged, match="has changed"):
        split_archive(store, path, on_layer=layers.append, on_image=images.append)


def test_a_plain_archive_needs_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    path.write_bytes(tar(legacy()))
    facts = read_archive(path)
    assert {diff_id: layer.blob.digest for diff_id, layer in facts.layers.items()} == {
        digest(one): digest(one) for one in (BASE, TOP, OTHER)
    }
    for diff_id, one in facts.layers.items():
        assert isinstance(one.blob, Blob)
        assert digest(b"".join(one.blob.content.chunks())) == diff_id


# An engine's HTTP side, for the answers that a real one cannot be made to give.


@dataclass
class Engine:
    """What the pretend engine answers, and how often it was asked."""

    status: int = 200
    body: bytes = b""
    cut: bool = False
    silent: threading.Event | None = None
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    state = Engine(body=tar(legacy()))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.endswith("/version"):
                self.answer(200, b'{"ApiVersion":"1.41"}')
                return
            state.asked.append(self.path)
            if state.silent is not None:
                state.silent.wait(30)
            self.answer(state.status, state.body, cut=state.cut)

        def answer(self, status: int, body: bytes, cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 32_768):
                chunk = body[start : start + 32_768]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if cut:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # whoever asked has gone

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
    yield state
    if state.silent is not None:
        state.silent.set()
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Given:
    """What was handed over."""

    layers: list[Layer] = field(default_factory=list)
    images: list[StoredImage] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)

    def save(self, store: Store, images: list[ImageFacts], wanted: list[str] | None = None) -> None:
        save_into(
            store,
            images,
            on_layer=self.layers.append,
            on_image=self.images.append,
            wanted=wanted,
            progress=lambda done, total: self.progress.append((done, total)),
        )


@pytest.fixture
def given() -> Given:
    return Given()


def test_images_are_saved_in_one_request_and_found_by_their_ids(
    engine: Engine, store: Store, given: Given
) -> None:
    containerd = replace(SECOND_FACTS, image_id=digest(b"its manifest"), config_digest="")
    given.save(store, [APP_FACTS, containerd])
    assert engine.asked == ["/v1.41/images/get?names=app%3A1&names=second%3A1"]
    assert [one.diff_id for one in given.layers] == [digest(BASE), digest(TOP), digest(OTHER)]
    assert [one.config for one in given.images] == [APP, SECOND, BARE]
    assert store.image(APP_FACTS.image_id) == given.images[0]
    assert store.image(containerd.image_id) == given.images[1]
    dones = [done for done, _ in given.progress]
    assert dones == sorted(dones)
    assert dones[-1] == len(engine.body)
    assert all(done <= total for done, total in given.progress)


def test_only_wanted_layers_are_kept_of_what_is_saved(
    engine: Engine, store: Store, given: Given
) -> None:
    given.save(store, [APP_FACTS, SECOND_FACTS], wanted=[digest(OTHER)])
    assert [one.diff_id for one in given.layers] == [digest(OTHER)]
    assert store.layer(digest(BASE)) is None


def test_an_image_that_is_another_by_now_is_told(
    engine: Engine, store: Store, given: Given
) -> None:
    renewed = replace(APP_FACTS, config_digest=digest(b"new"), image_id=digest(b"new"))
    with pytest.raises(Conflict, match="another image") as failed:
        given.save(store, [renewed])
    assert "app:1" in failed.value.where
    assert store.image(renewed.image_id) is None


def test_an_answer_that_is_cut_off_leaves_whole_layers_and_may_be_tried_again(
    engine: Engine, store: Store, given: Given
) -> None:
    engine.body = engine.body[: engine.body.index(TOP) + 100]
    engine.cut = True
    with pytest.raises(Damaged, match="stopped sending") as failed:
        given.save(store, [APP_FACTS])
    assert failed.value.retryable
    assert [one.diff_id for one in given.layers] == [digest(BASE)]
    assert not list((store.folder / "partial").iterdir())


@pytest.mark.parametrize("place", [9000, -600, -1024])
def test_an_engine_that_fails_half_way_is_quoted(
    engine: Engine, store: Store, given: Given, place: int
) -> None:
    engine.body = engine.body.rstrip(b"\0")
    engine.body += bytes(-len(engine.body) % 512 + 1024)
    whole = engine.body
    engine.body = whole[:place] + b'{"errorDetail":{"message":"boom"},"error":"boom"}\r\n'
    with pytest.raises(CommandFailed, match=r"could not save the images \(boom\)"):
        given.save(store, UNTOLD[:1])
    engine.body = whole[:place]
    with pytest.raises(Damaged, match="stopped sending"):
        given.save(store, UNTOLD[:1])


def test_a_full_disk_of_the_engine_is_told_from_ours(
    engine: Engine, store: Store, given: Given
) -> None:
    engine.status = 500
    engine.body = b'{"message":"write /x/layer.tar: no space left on device"}'
    with pytest.raises(DiskFull, match="source engine's own disk"):
        given.save(store, [APP_FACTS])


def test_an_image_removed_meanwhile_is_reported(engine: Engine, store: Store, given: Given) -> None:
    engine.status, engine.body = 404, b'{"message":"No such image: app:1"}'
    with pytest.raises(NotFound, match="No such image: app:1"):
        given.save(store, [APP_FACTS])


def test_room_is_checked_before_the_engine_is_asked_but_for_lacking_layers_only(
    engine: Engine, store: Store, given: Given
) -> None:
    huge = replace(APP_FACTS, layer_sizes=(1 << 60, len(TOP)))
    with pytest.raises(DiskFull, match="CROSSGAP_STORE"):
        given.save(store, [huge])
    assert engine.asked == []
    given.save(store, [huge], wanted=[digest(TOP)])
    assert digest(TOP) in {one.diff_id for one in given.layers}
    assert store.layer(digest(BASE)) is None


def test_a_run_that_is_cancelled_does_not_wait_for_an_engine_that_says_nothing(
    engine: Engine, store: Store, given: Given
) -> None:
    engine.silent = threading.Event()
    cancellation = Cancellation()
    with cancellation_scope(cancellation):

        def cancel() -> None:
            while not engine.asked:
                time.sleep(0.01)
            cancellation.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(Cancelled):
            given.save(store, [APP_FACTS])
        thread.join()
    assert not engine.silent.is_set()
