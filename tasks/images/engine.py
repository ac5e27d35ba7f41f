"""The source engine: the Docker engine that images are taken from.

It is the one that `DOCKER_HOST` names, or the one on the default socket.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from blocks.errors import (
    CrossgapError,
    EngineUnavailable,
    InvalidInput,
    NotFound,
    PermissionRefused,
    SeveralFailures,
    TimedOut,
)
from tasks.images.facts import ImageFacts, parse_engine_info, parse_image, parse_layer_sizes

if TYPE_CHECKING:
    from docker import APIClient

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
# An engine that is busy saving or pulling answers late.
ANSWER_SECONDS = 120
_OLDEST_API = "1.24"


def engine_address() -> str:
    """Return where the source engine listens, as messages name it."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET


def engine_label() -> str:
    """Return the source engine as messages name it."""
    return f"source engine ({engine_address()})"


@contextmanager
def open_engine() -> Iterator[APIClient]:
    """Connect to the source engine.

    Yields:
        A client of its API, with time-outs, that ignores proxy settings.

    Raises:
        EngineUnavailable: It does not answer.
        PermissionRefused: This user may not use it.
        InvalidInput: `DOCKER_HOST` is not an address.
        TimedOut: It stopped answering.
    """
    import requests
    from docker.errors import DockerException

    try:
        # With a version given the client connects to nothing yet, and what it
        # then asks first goes past every proxy.
        with closing(_client(_OLDEST_API)) as client:
            version = str(client.version(api_version=False)["ApiVersion"])
        with closing(_client(version)) as client:
            yield client
    except requests.exceptions.ReadTimeout as error:
        raise TimedOut(
            "Docker stopped answering",
            engine_label(),
            "The machine may be overloaded or its disk may hang; look at it, then start again.",
        ) from error
    except (DockerException, requests.exceptions.RequestException) as error:
        raise _unavailable(error) from error


def read_images(names: Sequence[str]) -> tuple[ImageFacts, ...]:
    """Read what the source engine has under some names.

    Args:
        names: Image names as Docker shows them.

    Returns:
        The images in the order of the names.

    Raises:
        NotFound: An image is not there; names close to it are listed.
        SeveralFailures: Several are not there.
        CrossgapError: As for `open_engine`.
    """
    with open_engine() as client:
        found = find_images(client, names)
        missing = [name for name in names if name not in found]
        if missing:
            known = _known_names(client)
            raise several([not_found(name, known) for name in missing])
    return tuple(found[name] for name in names)


def find_images(client: APIClient, names: Sequence[str]) -> dict[str, ImageFacts]:
    """Read those of some images that the engine has, by name."""
    from docker.errors import ImageNotFound

    store = parse_engine_info(client.info()).store
    found: dict[str, ImageFacts] = {}
    for name in names:
        try:
            inspected: dict[str, Any] = client.inspect_image(name)  # type: ignore[no-untyped-call]
        except ImageNotFound:
            continue
        layers = (inspected.get("RootFS") or {}).get("Layers") or ()
        history = client.history(name)  # type: ignore[no-untyped-call]
        sizes = parse_layer_sizes(history, len(layers))
        found[name] = parse_image(inspected, name, store, sizes)
    return found


def not_found(name: str, known: Sequence[str]) -> NotFound:
    """Make the error for an image that the source engine does not have.

    Args:
        name: The image.
        known: The names that exist there.
    """
    close = close_names(name, known)
    hint = f" It has {' and '.join(close)}." if close else ""
    return NotFound(
        "the source engine has no such image",
        f"image {name!r}",
        f"Check the name, or get it with docker pull {name} or docker load.{hint}",
    )


def close_names(name: str, known: Sequence[str], most: int = 3) -> list[str]:
    """Return the names that a person may have meant: other tags first."""
    repository = name.partition("@")[0].rpartition(":")[0] or name
    other_tags = [one for one in known if one.rpartition(":")[0] == repository]
    alike = difflib.get_close_matches(name, known, n=most, cutoff=0.7)
    return list(dict.fromkeys([*other_tags, *alike]))[:most]


def several(failures: Sequence[CrossgapError]) -> CrossgapError:
    """Make one error of one or more."""
    return failures[0] if len(failures) == 1 else SeveralFailures(failures, engine_label())


def _client(version: str) -> APIClient:
    from docker import APIClient
    from docker.utils import kwargs_from_env

    client = APIClient(version=version, timeout=ANSWER_SECONDS, **kwargs_from_env())
    client.trust_env = False
    return client


def _known_names(client: APIClient) -> list[str]:
    return sorted(tag for image in client.images() for tag in image.get("RepoTags") or ())


def _unavailable(error: Exception) -> CrossgapError:
    text = str(error)
    if re.search(r"PermissionError|permission denied", text, re.IGNORECASE):
        return PermissionRefused(
            "this user may not use Docker",
            engine_label(),
            "Run the worker as root, or add its user to the group docker and log in anew.",
        )
    if re.search(r"Invalid bind address|Invalid host|Bad .*address|protocol", text):
        return InvalidInput(
            "DOCKER_HOST is not an address", engine_label(), "Use unix:///PATH or tcp://HOST:PORT."
        )
    if re.search(r"Connection aborted|Connection refused|Max retries|server API version", text):
        return EngineUnavailable(
            "the Docker engine does not answer",
            engine_label(),
            "Start it (systemctl start docker), or set DOCKER_HOST to the engine that is meant.",
        )
    said = getattr(error, "explanation", None) or text
    return EngineUnavailable(
        f"Docker reported an error ({str(said)[-300:]})", engine_label(), "Look at its log."
    )
