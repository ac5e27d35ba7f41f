"""The shell by which models come to be on hosts, under each shell that a host may have."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.models import remote_scripts
from tasks.models.remote_facts import HostModel, parse_check, parse_host_model, proven, stat_lines
from tasks.models.remote_scripts import MARKER, MISSING, OCCUPIED
from tests.unit.conftest import Shell

MODEL = "org/模型 one"
COMMIT, OTHER = "c" * 40, "d" * 40
NAMES = [
    "a.bin",
    "a b  c ",
    'it\'s "x"',
    "镜像 包/part 1.safetensors",
    "-rf",
    "$(touch x)",
    "*",
    "~",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a model's folder, ready for arrivals of a revision."""
    folder = tmp_path / "模型 dir" / MODEL
    (folder / ".crossgap" / "proofs").mkdir(parents=True)
    (folder / ".crossgap" / "incoming" / COMMIT).mkdir(parents=True)
    return folder


def run(shell: Shell, argv: list[str], data: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run what a builder made."""
    assert argv[:2] == ["sh", "-c"]
    return shell.run(argv[2], *argv[4:], data=data.encode())


def read(shell: Shell, root: Path) -> HostModel:
    done = run(shell, remote_scripts.read_model(str(root), MODEL))
    assert (done.returncode, done.stderr) == (0, b"")
    return parse_host_model(done.stdout.decode(), "gpu1", MODEL)


def root_of(folder: Path) -> Path:
    return folder.parent.parent


def incoming(folder: Path, commit: str = COMMIT) -> Path:
    return folder / ".crossgap" / "incoming" / commit


def proof(folder: Path, commit: str = COMMIT) -> Path:
    return folder / ".crossgap" / "proofs" / commit


def put(folder: Path, name: str, content: bytes = b"weights") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def manifest(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def finish(
    shell: Shell, folder: Path, sums: dict[str, str], *, new: bool = True, commit: str = COMMIT
) -> subprocess.CompletedProcess[bytes]:
    text = manifest(sums)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return run(shell, remote_scripts.finish(str(folder), commit, digest, new=new), text)


# Reading


def test_a_model_that_is_not_there_has_a_root_and_room(shell: Shell, tmp_path: Path) -> None:
    found = read(shell, tmp_path / "no such/folder")

    assert found.root == f"{tmp_path}/no such/folder"
    assert found.disk.free > 0
    assert not (tmp_path / "no such").exists()
    assert (found.revisions, found.incoming, found.current, found.occupied) == ({}, {}, "", {})


def test_the_home_is_put_for_a_tilde(shell: Shell) -> None:
    done = run(shell, remote_scripts.read_model("~/models", MODEL))

    assert done.stdout.decode().startswith("root /nowhere/models\n")


def test_what_is_proven_is_told_from_what_is_not(shell: Shell, folder: Path) -> None:
    for name in NAMES:
        digest = put(folder / COMMIT, name, name.encode())
        argv = remote_scripts.note(str(proof(folder)), str(folder / COMMIT), digest, name)
        assert run(shell, argv).returncode == 0
    put(folder / COMMIT, "stranger")

    before = read(shell, root_of(folder)).revisions[COMMIT]
    (folder / COMMIT / "a.bin").write_bytes(b"other")
    after = read(shell, root_of(folder)).revisions[COMMIT]

    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in NAMES}
    assert {path: held.sha256 for path, held in proven(before).items()} == sums
    assert {path for path, held in before.items() if not held.ours} == {"stranger"}
    assert set(before) - set(proven(after)) == {"stranger", "a.bin"}
    assert after["a.bin"].ours


def test_a_change_of_the_inode_or_of_a_nanosecond_voids_a_proof(shell: Shell, folder: Path) -> None:
    for name in ("copied", "touched", "linked"):
        digest = put(folder / COMMIT, name)
        argv = remote_scripts.note(str(proof(folder)), str(folder / COMMIT), digest, name)
        run(shell, argv)
    copied, touched = folder / COMMIT / "copied", folder / COMMIT / "touched"
    shutil.copy2(copied, f"{copied}.new")
    Path(f"{copied}.new").rename(copied)
    stat = touched.stat()
    os.utime(touched, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    os.link(folder / COMMIT / "linked", folder / "another name")

    held = read(shell, root_of(folder)).revisions[COMMIT]

    assert set(proven(held)) == {"linked"}


def test_a_file_name_with_a_line_break_cannot_pose_as_another(shell: Shell, folder: Path) -> None:
    put(folder / COMMIT, "SHA256SUMS")
    put(folder / COMMIT, "x\n7 2026-01-01 00:00:00 +0000 5 .", b"")
    put(folder / COMMIT / "y\ncurrent ", "z")

    found = read(shell, root_of(folder))

    assert set(found.revisions[COMMIT]) == {"SHA256SUMS"}
    assert found.current == ""


def test_what_stands_in_the_way_is_named(shell: Shell, folder: Path) -> None:
    put(folder / COMMIT, "somebody's notes")
    (folder / OTHER).symlink_to("/elsewhere")
    put(folder, "e" * 40)
    (folder / "current").symlink_to("my-own-choice")

    found = read(shell, root_of(folder))

    assert found.revisions == {}
    assert found.occupied == {
        f"{folder}/{COMMIT}": "a folder that crossgap did not make",
        f"{folder}/{OTHER}": "a link that crossgap did not make",
        f"{folder}/{'e' * 40}": "a file",
        f"{folder}/current": "a link to my-own-choice",
    }


@pytest.mark.parametrize("name", ["", "/org", f"/{MODEL}", f"/{MODEL}/.crossgap"])
def test_a_file_in_the_place_of_a_folder_is_named(shell: Shell, tmp_path: Path, name: str) -> None:
    root = tmp_path / "models"
    path = Path(f"{root}{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")

    found = read(shell, root)

    assert found.occupied == {str(path): "a file"}
    assert found.disk.free > 0


def test_a_thousand_files_are_read(shell: Shell, folder: Path) -> None:
    lines = []
    for number in range(1000):
        put(folder / COMMIT, f"{number % 7}/文件 {number}")
    listed = run(shell, remote_scripts.check(str(folder / COMMIT), hashed=False), many())
    held = list(stat_lines(listed.stdout.decode().split("\n")))[:1000]
    lines = [f"{'0' * 64} {h.size} {h.mtime} {h.inode} {h.path}\n" for h in held]
    run(shell, remote_scripts.record(str(proof(folder))), "".join(lines))

    found = read(shell, root_of(folder))

    assert len(proven(found.revisions[COMMIT])) == 1000


def many() -> str:
    return "".join(f"{number % 7}/文件 {number}\n" for number in range(1000))


# Arriving


def test_preparing_makes_folders_and_removes_what_is_stale(shell: Shell, folder: Path) -> None:
    put(incoming(folder), "sub/stale")
    put(incoming(folder), "kept")
    argv = remote_scripts.prepare(str(folder), COMMIT)

    assert run(shell, argv, "sub/stale\nnever there\n").returncode == 0

    assert proof(folder).exists()
    assert [path.name for path in incoming(folder).rglob("*") if path.is_file()] == ["kept"]


def test_files_are_hashed_under_all_names(shell: Shell, tmp_path: Path) -> None:
    sums = {name: put(tmp_path, name, name.encode()) for name in NAMES}

    done = run(shell, remote_scripts.check(str(tmp_path)), "\n".join([*NAMES, "missing", ""]))

    found = parse_check(done.stdout.decode())
    assert {path: held.sha256 for path, held in found.items()} == sums


def test_a_file_that_changes_while_it_is_hashed_is_not_proven(shell: Shell, tmp_path: Path) -> None:
    put(tmp_path, "a")
    argv = remote_scripts.check(str(tmp_path))
    argv[2] = argv[2].replace("|| sums ||", "|| { sums; echo more >>a; } ||")

    done = run(shell, argv, "a\n")

    assert "more" in (tmp_path / "a").read_text()
    assert parse_check(done.stdout.decode()) == {}


def test_a_broken_openssl_is_passed_over(shell: Shell, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "openssl").write_text("#!/bin/sh\necho broken\n")
    (tools / "openssl").chmod(0o755)
    digest = put(tmp_path, "a")
    argv = remote_scripts.check(str(tmp_path))

    done = shell.run(argv[2], *argv[4:], data=b"a\n", path=f"{tools}:{shell.path}")

    assert parse_check(done.stdout.decode())["a"].sha256 == digest


def test_a_pack_is_cut_into_its_files(shell: Shell, folder: Path) -> None:
    sizes = [0, 1, 65535, 65536, 65537, 200_000, 3, 0]
    contents = {name: os.urandom(size) for name, size in zip(NAMES, sizes, strict=True)}
    put(incoming(folder), ".pack", b"".join(contents.values()))
    table = "".join(f"{len(data)} {name}\n" for name, data in contents.items())

    done = run(shell, remote_scripts.split(str(incoming(folder)), ".pack"), table)

    assert (done.returncode, done.stderr) == (0, b"")
    found = parse_check(done.stdout.decode())
    for name, data in contents.items():
        assert (incoming(folder) / name).read_bytes() == data
        assert found[name].sha256 == hashlib.sha256(data).hexdigest()


def test_cutting_a_pack_spares_the_file_that_a_link_in_the_way_shares(
    shell: Shell, folder: Path
) -> None:
    put(folder / OTHER, "a", b"precious")
    put(incoming(folder), ".pack", b"new")
    os.link(folder / OTHER / "a", incoming(folder) / "a")

    run(shell, remote_scripts.split(str(incoming(folder)), ".pack"), "3 a\n")

    assert (folder / OTHER / "a").read_bytes() == b"precious"
    assert (incoming(folder) / "a").read_bytes() == b"new"


def test_a_pack_that_cannot_be_cut_for_lack_of_room_says_so(shell: Shell, folder: Path) -> None:
    put(incoming(folder), ".pack", b"x" * 100)
    argv = remote_scripts.split(str(incoming(folder)), ".pack")
    argv[2] = argv[2].replace('>"./$name") ||', ">/dev/full) ||")

    done = run(shell, argv, "100 a\n")

    assert done.returncode == 4
    assert b"No space left" in done.stderr


def test_links_are_made_where_the_source_is_there(shell: Shell, folder: Path) -> None:
    for name in NAMES:
        put(folder / OTHER, name)
    lines = "".join(f"{OTHER}/{name}\t新 sub/{name}\n" for name in NAMES)

    argv = remote_scripts.link(str(folder), str(incoming(folder)))
    done = run(shell, argv, lines + f"{OTHER}/none\tnone\n")

    held = {it.path: it for it in stat_lines(done.stdout.decode().split("\n"))}
    assert set(held) == {f"新 sub/{name}" for name in NAMES}
    for name in NAMES:
        inode = (folder / OTHER / name).stat().st_ino
        assert (incoming(folder) / "新 sub" / name).stat().st_ino == inode
        assert held[f"新 sub/{name}"].inode == inode


def test_a_torn_line_of_a_proof_spoils_no_other(shell: Shell, folder: Path) -> None:
    digest = put(folder / COMMIT, "a")
    put(folder / COMMIT, "b")
    proof(folder).write_text(f"{digest} 7 2026-01-01 00:0")

    argv = remote_scripts.note(str(proof(folder)), str(folder / COMMIT), digest, "a")
    assert run(shell, argv).returncode == 0
    with proof(folder).open("a") as file:
        file.write("torn again")
    line = next(line for line in proof(folder).read_text().splitlines() if line.endswith(" a"))
    run(shell, remote_scripts.record(str(proof(folder))), line + "\n")

    assert set(proven(read(shell, root_of(folder)).revisions[COMMIT])) == {"a"}
    assert proof(folder).read_text().count(line) == 2


# Finishing


def test_a_revision_comes_into_view_whole_and_passes_sha256sum(shell: Shell, folder: Path) -> None:
    sums = {name: put(incoming(folder), name, name.encode()) for name in NAMES}
    put(incoming(folder), "old/.part.writer")
    incoming(folder).chmod(0o700)

    done = finish(shell, folder, sums)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    target = folder / COMMIT
    assert str((folder / "current").readlink()) == COMMIT
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert files == {*NAMES, "SHA256SUMS"}
    assert not (target / "old").exists()
    assert target.stat().st_mode & 0o55 == 0o55
    assert list((folder / ".crossgap" / "incoming").iterdir()) == []
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=target, check=True)


def test_finishing_twice_is_as_once(shell: Shell, folder: Path) -> None:
    sums = {"a": put(incoming(folder), "a")}

    first, again = finish(shell, folder, sums), finish(shell, folder, sums)

    assert (first.returncode, again.returncode) == (0, 0)
    assert read(shell, root_of(folder)).current == COMMIT
    assert set(proven(read(shell, root_of(folder)).revisions[COMMIT])) == {"SHA256SUMS"}


def test_the_link_goes_to_the_new_revision_and_not_into_the_old_one(
    shell: Shell, folder: Path
) -> None:
    finish(shell, folder, {"a": put(incoming(folder), "a")})

    finish(shell, folder, {"a": put(incoming(folder, OTHER), "a")}, commit=OTHER)

    assert str((folder / "current").readlink()) == OTHER
    assert {path.name for path in (folder / COMMIT).iterdir()} == {"a", "SHA256SUMS"}
    assert {path.name for path in folder.iterdir()} == {COMMIT, OTHER, "current", ".crossgap"}


def test_without_a_way_to_replace_a_link_at_once_it_is_said(shell: Shell, folder: Path) -> None:
    finish(shell, folder, {"a": put(incoming(folder), "a")})
    text = manifest({"a": put(incoming(folder, OTHER), "a")})
    argv = remote_scripts.finish(str(folder), OTHER, "0" * 64, new=True)
    argv[2] = argv[2].replace("mv -fT", "false").replace("perl", "false")

    done = run(shell, argv, text)

    assert done.stdout == b"in two steps\n"
    assert str((folder / "current").readlink()) == OTHER


def test_files_of_a_revision_in_view_are_replaced_in_place(shell: Shell, folder: Path) -> None:
    finish(shell, folder, {"a": put(incoming(folder), "a"), "b": put(incoming(folder), "b")})
    kept = (folder / COMMIT / "a").stat().st_ino
    digest = put(incoming(folder), "b", b"repaired")
    sums = {
        "a": hashlib.sha256(b"weights").hexdigest(),
        "b": digest,
        "new/c": put(incoming(folder), "new/c"),
    }

    assert finish(shell, folder, sums, new=False).returncode == 0

    assert (folder / COMMIT / "b").read_bytes() == b"repaired"
    assert (folder / COMMIT / "a").stat().st_ino == kept
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder / COMMIT, check=True)


def test_a_revision_with_a_gap_does_not_come_into_view(shell: Shell, folder: Path) -> None:
    done = finish(shell, folder, {"a": put(incoming(folder), "a"), "sub/b": "0" * 64})

    assert (done.returncode, done.stderr) == (MISSING, b"sub/b\n")
    assert not (folder / COMMIT).exists()
    assert not (folder / "current").is_symlink()


@pytest.mark.parametrize("what", ["file", "folder", "link", "current"])
def test_what_came_to_stand_in_the_way_meanwhile_is_not_touched(
    shell: Shell, folder: Path, what: str
) -> None:
    way = folder / ("current" if what == "current" else COMMIT)
    if what == "link":
        way.symlink_to(folder.parent)
    elif what == "file":
        way.write_bytes(b"mine")
    else:
        put(way, "mine")
    before = sorted(str(path) for path in folder.rglob("*"))

    done = finish(shell, folder, {"a": put(incoming(folder), "a")})

    assert done.returncode == OCCUPIED
    assert done.stderr.decode().strip() == str(way)
    assert set(before) <= {str(path) for path in folder.rglob("*")}
    assert (incoming(folder) / "a").exists()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    "moment",
    [
        "chmod -R",
        "facts=$(stat",
        'mv -f "$name"',
        'rm -f "$list"',
        'cd "$folder" && ',
        'ln -s "$commit"',
        "mv -fT",
    ],
)
def test_a_kill_at_any_moment_of_finishing_is_made_good_by_the_next_run(
    shell: Shell, folder: Path, moment: str, new: bool
) -> None:
    finish(shell, folder, {"a": put(incoming(folder, OTHER), "a")}, commit=OTHER)
    if not new:
        finish(shell, folder, {"a": put(incoming(folder), "a"), "b": put(incoming(folder), "b")})
        finish(shell, folder, {"a": put(incoming(folder, OTHER), "a")}, new=False, commit=OTHER)
    sums = {name: put(incoming(folder), name, b"new") for name in ("a", "sub/b")}
    argv = remote_scripts.finish(str(folder), COMMIT, "0" * 64, new=new)
    assert moment in argv[2]
    killed = argv[2].replace(moment, f"kill -9 $$; {moment}")

    shell.run(killed, *argv[4:], data=manifest(sums).encode())

    assert str((folder / "current").readlink()) in (OTHER, COMMIT)
    assert finish(shell, folder, sums, new=new).returncode == 0
    assert str((folder / "current").readlink()) == COMMIT
    assert (folder / COMMIT / "sub" / "b").read_bytes() == b"new"
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder / COMMIT, check=True)
    assert {path.name for path in folder.iterdir()} == {COMMIT, OTHER, "current", ".crossgap"}
    assert list((folder / ".crossgap" / "incoming").iterdir()) == []


# Removing


def test_only_revisions_with_a_proof_that_are_not_current_are_removed(
    shell: Shell, folder: Path
) -> None:
    old, foreign, part = "a" * 40, "b" * 40, "e" * 40
    put(folder / old, "a")
    put(folder / foreign, "a")
    put(incoming(folder, part), "a")
    put(folder / ".crossgap" / f"removed-{'f' * 40}", "a")
    for commit in (old, part, OTHER):
        proof(folder, commit).touch()
    put(folder / OTHER, "a")
    (folder / "current").symlink_to(OTHER)

    done = run(shell, remote_scripts.remove(str(folder), [old, foreign, part, OTHER]))

    assert done.stdout.decode().split() == [old, part]
    assert {path.name for path in folder.iterdir()} == {foreign, OTHER, "current", ".crossgap"}
    assert {path.name for path in (folder / ".crossgap").iterdir()} == {"proofs", "incoming"}
    assert [path.name for path in proof(folder).parent.iterdir()] == [OTHER]


# Markers


def test_markers_are_left_seen_and_removed(shell: Shell, tmp_path: Path) -> None:
    root = tmp_path / "模型 dir"
    names = [f"{MARKER}{number}" for number in range(3)]
    root.mkdir()
    (root / f"{MARKER}forgotten").touch()
    os.utime(root / f"{MARKER}forgotten", (0, 0))
    (root / "old file").touch()
    os.utime(root / "old file", (0, 0))

    for name in names[:2]:
        assert run(shell, remote_scripts.leave_marker(str(root), name)).returncode == 0
    seen = run(shell, remote_scripts.see_markers(str(root), names)).stdout.decode()
    run(shell, remote_scripts.remove_marker(str(root), names[0]))

    assert seen.split() == names[:2]
    assert {path.name for path in root.iterdir()} == {names[1], "old file"}
