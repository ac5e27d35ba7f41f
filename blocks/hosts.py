"""Hosts by the name of their block."""

from __future__ import annotations

import difflib
from http import HTTPStatus
from typing import cast

from blocks.errors import NotFound
from blocks.host import Host
from blocks.local_host import LocalHost
from blocks.ssh_host import SSHHost

KINDS: tuple[type[SSHHost] | type[LocalHost], ...] = (SSHHost, LocalHost)


def load_host(name: str) -> Host:
    """Load the host block of this name.

    Args:
        name: The name of an SSH Host block or, failing that, a Local Host block.

    Returns:
        The block, not yet connected.

    Raises:
        NotFound: There is none; the message names those that exist.
    """
    for kind in KINDS:
        try:
            return cast(Host, kind.load(name))
        except ValueError:  # Prefect's word for "no such block document"
            continue
    existing = host_names()
    close = difflib.get_close_matches(name, existing, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise NotFound(
        "there is no host block of this name",
        name,
        f"{hint}Existing hosts: {', '.join(existing) or 'none'}. "
        "Make one in the UI under Blocks, type SSH Host.",
    )


def host_names() -> list[str]:
    """Return the names of all host blocks, sorted."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    names: list[str] = []
    with get_client(sync_client=True) as client:
        for kind in KINDS:
            try:
                documents = client.read_block_documents_by_type(
                    kind.get_block_type_slug(), include_secrets=False
                )
            except PrefectHTTPStatusError as error:
                if error.response.status_code != HTTPStatus.NOT_FOUND:
                    raise
                continue  # a type that was never registered has no blocks
            names += [document.name for document in documents if document.name]
    return sorted(names)
