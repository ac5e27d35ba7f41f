"""Hosts that answer from a list or keep what they get, and images made of a few bytes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from blocks.commands import CommandLine, SudoMode
from blocks.content import Content
from blocks.disk import Disk
from blocks.errors import CrossgapError, SourceDamaged
from blocks.host import CommandResult, Host, Process
from blocks.transfer import Pace, Progress, Transfer
from tasks.images.blobs import Blob, Layer
from tasks.images.facts import HostFacts, ImageFacts, parse_image_config
from tasks.images.layout import digest_of
from tasks.images.store import Store

PLENTY = Disk("/dev/sda1", "/", 10**12)


def answer(stdout: str = "", stderr: str = "", exit_code: int = 0) -> CommandResult:
    """Make the result of a command."""
    return CommandResult(exit_code, stdout, stderr, 0.1)


class AnsweringHost(Host):
    """Answers a command by the first words that it begins with, and records what was asked.

    Args:
        answers: Per first words of the command, its result.
    """

    work_dir = "~/.crossgap"
    models_dir = "~/models"
    patience = 1

    def __init__(self, answers: dict[str, CommandResult]) -> None:
        self.answers = answers
        self.asked: list[tuple[list[str], bool]] = []

    @property
    def name(self) -> str:
        return "gpu1"

    @property
    def label(self) -> str:
        return "gpu1 (10.0.0.1:22)"

    @property
    def lock_name(self) -> str:
        return "10.0.0.1-22"

    @property
    def sudo_mode(self) -> SudoMode:
        return "password"

    def open_process(self, line: CommandLine) -> Process:
        raise NotImplementedError

    def forward(self, host: str, port: int) -> AbstractContextManager[int]:
        raise NotImplementedError

    def run(self, argv: Sequence[str], *, sudo: bool = False, **_: Any) -> CommandResult:
        self.asked.append((list(argv), sudo))
        shown = " ".join(argv)
        for words, result in self.answers.items():
            if shown.startswith(words):
                return result
        raise AssertionError(f"nobody expected {shown!r}")


class KeepingHost(AnsweringHost):
    """Keeps the files that it is sent, and proves them by their hash as every host does.

    Args:
        folder: Where.
        part: Into how many parts each file falls on its way.

    Attributes:
        refusals: What the next files fail with at their beginning.
        late_refusals: The same at their end.
        sent: The names of the files that were begun to be sent.
        paced: For each, whether its rate was limited.
    """

    def __init__(self, folder: Path, part: int = 3) -> None:
        super().__init__({"sh -c": answer("/root")})
        self.folder = folder
        self.part = part
        self.refusals: list[CrossgapError] = []
        self.late_refusals: list[CrossgapError] = []
        self.sent: list[str] = []
        self.paced: list[bool] = []
        self._lock = threading.Lock()

    def file(self, remote: str) -> Path:
        """Return where a file of a path there lies here."""
        return self.folder / remote.removeprefix("/root/").removeprefix("~/")

    def files(self) -> dict[str, bytes]:
        """Return what it has, by file name."""
        return {path.name: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def put(
        self,
        local: Path | str | Content,
        remote: str,
        *,
        progress: Progress | None = None,
        pace: Pace | None = None,
        sha256: str = "",
    ) -> Transfer:
        content = local if isinstance(local, Content) else Content.of_file(Path(local))
        with self._lock:
            if self.refusals:
                raise self.refusals.pop(0)
            self.sent.append(remote.rpartition("/")[2])
            self.paced.append(pace is not None)
        path = self.file(remote)
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            if progress:
                progress(content.size, content.size)
            return Transfer(0, content.size, sha256, 0.1)
        try:
            data = b"".join(content.chunks())
        except (OSError, EOFError) as error:
            raise SourceDamaged(f"the file here cannot be read ({error})", remote) from error
        for number in range(1, self.part + 1):
            if progress:
                progress(len(data) * number // self.part, len(data))
        if self.late_refusals:
            raise self.late_refusals.pop(0)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SourceDamaged("it is not what it should be", remote)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return Transfer(len(data), 0, sha256, 0.1)


def config_of(*layers: bytes, **more: Any) -> bytes:
    """Make the configuration of an image of such unpacked layers."""
    diff_ids = [digest_of(layer) for layer in layers]
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": diff_ids}}
    return json.dumps(document | more).encode()


def image_of(name: str, *layers: bytes, **more: Any) -> ImageFacts:
    """Make an image of such unpacked layers."""
    return parse_image_config(config_of(*layers, **more), name, [len(layer) for layer in layers])


def memory_layer(data: bytes) -> Layer:
    """Make an unpacked layer that lies in memory."""
    digest = digest_of(data)
    return Layer(digest, "none", Blob(digest, len(data), Content((data,))))


def stored_layer(store: Store, data: bytes) -> Layer:
    """Put an unpacked layer into a store."""
    with store.writer() as writer:
        writer.write(data)
        return store.record_layer(digest_of(data), "none", writer.commit())


def host_facts(*wanted: ImageFacts, **more: Any) -> HostFacts:
    """Make the facts of an empty host with room."""
    host = AnsweringHost({})
    return HostFacts(
        host.label,
        "amd64",
        "20.10.24",
        "graphdriver",
        "/var/lib/docker",
        PLENTY,
        PLENTY,
        wanted=wanted,
        **more,
    )
