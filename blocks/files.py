"""Files to and from a host: resumable, verified, and complete or not there.

A file travels under a temporary name that holds the first digits of its SHA-256,
so that a later run, in whatever process, goes on where an earlier one stopped.
It is hashed on the far side with the tool that is there, and renamed when right;
only its owner can read it, as servers are shared.
Nothing but a POSIX shell and coreutils is asked of the host: no SFTP.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blocks.disk import parse_disk
from blocks.errors import (
    CommandFailed,
    ConnectionLost,
    CrossgapError,
    Damaged,
    DiskFull,
    NotFound,
    PermissionRefused,
)
from blocks.logs import logger
from blocks.outage import Outage, waited_out

if TYPE_CHECKING:
    from blocks.host import Host, RunningCommand

Progress = Callable[[int, int], None]
"""Is told the bytes that have arrived, and the bytes in all."""

Pace = Callable[[int], None]
"""Is told the bytes about to be sent, and may sleep to limit the rate."""

CHUNK = 1 << 18
BLOCK = 1 << 20

# Bytes from which on a file is hashed by a job: a minute or so of an old disk.
HASH_BY_JOB = 1 << 30

# Seconds without a byte after which a connection that still answers is given up.
STALL = 300.0

_PREPARE = """\
part=$1
umask 077
mkdir -p "${part%/*}/" || exit 3
[ ! -L "$part" ] || { echo "Permission denied: $part is a link" >&2; exit 5; }
old=$(cat "$part.writer" 2>/dev/null)
if [ -n "$old" ] && tr '\\0' '\\n' <"/proc/$old/cmdline" 2>/dev/null | grep -qxF -e "$part"; then
    kill -TERM "-$old" 2>/dev/null || kill "$old" 2>/dev/null
    while kill -0 "$old" 2>/dev/null; do sleep 1; done
fi
[ -f "$part" ] || : >"$part" || exit 4
wc -c <"$part"
df -Pk "${part%/*}/" | tail -n 1"""

# Reports the size every second, so that progress is what arrived, not what was sent.
_APPEND = """\
part=$1
umask 077
echo $$ >"$part.writer" || exit 4
( while sleep 1 </dev/null >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    wc -c <"$part"
done ) &
reporter=$!
cat >>"$part"
code=$?
kill $reporter
exit $code"""

_HASH = """\
if command -v sha256sum >/dev/null; then exec sha256sum <"$1"
elif command -v openssl >/dev/null; then exec openssl dgst -sha256 -r <"$1"
else exec shasum -a 256 <"$1"
fi"""

_READ = 'exec dd if="$1" bs="$2" skip="$3" 2>/dev/null'

# mv would put the file into a folder of that name.
_FINISH = """\
[ ! -d "$2" ] || { echo "$2 is a folder" >&2; exit 1; }
mv -f "$1" "$2" && rm -f "$1.writer\""""

# 128 + SIGHUP, SIGKILL, SIGTERM, and what we say where sshd reports a signal.
_ENDED_BY_SIGNAL = (129, 137, 143, 255)

_STAT = '[ -f "$1" ] || exit 3; [ -r "$1" ] || exit 4; wc -c <"$1"'


@dataclass(frozen=True)
class Transfer:
    """What it took to bring one file over.

    Args:
        bytes_sent: Bytes that travelled in this call, those sent twice included.
        bytes_resumed: Bytes that were there from an earlier try.
        sha256: The proven SHA-256 of the file, in hexadecimal.
        seconds: Duration of the call.
    """

    bytes_sent: int
    bytes_resumed: int
    sha256: str
    seconds: float


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a local file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remote_sha256(host: Host, path: str, size: int) -> str:
    """Hash a file on a host with the tool it has.

    Args:
        host: Where the file is.
        path: Its absolute path.
        size: Its size in bytes. Large files are hashed by a job, which outlives
            a connection that drops meanwhile.

    Returns:
        The SHA-256 in hexadecimal.

    Raises:
        TimedOut: The disk reads less than 10 MB/s.
        CrossgapError: As for `Host.run`.
    """
    # The slowest disks that we have met read 10 MB/s.
    timeout = 120 + size / 10e6
    if size < HASH_BY_JOB:
        return host.run(_sh(_HASH, path), timeout=timeout).stdout.split()[0]
    name = f"hash-{size}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
    job = host.find_job(name)
    if job is None or job.look().state != "running":
        job = host.start_job(_sh(_HASH, path), name=name)
    result = job.wait(timeout=timeout)
    job.forget()
    if result.exit_code != 0:
        raise CommandFailed(
            f"{path} could not be read to its end ({result.log_tail.strip()[-200:]})",
            host.label,
            "Look at the host's disk (dmesg, smartctl).",
        )
    return result.log_tail.split()[0]


