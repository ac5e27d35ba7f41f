"""The name under which an image arrives where `docker load` puts it."""

from __future__ import annotations

from tasks.images.names import Reference

_DIGITS = 12


def arrival_name(reference: Reference) -> str:
    """Return the name and tag that an image gets on a host.

    `docker load` knows tags only and forgets digests (moby#43570), so an image
    that was asked for by digest gets a tag that is made of it, always the same.

    Args:
        reference: The image as it was asked for.
    """
    if not reference.digest:
        return reference.familiar
    algorithm, _, hexadecimal = reference.digest.partition(":")
    return f"{reference.repository}:{algorithm}-{hexadecimal[:_DIGITS]}"


def arrival_note(reference: Reference) -> str:
    """Return what an operator has to know about that name, or nothing.

    Args:
        reference: The image as it was asked for.
    """
    if not reference.digest:
        return ""
    return (
        f"{reference.familiar} arrived as {arrival_name(reference)}, because docker load "
        "forgets digests: write that name into compose files there."
    )
