"""Compose files as text: found, read, parsed, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from blocks.errors import InvalidInput, NotFound, PermissionRefused
from tasks.images.compose.variables import read_environment


@dataclass(frozen=True)
class Tagged:
    """A value with `!reset` or `!override` before it.

    Args:
        tag: Without the exclamation mark.
        value: The value itself.
    """

    tag: str
    value: Any


class _Loader(yaml.SafeLoader):
    """Reads every plain value as text: an image such as 8.10 keeps its zero."""

    # What looks like a date would be read as one, or fail. Merge keys and nulls stay.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as the library declares it
        key: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":merge", ":null"))]
        for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _tagged(loader: _Loader, tag: str, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.MappingNode):
        return Tagged(tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Tagged(tag, loader.construct_sequence(node, deep=True))
    return Tagged(tag, node.value)


_Loader.add_multi_constructor("!", _tagged)


def read_document(file: Path) -> dict[str, Any]:
    """Read one compose file.

    Args:
        file: The file.

    Returns:
        Its top level; plain values are text, tagged ones `Tagged`.

    Raises:
        NotFound: There is no such file.
        InvalidInput: It is not what a compose file is.
        PermissionRefused: It may not be read.
    """
    text = _text_of(file)
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - derived from SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "it cannot be read"
        place = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise InvalidInput(
            f"the file is no YAML: {what}", place, "Correct that line; blanks and colons count."
        ) from error
    except (ValueError, RecursionError) as error:
        raise malformed(file, "has a value that cannot be read") from error
    if not isinstance(document, dict):
        raise malformed(file, "holds no mapping")
    return document


def read_variables(
    file: Path, given: Mapping[str, str], earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Read an environment file; comments in whatever encoding do no harm.

    Args:
        file: The file.
        given: What outweighs the file.
        earlier: What earlier files set, which this one may use and change.

    Raises:
        NotFound: There is no such file.
        InvalidInput: A line is no assignment.
        PermissionRefused: It may not be read.
    """
    return read_environment(_text_of(file, errors="replace"), str(file), given, earlier)


def malformed(file: Path, what: str) -> InvalidInput:
    """Make the error for a file that is YAML, but no compose file."""
    return InvalidInput(
        f"the file {what}", str(file), "A compose file has services, each with an image."
    )


def missing(path: Path) -> NotFound:
    """Make the error for a file that is not there; it names files that may be meant."""
    folder, name = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, name = folder.parent, folder.name
    there: list[Path] = []
    with suppress(OSError):
        there = sorted(entry for entry in folder.iterdir() if entry.is_dir() or _is_yaml(entry))
    close = get_close_matches(name, [entry.name for entry in there], cutoff=0.5)
    close = close or [entry.name for entry in there if _is_yaml(entry)][:3]
    hint = f" {folder} has {' and '.join(close)}." if close else ""
    return NotFound(
        "there is no such file", str(path), f"Check the path, as the worker sees it.{hint}"
    )


def require(path: Path) -> None:
    """Make sure that a file or folder is there.

    Raises:
        NotFound: It is not.
        PermissionRefused: It cannot be told.
    """
    try:
        there = path.exists()
    except PermissionError as error:
        raise _forbidden(path) from error
    if not there:
        raise missing(path)


def existing(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return those files of a folder that are there."""
    return [folder / name for name in names if (folder / name).is_file()]


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _text_of(file: Path, errors: str = "strict") -> str:
    try:
        return file.read_text(encoding="utf-8-sig", errors=errors)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(file) from error
    except PermissionError as error:
        raise _forbidden(file) from error
    except OSError as error:
        raise InvalidInput(f"it cannot be read ({error.strerror})", str(file)) from error
    except UnicodeDecodeError as error:
        raise InvalidInput("the file is not in UTF-8", str(file), "Save it as UTF-8.") from error


def _forbidden(path: Path) -> PermissionRefused:
    return PermissionRefused(
        "the file may not be read", str(path), "Give the worker's user the right to read it."
    )
