"""Sizes, rates and durations as people read them."""

import pytest

from tasks.common.units import bytes_text, duration_text, rate_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (-5, "0 B"),
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.00 kB"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_410_000_000, "1.41 GB"),
        (23_400_000, "23.4 MB"),
        (7e15, "7.00 PB"),
        (5e18, "5000 PB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(count: float, text: str) -> None:
    assert bytes_text(count) == text


def test_a_rate_is_a_size_per_second() -> None:
    assert rate_text(23_400_000) == "23.4 MB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (200_000, "2 d 7 h"),
        (float("inf"), "unknown"),
        (float("nan"), "unknown"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
