"""A bundle is written so that it can be gone on with, and is there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from blocks.content import Content, FileRange
from blocks.errors import (
    CommandFailed,
    Conflict,
    CrossgapError,
    Damaged,
    DiskFull,
    InvalidInput,
    NotFound,
    PermissionRefused,
)
from tasks.bundles import writing
from tasks.bundles.contents import Section
from tasks.bundles.manifest import Base, parse_manifest
from tasks.bundles.reading import open_bundle
from tasks.bundles.report import pack_subject
from tasks.bundles.writing import Recipe, Source, write_bundle

MIB = 1 << 20
SMALL = b"a configuration"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def in_memory(path: str, content: bytes) -> Source:
    return Source(path, Content((content,)), sha256(content))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of two parts and a bit."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * MIB + 1000))
    return path


@pytest.fixture
def recipe(large: Path) -> Recipe:
    sources = (
        in_memory("blobs/sha256/aa", SMALL),
        Source("blobs/sha256/bb", Content.of_file(large), sha256(large.read_bytes()), "layer bb"),
    )
    section = Section("Images", ("app:1", "    2 layers"))
    return Recipe(sources, {"images": ({"name": "app:1"},)}, (section,), None, MIB)


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_holds_its_files_in_parts_and_says_what_it_is(
    tmp_path: Path, recipe: Recipe, large: Path
) -> None:
    target = tmp_path / "五月的盘"
    calls: list[tuple[int, int]] = []
    manifest = write_bundle(
        target, recipe, lambda done, total: calls.append((done, total))
    ).manifest

    parts = {f"blobs/sha256/bb.{number:03d}" for number in (1, 2, 3)}
    own = {"bundle.json", "SHA256SUMS", "CONTENTS.txt"}
    assert files_in(target) == {"blobs/sha256/aa", *parts, *own}
    joined = b"".join((target / part).read_bytes() for part in sorted(parts))
    assert joined == large.read_bytes()
    assert max(path.stat().st_size for path in target.rglob("*")) <= MIB
    assert parse_manifest((target / "bundle.json").read_bytes(), "") == manifest
    assert calls[-1] == (len(SMALL) + len(joined), len(SMALL) + len(joined))
    text = (target / "CONTENTS.txt").read_text()
    assert manifest.id in text
    assert "app:1" in text
    assert [path.name for path in tmp_path.iterdir() if path != large] == [target.name]


def test_tools_of_the_far_side_can_check_it(tmp_path: Path, recipe: Recipe) -> None:
    target = tmp_path / "盘"
    write_bundle(target, recipe)
    check = ["sha256sum", "-c", "SHA256SUMS"]
    subprocess.run(check, cwd=target, capture_output=True, check=True)
    (target / "blobs/sha256/aa").write_bytes(b"b configuration")
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(check, cwd=target, capture_output=True, check=True)


def test_a_second_pack_of_the_same_does_nothing(tmp_path: Path, recipe: Recipe) -> None:
    first = write_bundle(tmp_path / "b", recipe)
    assert write_bundle(tmp_path / "b", recipe) == first
    assert not (tmp_path / "b.unfinished").exists()


@pytest.mark.parametrize("other", ["contents", "base", "file"])
def test_what_has_the_name_already_is_left_alone(
    tmp_path: Path, recipe: Recipe, other: str
) -> None:
    target = tmp_path / "b"
    if other == "file":
        target.write_bytes(b"mine")
    else:
        write_bundle(target, recipe)
    changed = replace(recipe, base=Base("2024-01-01-abcdef", "the one of January"))
    if other == "contents":
        changed = replace(recipe, contents={"images": ()})
    before = target.read_bytes() if other == "file" else files_in(target)
    with pytest.raises(Conflict, match="something else of this name"):
        write_bundle(target, changed)
    assert before == (target.read_bytes() if other == "file" else files_in(target))


def test_a_folder_that_is_not_there_is_not_made_up(tmp_path: Path, recipe: Recipe) -> None:
    """Where no disk is mounted, the bundle would fill the machine's own."""
    with pytest.raises(NotFound, match="Mount the disk"):
        write_bundle(tmp_path / "usb" / "b", recipe)


def test_the_top_of_a_disk_is_refused(recipe: Recipe) -> None:
    with pytest.raises((InvalidInput, Conflict)) as caught:
        writing.existing_bundle(Path("/proc"), recipe)
    assert "top of a disk" in str(caught.value)


