"""The services of compose files: merged, included and extended as compose does it.

Rules: https://docs.docker.com/reference/compose-file/ (services, include, extends, merge).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from blocks.errors import InvalidInput, NotFound
from tasks.images.compose.strict_yaml import (
    Tagged,
    existing,
    malformed,
    read_document,
    read_variables,
    require,
)
from tasks.images.compose.variables import interpolate

# What compose would fetch from another machine.
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://|git@|oci:|github\.com/")


@dataclass(frozen=True)
class Value:
    """A text of a compose file, and what its variables stand for.

    Args:
        raw: The text with its variables.
        variables: What they may be.
        where: Its place, for errors.
    """

    raw: str
    variables: Mapping[str, str]
    where: str

    @property
    def text(self) -> str:
        """The text, with its variables replaced.

        Raises:
            InvalidInput: A variable is missing or malformed.
        """
        return interpolate(self.raw, self.variables, self.where)


@dataclass(frozen=True)
class Service:
    """What matters of a service for its image.

    Args:
        where: The service and its file.
        image: Its image's name; None where it says nothing of an image.
        built: Whether compose builds the image.
        provided: Whether something else than a container provides the service.
    """

    where: str
    image: Value | None = None
    built: bool = False
    provided: bool = False

    def changed_by(self, upper: Service) -> Service:
        """Return this service as a later file, or one that extends it, changes it."""
        return replace(
            upper,
            image=upper.image or self.image,
            built=upper.built or self.built,
            provided=upper.provided or self.provided,
        )


def read_services(
    files: Sequence[Path], folder: Path, variables: Mapping[str, str]
) -> dict[str, Service]:
    """Read the services of a compose project; those of included files come first.

    Args:
        files: Its files, of which each changes what the earlier ones say.
        folder: What paths in them are relative to.
        variables: What their values may use.

    Raises:
        NotFound: A file, or a service that is extended, is not there.
        InvalidInput: A file is no compose file.
        PermissionRefused: A file may not be read.
    """
    return _Project(folder, variables).services(files)


@dataclass(frozen=True)
class _File:
    """A compose file.

    Args:
        path: The file.
        folder: What paths in it are relative to.
    """

    path: Path
    folder: Path

    @cached_property
    def document(self) -> dict[str, Any]:
        return read_document(self.path)

    @cached_property
    def services(self) -> dict[str, Any]:
        found = _untagged(self.document.get("services"))
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise malformed(self.path, "has services that are no mapping")
        return found


class _Project:
    """Reads the files of one project.

    Args:
        folder: What paths in them are relative to.
        variables: What their values may use.
        including: The files that led here, outermost first.
    """

    def __init__(
        self, folder: Path, variables: Mapping[str, str], including: tuple[Path, ...] = ()
    ) -> None:
        self._folder = folder
        self._variables = variables
        self._including = including

    def services(self, files: Sequence[Path]) -> dict[str, Service]:
        services: dict[str, Service] = {}
        for path in files:
            file = _File(path, self._folder)
            for entry in _list(file.document.get("include")):
                for name, service in self._included(entry, file).items():
                    services.setdefault(name, service)
            for name, value in file.services.items():
                tag = value.tag if isinstance(value, Tagged) else ""
                if tag == "reset":
                    services.pop(name, None)
                    continue
                service = self._service(name, file, ())
                lower = None if tag else services.get(name)
                services[name] = lower.changed_by(service) if lower else service
        return services

    def _included(self, entry: Any, file: _File) -> dict[str, Service]:
        """Read one entry of `include`: a project of its own, with its own `.env`."""
        long = entry if isinstance(entry, dict) else {"path": entry}
        paths = [self._path(name, file) for name in _list(long.get("path"))]
        if not paths:
            raise malformed(file.path, "has an entry of include without a path")
        including = (*self._including, file.path.resolve())
        if {path.resolve() for path in paths} & set(including):
            raise InvalidInput(
                "the file includes itself, or one that includes it",
                str(file.path),
                f"Take {paths[0].name} out of its include.",
            )
        own = long.get("project_directory")
        folder = self._path(own, file) if own else paths[0].parent
        environment = [self._path(name, file) for name in _list(long.get("env_file"))]
        variables: Mapping[str, str] = {}
        for source in environment or existing(folder, (".env",)):
            variables = read_variables(source, self._variables, variables)
        variables = {**variables, **self._variables}
        return _Project(folder, variables, including).services(paths)

    def _service(self, name: str, file: _File, extending: tuple[tuple[Path, str], ...]) -> Service:
        """Return one service of a file with what it extends."""
        where = f"service {name!r} in {file.path}"
        if name not in file.services:
            raise NotFound(
                "there is no such service to extend",
                where,
                f"The file has {', '.join(map(str, file.services)) or 'none'}.",
            )
        value = _untagged(file.services[name])
        if not isinstance(value, dict):
            raise malformed(file.path, f"has a service {name!r} that is no mapping")
        own = self._own(value, where)
        base = _untagged(value.get("extends"))
        if not base:
            return own
        this = (file.path.resolve(), name)
        if this in extending:
            raise InvalidInput(
                "the service extends itself, or one that extends it", where, "Break the circle."
            )
        long = base if isinstance(base, dict) else {"service": base}
        source = long.get("file")
        path = self._path(source, file) if source else file.path
        its_file = _File(path, path.parent) if source else file
        its_name = self._value(long.get("service"), where).text
        return self._service(its_name, its_file, (*extending, this)).changed_by(own)

    def _own(self, value: Mapping[str, Any], where: str) -> Service:
        image = value.get("image")
        if isinstance(image, Tagged) and image.tag == "reset":
            image = ""  # what is reset is not there, whatever was there below
        image = _untagged(image)
        return Service(
            where,
            image=None if image is None else self._value(image, where),
            built=bool(_untagged(value.get("build"))),
            provided="provider" in value,
        )

    def _value(self, value: Any, where: str) -> Value:
        if not isinstance(value, str):
            raise InvalidInput("it has no text where one is expected", where)
        return Value(value, self._variables, where)

    def _path(self, value: Any, file: _File) -> Path:
        name = self._value(value, f"a file named in {file.path}").text
        if _REMOTE.match(name):
            raise InvalidInput(
                f"it takes in {name!r}, which lies elsewhere",
                str(file.path),
                "Bring that file here and name its path.",
            )
        path = file.folder / name
        require(path)
        return path


def _untagged(value: Any) -> Any:
    """Return a value without its tag; what is reset is nothing."""
    if isinstance(value, Tagged):
        return None if value.tag == "reset" else value.value
    return value


def _list(value: Any) -> list[Any]:
    value = _untagged(value)
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
