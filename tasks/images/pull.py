"""Gets images into the source engine, from their registry or a mirror of Docker Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from blocks.cancellation import current_cancellation
from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    CrossgapError,
    DiskFull,
    NotFound,
    Unreachable,
    WrongArchitecture,
)
from blocks.files import Progress
from tasks.images.engine import (
    engine_label,
    find_images,
    not_found,
    open_engine,
    read_images,
    several,
)
from tasks.images.facts import ImageFacts
from tasks.images.names import DEFAULT_DOMAIN, Reference, parse_reference

if TYPE_CHECKING:
    from docker import APIClient

PullPolicy = Literal["missing", "always", "never"]

_FAILURES: tuple[tuple[str, type[CrossgapError], str, str], ...] = (
    (
        r"no space left",
        DiskFull,
        "the source engine's disk is full",
        "Make room where the source engine keeps its data (docker system df).",
    ),
    (
        r"unauthorized|authentication required|incorrect username",
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
            r"no such host|timeout|timed out|refused|unreachable|reset by peer|EOF|TLS|x509"
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
    auth: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> tuple[ImageFacts, ...]:
    """Read images from the source engine, after pulling what has to be pulled.

    Args:
        names: Image names as Docker shows them.
        pull: `missing` pulls what is not there, `always` everything, `never` nothing.
        mirrors: Hosts that mirror Docker Hub, tried in order before it.
        auth: `username` and `password` for the image's own registry.
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
        return read_images(names)
    failures: list[CrossgapError] = []
    with open_engine() as client:
        present = find_images(client, names) if pull == "missing" else {}
        for name in names:
            if name in present:
                continue
            try:
                _pull(client, parse_reference(name), mirrors, auth, progress)
            except CrossgapError as error:
                failures.append(_with_absence(error, name) if pull == "missing" else error)
        if failures:
            raise several(failures)
    return read_images(names)


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
    auth: Mapping[str, str] | None,
    progress: Progress | None,
) -> None:
    """Pull one image from the first place that gives it; the last failure counts."""
    for place in pull_places(wanted, mirrors):
        try:
            own = place == wanted.repository
            _pull_from(client, place, wanted, auth if own else None, progress)
            if not own and not wanted.digest:
                client.tag(f"{place}:{wanted.tag}", wanted.repository, wanted.tag)
                client.remove_image(f"{place}:{wanted.tag}")
            return
        except CrossgapError as error:
            failure = error
    raise failure


def pull_places(wanted: Reference, mirrors: Sequence[str]) -> list[str]:
    """Return the repositories to try for an image, in order.

    Args:
        wanted: The image.
        mirrors: Hosts that mirror Docker Hub; of use for its images only.
    """
    hosts = [re.sub(r"^https?://", "", mirror.strip()).rstrip("/") for mirror in mirrors]
    if wanted.domain != DEFAULT_DOMAIN:
        hosts = []
    return [f"{host}/{wanted.path}" for host in hosts if host] + [wanted.repository]


def _pull_from(
    client: APIClient,
    repository: str,
    wanted: Reference,
    auth: Mapping[str, str] | None,
    progress: Progress | None,
) -> None:
    from docker.errors import APIError

    cancellation = current_cancellation()
    downloads: dict[str, tuple[int, int]] = {}
    try:
        for event in _events(client, repository, wanted.digest or wanted.tag, auth):
            cancellation.check(engine_label())
            if "error" in event:
                raise pull_failure(str(event["error"]), wanted, repository)
            detail = event.get("progressDetail") or {}
            if progress and event.get("status") == "Downloading" and detail.get("total"):
                downloads[event["id"]] = (detail.get("current", 0), detail["total"])
                done, total = map(sum, zip(*downloads.values(), strict=True))
                progress(done, total)
    except APIError as error:
        raise pull_failure(str(error.explanation or error), wanted, repository) from error


def _events(
    client: APIClient, repository: str, tag: str, auth: Mapping[str, str] | None
) -> Iterator[dict[str, Any]]:
    # An empty set of credentials keeps the client from asking credential helpers.
    config = dict(auth) if auth else {}
    yield from client.pull(repository, tag=tag, stream=True, decode=True, auth_config=config)


def pull_failure(text: str, wanted: Reference, repository: str) -> CrossgapError:
    """Tell what a complaint of the engine about a pull means.

    Args:
        text: What it said.
        wanted: The image.
        repository: Where it was looked for.
    """
    where = f"image {wanted.familiar!r} from {repository.partition('/')[0]}"
    if "/" not in repository or repository == wanted.repository:
        where = f"image {wanted.familiar!r} from {wanted.domain}"
    for pattern, kind, what, remedy in _FAILURES:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(f"{what} ({_short(text)})", where, remedy)
    return CommandFailed(f"Docker could not pull it ({_short(text)})", where)


def _short(text: str) -> str:
    return " ".join(text.split())[-200:]
