"""One large file to one host of the lab: scp, and `put` both ways, in turns.

    python -m benchmarks.wire [--size MB] [--rounds N] [--mbit N] [--json PATH]

Each round sends the same random file by each way, to an empty place. scp copies and
no more; `put` also hashes on both sides. Bytes are those that arrived at the host's
network interface. What is told is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blocks.openssh import SWITCH
from blocks.ssh_connection import close_connections
from blocks.ssh_host import SSHHost
from tests.lab import Lab, LabHost

TARGET = "bench-file"


@contextmanager
def lab_host() -> Iterator[LabHost]:
    """Give a host of the lab that CROSSGAP_LAB names, as the tests have it."""
    keep = os.environ.get("CROSSGAP_KEEP_LAB") == "1"
    lab = Lab(os.environ.get("CROSSGAP_LAB") or "bench")
    lab.up(reuse=keep)
    try:
        yield lab.host("plain1")
    finally:
        lab.leave() if keep else lab.down()


def random_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - start)))
    return path


def by_scp(host: LabHost, local: Path, folder: Path) -> None:
    """Copy as an operator does: scp, its default cipher, a key in a file."""
    (folder / "known_hosts").write_text(host.known_hosts)
    key = folder / "key"
    if not key.exists():
        key.touch(0o600)
        key.write_text(host.private_key)
    options = [
        "-q", "-F", "/dev/null", "-i", str(key), "-P", str(host.port),
        "-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-o", "BatchMode=yes",
    ]  # fmt: skip
    target = f"{host.username}@{host.address}:{TARGET}"
    subprocess.run(["scp", *options, str(local), target], check=True)


def by_put(host: LabHost, local: Path, openssh: str) -> None:
    """Send as a flow does; the connection is made anew, as scp makes its own."""
    close_connections()
    os.environ[SWITCH] = openssh
    SSHHost(**host.block_fields()).put(local, f"~/{TARGET}")


def measure(host: LabHost, send: Callable[[], None]) -> tuple[float, int]:
    """Send to an empty place; return the seconds and the bytes that came in."""
    host.run(["sh", "-c", f"rm -f {host.home}/{TARGET} {host.home}/.{TARGET}.*; sync"])
    received, begin = host.bytes_received(), time.monotonic()
    send()
    return time.monotonic() - begin, host.bytes_received() - received


def compare(host: LabHost, local: Path, rounds: int) -> dict[str, list[tuple[float, int]]]:
    """Send the file by each way in turns."""
    with tempfile.TemporaryDirectory() as name:
        ways: dict[str, Callable[[], None]] = {
            "scp": lambda: by_scp(host, local, Path(name)),
            "put, OpenSSH": lambda: by_put(host, local, "yes"),
            "put, paramiko": lambda: by_put(host, local, "no"),
        }
        runs: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, send in ways.items():
                runs[way].append(measure(host, send))
    return runs


def summary(runs: dict[str, list[tuple[float, int]]]) -> dict[str, dict[str, object]]:
    medians = {way: statistics.median(run[0] for run in its) for way, its in runs.items()}
    return {
        way: {
            "seconds": round(medians[way], 3),
            "times_scp": round(medians[way] / medians["scp"], 3),
            "bytes_received": int(statistics.median(run[1] for run in its)),
            "runs": [round(run[0], 3) for run in its],
        }
        for way, its in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=1000, help="megabytes of the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mbit", type=float, help="limit of the link, each way")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, lab_host() as host:
        local = random_file(Path(name) / "file", chosen.size * 1_000_000)
        host.slow(chosen.mbit)
        try:
            figures = summary(compare(host, local, chosen.rounds))
        finally:
            host.reset()
    print(f"{chosen.size} MB, median of {chosen.rounds}")
    print(f"{'way':<16}{'seconds':>9}{'x scp':>8}{'MB received':>13}")
    for way, its in figures.items():
        received = int(str(its["bytes_received"])) / 1e6
        print(f"{way:<16}{its['seconds']:>9}{its['times_scp']:>8}{received:>13.1f}")
    if chosen.json:
        given = {"megabytes": chosen.size, "mbit": chosen.mbit, "ways": figures}
        chosen.json.write_text(json.dumps(given, indent=2) + "\n")


if __name__ == "__main__":
    main()
