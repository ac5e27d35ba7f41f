"""A model from a mirror: crossgap beside the tools that operators use, in one run.

    python -m benchmarks.models [--runs 3] [--only THING ...] [--json FILE] [--chart FILE]

The mirror is the lab's stand-in for the public hub, in a process of its own; the servers
are the lab's. A run of crossgap is timed from start to end as Prefect's API reports it, and
everything that it fetches it also hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import Way, publish
from benchmarks.memory import MemoryWatch, flow_processes
from blocks.model_hub import HubEndpoint, ModelHub
from blocks.ssh_host import SSHHost
from deployments.register import register
from deployments.runs import run_deployment, run_seconds
from deployments.server import ROOT, PrivateServer
from tests.lab import HostSpec, Lab

OURS = "crossgap"
HF = "hf download"
ARIA2 = "aria2c -x8"
ARIA2_AND_SUMS = "aria2c, then sha256sum on all cores"
SUMS = "xargs -P2 sha256sum"

ONE, MANY = "bench/one", "bench/many"
_ONE_SIZE, _MANY_SIZE, _MANY_FILES = 1_000_000_000, 100_000_000, 20
_MB_PER_CONNECTION = 20
_HOSTS = ("gpu1", "gpu2")
_LINE_MBIT = 200
_MIB = 1 << 20


class Mirror:
    """The stand-in for the public hub, in a process of its own.

    Args:
        folder: The models.
        sums: Their hashes.
        rate: MB/s of each connection; None for all there is.
    """

    def __init__(self, folder: Path, sums: Path, rate: float | None = None) -> None:
        command = [sys.executable, "-m", "tests.lab.hub", f"--folder={folder}", f"--sums={sums}"]
        if rate:
            command.append(f"--mb-per-second-per-connection={rate}")
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()

    def sent(self) -> int:
        """Return how many bytes of files it has sent so far."""
        with urllib.request.urlopen(f"{self.url}/_lab/counters", timeout=10) as answer:
            return int(json.load(answer)["sent"])

    def files(self, model: str) -> list[str]:
        """Return the files of a model."""
        with urllib.request.urlopen(f"{self.url}/api/models/{model}", timeout=10) as answer:
            return [one["rfilename"] for one in json.load(answer)["siblings"]]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


class Bench:
    """The machines of a benchmark, and each way on them.

    Args:
        folder: Where files go.
        server: A Prefect server with a worker.
        lab: Its hosts `gpu1` and `gpu2`.
        slow: A mirror that limits each connection.
        fast: One that does not.
    """

    def __init__(
        self, folder: Path, server: PrivateServer, lab: Lab, slow: Mirror, fast: Mirror
    ) -> None:
        self.server = server
        self.lab = lab
        self.slow = slow
        self.fast = fast
        self.memory = MemoryWatch()
        self.target = folder / "target"
        self.output = ""
        with server.connected():
            for name, mirror in (("slow", slow), ("fast", fast)):
                ModelHub(endpoints=[HubEndpoint(url=mirror.url)]).save(name, overwrite=True)
            for name in _HOSTS:
                SSHHost(**lab.host(name).block_fields()).save(name, overwrite=True)

    def start_anew(self) -> None:
        """Empty all folders, here and on the hosts."""
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir()
        for name in _HOSTS:
            self.lab.host(name).run(["sh", "-c", "rm -rf ~/models ~/.crossgap"])
        os.sync()

    def hf(self, model: str, mirror: Mirror) -> float:
        """Fetch with the hub's own command."""
        environment = {**os.environ, "HF_ENDPOINT": mirror.url, "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HOME": str(self.target / "home")}
        command = [Path(sys.executable).with_name("hf"), "download", model]
        return _timed([*command, "--local-dir", self.target / "hf", "--quiet"], env=environment)

    def aria2(self, model: str, mirror: Mirror, *, sums: bool = False) -> float:
        """Fetch with aria2c as hfd.sh does, but with eight connections; hash where asked."""
        lines = "".join(
            f"{mirror.url}/{model}/resolve/main/{name}\n out={name}\n"
            for name in mirror.files(model)
        )
        urls = self.target / "urls"
        urls.write_text(lines)
        command = ["aria2c", "-q", "-x8", "-s8", "-j5", "-k1M", "-c", "--file-allocation=none"]
        seconds = _timed([*command, "-d", self.target / "aria2", "-i", urls])
        return seconds + (self.sums(self.target / "aria2") if sums else 0.0)

    def sums(self, folder: Path) -> float:
        """Hash all files of a folder on all cores."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = b"\0".join(os.fsencode(path) for path in files)
        cores = os.cpu_count() or 2
        return _timed(["xargs", "-0", f"-P{cores}", "-n1", "sha256sum"], input=names)

    def crossgap(self, model: str, hub: str, hosts: Sequence[str] = ()) -> float:
        """Run the flow, as an operator would, and return the seconds that the API reports."""
        given = {"model": model, "hub": hub, "destination": str(self.target), "hosts": list(hosts)}
        with self.memory.watching():
            run = run_deployment(self.server, "fetch-model/manual", given)
        self.output = run.output
        if run.exit_code:
            raise SystemExit(run.output)
        with self.server.connected():
            return run_seconds(run.id)

    def kill_at_half(self, model: str, mirror: Mirror, hub: str, size: int) -> None:
        """Start the flow, and kill its process once half of the bytes were sent."""
        begin = mirror.sent()

        def kill() -> None:
            while mirror.sent() - begin < size // 2:
                time.sleep(0.01)
            for process in flow_processes():
                os.kill(int(process.name), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        run_deployment(
            self.server,
            "fetch-model/manual",
            {"model": model, "hub": hub, "destination": str(self.target)},
        )
        killer.join()

    def make_proof_void(self) -> None:
        """Change the time of every file, as a copy or a restored backup does."""
        for path in self.target.rglob("*.safetensors"):
            os.utime(path)


def _timed(command: Sequence[object], **options: Any) -> float:
    begin = time.monotonic()
    argv = [str(part) for part in command]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, **options)
    return time.monotonic() - begin


class Runner:
    """Runs ways in turn, so that whatever the machine does meets all of them.

    Args:
        bench: The machines.
        runs: How often.
    """

    def __init__(self, bench: Bench, runs: int, *, log: bool = False) -> None:
        self.bench = bench
        self.ways: list[Way] = []
        self.notes: dict[str, object] = {}
        self._runs = runs
        self._log = log

    def compare(
        self,
        thing: str,
        ways: Mapping[str, Callable[[], float]],
        mirror: Mirror,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        """Measure some ways to do one thing."""
        measured = {name: Way(thing, name) for name in ways}
        for number in range(self._runs):
            for name, do in ways.items():
                (prepare or self.bench.start_anew)()
                before = mirror.sent()
                seconds = do()
                measured[name].seconds.append(seconds)
                measured[name].sent.append(mirror.sent() - before)
                print(f"    {thing}, {name}: {seconds:.2f} s", flush=True)
                if name == OURS and number == 0:
                    self.notes[f"peak memory, {thing}"] = self.bench.memory.peak
                if name == OURS and self._log:
                    print(self.bench.output)
        self.ways += measured.values()


def measure(runner: Runner, only: Sequence[str]) -> None:
    """Run all comparisons, or those that are named."""
    bench = runner.bench
    comparisons: dict[str, Callable[[], None]] = {
        "one": lambda: runner.compare(
            f"one file of 1 GB, {_MB_PER_CONNECTION} MB/s per connection",
            {
                HF: lambda: bench.hf(ONE, bench.slow),
                ARIA2: lambda: bench.aria2(ONE, bench.slow),
                OURS: lambda: bench.crossgap(ONE, "slow"),
            },
            bench.slow,
        ),
        "many": lambda: runner.compare(
            "2 GB in 20 files, hashed",
            {
                ARIA2_AND_SUMS: lambda: bench.aria2(MANY, bench.fast, sums=True),
                OURS: lambda: bench.crossgap(MANY, "fast"),
            },
            bench.fast,
        ),
        "killed": lambda: _killed(runner),
        "void": lambda: _void(runner),
        "valid": lambda: _valid(runner),
        "deliver": lambda: _deliver(runner),
    }
    for name, compare in comparisons.items():
        if not only or name in only:
            compare()


def _killed(runner: Runner) -> None:
    bench = runner.bench
    thing = "killed at half, started again"
    way = Way(thing, OURS)
    for _ in range(runner._runs):
        bench.start_anew()
        before = bench.slow.sent()
        bench.kill_at_half(ONE, bench.slow, "slow", _ONE_SIZE)
        way.seconds.append(bench.crossgap(ONE, "slow"))
        way.sent.append(bench.slow.sent() - before)
        twice = (way.sent[-1] - _ONE_SIZE) / _ONE_SIZE
        print(f"    {thing}: {twice:.2%} of the bytes twice", flush=True)
    runner.ways.append(way)
    worst = max(way.sent) - _ONE_SIZE
    runner.notes["bytes fetched twice after a kill, at most"] = f"{worst / _ONE_SIZE:.2%}"


def _there(runner: Runner) -> Path:
    bench = runner.bench
    bench.start_anew()
    bench.crossgap(MANY, "fast")
    return bench.target / MANY / "current"


def _void(runner: Runner) -> None:
    bench = runner.bench
    folder = _there(runner)
    runner.compare(
        "all there, proof void",
        {
            SUMS: lambda: bench.sums(folder.resolve()),
            OURS: lambda: bench.crossgap(MANY, "fast"),
        },
        bench.fast,
        bench.make_proof_void,
    )


def _valid(runner: Runner) -> None:
    bench = runner.bench
    _there(runner)
    again = {OURS: lambda: bench.crossgap(MANY, "fast")}
    runner.compare("all there, proof valid", again, bench.fast, lambda: None)


def _deliver(runner: Runner) -> None:
    """Compare download and delivery at once with the longer of the two alone."""
    bench = runner.bench
    hosts = [bench.lab.host(name) for name in _HOSTS]
    for host in hosts:
        host.slow(_LINE_MBIT)
    try:
        runner.compare(
            f"download and delivery to 2 hosts, {_LINE_MBIT} Mbit/s each",
            {
                "download alone": lambda: bench.crossgap(ONE, "slow"),
                "delivery alone": lambda: _delivery_alone(bench),
                OURS: lambda: bench.crossgap(ONE, "slow", _HOSTS),
            },
            bench.slow,
        )
    finally:
        for host in hosts:
            host.slow(None)


def _delivery_alone(bench: Bench) -> float:
    bench.crossgap(ONE, "slow")
    return bench.crossgap(ONE, "slow", _HOSTS)


def make_models(folder: Path) -> Path:
    """Write the models, and return the list of their hashes."""
    sums = folder.with_name("sums")
    sizes = {f"{ONE}/model.safetensors": _ONE_SIZE}
    sizes |= {
        f"{MANY}/model-{number:05d}-of-{_MANY_FILES:05d}.safetensors": _MANY_SIZE
        for number in range(1, _MANY_FILES + 1)
    }
    lines = []
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for start in range(0, size, _MIB):
                block = os.urandom(min(_MIB, size - start))
                digest.update(block)
                file.write(block)
        lines.append(f"{digest.hexdigest()}  {name}\n")
    sums.write_text("".join(lines))
    return sums


@contextmanager
def machines() -> Iterator[Bench]:
    """Bring up the mirrors, the hosts, a Prefect server and a worker."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossgap-bench-")))
        print("==> Making models of random bytes ...", flush=True)
        sums = make_models(folder / "models")
        slow = Mirror(folder / "models", sums, _MB_PER_CONNECTION)
        stack.callback(slow.close)
        fast = Mirror(folder / "models", sums)
        stack.callback(fast.close)
        lab = stack.enter_context(Lab("bench"))
        lab.up([HostSpec(name, disk_bytes=8 << 30) for name in _HOSTS])
        server = stack.enter_context(PrivateServer("bench", fresh=True))
        with server.connected():
            register()
        server.start_worker()
        yield Bench(folder, server, lab, slow, fast)


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.models")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--log", action="store_true", help="show the log of each run")
    parser.add_argument("--json", type=Path, help="keeps its figures of what is not measured now")
    parser.add_argument("--chart", type=Path)
    arguments = parser.parse_args()
    with machines() as bench:
        runner = Runner(bench, arguments.runs, log=arguments.log)
        measure(runner, arguments.only)
    title = "A model from a mirror (medians)"
    publish(runner.ways, runner.notes, OURS, title, arguments.json, arguments.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
