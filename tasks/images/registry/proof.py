"""Proves that a layer's blob unpacks to what the configuration of its image promises.

The manifest proves the blob, the configuration names what is in it, and nothing but
unpacking shows whether the two agree. The engine on the host checks the same, but only
after everything has been sent.
"""

from __future__ import annotations

from blocks.cancellation import current_cancellation
from blocks.errors import Damaged
from tasks.images.blobs import Blob, Compression
from tasks.images.compress import unpacked
from tasks.images.digests import StreamDigest

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def prove_layer(blob: Blob, diff_id: str, where: str) -> Compression:
    """Check that a blob unpacks to a layer.

    Args:
        blob: The blob, its own digest already checked.
        diff_id: Of the layer.
        where: The image, for errors.

    Returns:
        How the blob is compressed, whatever its manifest calls it.

    Raises:
        Damaged: It unpacks to something else, or not at all.
    """
    compression = _compression(blob)
    try:
        found = blob.digest if compression == "none" else _unpacked_digest(blob, compression, where)
    except (EOFError, ValueError) as error:
        raise _damaged(blob, f"cannot be unpacked ({error})", where) from error
    if found != diff_id:
        raise _damaged(blob, f"unpacks to {found[:19]}… instead of {diff_id[:19]}…", where)
    return compression


def _compression(blob: Blob) -> Compression:
    head = next(blob.content.chunks(), b"")
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "none")


def _unpacked_digest(blob: Blob, compression: Compression, where: str) -> str:
    cancellation = current_cancellation()
    with StreamDigest() as digest:
        for chunk in unpacked(blob.content.chunks(), compression):
            cancellation.check(where)
            digest.update(chunk)
        return f"sha256:{digest.hexdigest()}"


def _damaged(blob: Blob, how: str, where: str) -> Damaged:
    return Damaged(
        f"its layer {blob.digest[:19]}… {how}",
        where,
        "The image is broken in the registry; have it built and pushed again.",
    )
