"""That a layer's blob unpacks to what its image says."""

from __future__ import annotations

import gzip
import hashlib
import random

import pytest
import zstandard

from blocks.content import Content
from blocks.errors import Damaged
from tasks.images.blobs import Blob
from tasks.images.registry.proof import prove_layer

LAYER = random.Random(5).randbytes(300_000) + bytes(3_000_000)


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def blob(content: bytes) -> Blob:
    pieces = tuple(content[at : at + 100_000] for at in range(0, len(content), 100_000))
    return Blob(digest(content), len(content), Content(pieces))


@pytest.mark.parametrize(
    ("packed", "compression"),
    [
        (LAYER, "none"),
        (b"", "none"),
        (gzip.compress(LAYER), "gzip"),
        (gzip.compress(LAYER[:1000]) + gzip.compress(LAYER[1000:]), "gzip"),
        (zstandard.compress(LAYER), "zstd"),
        (zstandard.compress(LAYER[:1000]) + zstandard.compress(LAYER[1000:]), "zstd"),
    ],
    ids=["none", "empty", "gzip", "two gzip members", "zstd", "two zstd frames"],
)
def test_a_right_layer_is_known_by_its_bytes(packed: bytes, compression: str) -> None:
    diff_id = digest(LAYER if packed else b"")
    assert prove_layer(blob(packed), diff_id, "image 'a'") == compression


@pytest.mark.parametrize(
    "packed",
    [
        LAYER[1:],
        gzip.compress(LAYER[1:]),
        gzip.compress(LAYER)[:-5],
        gzip.compress(LAYER)[:100_000] + bytes(1000) + gzip.compress(LAYER)[101_000:],
        zstandard.compress(LAYER)[:-5],
        zstandard.compress(LAYER[1:]),
    ],
    ids=["other", "other in gzip", "cut gzip", "broken gzip", "cut zstd", "other in zstd"],
)
def test_a_wrong_layer_is_refused(packed: bytes) -> None:
    with pytest.raises(Damaged, match="its layer sha256:"):
        prove_layer(blob(packed), digest(LAYER), "image 'a'")