def put(
    host: Host,
    local: Path,
    remote: str,
    *,
    progress: Progress | None = None,
    pace: Pace | None = None,
    sha256: str = "",
) -> Transfer:
    """Send a file to a host.

    Args:
        host: Where to.
        local: The file here.
        remote: Its path there; the folder is made when missing.
        progress: Is told what has arrived, about once a second.
        pace: Limits the rate.
        sha256: The file's hash where the caller knows it; else it is computed.

    Returns:
        What was sent and what had been there.

    Raises:
        NotFound: There is no such local file.
        DiskFull: The host has no room; what was sent is removed again.
        Damaged: The far side's hash was wrong twice, or the local file changed.
        PermissionRefused: The user may not write there.
        Unreachable: The host was away for longer than its patience.
    """
    begin = time.monotonic()
    if not local.is_file():
        raise NotFound("there is no such file here", str(local))
    with _local_errors(local):
        known = sha256 or sha256_of(local)
    sending = _Sending(host, local, local.stat().st_size, known, progress, pace)
    return waited_out(host, lambda outage: sending.attempt(remote, outage, begin))


class _Sending:
    """One file on its way to one host, across any number of connections."""

    def __init__(
        self,
        host: Host,
        local: Path,
        size: int,
        sha256: str,
        progress: Progress | None,
        pace: Pace | None,
    ) -> None:
        self._host = host
        self._local = local
        self._size = size
        self._sha256 = sha256
        self._progress = progress
        self._pace = pace
        self._sent = 0
        self._found: int | None = None
        self._arrived = 0
        self._last_count = -1
        self._wrong_hashes = 0

    def attempt(self, remote: str, outage: Outage, begin: float) -> Transfer:
        target = self._host.expand(remote)
        if self._is_there(target):
            self._report(self._size)
        else:
            folder, name = posixpath.split(target)
            part = posixpath.join(folder, f".{name}.{self._sha256[:16]}.part")
            self._bring(part, target, outage)
        outage.over()
        seconds = time.monotonic() - begin
        found = self._size if self._found is None else self._found
        return Transfer(self._sent, found, self._sha256, seconds)

    def _is_there(self, target: str) -> bool:
        result = self._host.run(_sh(_STAT, target), timeout=30, check=False)
        if result.exit_code != 0 or int(result.stdout) != self._size:
            return False
        return remote_sha256(self._host, target, self._size) == self._sha256

    def _bring(self, part: str, target: str, outage: Outage) -> None:
        while True:
            start = self._prepare(part)
            if self._found is None:
                self._found = start
            if start < self._size:
                self._append(part, start, outage)
            if remote_sha256(self._host, part, self._size) == self._sha256:
                break
            self._remove(part)
            self._wrong_hashes += 1
            self._found = 0
            self._explain_wrong_hash(target)
        self._host.run(_sh(_FINISH, part, target), timeout=60)
        self._report(self._size)

    def _explain_wrong_hash(self, target: str) -> None:
        if sha256_of(self._local) != self._sha256:
            raise Damaged(
                "the file here is not, or no longer, the one that was to be sent",
                str(self._local),
                "Let whatever writes to it finish, then start again.",
            )
        if self._wrong_hashes > 1:
            raise Damaged(
                f"{target} arrived damaged twice (its SHA-256 is wrong on the host)",
                self._host.label,
                "Its disk or memory may be failing: look at dmesg and smartctl there.",
            )
        logger().warning("%s: %s arrived damaged; sending it again.", self._host.label, target)

    def _prepare(self, part: str) -> int:
        """End a writer left over from a cut connection; return the bytes that are there."""
        try:
            result = self._host.run(_sh(_PREPARE, part), timeout=60)
        except CommandFailed as error:
            raise _writing_failed(self._host, posixpath.dirname(part), str(error)) from error
        count, usage = result.stdout.splitlines()[:2]
        start = int(count)
        if start > self._size:
            self._remove(part)
            return self._prepare(part)
        free = parse_disk(usage, self._host.label).free
        self._last_count = start
        if free < self._size - start:
            self._remove(part)
            raise _no_room(self._host, posixpath.dirname(part), self._size - start, free)
        return start

    def _append(self, part: str, start: int, outage: Outage) -> None:
        said = bytearray()

        def listen(command: RunningCommand, timeout: float) -> bool:
            if (pair := command.read(timeout)) is None:
                return False
            said.extend(pair[1])
            if counts := pair[0].split():
                self._hear(int(counts[-1]), command, outage)
            return True

        with self._host.start(_sh(_APPEND, part), timeout=STALL, has_input=True) as command:
            with suppress(BrokenPipeError), _opened(self._local) as stream:
                stream.seek(start)
                while chunk := _read(stream, self._local):
                    if self._pace:
                        self._pace(len(chunk))
                    command.write(chunk)
                    self._sent += len(chunk)
                    listen(command, 0)
            command.close_input()
            while listen(command, 0.5):
                pass
            code = command.finish()
        if code in _ENDED_BY_SIGNAL:
            raise ConnectionLost(
                f"the writer of {part} was ended from outside",
                self._host.label,
                "The host is shutting down, or somebody ended the user's processes.",
            )
        if code != 0:
            error = _writing_failed(self._host, part, said.decode("utf-8", "replace"))
            if isinstance(error, DiskFull):
                # On a shared server others need the room now; anything else can be gone on with.
                self._remove(part)
            raise error

    def _hear(self, count: int, command: RunningCommand, outage: Outage) -> None:
        """Take a size that the far side reports, while the part grows."""
        if count > self._last_count:
            outage.over()
            command.extend(STALL)
        self._last_count = count
        self._report(count)

    def _report(self, arrived: int) -> None:
        self._arrived = max(self._arrived, min(arrived, self._size))
        if self._progress:
            self._progress(self._arrived, self._size)

    def _remove(self, part: str) -> None:
        self._host.run(["rm", "-f", part, f"{part}.writer"], timeout=60)


