"""One file on its way from one host."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blocks.errors import ConnectionLost, Damaged, DiskFull, NotFound, PermissionRefused
from blocks.file_scripts import ENDED_BY_SIGNAL, READ, STAT, sh
from blocks.outage import Outage
from blocks.pouring import local_errors
from blocks.remote_hash import remote_sha256
from blocks.transfer import STALL, Pace, Progress, Transfer, is_bulk

if TYPE_CHECKING:
    from blocks.host import Host

# Bytes that dd reads at once on the host, and by which a fetch is gone on with.
BLOCK = 1 << 20


class Fetching:
    """One file on its way from one host, across any number of connections.

    Args:
        host: Where from.
        local: Where it goes here.
        progress: Is told what has arrived.
        pace: Limits the rate.
    """

    def __init__(
        self, host: Host, local: Path, progress: Progress | None, pace: Pace | None
    ) -> None:
        self._host = host
        self._local = local
        self._progress = progress
        self._pace = pace
        self._begin = time.monotonic()
        self._seconds_receiving = 0.0
        self._received = 0
        self._found: int | None = None
        self._sha256 = ""
        self._wrong_hashes = 0

    def attempt(self, remote: str, outage: Outage) -> Transfer:
        """Bring it here, over one connection.

        Raises:
            CrossgapError: As for `blocks.files.get`.
        """
        source = self._host.expand(remote)
        size = self._size(source)
        if not self._sha256:
            self._sha256 = remote_sha256(self._host, source, size)
        with local_errors(self._local):
            self._local.parent.mkdir(parents=True, exist_ok=True)
            part = self._local.with_name(f".{self._local.name}.{self._sha256[:16]}.part")
            self._check_room(part, size)
            try:
                self._fetch(source, part, size, outage)
            except OSError:
                part.unlink(missing_ok=True)
                raise
            if sha256_of(part) == self._sha256:
                part.replace(self._local)
                seconds = time.monotonic() - self._begin
                return Transfer(
                    self._received,
                    self._found or 0,
                    self._sha256,
                    seconds,
                    self._seconds_receiving,
                )
            part.unlink()
        self._sha256 = ""
        self._wrong_hashes += 1
        if self._wrong_hashes > 1:
            raise Damaged(
                f"{source} arrived damaged twice, or changes while it is read",
                self._host.label,
                "Let whatever writes to it finish, then start again.",
            )
        return self.attempt(remote, outage)

    def _check_room(self, part: Path, size: int) -> None:
        needed = size - (part.stat().st_size if part.exists() else 0)
        free = shutil.disk_usage(part.parent).free
        if needed > free:
            raise DiskFull(
                f"{needed / 1e9:.2f} GB are needed here, {free / 1e9:.2f} GB are free",
                str(part.parent),
                "Free space here, then start again.",
            )

    def _size(self, source: str) -> int:
        result = self._host.run(sh(STAT, source), timeout=30, check=False)
        if result.exit_code == 3:
            raise NotFound(f"there is no file {source}", self._host.label)
        if result.exit_code == 4:
            raise PermissionRefused(f"the user may not read {source}", self._host.label)
        if result.exit_code != 0:
            raise self._host.command_failed(["wc", "-c", source], result)
        return int(result.stdout)

    def _fetch(self, source: str, part: Path, size: int, outage: Outage) -> None:
        with part.open("ab") as stream:
            # dd seeks by whole blocks; tail would read all that came before.
            blocks = stream.tell() // BLOCK
            stream.truncate(blocks * BLOCK)
            stream.seek(0, os.SEEK_END)
            if self._found is None:
                self._found = stream.tell()
            if stream.tell() < size or not size:
                self._copy(sh(READ, source, str(BLOCK), str(blocks)), stream, size, outage)
            stream.flush()
            os.fsync(stream.fileno())

    def _copy(self, argv: list[str], stream: BinaryIO, size: int, outage: Outage) -> None:
        begin = time.monotonic()
        bulk = is_bulk(size - stream.tell())
        with self._host.start(argv, timeout=STALL, bulk=bulk) as command:
            command.close_input()
            while (pair := command.read()) is not None:
                if not pair[0]:
                    continue
                stream.write(pair[0])
                self._received += len(pair[0])
                outage.over()
                command.extend(STALL)
                if self._pace:
                    self._pace(len(pair[0]))
                if self._progress:
                    self._progress(stream.tell(), size)
            code = command.finish()
        self._seconds_receiving += time.monotonic() - begin
        if code in ENDED_BY_SIGNAL:
            raise ConnectionLost(
                f"the reader of {argv[4]} was ended from outside",
                self._host.label,
                "The host is shutting down, or somebody ended the user's processes.",
            )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a local file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
