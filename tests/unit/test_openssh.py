"""Whether the OpenSSH client may be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.openssh import find_program, parse_version


@pytest.mark.parametrize(
    ("told", "version"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026", (9, 2)),
        ("OpenSSH_7.4p1, OpenSSL 1.0.2k-fips  26 Jan 2017", (7, 4)),
        ("OpenSSH_for_Windows_8.6p1, LibreSSL 3.4.3", (8, 6)),
        ("Dropbear v2022.83", ()),
        ("", ()),
    ],
)
def test_the_version_is_read(told: str, version: tuple[int, ...]) -> None:
    assert parse_version(told) == version


def _client(folder: Path, told: str) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / "ssh"
    program.write_text(f"#!/bin/sh\necho '{told}' >&2\n")
    program.chmod(0o755)
    return program


def test_a_client_that_is_too_old_for_passwords_serves_for_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _client(tmp_path / "old", "OpenSSH_8.0p1, OpenSSL 1.1.1")
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    assert find_program(with_password=False) == str(program)
    assert find_program(with_password=True) is None


@pytest.mark.parametrize("told", ["OpenSSH_6.6.1p1", "Dropbear v2022.83"])
def test_a_client_of_another_make_or_age_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    program = _client(tmp_path / told.replace(" ", "-"), told)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    assert find_program(with_password=False) is None


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _client(tmp_path / "new", "OpenSSH_9.9p1")
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert find_program(with_password=True) == str(program)

    monkeypatch.setenv("CROSSGAP_OPENSSH", "no")

    assert find_program(with_password=True) is None


def test_without_a_client_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_program(with_password=False) is None
