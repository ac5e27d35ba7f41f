"""Sites: named groups of hosts and what is expected on them, as files in the repository.

A site is a YAML file in `deployments/sites`, named after the site. Its JSON
schema lies beside it, for editors; write it anew after a change of the model:

    python -m blocks.site schema > deployments/sites/site.schema.json
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validates_model

from blocks.errors import InvalidInput, NotFound

SITES = Path(__file__).resolve().parent.parent / "deployments" / "sites"
SITES_VARIABLE = "CROSSGAP_SITES"

NAME_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]


class Expectations(BaseModel):
    """What every host of a group is expected to have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: tuple[str, ...] = Field(
        default=(), description="Names of images, as `docker images` shows them."
    )


class Site(BaseModel):
    """A place with hosts that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="The same as the file's name without .yaml.")
    title: str = Field(default="", description="The name as people say it.")
    description: str = Field(default="", description="Where it is and what it is for.")
    groups: dict[Name, Annotated[tuple[Name, ...], Field(min_length=1)]] = Field(
        min_length=1, description="Host blocks by the name of their group."
    )
    expected: dict[Name, Expectations] = Field(
        default={}, description="What is expected on the hosts, by the name of their group."
    )

    @validates_model(mode="after")
    def _is_consistent(self) -> Self:
        for group, hosts in self.groups.items():
            twice = sorted({host for host in hosts if hosts.count(host) > 1})
            if twice:
                raise ValueError(f"groups.{group} names {', '.join(twice)} twice")
        for group in self.expected:
            if group not in self.groups:
                raise ValueError(
                    f"expected.{group} is about no group; there are {_listed(self.groups, group)}"
                )
        return self


def load_site(name: str) -> Site:
    """Read a site.

    Args:
        name: The site's name; its file is searched in `deployments/sites`, or
            in the folder that the environment variable CROSSGAP_SITES names.

    Returns:
        The site.

    Raises:
        NotFound: There is no such file; the message names those that exist.
        InvalidInput: The file is not as it should be; the message says where.
    """
    folder = Path(os.environ.get(SITES_VARIABLE) or SITES)
    existing = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in existing:
        raise NotFound(
            f"there is no site of this name in {folder}",
            name or "site without a name",
            f"Existing sites: {_listed(existing, name)}.",
        )
    path = folder / f"{name}.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InvalidInput(*_yaml_problem(path, error)) from error
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Save the file as UTF-8 and make it readable."
        raise InvalidInput(f"the file cannot be read: {error}", str(path), remedy) from error
    return _checked(document, path)


def expand_hosts(entries: Sequence[str], existing: Callable[[], Collection[str]]) -> list[str]:
    """Turn what an operator wrote into names of host blocks.

    Args:
        entries: Names of host blocks, and `SITE:GROUP` for all hosts of a group.
        existing: Gives the names of the host blocks that exist.

    Returns:
        The names in the order of the entries, each once, also when it is in
        two groups.

    Raises:
        InvalidInput: There is no entry, an empty one, one with blanks around
            it, or one twice.
        NotFound: A site, group or host of that name does not exist; the
            message names those that do, the closest first.
    """
    if not entries:
        raise InvalidInput(
            "no host is named", "hosts", "Give names of host blocks, or SITE:GROUP for a group."
        )
    for position, entry in enumerate(entries, start=1):
        _check_entry(entry, position, entries)
    found = {name: entry for entry in reversed(entries) for name in _hosts_of(entry)}
    names = list(dict.fromkeys(name for entry in entries for name in _hosts_of(entry)))
    known = existing()
    for name in names:
        if name not in known:
            where = name if found[name] == name else f"{name} (from {found[name]})"
            raise NotFound(
                "there is no host block of this name",
                where,
                f"Existing hosts: {_listed(known, name)}. "
                "Make one in the UI under Blocks, type SSH Host.",
            )
    return names


def schema_text() -> str:
    """Return the JSON schema of a site's file, as it lies beside the sites."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Site.model_json_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _check_entry(entry: str, position: int, entries: Sequence[str]) -> None:
    where = f"hosts, entry {position}"
    if not entry.strip():
        raise InvalidInput("the entry is empty", where, "Remove it, or write a host's name.")
    if entry != entry.strip():
        remedy = f"Write {entry.strip()!r}."
        raise InvalidInput(f"{entry!r} has blanks around it", where, remedy)
    if entries.count(entry) > 1:
        raise InvalidInput(f"{entry!r} is named twice", where, "Name every host once.")


def _hosts_of(entry: str) -> tuple[str, ...]:
    site_name, colon, group = entry.partition(":")
    if not colon:
        return (entry,)
    site = load_site(site_name)
    if group not in site.groups:
        raise NotFound(
            f"site {site.name} has no group of this name",
            entry,
            f"Existing groups: {_listed(site.groups, group)}.",
        )
    return site.groups[group]


def _checked(document: object, path: Path) -> Site:
    if not isinstance(document, dict):
        remedy = "Write it like deployments/sites/example.yaml."
        raise InvalidInput("the file holds no fields", str(path), remedy)
    try:
        site = Site.model_validate(document)
    except ValidationError as error:
        remedy = "The fields are described in site.schema.json beside the example."
        raise InvalidInput(_problems(error), str(path), remedy) from error
    if site.name != path.stem:
        remedy = f"Write 'name: {path.stem}', or rename the file to {site.name}.yaml."
        raise InvalidInput(f"the site calls itself {site.name}", str(path), remedy)
    return site


def _problems(error: ValidationError) -> str:
    said: list[str] = []
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            parent = Expectations if problem["loc"][0] == "expected" else Site
            text = f"there is no such field; there are {_listed(parent.model_fields, place)}"
        elif problem["type"] == "string_pattern_mismatch":
            text = f"{problem['input']!r} is no name: lower-case letters, digits and dashes only"
        said.append(f"{place}: {text}" if place else text)
    return "; ".join(said)


def _yaml_problem(path: Path, error: yaml.YAMLError) -> tuple[str, str, str]:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    where = f"{path}, line {mark.line + 1}" if mark else str(path)
    return f"the file is no YAML: {what}", where, "Correct that line; blanks and colons count."


def _listed(names: Iterable[str], wanted: str) -> str:
    """List names, those that are like the wanted one first."""

    def distance(name: str) -> tuple[float, str]:
        likeness = difflib.SequenceMatcher(None, wanted.lower(), name.lower()).ratio()
        return (-likeness if likeness > 0.5 else 0.0, name)

    return ", ".join(sorted(names, key=distance)) or "none"


if __name__ == "__main__":
    if sys.argv[1:] != ["schema"]:
        sys.exit("usage: python -m blocks.site schema")
    sys.stdout.write(schema_text())
