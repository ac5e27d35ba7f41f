"""The content store: whole or absent, bounded, shared, proven."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.content import Content, FileRange
from blocks.errors import (
    Cancelled,
    CommandFailed,
    Damaged,
    DiskFull,
    InvalidInput,
    SourceDamaged,
)
from tasks.images import store as store_module
from tasks.images.blobs import Blob, Compression, Descriptor, Layer
from tasks.images.compress import packed
from tasks.images.store import Store, StoredImage, parse_size

LARGE = 10**12
MB = 1_000_000


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def some(seed: int, size: int = 100_000) -> bytes:
    return random.Random(seed).randbytes(size // 2) + bytes(size - size // 2)


def put(store: Store, content: bytes) -> Blob:
    with store.writer() as writer:
        for start in range(0, len(content), 30_000):
            writer.write(content[start : start + 30_000])
        return writer.commit()


def put_layer(store: Store, content: bytes) -> Layer:
    return store.record_layer(digest(content), "none", put(store, content))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()} - {"held", "making"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder, LARGE)


def test_place_and_size_are_settings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("CROSSGAP_STORE", str(folder))
    monkeypatch.setenv("CROSSGAP_STORE_SIZE", " 1.5GB ")
    chosen = Store.default()
    assert (chosen.folder, chosen.limit) == (folder, 1_500_000_000)
    assert folder.stat().st_mode & 0o777 == 0o700 or folder.exists()
    monkeypatch.delenv("CROSSGAP_STORE_SIZE")
    assert 0 < Store.default().limit <= 100 * 10**9
    monkeypatch.setenv("CROSSGAP_STORE_SIZE", "plenty")
    with pytest.raises(InvalidInput, match="CROSSGAP_STORE_SIZE"):
        Store.default()
    monkeypatch.delenv("CROSSGAP_STORE")
    monkeypatch.setenv("HOME", str(folder.parent / "home"))
    monkeypatch.delenv("CROSSGAP_STORE_SIZE")
    assert Store.default().folder == folder.parent / "home/.crossgap/store"


@pytest.mark.parametrize(
    ("text", "size"),
    [("100GB", 10**11), ("500 mb", 5 * 10**8), ("2TiB", 2 << 40), ("7", 7), ("3k", 3000)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "many", "1.GB", "GB", "1PB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_size(text)


def test_a_folder_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed, match="CROSSGAP_STORE"):
        Store(tmp_path / "file" / "store", LARGE)


def test_a_blob_is_found_by_its_digest(store: Store) -> None:
    content = some(1)
    made = put(store, content)
    assert (made.digest, made.size) == (digest(content), len(content))
    found = store.blob(made.digest)
    assert found == made
    assert b"".join(made.content.chunks()) == content
    assert b"".join(store.read(made)) == content
    assert store.blob(digest(b"else")) is None


def test_an_empty_blob_is_a_blob(store: Store) -> None:
    layer = put_layer(store, b"")
    assert store.layer(layer.diff_id) == layer
    assert list(store.read(put(store, b""))) == []
    assert store.unpacked(store.compressed(layer, "gzip")) == layer


def test_a_path_that_somebody_made_up_is_no_digest(store: Store) -> None:
    for made_up in ("sha256:../../../etc/passwd", "", "sha256:" + "A" * 64, "md5:" + "a" * 64):
        with pytest.raises(InvalidInput, match="no digest"):
            store.blob(made_up)


def test_nothing_half_written_is_in_view(store: Store) -> None:
    content = some(1)
    with store.writer() as writer:
        writer.write(content)
        assert store.blob(digest(content)) is None
    assert files(store.folder) == set()

    def fail() -> None:
        with store.writer() as writer:
            writer.write(content)
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        fail()
    assert files(store.folder) == set()


def test_bytes_with_another_digest_than_expected_are_refused(store: Store) -> None:
    with store.writer(digest(b"this")) as writer:
        writer.write(b"that")
        with pytest.raises(Damaged, match="not sha256") as failed:
            writer.commit()
    assert failed.value.retryable
    assert files(store.folder) == set()


def test_a_layer_is_found_in_the_form_that_is_wanted_or_in_any(store: Store) -> None:
    content = some(1)
    blob = put(store, gzip.compress(content))
    layer = store.record_layer(digest(content), "gzip", blob)
    assert store.layer(layer.diff_id, "gzip") == layer
    assert store.layer(layer.diff_id) == layer
    assert store.layer(layer.diff_id, "none") is None
    plain = put_layer(store, content)
    assert store.layer(layer.diff_id) == plain
    assert store.layer(layer.diff_id, "gzip") == layer


def test_a_blob_that_lost_bytes_to_a_power_cut_is_not_found(store: Store) -> None:
    layer = put_layer(store, some(1))
    os.truncate(store.folder / "blobs/sha256" / layer.blob.hex, 500)
    assert store.layer(layer.diff_id) is None


@pytest.mark.parametrize("record", [b"", b"[1", b"[]", b'{"none":1}', b'{"none":{"digest":"x"}}'])
def test_a_record_that_is_damaged_is_none(store: Store, record: bytes) -> None:
    layer = put_layer(store, some(1))
    path = store.folder / "layers" / f"{layer.blob.hex}.json"
    path.write_bytes(record)
    assert store.layer(layer.diff_id) is None
    assert put_layer(store, some(1)) == layer
    assert store.layer(layer.diff_id) == layer


def test_an_image_is_kept_to_the_byte(store: Store) -> None:
    image_id = digest(b"manifest")
    for config in ('{"comment": "中文 \\u0000 "}'.encode(), b'{"comment":"\xff\xfe"}'):
        made = store.record_image(image_id, config, ["sha256:1"], ["库/应用:1"])
        assert made == StoredImage(config, digest(config), ("sha256:1",), ("库/应用:1",))
        assert store.image(image_id) == made
    assert store.image(digest(b"other")) is None


def test_an_altered_image_is_not_found(store: Store) -> None:
    image_id = digest(b"manifest")
    store.record_image(image_id, b'{"a":1}', [])
    (path,) = (store.folder / "images").iterdir()
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"config": '{"a":2}'}))
    assert store.image(image_id) is None
    path.write_text(json.dumps({"config": 1}))
    assert store.image(image_id) is None


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_form_is_made_once_and_back(
    store: Store, compression: Compression, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = put_layer(store, some(1))
    made = store.compressed(layer, compression)
    assert made.compression == compression
    assert made.diff_id == layer.diff_id
    assert made.blob.size < layer.blob.size
    assert store.layer(layer.diff_id, compression) == made
    assert store.compressed(made, compression) is made
    monkeypatch.setattr(store_module, "packed", None)
    assert store.compressed(layer, compression) == made
    assert store.unpacked(made) == layer


def test_one_compression_becomes_another_without_the_unpacked_layer(store: Store) -> None:
    content = some(1)
    blob = put(store, gzip.compress(content))
    layer = store.record_layer(digest(content), "gzip", blob)
    other = store.compressed(layer, "zstd")
    assert store.layer(layer.diff_id, "none") is None
    plain = store.unpacked(other)
    assert b"".join(store.read(plain.blob)) == content  # type: ignore[arg-type]


def test_a_layer_in_a_file_elsewhere_is_packed_from_there(store: Store, tmp_path: Path) -> None:
    content = some(1)
    path = tmp_path / "档案.tar"
    path.write_bytes(b"head" + content + b"tail")
    place = Content((FileRange(path, 4, len(content)),))
    layer = Layer(digest(content), "none", Blob(digest(content), len(content), place))
    made = store.compressed(layer, "gzip")
    assert gzip.decompress(b"".join(store.read(made.blob))) == content  # type: ignore[arg-type]
    assert store.layer(layer.diff_id, "none") is None
    path.write_bytes(b"head" + content[1:] + b"xtail")
    with pytest.raises(SourceDamaged, match="档案"):
        store.compressed(layer, "zstd")
    path.unlink()
    with pytest.raises(SourceDamaged, match="cannot be read"):
        store.compressed(layer, "zstd")


def test_a_layer_without_its_bytes_cannot_be_packed(store: Store) -> None:
    layer = Layer(digest(b"x"), "none", Descriptor(digest(b"x"), 1))
    with pytest.raises(TypeError):
        store.compressed(layer, "gzip")


def flip(store: Store, blob: Descriptor) -> None:
    with (store.folder / "blobs/sha256" / blob.hex).open("r+b") as file:
        file.seek(blob.size // 3)
        byte = file.read(1)
        file.seek(blob.size // 3)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flipped_byte_is_found_on_reading_and_the_blob_discarded(store: Store) -> None:
    layer = put_layer(store, some(1))
    assert isinstance(layer.blob, Blob)
    flip(store, layer.blob)
    with pytest.raises(SourceDamaged, match="is damaged") as failed:
        b"".join(store.read(layer.blob))
    assert failed.value.retryable
    assert store.blob(layer.blob.digest) is None
    assert store.layer(layer.diff_id) is None


@pytest.mark.parametrize("form", ["none", "gzip", "zstd"])
def test_no_form_is_made_of_a_damaged_one(store: Store, form: Compression) -> None:
    layer = store.compressed(put_layer(store, some(1)), form)
    store.discard(layer.diff_id) if form != "none" else None
    flip(store, layer.blob)
    with pytest.raises(SourceDamaged):
        store.compressed(layer, "gzip" if form != "gzip" else "none")
    assert store.layer(layer.diff_id) is None
    assert files(store.folder / "partial") == set()


def test_a_blob_that_is_another_layer_than_was_said_is_found_out(store: Store) -> None:
    blob = put(store, gzip.compress(b"this"))
    layer = store.record_layer(digest(b"that"), "gzip", blob)
    with pytest.raises(SourceDamaged, match="is not the layer"):
        store.unpacked(layer)
    assert store.layer(layer.diff_id) is None


def age(store: Store, blob: Descriptor, seconds: int) -> None:
    then = time.time() - seconds
    os.utime(store.folder / "blobs/sha256" / blob.hex, (then, then))


def filled(folder: Path) -> list[Layer]:
    """Three layers of 1 MB, the first used longest ago."""
    store = Store(folder, LARGE)
    layers = [put_layer(store, some(seed, MB)) for seed in range(3)]
    for layer, seconds in zip(layers, (3000, 2000, 1000), strict=True):
        age(store, layer.blob, seconds)
    return layers


def present(folder: Path, layers: list[Layer]) -> list[bool]:
    names = files(folder / "blobs")
    return [layer.blob.hex in names for layer in layers]


def test_the_least_recently_used_goes_first(folder: Path) -> None:
    layers = filled(folder)
    Store(folder, LARGE).layer(layers[0].diff_id)  # used again
    later = Store(folder, 3 * MB)
    put(later, some(7, MB))
    assert present(folder, layers) == [True, False, True]
    assert files(folder / "layers") == {f"{layers[i].blob.hex}.json" for i in (0, 2)}


def test_a_store_that_is_beyond_its_limit_is_brought_back(folder: Path) -> None:
    layers = filled(folder)
    Store(folder, 2 * MB)
    assert present(folder, layers) == [False, True, True]


def test_room_is_made_before_a_large_blob_comes(folder: Path) -> None:
    layers = filled(folder)
    with Store(folder, 3 * MB).writer(size=2 * MB):
        assert present(folder, layers) == [False, False, True]


def test_what_a_run_has_been_given_stays_until_the_run_ends(folder: Path) -> None:
    layers = filled(folder)
    run, other = Store(folder, LARGE), Store(folder, LARGE)
    assert run.layer(layers[0].diff_id)
    with other.held([layers[1].blob.digest, digest(b"not there")]):
        Store(folder, 1)
        assert present(folder, layers) == [True, True, False]
    Store(folder, 1)
    assert present(folder, layers) == [True, False, False]
    own = put(run, some(9, MB))
    run.trim()
    assert run.blob(own.digest)
    del run
    Store(folder, 1)
    assert files(folder) == set()


def test_records_of_images_go_with_their_last_layer(folder: Path) -> None:
    layers = filled(folder)
    store = Store(folder, LARGE)
    one, two = digest(b"1"), digest(b"2")
    store.record_image(one, b"{}", [layers[0].diff_id])
    store.record_image(two, b"{}", [layers[0].diff_id, layers[2].diff_id])
    store = Store(folder, 2 * MB)
    assert store.image(one) is None
    assert store.image(two) is not None


def test_room_on_the_disk_is_made_and_a_lack_of_it_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = filled(folder)

    def usage(_: Path) -> tuple[int, int, int]:
        class Usage(NamedTuple):
            total: int
            used: int
            free: int

        gone = present(folder, layers).count(False)
        return Usage(LARGE, 0, 100 * MB + gone * MB)

    store = Store(folder, LARGE)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    store.make_room(102 * MB - store_module._HEADROOM)
    assert present(folder, layers) == [False, False, True]
    with pytest.raises(DiskFull, match="CROSSGAP_STORE") as failed:
        store.make_room(500 * MB)
    assert "are needed" in str(failed.value)


def test_a_disk_that_becomes_full_loses_what_can_go_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = filled(folder)
    store = Store(folder, LARGE)
    held = store.layer(layers[1].diff_id)
    assert held is not None
    content = some(8, MB)
    with store.writer() as writer:
        file = _FullOnce(writer._file, lambda: not any(present(folder, layers)[i] for i in (0, 2)))
        monkeypatch.setattr(writer, "_file", file)
        monkeypatch.setattr(store_module, "_HEADROOM", LARGE * LARGE)
        writer.write(content)
        made = writer.commit()
    assert present(folder, layers) == [False, True, False]
    assert b"".join(store.read(made)) == content


def test_a_disk_that_stays_full_is_told_and_left_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.writer() as writer:
        monkeypatch.setattr(writer, "_file", _FullOnce(writer._file, lambda: False))
        with pytest.raises(DiskFull, match="became full while writing") as failed:
            writer.write(some(1))
    assert "CROSSGAP_STORE" in failed.value.remedy
    assert files(store.folder) == set()


class _FullOnce:
    """A file on a disk that is full until there is room."""

    def __init__(self, file: object, has_room: object) -> None:
        self.file = file
        self.has_room = has_room
        self.begun = False

    def write(self, data: memoryview) -> int:
        if not self.begun:
            # As the kernel does: a part of it fits, then nothing does.
            self.begun = True
            return self.file.write(data[:100])  # type: ignore[attr-defined]
        if not self.has_room():  # type: ignore[operator]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)  # type: ignore[attr-defined]

    def close(self) -> None:
        self.file.close()  # type: ignore[attr-defined]


def test_a_record_that_finds_no_room_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFull):
        store.record_image(digest(b"1"), b"{}", [])
    assert files(store.folder) == set()


WRITER = """
import sys, time
from pathlib import Path
from tasks.images.store import Store
store = Store(Path(sys.argv[1]), 10**12)
with store.writer() as writer:
    writer.write(bytes(500_000))
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writing(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that is in the middle of writing a blob."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_writes_is_not(
    folder: Path, writing: subprocess.Popen[bytes]
) -> None:
    foreign = folder / "partial" / ("0" * 64)
    foreign.write_bytes(b"of a fetch that goes on later")
    Store(folder, LARGE)
    assert len(files(folder)) == 2
    writing.kill()
    writing.wait()
    Store(folder, LARGE)
    assert files(folder) == {foreign.name}


