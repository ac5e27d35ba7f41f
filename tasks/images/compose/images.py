"""The images that compose files name.

A reader of its own, because the machine that ships images need not have compose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from blocks.errors import CrossgapError, InvalidInput, SeveralFailures
from tasks.images.compose.services import Service, read_services
from tasks.images.compose.strict_yaml import existing, missing, read_variables, require
from tasks.images.names import parse_reference

COMPOSE_PREFIX = "compose:"

# In compose's order: of each list the first that is there. Source: compose-go, cli/options.go.
_MAIN_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDE_FILES = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def expand_images(entries: Sequence[str]) -> tuple[str, ...]:
    """Replace every `compose:PATH` in a list of images by the images of that file.

    Args:
        entries: Image names and `compose:PATH`, as an operator wrote them. An image
            that is itself called compose is written `library/compose:TAG`.

    Returns:
        The names in the order of the entries, none twice.

    Raises:
        CrossgapError: As for `compose_images`.
        SeveralFailures: Several of these.
    """
    found = _each(entries, _expanded, "images")
    return tuple(dict.fromkeys(name for names in found for name in names))


def compose_images(path: Path) -> tuple[str, ...]:
    """Return the images that the services of a compose file use.

    Services of all profiles count, and so do those of included files. Variables
    come from the file `.env` in the compose file's folder and from nowhere else:
    the environment of the worker is not the operator's. An image that compose
    builds counts when it has a name.

    Args:
        path: The file, or its folder. In a folder, the files are read that compose
            would read there: those that `COMPOSE_FILE` in `.env` names, else
            `compose.yaml` or another usual name with its override file.

    Returns:
        The names as Docker shows them, each once, in the order of the services.

    Raises:
        NotFound: A file is not there.
        InvalidInput: A file is no compose file, a variable is not set, an image's
            name is malformed, or an image is built and has no name.
        PermissionRefused: A file may not be read.
        SeveralFailures: Several services have such a fault.
    """
    services = _services(path)
    names = _each(services.items(), lambda item: _image(*item), str(path))
    return tuple(dict.fromkeys(name for name in names if name))


def _expanded(entry: str) -> tuple[str, ...]:
    if not entry.strip().startswith(COMPOSE_PREFIX):
        return (entry,)
    path = entry.strip().removeprefix(COMPOSE_PREFIX).strip()
    if not path:
        raise InvalidInput(
            "no file is named", f"image {entry!r}", "Write compose:/PATH/TO/compose.yaml."
        )
    return compose_images(Path(path).expanduser())


def _services(path: Path) -> dict[str, Service]:
    """Read a file with the variables beside it, or what compose would read in a folder."""
    path = path.absolute()
    require(path)
    folder = path if path.is_dir() else path.parent
    variables: dict[str, str] = {}
    for source in existing(folder, (".env",)):
        variables = read_variables(source, {})
    files = _chosen(folder, variables) if path.is_dir() else [path]
    return read_services(files, files[0].parent, variables)


def _chosen(folder: Path, variables: dict[str, str]) -> list[Path]:
    separator = variables.get("COMPOSE_PATH_SEPARATOR") or ":"
    named = [name for name in variables.get("COMPOSE_FILE", "").split(separator) if name]
    if named:
        return [folder / name for name in named]
    main = existing(folder, _MAIN_FILES)[:1]
    if not main:
        raise missing(folder / _MAIN_FILES[0])
    return main + existing(folder, _OVERRIDE_FILES)[:1]


def _image(name: str, service: Service) -> str:
    """Return the name of a service's image, or nothing where it needs none."""
    if service.image and (text := service.image.text):
        try:
            return parse_reference(text).familiar
        except InvalidInput as error:
            where = f"image {text!r} of {service.image.where}"
            raise InvalidInput(error.what, where, error.remedy) from error
    if service.built:
        raise InvalidInput(
            "its image is built and has no name",
            service.where,
            f"Add image: NAME:TAG beside build:, run docker compose build {name}, start again.",
        )
    if service.provided:
        return ""
    raise InvalidInput(
        "it names no image", service.where, "Write image: NAME:TAG, with variables that are set."
    )


def _each(items: Iterable[_Item], read: Callable[[_Item], _Found], where: str) -> list[_Found]:
    """Read all items; all failures are reported together."""
    found: list[_Found] = []
    failures: list[CrossgapError] = []
    for item in items:
        try:
            found.append(read(item))
        except SeveralFailures as error:
            failures += error.failures
        except CrossgapError as error:
            failures.append(error)
    if len(failures) > 1:
        raise SeveralFailures(failures, where)
    if failures:
        raise failures[0]
    return found
