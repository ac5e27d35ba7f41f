"""Which image of a multi-platform one a host can run.

The rule is containerd's (platforms/compare.go): the same architecture, and the
newest variant that is not newer than the host's. An amd64 host runs 386, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from blocks.errors import WrongArchitecture

# What an architecture means where no variant is named.
_USUAL_VARIANT = {"arm64": 8, "arm": 7, "amd64": 1}
_ALSO_RUNS = {"amd64": ("386",)}


def choose_platform(
    entries: Sequence[Mapping[str, Any]], architecture: str, where: str
) -> Mapping[str, Any]:
    """Choose the entry of an image index for a host.

    Args:
        entries: The descriptors of the index.
        architecture: The host's, as Docker calls it; `arm/v6` names a variant.
        where: The image, for the error.

    Returns:
        One of the entries.

    Raises:
        WrongArchitecture: None fits; those that exist are named.
    """
    images = [entry for entry in entries if not _is_attestation(entry)]
    name, _, variant = architecture.removeprefix("linux/").partition("/")
    for wanted in (name, *_ALSO_RUNS.get(name, ())):
        most = _number(wanted, variant if wanted == name else "")
        fitting = [
            (_number(wanted, _text(entry, "variant")), -position, entry)
            for position, entry in enumerate(images)
            if (_text(entry, "os"), _text(entry, "architecture")) == ("linux", wanted)
        ]
        fitting = [one for one in fitting if one[0] <= most]
        if fitting:
            return max(fitting, key=lambda one: one[:2])[2]
    raise wrong_architecture([platform_text(entry) for entry in images], architecture, where)


def wrong_architecture(made_for: Sequence[str], architecture: str, where: str) -> WrongArchitecture:
    """Make the error for an image that does not exist for a host's architecture.

    Args:
        made_for: The platforms that it exists for.
        architecture: The host's.
        where: The image.
    """
    known = ", ".join(dict.fromkeys(made_for)) or "no platform at all"
    return WrongArchitecture(
        f"it is not made for linux/{architecture.removeprefix('linux/')}, but for {known}",
        where,
        "Choose a tag that is made for it, or build the image for it.",
    )


def platform_text(entry: Mapping[str, Any]) -> str:
    """Name the platform of an entry, as in `linux/arm64/v8`."""
    parts = [_text(entry, key) for key in ("os", "architecture", "variant")]
    return "/".join(part for part in parts if part)


def _is_attestation(entry: Mapping[str, Any]) -> bool:
    """Whether it says something about an image instead of being one (BuildKit's provenance)."""
    notes = entry.get("annotations")
    kind = notes.get("vnd.docker.reference.type") if isinstance(notes, dict) else None
    return kind is not None or _text(entry, "os") == "unknown" or "artifactType" in entry


def _text(entry: Mapping[str, Any], key: str) -> str:
    platform = entry.get("platform")
    return str(platform.get(key) or "") if isinstance(platform, dict) else ""


def _number(architecture: str, variant: str) -> int:
    digits = re.match(r"v?(\d+)", variant)
    return int(digits[1]) if digits else _USUAL_VARIANT.get(architecture, 0)
