"""The user of a registry, from the block that an operator saved."""

from __future__ import annotations

from blocks.errors import InvalidInput
from tasks.images.registry.auth import Credentials


def load_credentials(name: str) -> Credentials:
    """Load a Docker Registry Credentials block.

    Args:
        name: The block's name.

    Raises:
        InvalidInput: There is no such block.
    """
    from prefect_docker import DockerRegistryCredentials

    try:
        block = DockerRegistryCredentials.load(name)
    except ValueError as error:
        raise InvalidInput(
            "there is no Docker Registry Credentials block of this name",
            f"block {name!r}",
            "Create it in the UI (Blocks), or correct the name.",
        ) from error
    password: str = block.password.get_secret_value()
    return Credentials(str(block.username), password, str(block.registry_url or ""))
