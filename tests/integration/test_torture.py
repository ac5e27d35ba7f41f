"""Long fault runs, for `make torture`: many bad moments, chosen at random."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.integration.conftest import Connect
from tests.lab import LabHost

MB = 1_000_000

# What one break may cost: an SSH window of 2 MiB on its way, twice behind a jump host.
LOST_PER_BREAK = 5 * MB

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1200)]

_SENDER = """
import json, pathlib, sys
from blocks.ssh_host import SSHHost
host = SSHHost.model_validate(json.loads(pathlib.Path(sys.argv[1]).read_text()))
host.put(sys.argv[2], "~/a.tar")
"""


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """Give a file of 120 MB."""
    path = tmp_path / "a.tar"
    with path.open("wb") as stream:
        for _ in range(120):
            stream.write(os.urandom(MB))
    return path


def _arrived(host: LabHost, big: Path) -> bool:
    with big.open("rb") as stream:
        expected = hashlib.file_digest(stream, "sha256").hexdigest()
    return expected in host.run(["sha256sum", f"{host.home}/a.tar"])


def test_a_sender_killed_again_and_again_gets_there(
    any_host: LabHost, connect: Connect, big: Path, tmp_path: Path
) -> None:
    block = tmp_path / "block.json"
    block.write_text(connect(any_host).model_dump_json(context={"include_secrets": True}))
    any_host.slow(80)
    before = any_host.bytes_received()
    rounds, code = 0, -1

    while code != 0 and rounds < 60:
        rounds += 1
        sender = subprocess.Popen([sys.executable, "-c", _SENDER, str(block), str(big)])
        try:
            code = sender.wait(random.uniform(2.5, 6))
        except subprocess.TimeoutExpired:
            sender.kill()
            code = sender.wait()

    assert code == 0
    assert rounds > 2
    assert _arrived(any_host, big)
    assert any_host.bytes_received() - before < 120 * MB * 1.12 + rounds * LOST_PER_BREAK


@pytest.mark.parametrize("fault", ["link", "sshd"])
def test_a_transfer_through_one_fault_after_the_other_gets_there(
    any_host: LabHost, connect: Connect, big: Path, fault: str
) -> None:
    any_host.slow(30)
    before = any_host.bytes_received()
    stop = threading.Event()
    breaks = 0

    def disturb() -> None:
        nonlocal breaks
        down, up = {
            "link": (any_host.cut, any_host.mend),
            "sshd": (any_host.stop_sshd, any_host.start_sshd),
        }[fault]
        while not stop.wait(random.uniform(4, 9)):
            breaks += 1
            down()
            stop.wait(random.uniform(1, 30 if fault == "link" else 4))
            up()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        sent = connect(any_host).put(big, "~/a.tar")
    finally:
        stop.set()
        disturber.join()

    assert breaks > 2
    assert _arrived(any_host, big)
    assert sent.sha256 in any_host.run(["sha256sum", f"{any_host.home}/a.tar"])
    assert any_host.bytes_received() - before < 120 * MB * 1.12 + breaks * LOST_PER_BREAK
