"""What is missing for a lab or a test is said with the command that brings it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.lab import LabUnavailable
from tests.lab.packages import ensure_packages, install_packages, missing_packages


def without(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    monkeypatch.setattr(
        shutil, "which", lambda name, path=None: None if name in programs else f"/usr/bin/{name}"
    )


def test_a_user_who_is_not_root_is_told_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabUnavailable, match="needs root"):
        ensure_packages()


def test_missing_packages_are_named_in_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "dockerd", "sudo")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabUnavailable, match=r"apt-get install .* docker\.io sudo;"):
        ensure_packages()


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LabUnavailable, match="Linux"):
        ensure_packages()


def test_a_machine_that_has_all_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    ensure_packages()


def test_a_file_may_be_looked_for_by_a_glob(tmp_path: Path) -> None:
    (tmp_path / "x86_64").mkdir()
    wanted = {f"{tmp_path}/*/libfound.so": "found", f"{tmp_path}/*/libmissing.so": "missing"}
    (tmp_path / "x86_64" / "libfound.so").touch()
    assert missing_packages(wanted) == ["missing"]


def test_whoever_may_not_install_is_given_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "chromium")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabUnavailable, match=r"Run as root: apt-get .* chromium$"):
        install_packages({"chromium": "chromium", "bash": "bash"})