def get(
    host: Host,
    remote: str,
    local: Path,
    *,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> Transfer:
    """Fetch a file from a host.

    Args:
        host: Where from.
        remote: Its path there.
        local: Where it goes here; the folder is made when missing.
        progress: Is told what has arrived.
        pace: Limits the rate.

    Returns:
        What travelled and what had been here from an earlier try.

    Raises:
        NotFound: There is no such file on the host.
        PermissionRefused: The user may not read it.
        DiskFull: There is no room here; what was fetched is removed again.
        Damaged: The file's hash was wrong twice.
        Unreachable: The host was away for longer than its patience.
    """
    begin = time.monotonic()
    fetching = _Fetching(host, local, progress, pace)
    return waited_out(host, lambda outage: fetching.attempt(remote, outage, begin))


class _Fetching:
    """One file on its way from one host, across any number of connections."""

    def __init__(
        self, host: Host, local: Path, progress: Progress | None, pace: Pace | None
    ) -> None:
        self._host = host
        self._local = local
        self._progress = progress
        self._pace = pace
        self._received = 0
        self._found: int | None = None
        self._sha256 = ""
        self._wrong_hashes = 0

    def attempt(self, remote: str, outage: Outage, begin: float) -> Transfer:
        source = self._host.expand(remote)
        size = self._size(source)
        if not self._sha256:
            self._sha256 = remote_sha256(self._host, source, size)
        with _local_errors(self._local):
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
                seconds = time.monotonic() - begin
                return Transfer(self._received, self._found or 0, self._sha256, seconds)
            part.unlink()
        self._sha256 = ""
        self._wrong_hashes += 1
        if self._wrong_hashes > 1:
            raise Damaged(
                f"{source} arrived damaged twice, or changes while it is read",
                self._host.label,
                "Let whatever writes to it finish, then start again.",
            )
        return self.attempt(remote, outage, begin)

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
        result = self._host.run(_sh(_STAT, source), timeout=30, check=False)
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
                self._copy(_sh(_READ, source, str(BLOCK), str(blocks)), stream, size, outage)
            stream.flush()
            os.fsync(stream.fileno())

    def _copy(self, argv: list[str], stream: BinaryIO, size: int, outage: Outage) -> None:
        with self._host.start(argv, timeout=STALL) as command:
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
            command.finish()


def _sh(script: str, *arguments: str) -> list[str]:
    return ["sh", "-c", script, "sh", *arguments]


def _no_room(host: Host, folder: str, needed: int, free: int) -> DiskFull:
    return DiskFull(
        f"{folder} needs {needed / 1e9:.2f} GB but has {free / 1e9:.2f} GB free",
        host.label,
        "Free space there, or set the block's work_dir to a larger disk. "
        "The unfinished file has been removed.",
    )


def _writing_failed(host: Host, path: str, said: str) -> CrossgapError:
    if "No space left" in said or "quota" in said.lower():
        return DiskFull(
            f"the disk filled up while {path} was written",
            host.label,
            "Free space there, or set the block's work_dir to a larger disk. "
            "The unfinished file has been removed.",
        )
    if "ermission denied" in said or "Read-only" in said:
        return PermissionRefused(
            f"the user may not write to {path}",
            host.label,
            "Set the block's work_dir (or models_dir) to a folder that the user owns.",
        )
    return CrossgapError(
        f"writing {path} failed ({' '.join(said.split())[-200:] or 'no message'})",
        host.label,
        "Look at the disk of the host; then start the run again, which goes on from here.",
        retryable=True,
    )


@contextmanager
def _local_errors(local: Path) -> Iterator[None]:
    """Turn what this machine's file system says into errors that an operator understands."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                "the disk here filled up", str(local.parent), "Free space, then start again."
            ) from error
        raise PermissionRefused(
            f"the file here cannot be used ({error.strerror})",
            str(local),
            "Check the rights of the user who runs the worker, and the disk.",
        ) from error


def _opened(local: Path) -> BinaryIO:
    with _local_errors(local):
        return local.open("rb")


def _read(stream: BinaryIO, local: Path) -> bytes:
    with _local_errors(local):
        return stream.read(CHUNK)
