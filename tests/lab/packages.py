"""The Debian packages a lab is made of."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.lab.commands import CLEAN_ENVIRONMENT, execute
from tests.lab.errors import LabError, LabUnavailable

# Program -> package. Debian's `iproute2` also has tc and ss, `util-linux` nsenter and unshare.
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
}
POLICY = Path("/usr/sbin/policy-rc.d")


def missing_packages() -> list[str]:
    """Return the packages whose programs are not on this machine."""
    path = CLEAN_ENVIRONMENT["PATH"]
    return sorted(
        {package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)}
    )


def ensure_packages() -> None:
    """Make sure that this machine can hold a lab, installing what is missing.

    Raises:
        LabUnavailable: It cannot, and why; the remedy is a command where there is one.
    """
    if not sys.platform.startswith("linux"):
        raise LabUnavailable("it needs Linux namespaces", "Run this on a Linux machine, as root.")
    missing = missing_packages()
    command = f"apt-get update && apt-get install --yes --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0:
        first = f"Run this as root once: {command}; then" if missing else "Then"
        raise LabUnavailable("it needs root", f"{first} start the same command as root (sudo).")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise LabUnavailable(
            f"these programs' packages are missing: {', '.join(missing)}",
            "Install what your distribution calls them.",
        )
    try:
        _install(missing)
    except LabError as error:
        raise LabUnavailable(f"apt-get failed: {error}", f"Run as root: {command}") from error
    if still := missing_packages():
        raise LabUnavailable(f"still missing: {', '.join(still)}", f"Run as root: {command}")


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
