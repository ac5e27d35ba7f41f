"""The Debian packages a lab is made of."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.lab.commands import CLEAN_ENVIRONMENT, execute
from tests.lab.errors import LabError, LabUnavailable

# Program -> package. Debian's `iproute2` also has tc and ss, `util-linux` nsenter,
# `mount` losetup, `procps` pkill.
PROGRAMS = {
    "dockerd": "docker.io",
    "tini": "tini",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "iptables": "iptables",
    "sudo": "sudo",
    "mkfs.ext4": "e2fsprogs",
    "unshare": "util-linux",
    "mount": "mount",
    "chpasswd": "passwd",
    "hostname": "hostname",
    "ps": "procps",
}
# What a registry of the lab needs on top.
REGISTRY = {"docker-registry": "docker-registry", "openssl": "openssl"}
POLICY = Path("/usr/sbin/policy-rc.d")


def missing_packages(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Return the packages whose programs are not on this machine.

    Args:
        programs: The package of each program, or of each file, whose path may be a glob.
    """
    return sorted({package for program, package in programs.items() if not _is_there(program)})


def ensure_packages() -> None:
    """Make sure that this machine can hold a lab, installing what is missing.

    Raises:
        LabUnavailable: It cannot, and why; the remedy is a command where there is one.
    """
    if not sys.platform.startswith("linux"):
        raise LabUnavailable("it needs Linux namespaces", "Run this on a Linux machine, as root.")
    missing = missing_packages()
    if os.geteuid() != 0:
        first = f"Run this as root once: {install_command(missing)}; then" if missing else "Then"
        raise LabUnavailable("it needs root", f"{first} start the same command as root (sudo).")
    install_packages(PROGRAMS)


def install_packages(programs: Mapping[str, str]) -> None:
    """Install what is missing.

    Args:
        programs: The package of each program, or of each file, whose path may be a glob.

    Raises:
        LabUnavailable: This user may not, or it did not succeed.
    """
    missing = missing_packages(programs)
    if not missing:
        return
    named = ", ".join(missing)
    if not shutil.which("apt-get"):
        raise LabUnavailable(
            f"these programs' packages are missing: {named}",
            "Install what your distribution calls them.",
        )
    remedy = f"Run as root: {install_command(missing)}"
    if os.geteuid() != 0:
        raise LabUnavailable(f"these packages are missing: {named}", remedy)
    try:
        _install(missing)
    except LabError as error:
        raise LabUnavailable(f"apt-get failed: {error}", remedy) from error
    if still := missing_packages(programs):
        raise LabUnavailable(f"still missing: {', '.join(still)}", remedy)


def install_command(packages: list[str]) -> str:
    """Return the command that installs packages, for an operator to run as root."""
    names = " ".join(packages)
    return f"apt-get update && apt-get install --yes --no-install-recommends {names}"


def _is_there(program: str) -> bool:
    if program.startswith("/"):
        return any(Path("/").glob(program[1:]))
    return shutil.which(program, path=CLEAN_ENVIRONMENT["PATH"]) is not None


def _install(packages: list[str]) -> None:
    wait = ("-o", "DPkg::Lock::Timeout=300")
    execute("apt-get", *wait, "update", timeout=600)
    own_policy = not POLICY.exists()
    if own_policy:
        # Debian starts the services it installs; 101 says no (invoke-rc.d(8)).
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        quiet = ("--yes", "--no-install-recommends", *wait)
        execute("apt-get", "install", *quiet, *packages, timeout=1200)
    finally:
        if own_policy:
            POLICY.unlink(missing_ok=True)
