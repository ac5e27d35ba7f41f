"""The source engine: the Docker engine of this machine, which images are shipped from.

One that runs already is used as it is. Otherwise one is started that all labs share, in a
PID and mount namespace of its own, so that ending it leaves nothing behind; it is ended
when the last lab and the last process using it have gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.lab.commands import CLEAN_ENVIRONMENT
from tests.lab.errors import LabError
from tests.lab.packages import ensure_packages
from tests.lab.ping import engine_answers
from tests.lab.processes import Process, every_process, kill
from tests.lab.residue import remove_cgroups, remove_mounts
from tests.lab.state import RUN_ROOT, STATE_ROOT, lab_names, machine_lock

FOLDER = STATE_ROOT / ".engine"
RUN_FOLDER = RUN_ROOT / ".engine"
SOCKET = RUN_FOLDER / "docker.sock"
CGROUP = "/crossgap-lab/.engine"


class _Use:
    """How often this process uses our engine, and the shared lock that says so to others."""

    count = 0
    lock: int | None = None


def engine_url() -> str:
    """Return the URL of the source engine, started where none runs.

    Each call is a use; `release_engine` ends one.

    Raises:
        LabUnavailable: None runs, and this machine cannot run one.
        LabError: It was started and does not answer; carries the end of its log.
    """
    for url in (os.environ.get("DOCKER_HOST", ""), "unix:///var/run/docker.sock"):
        if url and engine_answers(url):
            return url
    ensure_packages()
    ours = f"unix://{SOCKET}"
    with machine_lock("engine"):
        if _Use.lock is None:
            _Use.lock = _open_use_lock()
            fcntl.flock(_Use.lock, fcntl.LOCK_SH)
        _Use.count += 1
        if not engine_answers(ours):
            _remove()
            _start()
    return ours


def release_engine() -> None:
    """End one use of the source engine by this process."""
    _Use.count = max(0, _Use.count - 1)
    if _Use.count == 0 and _Use.lock is not None:
        os.close(_Use.lock)
        _Use.lock = None
    end_unused_engine()


def end_unused_engine() -> None:
    """End our engine and remove what it holds, when no lab is left and no process uses it."""
    if not FOLDER.exists():
        return
    with machine_lock("engine"):
        descriptor = _open_use_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            os.close(descriptor)
        if not lab_names():
            _remove()


def _open_use_lock() -> int:
    RUN_ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(RUN_ROOT / ".engine-users.lock", os.O_RDWR | os.O_CREAT, 0o600)


def _start() -> None:
    for folder in (FOLDER, RUN_FOLDER):
        folder.mkdir(parents=True, mode=0o700)
    log = FOLDER / "dockerd.log"
    command = ["setsid", "--fork", "unshare", "--mount", "--pid", "--mount-proc"]
    command += ["--fork", "--kill-child", "dockerd", f"--host=unix://{SOCKET}"]
    command += [f"--data-root={FOLDER / 'data'}", f"--exec-root={RUN_FOLDER / 'exec'}"]
    command += [f"--pidfile={RUN_FOLDER / 'dockerd.pid'}", f"--cgroup-parent={CGROUP}"]
    # No bridge: it would be this machine's, and one source engine once took another's away.
    command += ["--bridge=none", "--iptables=false", "--ip-forward=false"]
    command += ["--config-file=", "--exec-opt=native.cgroupdriver=cgroupfs"]
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
    deadline = time.monotonic() + 60
    while not engine_answers(f"unix://{SOCKET}"):
        if time.monotonic() > deadline:
            raise LabError(f"the source engine does not answer: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def _processes() -> list[Process]:
    """Find the engine by its data folder, which no other process names in its arguments."""
    mark = f"--data-root={FOLDER / 'data'}".encode()
    found = []
    for pid in every_process():
        with suppress(OSError):
            process = Process.of(pid)
            if mark in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") and process:
                found.append(process)
    return found


def _remove() -> None:
    kill(_processes())
    remove_mounts(FOLDER)
    remove_mounts(RUN_FOLDER)
    remove_cgroups(CGROUP)
    for folder in (RUN_FOLDER, FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
