"""A private Prefect server and worker on this machine.

The demo, `make ui` and the end-to-end tests each have one: its database, block
secrets and logs lie in `.state/NAME/` of the checkout, and the operator's own
Prefect settings neither reach it nor are touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Self

from blocks.errors import CommandFailed, Conflict, InvalidInput, TimedOut
from deployments.processes import Background
from deployments.settings import client_environment, server_environment, stored_auth_string

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".state"
WORK_POOL = "crossgap"

# Seconds. Prefect's defaults let a run wait about 20 s before it starts.
_FAST_POLLING = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_PREFETCH_SECONDS": "2",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
}
_START_DEADLINE = 120.0


class PrivateServer:
    """A Prefect server on SQLite with a process worker, ended on leaving the block.

    Args:
        name: Names the folder `.state/NAME/` with everything it keeps.
        port: The port to try first; a free one is taken when it is in use.
        listen: The address to listen on. Any but a loopback address turns
            authentication on, since block secrets can be read over the API.
        fresh: Whether to start with an empty database.
        state: The folder that holds the folders of all private servers.
    """

    def __init__(
        self,
        name: str,
        *,
        port: int = 0,
        listen: str = "127.0.0.1",
        fresh: bool = False,
        state: Path = STATE,
    ) -> None:
        self.home = state / name
        self.listen = listen
        self.port = port
        self.auth_string = "" if listen.startswith("127.") else stored_auth_string(self.home)
        self._server = Background("server", self.home)
        self._worker = Background("worker", self.home)
        self._lock: IO[str] | None = None
        self._fresh = fresh

    @property
    def ui_url(self) -> str:
        """The address of the UI, for a browser."""
        # A browser cannot go to "all addresses": name one that leads here.
        host = _outward_address() if self.listen == "0.0.0.0" else self.listen  # noqa: S104
        return f"http://{host}:{self.port}"

    @property
    def api_url(self) -> str:
        """The address of the API."""
        return f"{self.ui_url}/api"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that talks to this server, and to no other."""
        return client_environment(
            os.environ, home=self.home, api_url=self.api_url, auth_string=self.auth_string
        )

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and the worker."""
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            Conflict: Another live process uses this server's folder.
            InvalidInput: This machine does not have the address to listen on.
            CommandFailed: The server ended at once.
            TimedOut: It does not answer.
        """
        self.launch()
        try:
            self.wait_until_healthy()
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start the server without waiting for it.

        Raises:
            Conflict: Another live process uses this server's folder.
            InvalidInput: This machine does not have the address to listen on.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            self._worker.stop()
            self._server.stop()
            if self._fresh:
                self._forget_history()
            self.port = _free_port(self.listen, self.port)
            self._server.start(
                prefect_command("server", "start"),
                env=server_environment(
                    self.environment,
                    listen=self.listen,
                    port=self.port,
                    api_url=self.api_url,
                    auth_string=self.auth_string,
                ),
                cwd=ROOT,
            )
        except BaseException:
            self.stop()
            raise

    def wait_until_healthy(self) -> None:
        """Wait until the launched server answers.

        Raises:
            CommandFailed: The server ended at once.
            TimedOut: It does not answer.
        """
        deadline = time.monotonic() + _START_DEADLINE
        while not _healthy(self.api_url):
            if failure := self.failure():
                raise failure
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"it does not answer after {_START_DEADLINE:.0f} s",
                    f"Prefect server at {self.api_url}",
                    f"Its log {self._server.log} ends with:\n{self._server.log_tail()}",
                )
            time.sleep(0.2)

    def start_worker(self, variables: Mapping[str, str] | None = None) -> None:
        """Start a process worker for the work pool `crossgap`.

        Args:
            variables: More of its environment, e.g. DOCKER_HOST, which its flow
                runs inherit.
        """
        self._worker.start(
            prefect_command(
                "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", "local"
            ),
            env={**self.environment, **_FAST_POLLING, **(variables or {})},
            cwd=ROOT,
        )

    def stop_worker(self) -> None:
        """End the worker and the flow runs it started."""
        self._worker.stop()

    def stop(self) -> None:
        """End the worker, the flow runs it started, and the server.

        Does nothing when this object has started none: what runs in its folder
        then is another command's.
        """
        if not self._lock:
            return
        try:
            self._worker.stop()
        finally:
            self._server.stop()
            self._lock.close()
            self._lock = None

    def failure(self) -> CommandFailed | None:
        """Return why the server or the worker has ended, or None while both run."""
        for process in (self._server, self._worker):
            if process.exit_code is not None:
                return CommandFailed(
                    f"it ended with exit code {process.exit_code}",
                    f"Prefect {process.name}",
                    f"Its log {process.log} ends with:\n{process.log_tail()}",
                )
        return None

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Point Prefect's client *in this process* at this server, inside the block."""
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(self.environment)
        try:
            from prefect.context import use_profile
            from prefect.settings import Profile

            with use_profile(
                Profile(name=self.home.name, settings={}), include_current_context=False
            ):
                yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _take_lock(self) -> None:
        # The kernel drops the lock with the process that holds it, however it ends.
        lock = (self.home / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise Conflict(
                f"it is in use by process {owner}",
                f"Prefect server {self.home.name!r}",
                "Wait for that command to end, or end it, then try again.",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _forget_history(self) -> None:
        for entry in self.home.iterdir():
            if entry.name not in ("lock", "auth"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def prefect_command(*arguments: str) -> list[str]:
    """Return the command line of Prefect's CLI in this Python environment."""
    return [sys.executable, "-m", "prefect", *arguments]


def _free_port(address: str, preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except PermissionError:
                continue
            except OSError as error:
                if port:
                    continue  # taken
                raise InvalidInput(
                    f"this machine cannot listen on it ({error.strerror})",
                    address,
                    "Give one of this machine's own addresses; `hostname -I` lists them.",
                ) from None
            return int(probe.getsockname()[1])
    raise AssertionError("the kernel always has a free port")


def _outward_address() -> str:
    """Return this machine's address towards the default route; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:  # no route at all
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _healthy(api_url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{api_url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def exit_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into SystemExit, SIGINT into KeyboardInterrupt, to clean up."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    # A shell that starts a command in the background has it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
