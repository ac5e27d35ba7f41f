"""Images onto a server: crossgap beside the ways by hand, in one run.

    python -m benchmarks.images [--runs 3] [--only THING ...] [--json FILE] [--chart FILE]

Everything is real: pretend servers with a sshd and a dockerd of their own, and
images of this machine's own files. A run of crossgap is timed from start to end
as Prefect's API reports it; bytes are read at the host's network interface.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.material import load_images, real_layers
from benchmarks.measuring import Way, publish
from benchmarks.memory import MemoryWatch
from blocks.ssh_host import SSHHost
from deployments.register import register
from deployments.runs import run_deployment, run_seconds, table_rows
from deployments.server import PrivateServer
from tests.lab import HostSpec, Lab, LabHost, remove_images
from tests.lab.registry import LabRegistry

OURS = "crossgap"
BY_HAND = "save, scp, load each"
PIPE = "one save piped into ssh"
TUNNEL = "registry through an SSH tunnel"

FIVE = tuple(f"bench/{name}:1" for name in ("ragflow", "mysql", "redis", "minio", "vllm"))
OLD, NEW = "bench/app:1", "bench/app:2"
_SIZES = {"base": 620, "a": 130, "b": 170, "c": 140, "d": 160, "e": 150, "app": 180, "new": 4}
_SLOW_MBIT = 200
_HOSTS = ("gpu1", "gpu2")


class Bench:
    """The machines of a benchmark, and each way on them.

    Args:
        lab: The pretend servers `gpu1` and `gpu2`.
        server: A Prefect server with a worker.
        store: The worker's content store.
        registry: Holds the images of the update.
    """

    def __init__(self, lab: Lab, server: PrivateServer, store: Path, registry: LabRegistry) -> None:
        self.lab = lab
        self.server = server
        self.store = store
        self.registry = registry
        self.memory = MemoryWatch()
        self._folder = store.parent
        self._options: list[str] = []
        self._target = ""

    @property
    def host(self) -> LabHost:
        """The server that is shipped to."""
        return self.lab.host("gpu1")

    def start_anew(self) -> None:
        """Make the hosts new, with empty disks, and empty the store.

        Images are not removed instead: ext4 gives no inode out again in the minute after
        its file was removed, and a docker load then spends two thirds of its time looking
        for one.
        """
        self.lab.up([HostSpec(name, disk_bytes=24 << 30) for name in _HOSTS])
        key, known = self._folder / "key", self._folder / "known_hosts"
        key.write_text(self.host.private_key)
        key.chmod(0o600)
        known.write_text(self.host.known_hosts)
        self._options = ["-i", str(key), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
        self._target = f"{self.host.username}@{self.host.address}"
        with self.server.connected():
            for name in _HOSTS:
                SSHHost(**self.lab.host(name).block_fields()).save(name, overwrite=True)
        shutil.rmtree(self.store, ignore_errors=True)
        os.sync()

    def by_hand(self, images: Sequence[str]) -> float:
        """Do what operators do: save, copy and load one image after the other."""
        begin = time.monotonic()
        file = self._folder / "by-hand.tar"
        for image in images:
            self._docker("save", "-o", str(file), image)
            self._execute("scp", "-q", *self._options, str(file), f"{self._target}:/root/image.tar")
            self._ssh("docker load -q -i /root/image.tar && rm /root/image.tar")
        file.unlink()
        return time.monotonic() - begin

    def pipe(self, images: Sequence[str]) -> float:
        """Pipe one docker save into a docker load over SSH."""
        begin = time.monotonic()
        save = subprocess.Popen(
            ["docker", "save", *images], stdout=subprocess.PIPE, env=self._engine()
        )
        self._ssh("docker load -q", stdin=save.stdout)
        save.wait()
        return time.monotonic() - begin

    def tunnel(self, images: Sequence[str]) -> float:
        """Push to a registry here, and pull from it there through a tunnel."""
        with LabRegistry() as registry:
            begin = time.monotonic()
            port = registry.address.rpartition(":")[2]
            for image in images:
                repository, _, tag = image.rpartition(":")
                registry.push_from_engine(self.lab.engine, image, repository, tag)
            pulls = " && ".join(
                f"docker pull -q {registry.address}/{image} && "
                f"docker tag {registry.address}/{image} {image}"
                for image in images
            )
            self._ssh(pulls, "-R", f"{port}:{registry.address}")
            return time.monotonic() - begin

    def crossgap(
        self, images: Sequence[str], hosts: Sequence[str] = ("gpu1",), **parameters: Any
    ) -> float:
        """Run the flow, as an operator would, and return the seconds that the API reports."""
        given = {"images": list(images), "hosts": list(hosts), **parameters}
        with self.memory.watching():
            run = run_deployment(self.server, "ship-images/manual", given)
        self.output = run.output
        if run.exit_code:
            raise SystemExit(run.output)
        with self.server.connected():
            self.rows = table_rows(run.id, "ship-images-table")
            return run_seconds(run.id)

    def _engine(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": self.lab.engine}

    def _docker(self, *arguments: str) -> None:
        self._execute("docker", *arguments, env=self._engine())

    def _ssh(self, command: str, *options: str, stdin: Any = subprocess.DEVNULL) -> None:
        self._execute("ssh", *self._options, *options, self._target, command, stdin=stdin)

    def _execute(self, *argv: str, **options: Any) -> None:
        options = {"stdin": subprocess.DEVNULL, **options}
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, **options)


class Runner:
    """Runs ways in turn, so that whatever the machine does meets all of them.

    Args:
        bench: The machines.
        runs: How often.
        only: The ways to run; none for all.
    """

    def __init__(self, bench: Bench, runs: int, only: Sequence[str] = ()) -> None:
        self.bench = bench
        self.ways: list[Way] = []
        self.notes: dict[str, object] = {}
        self._runs = runs
        self._only = only
        self.log = False

    def compare(
        self,
        thing: str,
        ways: Mapping[str, Callable[[], float]],
        prepare: Callable[[], object],
        mbit: float | None = None,
    ) -> None:
        """Measure some ways to do one thing."""
        ways = {name: way for name, way in ways.items() if not self._only or name in self._only}
        measured = {name: Way(thing, name) for name in ways}
        for number in range(self._runs):
            for name, do in ways.items():
                prepare()
                self.bench.lab.shape_uplink(mbit)
                before = self.bench.host.bytes_received()
                seconds = do()
                measured[name].seconds.append(seconds)
                measured[name].sent.append(self.bench.host.bytes_received() - before)
                self.bench.lab.shape_uplink(None)
                print(f"    {thing}, {name}: {seconds:.1f} s", flush=True)
                if self.log and name == OURS:
                    print(self.bench.output)
                self._after(thing, name, number)
        self.ways += measured.values()

    def _after(self, thing: str, name: str, number: int) -> None:
        if name == OURS and number == 0:
            self.notes[f"peak memory, {thing}"] = self.bench.memory.peak


def measure(runner: Runner, only: Sequence[str]) -> None:
    """Run all comparisons, or those that are named."""
    bench = runner.bench
    cold = {
        BY_HAND: lambda: bench.by_hand(FIVE),
        PIPE: lambda: bench.pipe(FIVE),
        TUNNEL: lambda: bench.tunnel(FIVE),
        OURS: lambda: bench.crossgap(FIVE),
    }
    update = {
        BY_HAND: lambda: bench.by_hand([NEW]),
        OURS: lambda: bench.crossgap([NEW]),
    }

    def with_old() -> None:
        bench.start_anew()
        bench.pipe([OLD])
        os.sync()

    mirrors = [bench.registry.url]
    from_registry = {
        BY_HAND: lambda: bench.by_hand([NEW]),
        OURS: lambda: bench.crossgap([NEW], source="registry", mirrors=mirrors),
    }
    slow = {name: way for name, way in cold.items() if name in (BY_HAND, PIPE, OURS)}
    comparisons: dict[str, Callable[[], None]] = {
        "nothing": lambda: _nothing(runner),
        "update": lambda: runner.compare("update of one layer, 800 MB", update, with_old),
        "registry": lambda: runner.compare("update from a registry", from_registry, with_old),
        "cold": lambda: runner.compare("five images, cold", cold, bench.start_anew),
        "update200": lambda: runner.compare(
            f"update, {_SLOW_MBIT} Mbit/s", update, with_old, _SLOW_MBIT
        ),
        "cold200": lambda: runner.compare(
            f"five images, cold, {_SLOW_MBIT} Mbit/s", slow, bench.start_anew, _SLOW_MBIT
        ),
    }
    for name, compare in comparisons.items():
        if not only or name in only:
            compare()


def _nothing(runner: Runner) -> None:
    bench = runner.bench
    bench.start_anew()
    bench.crossgap(FIVE, _HOSTS)
    again = {OURS: lambda: bench.crossgap(FIVE, _HOSTS)}
    runner.compare("nothing to do, 5 images x 2 hosts", again, lambda: None)
    runner.notes["layer bytes when there is nothing to do"] = sum(
        int(row["bytes sent"]) for row in bench.rows
    )


@contextmanager
def machines() -> Iterator[Bench]:
    """Bring up the pretend servers, a Prefect server and the images."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossgap-bench-")))
        lab = stack.enter_context(Lab("bench"))
        print("==> Making images of this machine's files ...", flush=True)
        layers = real_layers(folder, _SIZES)
        base = layers["base"]
        images = {name: [base, layers[key]] for name, key in zip(FIVE, "abcde", strict=True)}
        images |= {OLD: [base, layers["app"]], NEW: [base, layers["app"], layers["new"]]}
        load_images(lab.engine, folder, images)
        stack.callback(remove_images, lab.engine, list(images))
        for layer in layers.values():
            layer.path.unlink()
        registry = stack.enter_context(LabRegistry())
        registry.push_from_engine(lab.engine, NEW, *NEW.split(":"))
        server = stack.enter_context(PrivateServer("bench", fresh=True))
        with server.connected():
            register()
        store = folder / "store"
        server.start_worker({"DOCKER_HOST": lab.engine, "CROSSGAP_STORE": str(store)})
        yield Bench(lab, server, store, registry)


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.images")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--log", action="store_true", help="show the log of each run")
    parser.add_argument("--ways", nargs="*", default=[], help="only these, such as crossgap")
    parser.add_argument("--json", type=Path, help="keeps its figures of what is not measured now")
    parser.add_argument("--chart", type=Path)
    arguments = parser.parse_args()
    with machines() as bench:
        runner = Runner(bench, arguments.runs, arguments.ways)
        runner.log = arguments.log
        measure(runner, arguments.only)
    title = "Images onto a server (medians)"
    publish(runner.ways, runner.notes, OURS, title, arguments.json, arguments.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