def test_a_killed_pack_goes_on_where_it_stopped(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b"
    write = writing._write_all

    def die_in_third_part(file: int, chunk: bytes) -> None:
        if _name(file).endswith(".003"):
            raise KeyboardInterrupt
        write(file, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_all", die_in_third_part)
        with pytest.raises(KeyboardInterrupt):
            write_bundle(target, recipe)
    assert not target.exists()

    work = tmp_path / "b.unfinished"
    with (work / "crossgap.journal").open("ab") as journal:
        journal.write(b'["blobs/sha')  # as a kill in the middle of a line leaves it
    kept = {path: path.stat().st_mtime_ns for path in work.glob("blobs/*/bb.00[12]")}
    assert len(kept) == 2
    write_bundle(target, recipe)
    for path, written in kept.items():
        assert (target / path.relative_to(work)).stat().st_mtime_ns == written
    open_bundle(str(target))


def test_a_pack_that_was_ended_by_force_goes_on(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tidied up by a process that is killed, or by a machine that loses power."""
    target = tmp_path / "b"
    write = writing._write_all

    def die_in_third_part(file: int, chunk: bytes) -> None:
        if _name(file).endswith(".003"):
            os.write(file, chunk[:100])
            os.kill(os.getpid(), signal.SIGKILL)
        write(file, chunk)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(writing, "_write_all", die_in_third_part)
        write_bundle(target, recipe)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not target.exists()

    written: list[str] = []

    def note(file: int, chunk: bytes) -> None:
        written.append(_name(file))
        write(file, chunk)

    monkeypatch.setattr(writing, "_write_all", note)
    write_bundle(target, recipe)
    assert "bb.003" in written
    assert not {"aa", "bb.001", "bb.002"} & set(written)
    open_bundle(str(target))


def test_parts_of_another_size_are_not_taken_for_the_same(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b"
    with monkeypatch.context() as patch:
        patch.setattr(writing._Pack, "conclude", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_bundle(target, recipe)
    write_bundle(target, replace(recipe, largest_part=MIB + MIB // 2))
    assert not (target / "blobs/sha256/bb.003").exists()
    open_bundle(str(target))


def test_only_what_an_abandoned_pack_left_is_cleared(tmp_path: Path, recipe: Recipe) -> None:
    left = tmp_path / "b.unfinished" / "blobs" / "sha256" / "cc.001"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    with pytest.raises(Conflict, match="no pack left"):
        write_bundle(tmp_path / "b", recipe)
    assert left.exists()

    (tmp_path / "b.unfinished" / "crossgap.lock").touch()
    write_bundle(tmp_path / "b", recipe)
    assert not (tmp_path / "b" / "blobs/sha256/cc.001").exists()


def test_two_packs_of_one_bundle_do_not_meet(tmp_path: Path, recipe: Recipe) -> None:
    work = tmp_path / "b.unfinished"
    work.mkdir()
    with (work / "crossgap.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another pack"):
            write_bundle(tmp_path / "b", recipe)
    write_bundle(tmp_path / "b", recipe)


def test_a_source_that_changed_is_noticed_and_discarded(tmp_path: Path, recipe: Recipe) -> None:
    discarded: list[bool] = []
    layer = replace(recipe.sources[1], sha256="0" * 64, discard=lambda: discarded.append(True))
    wrong = replace(recipe, sources=(recipe.sources[0], layer))
    with pytest.raises(Damaged, match="layer bb"):
        write_bundle(tmp_path / "b", wrong)
    assert discarded == [True]
    assert not (tmp_path / "b").exists()
    write_bundle(tmp_path / "b", recipe)
    open_bundle(str(tmp_path / "b"))


def test_a_source_that_became_shorter_is_noticed(tmp_path: Path, recipe: Recipe) -> None:
    short = Content((FileRange(tmp_path / "large", 0, 3 * MIB),))
    with pytest.raises(Damaged):
        write_bundle(tmp_path / "b", replace(recipe, sources=(Source("aa", short, "0" * 64),)))


def test_a_disk_that_gives_back_other_bytes_is_found_out(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some disks claim more room than they have."""
    write = writing._write_all

    def lose_bytes(file: int, chunk: bytes) -> None:
        lost = _name(file).endswith(".002")
        write(file, bytes(len(chunk)) if lost else chunk)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_all", lose_bytes)
        with pytest.raises(Damaged, match=r"bb\.002.*another disk"):
            write_bundle(tmp_path / "b", recipe)
    assert not (tmp_path / "b").exists()
    write_bundle(tmp_path / "b", recipe)
    open_bundle(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, DiskFull, "became full"),
        (errno.EIO, CommandFailed, "went away"),
        (errno.ENODEV, CommandFailed, "went away"),
        (errno.EROFS, PermissionRefused, "pulled out"),
        (errno.EFBIG, InvalidInput, "max_part_size"),
    ],
)
def test_what_a_disk_complains_of_is_said_in_words(
    tmp_path: Path,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[CrossgapError],
    words: str,
) -> None:
    def refuse(file: int, chunk: bytes) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_all", refuse)
        with pytest.raises(kind, match=words):
            write_bundle(tmp_path / "b", recipe)
    write_bundle(tmp_path / "b", recipe)


def test_too_small_a_disk_is_refused_before_writing(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": MIB})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match="are needed"):
        write_bundle(tmp_path / "b", recipe)
    assert not (tmp_path / "b.unfinished").exists()


def test_a_key_that_cannot_sign_is_refused_before_writing(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(NotFound, match="key file"):
        write_bundle(tmp_path / "b", replace(recipe, sign_with=str(tmp_path / "no-key")))
    assert not (tmp_path / "b.unfinished").exists()


def test_a_bundle_is_put_together_of_several_kinds_and_names_those_that_are_in_it() -> None:
    @dataclass(frozen=True)
    class Kind:
        files: tuple[Source, ...]
        items: tuple[dict[str, str], ...]
        lines: tuple[str, ...]

    one, loader = in_memory("models/sha256/aa", SMALL), in_memory("load.sh", b"exit")
    kinds = {"images": Kind((loader,), (), ()), "models": Kind((one,), ({"name": "m"},), ("m",))}
    recipe = Recipe.of(kinds, None, MIB, "")
    assert recipe.sources == (loader, one)
    assert recipe.contents == {"models": ({"name": "m"},)}
    assert recipe.sections == (Section("Models", ("m",)),)


@pytest.mark.parametrize(
    ("images", "models", "said"),
    [
        (["a:1"], [], "Pack a:1 into disk"),
        (["a:1", "b:1"], ["Qwen/Qwen3-8B"], "Pack 2 images and Qwen/Qwen3-8B into disk"),
        ([], ["a/b", "c/d"], "Pack 2 models into disk"),
        ([], [], "Pack 0 images into disk"),
    ],
)
def test_a_run_is_named_after_what_it_packs(
    images: list[str], models: list[str], said: str
) -> None:
    assert pack_subject("/media/disk", images, models) == said


def _name(file: int) -> str:
    return Path(f"/proc/self/fd/{file}").readlink().name


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
