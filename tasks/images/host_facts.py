"""Reads from a host what matters for shipping images to it, in a few short commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blocks.disk import Disk, parse_disk
from blocks.errors import CommandFailed, CrossgapError
from blocks.link import LARGE_SAMPLE, SAMPLE
from tasks.images.blobs import Compression
from tasks.images.docker_cli import checked, docker, explain_failure, unexplained
from tasks.images.facts import (
    EngineFacts,
    HostFacts,
    ImageFacts,
    parse_engine_info,
    parse_image,
    same_content,
)
from tasks.images.layout import chain_ids
from tasks.images.staging import staging_folder

if TYPE_CHECKING:
    from blocks.host import Host

# A busy engine answers inspect late while it loads an image.
ANSWER_SECONDS = 120.0

# The place itself may not exist yet; then it will lie where its parent does.
_DF = """\
while [ ! -e "$path" ] && [ "$path" != / ] && [ "$path" != . ]; do path=$(dirname "$path"); done
df -Pk "$path\""""

# Allocated kilobytes, because they are what is missing from df's free ones.
_STAGED = """\
case $1 in "~"|"~/"*) path=$HOME${1#"~"} ;; *) path=$1 ;; esac
for file in "$path"/* "$path"/.*; do [ ! -f "$file" ] || du -k "$file"; done
"""

# A layer there, or a part of it as `blocks.files` names it.
_STAGED_FILE = re.compile(
    r"^(\d+)\s+/.*/\.?([0-9a-f]{64})\.tar(\.gz|\.zst|)(?:\.\w+\.part)?$", re.MULTILINE
)
_FORMS: dict[str, Compression] = {"": "none", ".gz": "gzip", ".zst": "zstd"}
# A plain part may be no more than what the link was measured with.
_MORE_THAN_A_SAMPLE = SAMPLE + LARGE_SAMPLE + (4 << 20)

# One line of diff ids per image. An image that goes meanwhile spoils nothing.
_GRAPHDRIVER_LAYERS = """\
ids=$(docker image ls --all --quiet --no-trunc | sort -u)
[ -z "$ids" ] || docker image inspect --format '{{json .RootFS.Layers}}' $ids 2>/dev/null
exit 0"""

# The content store of containerd, alone or run by Docker: one file per blob, named by
# its digest. Its own client rounds sizes; wc asks the file system for a file's size.
_CONTAINERD_LAYERS = """\
for root in /var/lib/containerd "$1/containerd/daemon"; do
    find "$root/io.containerd.content.v1.content/blobs/sha256" -type f -exec wc -c {} + 2>/dev/null
done
exit 0"""
_BLOB_FILE = re.compile(r"^\s*(\d+) .*/([0-9a-f]{64})$", re.MULTILINE)


def read_host(host: Host, wanted_on: Callable[[str], Sequence[ImageFacts]]) -> HostFacts:
    """Read a host's engine, disks, and what it has of some images.

    Args:
        host: The host.
        wanted_on: Gives the images in question for the host's architecture.

    Returns:
        The facts; nothing on the host is changed.

    Raises:
        EngineUnavailable: Docker is not installed there or does not run.
        PermissionRefused: The user may not use Docker there.
        CrossgapError: As for `Host.run`.
    """
    engine = read_engine_facts(host)
    wanted = wanted_on(engine.architecture)
    inspected = _inspect(host, _questions(wanted))
    staging_disk, staged, staged_forms = _read_staging(host)
    named = _named(inspected, wanted, engine)
    lacking = any(image.name not in named for image in wanted) or not all(
        same_content(named[image.name], image) for image in wanted
    )
    return HostFacts(
        host=host.label,
        architecture=engine.architecture,
        engine_version=engine.version,
        store=engine.store,
        docker_root=engine.image_root,
        docker_root_disk=_read_engine_disk(host, engine.image_root),
        staging_disk=staging_disk,
        wanted=tuple(wanted),
        images=named,
        twins=_twins(inspected, wanted),
        # Nobody asks for the layers of a host that has all images.
        layers=read_layers(host, engine) if lacking else {},
        staged=staged,
        staged_forms=staged_forms,
        cpus=engine.cpus,
        unpacks_zstd=engine.unpacks_zstd,
    )


def read_engine_facts(host: Host) -> EngineFacts:
    """Read what kind of engine a host runs.

    Raises:
        CrossgapError: As for `read_host`.
    """
    result = docker(host, "info", "--format", "{{json .}}", timeout=ANSWER_SECONDS)
    info = _json(checked(result, "describe its engine", host.label), host)
    errors = info.get("ServerErrors")
    if errors:
        # Clients from 18.09 to 27 print these and end with exit code 0.
        text = "\n".join(map(str, errors))
        raise explain_failure(text, host.label) or unexplained(
            text, "describe its engine", host.label
        )
    return parse_engine_info(info)


