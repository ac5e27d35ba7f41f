"""The form in which a layer travels, chosen by what pays."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tasks.images.blobs import Compression
from tasks.images.forms import best_form

MBIT = 1e6 / 8


@pytest.mark.parametrize(
    ("ratio", "mbit", "zstd", "form"),
    [
        # What packs to a third: over slow lines always, over fast ones only what unpacks fast.
        (3.0, 10, False, "gzip"),
        (3.0, 200, False, "gzip"),
        (3.0, 10_000, False, "none"),
        # Sooner by a tenth is not worth the work.
        (3.0, 700, False, "none"),
        (3.0, 10, True, "zstd"),
        (3.0, 200, True, "zstd"),
        (3.0, 10_000, True, "none"),
        # What does not pack travels as it is where the line is faster than the packing.
        (1.0, 1000, False, "none"),
        (1.0, 10_000, True, "none"),
        (0.99, 1, False, "none"),
    ],
)
def test_the_form_follows_link_ratio_and_engine(
    ratio: float, mbit: float, zstd: bool, form: Compression
) -> None:
    assert best_form(ratio, mbit * MBIT, unpacks_zstd=zstd) == form


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.2, 3.0, 100.0])
@pytest.mark.parametrize("mbit", [0.001, 1, 100, 1000, 100_000])
def test_an_old_engine_never_gets_zstd(ratio: float, mbit: float) -> None:
    assert best_form(ratio, mbit * MBIT, unpacks_zstd=False) != "zstd"
    assert best_form(ratio, None, unpacks_zstd=False) != "zstd"


@pytest.mark.parametrize("zstd", [False, True])
def test_where_a_faster_line_makes_packing_pointless_an_even_faster_one_does_too(
    zstd: bool,
) -> None:
    rates = [10**power * MBIT for power in range(-1, 6)]
    plain = [best_form(2.5, rate, unpacks_zstd=zstd) == "none" for rate in rates]
    assert plain[0] is False
    assert plain[-1] is True
    assert all(later or not earlier for earlier, later in pairwise(plain))


@pytest.mark.parametrize(("ratio", "form"), [(1.5, "gzip"), (1.0, "none"), (0.9, "none")])
@pytest.mark.parametrize("zstd", [False, True])
def test_a_small_layer_is_packed_whenever_that_makes_it_smaller(
    ratio: float, form: Compression, zstd: bool
) -> None:
    assert best_form(ratio, None, unpacks_zstd=zstd) == form
