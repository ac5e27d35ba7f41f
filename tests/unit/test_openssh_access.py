"""The private folder that lets the OpenSSH client in, and what becomes of it."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from blocks.openssh_access import Credentials, NoAccessError, granted
from blocks.openssh_config import Hop

HOP = Hop("10.0.0.1", 22, "root", (), 5, False, True)
SECRET = "s3cret 密码"


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, with a path as short as usual."""
    with tempfile.TemporaryDirectory(prefix="crossgap-test-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def _ask(environment: dict[str, str], script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )


def test_the_password_is_told_once_and_whoever_asks_again_is_ended() -> None:
    with granted("ssh", [HOP], [Credentials((), SECRET)]) as access:
        done = _ask(dict(access.environment), '"$SSH_ASKPASS"; "$SSH_ASKPASS"; echo survived')

    assert done.stdout == f"{SECRET}\n"
    assert done.returncode != 0


def test_each_hop_has_a_password_of_its_own() -> None:
    credentials = [Credentials((), "first"), Credentials((), "second")]

    with granted("ssh", [HOP, HOP], credentials) as access:
        second = access.environment["SSH_ASKPASS"].replace("askpass-0", "askpass-1")
        done = _ask(dict(access.environment), f'{second}; "$SSH_ASKPASS"')

    assert done.stdout == "second\nfirst\n"


def test_nobody_else_can_look_and_no_file_holds_a_secret(base: Path) -> None:
    key = paramiko.ECDSAKey.generate()

    with granted("ssh", [HOP], [Credentials((key,), SECRET)]) as access:
        (folder,) = base.iterdir()
        modes = {stat.S_IMODE(path.lstat().st_mode) & 0o077 for path in folder.iterdir()}
        files = [path for path in folder.iterdir() if path.is_file()]
        texts = "".join(path.read_text() for path in files)
        told = [*access.argv, *access.environment.values()]

        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name for path in files} == {"config", "known_hosts", "log", "askpass-0"}
        # The socket of the agent is made by bind; the folder keeps others from it.
        assert modes <= {0, 0o055}
        assert not any(word in texts for word in ("PRIVATE", "s3cret"))
        assert not any("s3cret" in word for word in told)


def test_the_folder_goes_with_the_context_whatever_happens(base: Path) -> None:
    def fail() -> None:
        with granted("ssh", [HOP], [Credentials((), SECRET)]):
            assert list(base.iterdir())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert list(base.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(base: Path) -> None:
    left, used = base / "crossgap-ssh-left", base / "crossgap-ssh-used"
    for folder in (left, used):
        folder.mkdir()
        (folder / "config").touch()
    os.utime(left, (time.time() - 7200, time.time() - 7200))

    with granted("ssh", [HOP], [Credentials((), "")]):
        pass

    assert list(base.iterdir()) == [used]


def test_the_clients_environment_holds_what_it_needs_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/somewhere")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")

    with granted("ssh", [HOP], [Credentials((), "")]) as access:
        names = set(access.environment)

    assert names <= {"PATH", "HOME", "USER", "LOGNAME", "LC_ALL"} | {
        "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE",
    }  # fmt: skip


def test_a_path_that_would_need_quoting_is_not_used(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = base / "a b"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))

    with granted("ssh", [HOP], [Credentials((), "")]) as access:
        assert access.log.parent.parent == Path("/tmp")

    assert list(odd.iterdir()) == []


def test_where_programs_may_not_be_run_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)

    with pytest.raises(NoAccessError), granted("ssh", [HOP], [Credentials((), SECRET)]):
        pass