def read_images(host: Host, wanted: Sequence[ImageFacts]) -> Mapping[str, ImageFacts]:
    """Read again what a host has under the names of some images.

    Args:
        host: The host.
        wanted: The images in question.

    Returns:
        What is there, by name; names that are not there are left out.

    Raises:
        CrossgapError: As for `read_host`.
    """
    engine = read_engine_facts(host)
    return _named(_inspect(host, [image.lookup for image in wanted]), wanted, engine)


def read_layers(host: Host, engine: EngineFacts) -> dict[str, int]:
    """Read which layers a host has, as its engine looks for them.

    Args:
        host: The host.
        engine: What kind of engine it runs.

    Returns:
        For graph drivers the chain ids of all layers of all images, without
        sizes; for a containerd store the digests and sizes of all blobs.

    Raises:
        CrossgapError: As for `Host.run`.
    """
    if engine.store == "containerd":
        argv = ["sh", "-c", _CONTAINERD_LAYERS, "sh", engine.root]
        found = host.run(argv, timeout=ANSWER_SECONDS, sudo=True).stdout
        return {f"sha256:{digest}": int(size) for size, digest in _BLOB_FILE.findall(found)}
    argv = ["sh", "-c", _GRAPHDRIVER_LAYERS]
    lines = host.run(argv, timeout=ANSWER_SECONDS, sudo=True).stdout.splitlines()
    images = [_json(line, host) or [] for line in lines if line.startswith(("[", "null"))]
    return dict.fromkeys((chain for layers in images for chain in chain_ids(layers)), 0)


def _questions(wanted: Sequence[ImageFacts]) -> list[str]:
    """Ask for names, and for contents that may be there under other names."""
    names = [image.lookup for image in wanted]
    return list(dict.fromkeys(names + [i.config_digest for i in wanted if i.config_digest]))


def _inspect(host: Host, names: Sequence[str]) -> list[dict[str, Any]]:
    result = docker(host, "image", "inspect", *names, timeout=ANSWER_SECONDS)
    complaints = [
        line
        for line in result.stderr.splitlines()
        if line.strip() and not re.search(r"no such (?:image|object)", line, re.IGNORECASE)
    ]
    # Exit code 1 with nothing but missing names is an answer; what exists is printed.
    if result.exit_code != 0 and (complaints or not result.stdout.strip()):
        checked(result, "inspect images", host.label)
    found = _json(result.stdout, host)
    return [dict(image) for image in found]


def _named(
    inspected: Sequence[Mapping[str, Any]], wanted: Sequence[ImageFacts], engine: EngineFacts
) -> dict[str, ImageFacts]:
    by_name = {name: image for image in inspected for name in _names(image)}
    return {
        image.name: parse_image(by_name[image.lookup], image.name, engine.store)
        for image in wanted
        if image.lookup in by_name
    }


def _names(image: Mapping[str, Any]) -> list[str]:
    return [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ()), str(image["Id"])]


def _twins(inspected: Sequence[Mapping[str, Any]], wanted: Sequence[ImageFacts]) -> dict[str, str]:
    by_id = {str(image["Id"]): image for image in inspected}
    twins: dict[str, str] = {}
    for image in wanted:
        twin = by_id.get(image.config_digest)
        if twin is not None:
            others = [name for name in twin.get("RepoTags") or () if name != image.lookup]
            twins[image.name] = others[0] if others else image.config_digest
    return twins


def _read_engine_disk(host: Host, root: str) -> Disk:
    result = host.run(["sh", "-c", f"path=$1\n{_DF}", "sh", root], timeout=60, sudo=True)
    return parse_disk(result.stdout, host.label)


def _read_staging(host: Host) -> tuple[Disk, dict[str, int], dict[str, Compression]]:
    """Read the room for layers, and the bytes of those that are there by diff id."""
    result = host.run(["sh", "-c", _STAGED + _DF, "sh", staging_folder(host)], timeout=60)
    staged: dict[str, int] = {}
    forms: dict[str, Compression] = {}
    for kilobytes, key, suffix in _STAGED_FILE.findall(result.stdout):
        diff_id, size, form = f"sha256:{key}", int(kilobytes) * 1024, _FORMS[suffix]
        staged[diff_id] = max(staged.get(diff_id, 0), size)
        if size and (form != "none" or (size > _MORE_THAN_A_SAMPLE and diff_id not in forms)):
            forms[diff_id] = form
    return parse_disk(result.stdout, host.label), staged, forms


def _json(text: str, host: Host) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _unreadable("docker", text, host) from error


def _unreadable(what: str, text: str, host: Host) -> CrossgapError:
    return CommandFailed(
        f"the answer of {what} is not understood ({text.strip()[:200]!r})",
        host.label,
        "See whether something on that host stands in for the real command.",
    )
