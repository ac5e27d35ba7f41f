"""The spool: archives that the source engine saved, kept until they have arrived.

An archive is named by what it holds, so that a run that was interrupted finds
what it had saved, and the far side goes on where it stopped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blocks.cancellation import current_cancellation
from blocks.errors import CommandFailed, CrossgapError, Damaged, DiskFull, NotFound
from blocks.files import Progress
from tasks.common.units import bytes_text
from tasks.images.archive import ArchiveFacts
from tasks.images.digests import StreamDigest
from tasks.images.engine import engine_label, open_engine
from tasks.images.facts import ImageFacts, unpacked_size

if TYPE_CHECKING:
    import requests

SPOOL_VARIABLE = "CROSSGAP_SPOOL"
# An engine copies all layers together before the first byte comes.
FIRST_BYTE_SECONDS = 1800
KEPT_SECONDS = 7 * 24 * 3600

_CHUNK = 1 << 20
_END_OF_TAR = bytes(1024)
_TAIL = 4096
_HEADROOM = 64 << 20


def spool_dir() -> Path:
    """Return the folder for saved archives: `CROSSGAP_SPOOL`, or `~/.crossgap/spool`."""
    return Path(os.environ.get(SPOOL_VARIABLE) or "~/.crossgap/spool").expanduser()


def spool_path(images: Sequence[ImageFacts], into: Path) -> Path:
    """Return where an archive of these images belongs, by names and content."""
    content = sorted((image.name, image.config_digest or image.image_id) for image in images)
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return into / f"images-{key}.tar"


def save_images(
    images: Sequence[ImageFacts], into: Path, progress: Progress | None = None
) -> ArchiveFacts:
    """Have the source engine save images in one archive, or find the one it saved before.

    Args:
        images: What to save; layers that they share are saved once.
        into: The folder for it, made when missing.
        progress: Called with the bytes written so far and the bytes expected.

    Returns:
        The archive, with its size and SHA-256.

    Raises:
        DiskFull: There is no room for it, found before or while writing.
        Damaged: The engine stopped half-way; trying again may help.
        NotFound: An image has been removed meanwhile.
        CrossgapError: As for `tasks.images.engine.open_engine`.
    """
    path = spool_path(images, into)
    with _writable(into):
        into.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep_spool(into)
    known = _recorded(path)
    if known is None:
        expected = unpacked_size(images)
        _check_room(into, expected)
        known = _save(images, path, expected, progress)
    size, sha256 = known
    if progress is not None:
        progress(size, size)
    return ArchiveFacts(path, size, sha256, "none", tuple(images))


def drop_spool(archive: ArchiveFacts) -> None:
    """Remove a saved archive, unless another run is holding it; safe to call twice."""
    with suppress(FileNotFoundError), archive.path.open("rb") as file:
        if _locked(file, fcntl.LOCK_EX):
            _remove(archive.path)


@contextmanager
def hold_spool(archive: ArchiveFacts) -> Iterator[None]:
    """Keep other runs from removing a saved archive while this one sends it.

    Raises:
        NotFound: It is gone already; saving it again helps.
    """
    try:
        file = archive.path.open("rb")
    except FileNotFoundError as error:
        raise NotFound(
            "the saved archive is gone", str(archive.path), "Start again.", retryable=True
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def sweep_spool(folder: Path) -> None:
    """Remove what killed runs left half-written, and archives that nobody came back for.

    A half-written file is locked by its writer for as long as that lives.
    """
    oldest = time.time() - KEPT_SECONDS
    for path in folder.glob("images-*"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            stale = path.suffix == ".part" or path.stat().st_mtime < oldest
            if stale and _locked(file, fcntl.LOCK_EX):
                _remove(path)


def _save(
    images: Sequence[ImageFacts], path: Path, expected: int, progress: Progress | None
) -> tuple[int, str]:
    part = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}.part")
    try:
        with _writable(path.parent), part.open("wb") as file, StreamDigest() as digest:
            fcntl.flock(file, fcntl.LOCK_EX)
            with open_engine() as client:
                url = f"{client.base_url}/v{client.api_version}/images/get"
                with client.get(
                    url,
                    params={"names": [image.name for image in images]},
                    stream=True,
                    timeout=FIRST_BYTE_SECONDS,
                ) as response:
                    _check_answer(response)
                    size, tail = _copy(response, file, digest, expected, progress)
            _check_end(tail)
            file.flush()
            os.fsync(file.fileno())
            sha256 = digest.hexdigest()
            # Another run may have saved the same meanwhile, and be sending it.
            meanwhile = _recorded(path)
            if meanwhile is not None:
                return meanwhile
            part.replace(path)
            _record(path, size, sha256, os.fstat(file.fileno()))
    finally:
        part.unlink(missing_ok=True)
    return size, sha256


def _copy(
    response: requests.Response,
    file: BinaryIO,
    digest: StreamDigest,
    expected: int,
    progress: Progress | None,
) -> tuple[int, bytes]:
    """Write the answer to a file and return its size and last bytes."""
    import requests

    cancellation = current_cancellation()
    written, tail = 0, b""
    try:
        for chunk in response.iter_content(_CHUNK):
            cancellation.check(engine_label())
            file.write(chunk)
            digest.update(chunk)
            written += len(chunk)
            tail = (tail + chunk)[-_TAIL:]
            if progress is not None:
                progress(written, max(expected, written))
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError) as error:
        raise _cut_off(f"after {bytes_text(written)}") from error
    return written, tail


def _check_answer(response: requests.Response) -> None:
    if response.status_code == 200:
        return
    said = _message(response.content[:_TAIL].decode("utf-8", "replace"))
    if response.status_code == 404:
        raise NotFound(
            f"an image has been removed meanwhile ({said})",
            engine_label(),
            "Get it back with docker pull or docker load, then start again.",
        )
    raise _complaint(said)


def _check_end(tail: bytes) -> None:
    """Refuse an answer that ended well as HTTP and badly as a tar.

    An engine that fails half-way appends its complaint as JSON.
    """
    if tail.endswith(_END_OF_TAR):
        return
    found = re.search(rb'\{"(?:errorDetail|message|error)".*', tail, re.DOTALL)
    if found:
        raise _complaint(_message(found[0].decode("utf-8", "replace")))
    raise _cut_off("before the end of the archive")


def _complaint(said: str) -> CrossgapError:
    if re.search(r"no space left|disk quota", said, re.IGNORECASE):
        return DiskFull(
            f"the source engine's own disk is full ({said})",
            engine_label(),
            "Make room where the source engine keeps its data; it copies the images there "
            "before it hands them out (docker system df shows what takes room).",
        )
    return CommandFailed(
        f"Docker could not save the images ({said})", engine_label(), "Look at its log."
    )


def _message(body: str) -> str:
    try:
        document = json.loads(body)
        return str(document.get("message") or document.get("error") or body).strip()
    except (ValueError, AttributeError):
        return body.strip()[-300:]


def _cut_off(when: str) -> Damaged:
    return Damaged(
        f"the engine stopped sending the images {when}",
        engine_label(),
        "See whether the engine was restarted or its disk is full; then start again.",
        retryable=True,
    )


def _check_room(folder: Path, expected: int) -> None:
    free = shutil.disk_usage(folder).free
    if expected + _HEADROOM > free:
        raise _no_room(folder, f"{bytes_text(expected)} are needed, {bytes_text(free)} are free")


def _no_room(folder: Path, how: str) -> DiskFull:
    return DiskFull(
        f"no room to save the images ({how})",
        str(folder),
        f"Make room there, or name a folder on a larger disk in {SPOOL_VARIABLE}.",
    )


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Turn the file system's complaints into errors that an operator understands."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(folder, "the disk became full while writing") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise CommandFailed(
                f"the folder cannot be used ({error.strerror})",
                str(folder),
                f"Name a folder that may be written to in {SPOOL_VARIABLE}.",
            ) from error
        raise


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _record(path: Path, size: int, sha256: str, status: os.stat_result) -> None:
    record = {
        "size": size,
        "sha256": sha256,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
    }
    beside = path.with_name(path.name + ".json.new")
    beside.write_text(json.dumps(record))
    beside.replace(_sidecar(path))


def _recorded(path: Path) -> tuple[int, str] | None:
    """Return size and hash of a finished archive, if it is still the recorded file."""
    try:
        record = json.loads(_sidecar(path).read_text())
        status = path.stat()
        found = (status.st_size, status.st_mtime_ns, status.st_ino)
        if found == (record["size"], record["mtime_ns"], record["inode"]):
            return int(record["size"]), str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _locked(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.suffix == ".tar":
        _sidecar(path).unlink(missing_ok=True)