PACKER = """
import sys
from pathlib import Path
from tasks.images import store as module
from tasks.images.store import Store
made = []
real = module.packed
def counted(*arguments):
    made.append(1)
    return real(*arguments)
module.packed = counted
store = Store(Path(sys.argv[1]), 10**12)
layer = store.layer(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(store.compressed(layer, "gzip").blob.digest, len(made), flush=True)
"""


def test_processes_that_want_one_form_make_it_once(store: Store) -> None:
    layer = put_layer(store, some(3, 20 * MB))
    command = [sys.executable, "-c", PACKER, str(store.folder), layer.diff_id]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate()
        answers.append(out.split())
    assert len({digest for digest, _ in answers}) == 1
    assert sorted(made for _, made in answers) == ["0", "0", "1"]


def test_threads_that_want_one_form_make_it_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(chunks: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
        made.append(1)
        return packed(chunks, compression)

    monkeypatch.setattr(store_module, "packed", counted)
    layer = put_layer(store, some(3, 5 * MB))
    with ThreadPoolExecutor(4) as pool:
        forms = list(pool.map(lambda _: store.compressed(layer, "gzip"), range(4)))
    assert forms == [forms[0]] * 4
    assert made == [1]


def test_many_threads_write_find_and_make_room_at_once(folder: Path) -> None:
    contents = [some(seed, 200_000) for seed in range(8)]
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for step in range(12):
                store = Store(folder, MB)
                content = contents[(number + step) % len(contents)]
                layer = store.layer(digest(content), "none") or put_layer(store, content)
                # Whatever others do, what one has been given is there.
                assert isinstance(layer.blob, Blob)
                assert b"".join(store.read(layer.blob)) == content
                store.compressed(layer, "gzip")
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert files(folder / "partial") == set()
    Store(folder, MB)
    assert sum(path.stat().st_size for path in (folder / "blobs/sha256").iterdir()) <= MB


def test_a_cancelled_run_stops_packing_and_leaves_nothing(store: Store) -> None:
    layer = put_layer(store, some(1))
    cancellation = Cancellation()
    with cancellation_scope(cancellation):
        cancellation.cancel()
        with pytest.raises(Cancelled):
            store.compressed(layer, "gzip")
    assert store.layer(layer.diff_id, "gzip") is None
    assert files(store.folder / "partial") == set()
