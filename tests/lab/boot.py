"""Bringing up the namespaces of a host: its disk, what its root is made of, its first process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.lab.commands import CLEAN_ENVIRONMENT, execute
from tests.lab.errors import LabError
from tests.lab.processes import Process, pid_inside, processes_in_network
from tests.lab.root import folders, hidden_paths, links, own_etc
from tests.lab.spec import HostSpec
from tests.lab.sshd import HOST_KEY, make_key
from tests.lab.state import write_private

INIT = Path(__file__).resolve().parent / "init.sh"


def prepare_folder(folder: Path, spec: HostSpec, known: Mapping[str, str]) -> None:
    """Write what `init.sh` wants to find.

    Args:
        folder: The host's folder, made here.
        spec: The host.
        known: Names and addresses for its /etc/hosts.
    """
    for part in ("disk", "root", "etc/ssh"):
        (folder / part).mkdir(parents=True)
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(spec.disk_bytes)
    lazy = "lazy_itable_init=1,nodiscard"
    execute("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", lazy, str(image))
    write_private(folder / "hidden", "".join(f"{p}\n" for p in hidden_paths(spec)))
    write_private(folder / "folders", "".join(f"{m} {p}\n" for m, p in folders(spec)))
    write_private(folder / "links", "".join(f"{p} {t}\n" for p, t in links(spec)))
    for path, (mode, content) in own_etc(spec, dict(known)).items():
        target = folder / "etc" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
    make_key(folder / "etc" / "ssh" / HOST_KEY, spec.name)


def start_init(folder: Path, name: str, netns: Path) -> Process:
    """Start a host's first process in new namespaces, detached from this one.

    Args:
        folder: What `prepare_folder` filled.
        name: The host's name.
        netns: Its network namespace.

    Returns:
        That process, its root in place.

    Raises:
        LabError: It ended or took a minute; carries what it said.
    """
    log = folder / "init.log"
    command = ["setsid", "--fork", "nsenter", f"--net={netns}"]
    command += ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    command += ["sh", str(INIT), str(folder), name]
    with log.open("wb") as output:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=CLEAN_ENVIRONMENT,
            cwd="/",
            check=True,
        )
    started = time.monotonic()
    while "ready\n" not in log.read_text(errors="replace"):
        quiet = time.monotonic() - started
        if quiet > 60 or (quiet > 1 and not processes_in_network(netns)):
            raise LabError(f"{name} does not come up: {log.read_text(errors='replace')}")
        time.sleep(0.02)
    return next(p for p in processes_in_network(netns) if pid_inside(p.pid) == 1)
