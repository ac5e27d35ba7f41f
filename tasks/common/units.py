"""Sizes, rates and durations as people read them."""

from __future__ import annotations

import math

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def bytes_text(count: float) -> str:
    """Show a size.

    Args:
        count: Bytes; what is below zero counts as zero.

    Returns:
        Three digits and a decimal unit, as in `1.41 GB`; whole bytes below 1 kB.
    """
    size = max(0.0, count)
    if round(size) < 1000:
        return f"{round(size)} B"
    power = 0
    # 999.5 would be shown as 1000 of this unit: that is 1.00 of the next.
    while power == 0 or (size >= 999.5 and power < len(_UNITS)):
        size /= 1000
        power += 1
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {_UNITS[power - 1]}"


def rate_text(bytes_per_second: float) -> str:
    """Show a rate given in bytes per second, as in `23.4 MB/s`."""
    return f"{bytes_text(bytes_per_second)}/s"


def duration_text(seconds: float) -> str:
    """Show a duration.

    Args:
        seconds: How long; what is below zero counts as zero.

    Returns:
        The two largest units, as in `3 min 20 s`; `unknown` for what is not finite.
    """
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
