"""Hosts by the name of their block."""

from __future__ import annotations

import difflib
from http import HTTPStatus
from typing import cast

import httpx

from blocks.errors import NotFound, Unreachable
from blocks.host import Host
from blocks.local_host import LocalHost
from blocks.logs import logger
from blocks.ssh_host import SSHHost

KINDS: tuple[type[SSHHost] | type[LocalHost], ...] = (SSHHost, LocalHost)


# A server that is restarted must not end the work of a run on its hosts.
_loaded: dict[str, Host] = {}


def load_host(name: str) -> Host:
    """Load the host block of this name.

    Args:
        name: The name of an SSH Host block or, failing that, a Local Host block.

    Returns:
        The block, not yet connected.

    Raises:
        NotFound: There is none; the message names those that exist.
        Unreachable: The Prefect server does not answer, and never did before.
    """
    for kind in KINDS:
        try:
            _loaded[name] = cast(Host, kind.load(name))
        except ValueError:  # Prefect's word for "no such block document"
            continue
        except httpx.HTTPError as error:
            return _remembered(name, error)
        return _loaded[name]
    existing = host_names()
    close = difflib.get_close_matches(name, existing, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise NotFound(
        "there is no host block of this name",
        name,
        f"{hint}Existing hosts: {', '.join(existing) or 'none'}. "
        "Make one in the UI under Blocks, type SSH Host.",
    )


def _remembered(name: str, error: httpx.HTTPError) -> Host:
    """Go on with the block as it was when this process last loaded it."""
    if name in _loaded:
        logger().warning("The Prefect server does not answer (%r); going on with %s.", error, name)
        return _loaded[name]
    raise Unreachable(
        f"the Prefect server does not answer, so the block cannot be loaded ({error!r})",
        name,
        "Check that the server runs and that PREFECT_API_URL names it.",
    ) from error


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
