"""Folders on hosts with a model that somebody fetched there: hashed in their place, and read.

As with folders here, no hub has promised anything about them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from blocks.errors import CommandFailed, Damaged, NotFound
from blocks.file_scripts import sh
from blocks.remote_hash import remote_sha256, seconds_to_hash
from blocks.transfer import STALL
from tasks.models import remote_scripts
from tasks.models.files import MANIFEST, ModelFile
from tasks.models.folders import check_names, named_by_content
from tasks.models.records import Record
from tasks.models.remote_facts import parse_check
from tasks.models.revision_folder import run_script, waited
from tasks.models.tally import Tally

if TYPE_CHECKING:
    from blocks.host import Host, RunningCommand

# Files up to this size are hashed many at once, larger ones by a job that outlives a connection.
_TOGETHER = 64 << 20
_BATCH = 256 << 20
_SECONDS = 300.0

_LIST = """\
cd "$1" 2>/dev/null || exit 8
find . -name '.?*' -prune -o -type f -exec stat -c '%s %n' {} +"""

_WRITE = """\
cd "$1" || exit 3
cat >".$2.new" && mv -f ".$2.new" "$2" || exit 4"""

_RANGE = 'tail -c "+$2" "$1" | head -c "$3"'


def list_host_folder(
    host: Host, folder: str, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[ModelFile, ...]:
    """List the files of a folder on a host, hidden ones and our own manifest left out.

    Args:
        host: The host.
        folder: The folder, absolute or below `~`.
        include: Patterns of files; none for all.
        exclude: Patterns of files to leave out.

    Raises:
        NotFound: There is no such folder, or nothing is in it.
        CrossgapError: As for `tasks.models.folders.check_names` and `Host.run`.
    """
    where = f"{host.name}:{folder}"
    result = host.run(sh(_LIST, host.expand(folder)), timeout=_SECONDS, check=False)
    if result.exit_code == remote_scripts.MISSING:
        raise NotFound("there is no such folder on that host", where, "Check the path.")
    if result.exit_code:
        raise host.command_failed(["list", folder], result)
    files = []
    for line in result.stdout.splitlines():
        size, _, path = line.partition(" ./")
        if not size.isdecimal():
            raise CommandFailed(
                f"a file's name has a line break ({line[:80]!r})", where, "Rename it."
            )
        if path != MANIFEST:
            files.append(ModelFile(path, int(size)))
    return check_names(sorted(files, key=lambda file: file.path), include, exclude, where)


def hash_host_folder(
    host: Host, folder: str, files: Sequence[ModelFile], tally: Tally, *, manifest: bool = True
) -> Record:
    """Hash the files of a folder on a host by its own tools, and write their manifest into it.

    Args:
        host: The host.
        folder: The folder, absolute or below `~`.
        files: The files.
        tally: Is told how far it has come.
        manifest: Whether to write it.

    Raises:
        Damaged: A file changed while it was hashed.
        CrossgapError: As for `run_script`.
    """
    there = host.expand(folder)
    found: list[ModelFile] = []
    for batch in _batches(files):
        found += _hashed(host, there, batch)
        tally.there(sum(file.size for file in batch))
        tally.files_done += len(batch)
    record, text = named_by_content(posixpath.basename(there), f"{host.name}:{folder}", found)
    if manifest:
        run_script(host, sh(_WRITE, there, MANIFEST), there, data=text)
    return record


def _batches(files: Sequence[ModelFile]) -> Iterator[list[ModelFile]]:
    batch: list[ModelFile] = []
    size = 0
    for file in files:
        if file.size > _TOGETHER:
            yield [file]
            continue
        batch.append(file)
        size += file.size
        if size > _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hashed(host: Host, folder: str, batch: Sequence[ModelFile]) -> list[ModelFile]:
    if len(batch) == 1 and batch[0].size > _TOGETHER:
        path = f"{folder}/{batch[0].path}"
        size = batch[0].size
        return [replace(batch[0], sha256=waited(host, lambda: remote_sha256(host, path, size)))]
    names = "".join(f"{file.path}\n" for file in batch).encode()
    timeout = seconds_to_hash(sum(file.size for file in batch))
    answer = run_script(host, remote_scripts.check(folder), folder, data=names, timeout=timeout)
    sums = parse_check(answer.stdout)
    for file in batch:
        if file.path not in sums or not sums[file.path].sha256:
            raise Damaged(
                f"{file.path} changed while it was hashed, or cannot be read",
                f"{host.name}:{folder}",
                "Let whatever writes to it finish, then start again.",
            )
    return [replace(file, sha256=sums[file.path].sha256) for file in batch]


class HostPlace:
    """A folder on a host, as a place that files are fetched from.

    Args:
        host: The host.
        folder: The folder, absolute or below `~`.
    """

    def __init__(self, host: Host, folder: str) -> None:
        self.name = host.name
        self._host = host
        self._folder = host.expand(folder)

    @contextmanager
    def open(self, file: ModelFile, start: int, stop: int) -> Iterator[_Output]:
        """Read a range of a file.

        Args:
            file: The file.
            start: The first byte.
            stop: The byte behind the last one.

        Raises:
            CrossgapError: As for `Host.start`.
        """
        argv = sh(_RANGE, f"{self._folder}/{file.path}", str(start + 1), str(stop - start))
        with self._host.start(argv, timeout=STALL, bulk=True) as command:
            yield _Output(command, self.name, start)


class _Output:
    """What a command prints, as the bytes of an answer."""

    whole = False

    def __init__(self, command: RunningCommand, host: str, first: int) -> None:
        self.host = host
        self.first = first
        self._command = command
        self._rest = b""

    def read(self, most: int) -> bytes:
        while not self._rest:
            pair = self._command.read()
            if pair is None:
                return b""
            if pair[0]:
                self._command.extend(STALL)
            self._rest = pair[0]
        chunk, self._rest = self._rest[:most], self._rest[most:]
        return chunk
