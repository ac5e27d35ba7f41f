"""Artifact keys: lower-case letters, digits and dashes, as Prefect demands."""

from __future__ import annotations

import hashlib
import re


def slug(name: str) -> str:
    """Turn any name into a part of an artifact key.

    Args:
        name: A host, flow or image, in any script.

    Returns:
        The name itself where it is a slug already, otherwise what is left of
        it plus six hexadecimal digits of its SHA-256, so that two names never
        share one key.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain and plain == name:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{plain[:60].strip('-')}-{digest}".lstrip("-")


def artifact_key(flow: str, kind: str, subject: str = "") -> str:
    """Name an artifact of a flow, as in `ship-images-progress-gpu1`.

    Args:
        flow: The flow's name.
        kind: `summary`, `table`, `progress`, or a step on this side such as `save`.
        subject: The host, for what exists once per host; of another kind than
            `progress` any other place.

    Returns:
        The key.
    """
    parts = [slug(flow), kind]
    return "-".join([*parts, slug(subject)] if subject else parts)
