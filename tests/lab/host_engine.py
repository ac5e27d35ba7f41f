"""The Docker engine of a host."""

from __future__ import annotations

from contextlib import suppress

import docker

from tests.lab.inside import Inside
from tests.lab.ping import engine_answers


class HostEngine:
    """A dockerd with the containerd that it starts.

    Args:
        inside: The host.
        cgroup: The cgroup for its containers, so that engines of one machine stay apart.
    """

    def __init__(self, inside: Inside, cgroup: str) -> None:
        self._inside = inside
        self._cgroup = cgroup

    @property
    def url(self) -> str:
        """Where it answers, seen from this machine."""
        return f"unix://{self._inside.path('run/docker.sock')}"

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers."""
        if self.answers():
            return
        # A killed engine leaves them, and their pids may have been given to others since.
        for stale in ("run/docker.pid", "run/docker/containerd/containerd.pid"):
            self._inside.path(stale).unlink(missing_ok=True)
        options = f"--cgroup-parent {self._cgroup} --exec-opt native.cgroupdriver=cgroupfs"
        script = f"setsid dockerd {options} </dev/null >>/var/log/dockerd.log 2>&1 &"
        self._inside.run(["sh", "-c", script])
        self._inside.wait_for(self.answers, "dockerd does not answer", "var/log/dockerd.log")

    def stop(self) -> None:
        """Kill it with all its containers."""
        names = self._inside.names()
        # First the engine: it would answer the end of a container with new processes.
        self._inside.kill(pid for pid, name in names if name in ("dockerd", "containerd"))
        self._inside.kill(self.processes())

    def processes(self) -> set[int]:
        """Return the pids of its containers and of what it runs for them."""
        path = self._inside.path
        own = path("proc/1/ns/pid").readlink()
        found = set()
        for pid, name in self._inside.names():
            with suppress(OSError):
                contained = path(f"proc/{pid}/ns/pid").readlink() != own
                if contained or name.startswith(("docker-proxy", "containerd-shim")):
                    found.add(pid)
        return found

    def answers(self) -> bool:
        """Whether it answers a ping."""
        return engine_answers(self.url)

    def empty(self) -> None:
        """Remove its containers, images, volumes and networks."""
        with self._client(timeout=60) as engine:
            for container in engine.containers(all=True, quiet=True):
                engine.remove_container(container["Id"], force=True, v=True)
            if engine.images(all=True, quiet=True):
                engine.prune_images(filters={"dangling": False})
            engine.prune_volumes()
            engine.prune_networks()

    def _client(self, timeout: int) -> docker.APIClient:
        return docker.APIClient(base_url=self.url, timeout=timeout, version="1.41")
