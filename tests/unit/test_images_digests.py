"""Hashing beside the work."""

from __future__ import annotations

import hashlib
import os
import threading

from tasks.images.digests import StreamDigest


def test_the_hash_is_that_of_all_chunks_in_their_order() -> None:
    chunks = [os.urandom(50_000 + number) for number in range(40)]
    with StreamDigest() as digest:
        assert digest.hexdigest() == hashlib.sha256().hexdigest()
        for chunk in chunks:
            digest.update(chunk)
        assert digest.hexdigest() == hashlib.sha256(b"".join(chunks)).hexdigest()


def test_no_thread_outlives_it() -> None:
    before = threading.active_count()
    with StreamDigest() as digest:
        digest.update(b"x")
    assert threading.active_count() == before
