"""Gets images into the source engine, from their registry or a mirror of Docker Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from blocks.cancellation import current_cancellation
from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    CrossgapError,
    DiskFull,
    NotFound,
    PermissionRefused,
    TimedOut,
    Unreachable,
    WrongArchitecture,
)
from blocks.files import Progress
from tasks.images.arrival import arrival_name
from tasks.images.engine import (
    engine_label,
    find_images,
    not_found,
    open_engine,
    read_images,
    several,
)
from tasks.images.facts import ImageFacts
from tasks.images.names import Reference, parse_reference
from tasks.images.registry.auth import Credentials
from tasks.images.registry.places import find_places
from tasks.transfer.turns import together

if TYPE_CHECKING:
    from docker import APIClient

PullPolicy = Literal["missing", "always", "never"]

# An engine says something every second while bytes arrive.
SILENT_SECONDS = 120

_FAILURES: tuple[tuple[str, type[CrossgapError], str, str], ...] = (
    (
        r"no space left",
        DiskFull,
        "the source engine's disk is full",
        "Make room where the source engine keeps its data (docker system df).",
    ),
    (
        r"server gave HTTP response to HTTPS client",
        PermissionRefused,
        "the registry is not encrypted, and the source engine does not allow that",
        (
            "Add it to insecure-registries in the engine's daemon.json, or set source to "
            "'registry', which needs no engine."
        ),
    ),
    (
        r"x509",
        PermissionRefused,
        "the source engine does not trust the registry's certificate",
        "Put its authority's certificate into /etc/docker/certs.d/HOST:PORT/ca.crt there.",
    ),
    (
        r"unauthorized|authentication required|no basic auth credentials|incorrect username",
        AuthenticationRefused,
        "the registry refused the credentials",
        "Check the registry's user name and password.",
    ),
    (
        r"no matching manifest",
        WrongArchitecture,
        "the registry has no image for the source engine's architecture",
        "Check on the registry's page which platforms the image is made for.",
    ),
    (
        r"not found|manifest unknown|access denied|does not exist|name unknown",
        NotFound,
        "the registry has no such image, or not for this user",
        "Check the name and the tag, and whether it wants credentials.",
    ),
    (
        (
            r"no such host|timeout|timed out|refused|unreachable|reset by peer|EOF|TLS"
            r"|toomanyrequests|50[0234]|temporary failure|no route"
        ),
        Unreachable,
        "the registry cannot be reached from the source engine",
        (
            "Check the network, name a mirror that is within reach, or bring the image as an "
            "archive (docker save) and ship that."
        ),
    ),
)


def ensure_images(
    names: Sequence[str],
    pull: PullPolicy = "missing",
    mirrors: Sequence[str] = (),
    auth: Credentials | None = None,
    progress: Progress | None = None,
) -> tuple[ImageFacts, ...]:
    """Read images from the source engine, after pulling what has to be pulled.

    Args:
        names: Image names as Docker shows them.
        pull: `missing` pulls what is not there, `always` everything, `never` nothing.
        mirrors: Hosts that mirror Docker Hub, tried in order before it.
        auth: For the images' own registry, never for a mirror.
        progress: Called with the bytes downloaded so far and in all as far as known.

    Returns:
        The images in the order of the names.

    Raises:
        NotFound: An image is neither there nor in a registry.
        Unreachable: It is not there, and no registry could be reached.
        CrossgapError: As for `open_engine`.
        SeveralFailures: Several of these.
    """
    if pull == "never":
        return _read(names)
    failures: list[CrossgapError] = []
    with open_engine() as client:
        present = _found(client, names) if pull == "missing" else {}
        for name in names:
            if name in present:
                continue
            try:
                _pull(client, parse_reference(name), mirrors, auth, progress)
            except CrossgapError as error:
                failures.append(_with_absence(error, name) if pull == "missing" else error)
        if failures:
            raise several(failures)
    return _read(names)


def _read(names: Sequence[str]) -> tuple[ImageFacts, ...]:
    with open_engine() as client:
        found = _found(client, names)
    if missing := [name for name in names if name not in found]:
        found |= dict(zip(missing, read_images(missing), strict=True))
    return tuple(found[name] for name in names)


def _found(client: APIClient, names: Sequence[str]) -> dict[str, ImageFacts]:
    """Read what is there; what a mirror gave for a digest has a tag instead."""
    tagged = {name: arrival_name(parse_reference(name)) for name in names}
    found = find_images(client, list({*names, *tagged.values()}))
    for name, tag in tagged.items():
        if name not in found and tag in found:
            found[name] = replace(found[tag], name=name)
    return found


def _with_absence(error: CrossgapError, name: str) -> CrossgapError:
    absent = not_found(name, ())
    return type(error)(
        f"{absent.what}, and pulling it failed: {error.what}",
        error.where,
        error.remedy,
        error.retryable,
    )


def _pull(
    client: APIClient,
    wanted: Reference,
    mirrors: Sequence[str],
    auth: Credentials | None,
    progress: Progress | None,
) -> None:
    """Pull one image from the first place that gives it.

    Raises:
        CrossgapError: None does; it carries what each of them said.
    """
    failures: list[CrossgapError] = []
    shown = auth if auth and auth.are_for(wanted) else None
    for place in pull_places(wanted, mirrors):
        own = place == wanted.repository
        try:
            _pull_from(client, place, wanted, shown if own else None, progress)
        except DiskFull:
            raise
        except CrossgapError as error:
            failures.append(error)
        else:
            if not own:
                _rename(client, place, wanted)
            return
    raise together(failures)


def _rename(client: APIClient, place: str, wanted: Reference) -> None:
    """Give an image that came from a mirror the name that was asked for."""
    there = f"{place}@{wanted.digest}" if wanted.digest else f"{place}:{wanted.tag}"
    repository, _, tag = arrival_name(wanted).rpartition(":")
    client.tag(there, repository, tag)
    client.remove_image(there)


def pull_places(wanted: Reference, mirrors: Sequence[str]) -> list[str]:
    """Return the repositories to try for an image, in order, as an engine calls them.

    Args:
        wanted: The image.
        mirrors: Hosts that mirror Docker Hub; of use for its images only.

    Raises:
        InvalidInput: A mirror's name is none.
    """
    return [
        wanted.repository if place.own else place.engine_repository
        for place in find_places(wanted, mirrors)
    ]


def _pull_from(
    client: APIClient,
    repository: str,
    wanted: Reference,
    auth: Credentials | None,
    progress: Progress | None,
) -> None:
    cancellation = current_cancellation()
    downloads: dict[str, tuple[int, int]] = {}
    for event in _events(client, repository, wanted, auth):
        cancellation.check(engine_label())
        if "error" in event:
            raise pull_failure(str(event["error"]), wanted, repository)
        detail = event.get("progressDetail") or {}
        if progress and event.get("status") == "Downloading" and detail.get("total"):
            downloads[event["id"]] = (detail.get("current", 0), detail["total"])
            done, total = map(sum, zip(*downloads.values(), strict=True))
            progress(done, total)


def _events(
    client: APIClient, repository: str, wanted: Reference, auth: Credentials | None
) -> Iterator[dict[str, Any]]:
    """Have the engine pull, and yield what it says.

    Not by the client's own `pull`, which waits for ever when a mirror goes silent.
    """
    from docker.auth import encode_header
    from requests.exceptions import RequestException

    headers = {}
    if auth:
        shown = {"username": auth.username, "password": auth.password}
        headers["X-Registry-Auth"] = encode_header(shown).decode()
    try:
        with client.post(
            f"{client.base_url}/v{client.api_version}/images/create",
            params={"fromImage": repository, "tag": wanted.digest or wanted.tag},
            headers=headers,
            stream=True,
            timeout=SILENT_SECONDS,
        ) as response:
            if response.status_code != HTTPStatus.OK:
                said = response.json().get("message", "")
                raise pull_failure(said, wanted, repository)
            yield from map(json.loads, filter(None, response.iter_lines()))
    except RequestException as error:
        if "Read timed out" not in str(error):
            raise
        raise TimedOut(
            f"nothing came for {SILENT_SECONDS} s",
            _where(wanted, repository),
            "Start again, or name a mirror that is faster.",
        ) from error


def pull_failure(text: str, wanted: Reference, repository: str) -> CrossgapError:
    """Tell what a complaint of the engine about a pull means.

    Args:
        text: What it said.
        wanted: The image.
        repository: Where it was looked for.
    """
    where = _where(wanted, repository)
    for pattern, kind, what, remedy in _FAILURES:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(f"{what} ({_short(text)})", where, remedy)
    return CommandFailed(f"Docker could not pull it ({_short(text)})", where)


def _where(wanted: Reference, repository: str) -> str:
    own = repository == wanted.repository
    return (
        f"image {wanted.familiar!r} from {wanted.domain if own else repository.partition('/')[0]}"
    )


def _short(text: str) -> str:
    return " ".join(text.split())[-200:]
