"""In which form a layer travels: by what pays, and by what the far side can unpack. Pure."""

from __future__ import annotations

from tasks.images.blobs import Compression

# Bytes of the unpacked layer per second on one processor of 2020 or so: what this side
# packs (measured with real files), and what Docker's own unpacking takes.
_PACKS: dict[Compression, float] = {"gzip": 450e6, "zstd": 280e6}
_UNPACKS: dict[Compression, float] = {"gzip": 150e6, "zstd": 500e6}
# What zstd makes smaller than gzip, at the levels used here.
_ZSTD_GAIN = 1.2

# Packing has to save at least this share of the time: measurements are not more exact,
# and the processors have other work.
_WORTH = 0.15

SMALL = 8 << 20
"""Bytes up to which packing and unpacking take no time worth measuring."""


def best_form(ratio: float, rate: float | None, *, unpacks_zstd: bool) -> Compression:
    """Choose the form in which a layer is on the far side's disk, unpacked, soonest.

    Args:
        ratio: Unpacked bytes per byte of gzip, in a sample of the layer.
        rate: Bytes per second of the link; None where it was not measured, as
            the layer is small.
        unpacks_zstd: Whether the far side takes zstd.
    """
    if rate is None:
        return "gzip" if ratio > 1 else "none"
    seconds: dict[Compression, float] = {
        "none": (1 - _WORTH) / rate,
        "gzip": _seconds("gzip", ratio, rate),
    }
    if unpacks_zstd:
        seconds["zstd"] = _seconds("zstd", ratio * _ZSTD_GAIN, rate)
    return min(seconds, key=lambda form: seconds[form])


def _seconds(form: Compression, ratio: float, rate: float) -> float:
    """Estimate the seconds per unpacked byte; packing goes on beside sending."""
    return max(1 / _PACKS[form], 1 / (rate * ratio)) + 1 / _UNPACKS[form]
