"""Which image of a multi-platform one a host gets."""

from __future__ import annotations

from typing import Any

import pytest

from blocks.errors import WrongArchitecture
from tasks.images.registry.platforms import choose_platform

ATTESTATION = {
    "digest": "attestation",
    "platform": {"os": "unknown", "architecture": "unknown"},
    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
}


def entry(text: str) -> dict[str, Any]:
    system, architecture, *variant = text.split("/")
    platform = {"os": system, "architecture": architecture}
    return {"digest": text, "platform": platform | ({"variant": variant[0]} if variant else {})}


@pytest.mark.parametrize(
    ("made_for", "host", "chosen"),
    [
        ("linux/amd64 linux/arm64/v8", "arm64", "linux/arm64/v8"),
        ("linux/amd64 linux/arm64", "arm64", "linux/arm64"),
        ("linux/arm64/v9 linux/arm64/v8", "arm64", "linux/arm64/v8"),
        ("linux/arm/v5 linux/arm/v7 linux/arm/v6", "arm", "linux/arm/v7"),
        ("linux/arm/v5 linux/arm/v7 linux/arm/v6", "arm/v6", "linux/arm/v6"),
        ("linux/arm/v5 linux/arm/v7", "linux/arm/v6", "linux/arm/v5"),
        ("linux/amd64/v3 linux/amd64", "amd64", "linux/amd64"),
        ("linux/amd64/v3 linux/amd64", "amd64/v3", "linux/amd64/v3"),
        ("windows/amd64 linux/amd64", "amd64", "linux/amd64"),
        ("linux/386 linux/arm64", "amd64", "linux/386"),
        ("linux/loong64 linux/amd64", "loong64", "linux/loong64"),
        ("linux/amd64 linux/amd64", "amd64", "linux/amd64"),
    ],
)
def test_the_newest_variant_that_a_host_can_run_is_chosen(
    made_for: str, host: str, chosen: str
) -> None:
    entries = [ATTESTATION, *map(entry, made_for.split())]
    assert choose_platform(entries, host, "image 'a:1'")["digest"] == chosen


@pytest.mark.parametrize(
    ("made_for", "host", "told"),
    [
        ("linux/amd64 linux/arm64/v8", "s390x", "but for linux/amd64, linux/arm64/v8"),
        ("windows/amd64", "amd64", "but for windows/amd64"),
        ("linux/arm/v7", "arm/v6", "but for linux/arm/v7"),
        ("", "amd64", "but for no platform at all"),
    ],
)
def test_what_an_image_is_made_for_is_told_when_nothing_fits(
    made_for: str, host: str, told: str
) -> None:
    entries = [ATTESTATION, *map(entry, made_for.split())]
    with pytest.raises(WrongArchitecture, match=told) as failed:
        choose_platform(entries, host, "image 'a:1'")
    assert "unknown" not in str(failed.value)
