"""Image archives: files that `docker save` made, checked before anything trusts them.

Known are the docker-archive of engines before 25, with one `layer.tar` per
layer (shared ones as links), and the OCI layout with `manifest.json` that
engines make since. Both are described by `manifest.json`:
https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from blocks.content import Content, FileRange
from blocks.errors import CrossgapError, Damaged, InvalidInput, NotFound, SeveralFailures
from blocks.files import Progress
from tasks.images.blobs import Blob, Layer
from tasks.images.facts import ImageFacts, parse_image_config, same_content
from tasks.images.names import parse_reference
from tasks.images.store import StoredImage
from tasks.images.tar_stream import Member, read_tar

_IGNORED_SUFFIXES = (".part", ".sha256", ".sha256sum", ".md5")
_AGAIN = "Copy or download it again; compare its size and SHA-256 with the original's."


@dataclass(frozen=True)
class ArchiveFacts:
    """An image archive that was read to its end and found whole.

    Args:
        path: The file.
        size: Its bytes.
        sha256: Its hash in hex.
        compression: Of the file as a whole.
        images: What it holds, one entry per name.
        stored: The configuration of each of its images.
        layers: Their layers, where they lie in the file; none of a compressed one.
    """

    path: Path
    size: int
    sha256: str
    compression: Literal["none", "gzip"]
    images: tuple[ImageFacts, ...]
    stored: tuple[StoredImage, ...] = field(default=(), repr=False, compare=False)
    layers: Mapping[str, Layer] = field(default_factory=dict, repr=False, compare=False)


def read_archives(path: Path, progress: Progress | None = None) -> tuple[ArchiveFacts, ...]:
    """Read and check an image archive, or all of a folder.

    Args:
        path: A file, or a folder with archives directly in it. Hidden files,
            checksum files and files still being written are passed over.
        progress: Called with the bytes read so far and in all.

    Returns:
        The archives, sorted by name.

    Raises:
        NotFound: There is no such path, or no archive in the folder.
        Damaged: An archive is cut off or altered.
        InvalidInput: A file is not an archive of images.
        SeveralFailures: Several of these.
    """
    path = path.expanduser()
    if path.is_file():
        return (read_archive(path, progress),)
    files = _archives_in(path)
    total = sum(file.stat().st_size for file in files)
    done = 0
    archives: list[ArchiveFacts] = []
    failures: list[CrossgapError] = []
    for file in files:
        try:
            archives.append(read_archive(file, _shifted(progress, done, total)))
        except (Damaged, InvalidInput) as error:
            failures.append(error)
        done += file.stat().st_size
    failures.extend(_contradictions(archives))
    if len(failures) > 1:
        raise SeveralFailures(failures, str(path))
    if failures:
        raise failures[0]
    return tuple(archives)


def read_archive(path: Path, progress: Progress | None = None) -> ArchiveFacts:
    """Read and check one image archive in one pass.

    Args:
        path: The file; its name does not matter, its content does.
        progress: Called with the bytes read so far and in all.

    Returns:
        What it holds. Every configuration and layer has the digest it should.

    Raises:
        Damaged: It is cut off or altered.
        InvalidInput: It is not an archive of images.
        NotFound: There is no such file.
    """
    try:
        contents = read_tar(path, progress)
    except OSError as error:
        raise NotFound(
            f"the file cannot be read ({error.strerror})",
            str(path),
            "Check the path, and that the user who runs the worker may read it.",
        ) from error
    found = tuple(images_in(contents.members, str(path)))
    images = tuple(image for one in found for image in one.named())
    layers: dict[str, Layer] = {}
    if contents.compression == "none":
        for one in found:
            layers.update(zip(one.facts.diff_ids, one.layers(path), strict=True))
    stored = tuple(one.stored() for one in found)
    return ArchiveFacts(
        path, contents.size, contents.sha256, contents.compression, images, stored, layers
    )


def _archives_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotFound(
            "there is no such file or folder",
            str(folder),
            "Check the path; it has to be on the machine that the worker runs on.",
        )
    files = sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and not file.name.lower().endswith(_IGNORED_SUFFIXES)
    )
    if not files:
        raise NotFound("there is no archive in the folder", str(folder), "Check the path.")
    return files


def _contradictions(archives: list[ArchiveFacts]) -> Iterator[InvalidInput]:
    seen: dict[str, tuple[ImageFacts, Path]] = {}
    for archive in archives:
        for image in archive.images:
            first, path = seen.setdefault(image.name, (image, archive.path))
            if not same_content(first, image):
                yield InvalidInput(
                    f"it holds another {image.name} than {path.name}",
                    str(archive.path),
                    "Leave only the one that is meant in the folder.",
                )


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    if progress is None:
        return None
    report = progress
    return lambda read, _: report(done + read, total)


@dataclass(frozen=True)
class FoundImage:
    """One image of an archive: what the manifest says, resolved against what was read.

    Args:
        facts: The image, without a name.
        config: Its configuration, to the byte.
        names: Its names, as Docker shows them.
        members: Its layers, the base first.
    """

    facts: ImageFacts
    config: bytes
    names: tuple[str, ...]
    members: tuple[Member, ...]

    def named(self) -> Iterator[ImageFacts]:
        """Yield the image under each of its names, or under its digest."""
        for name in self.names or (self.facts.config_digest,):
            yield replace(self.facts, name=name)

    def stored(self) -> StoredImage:
        """Return what it consists of."""
        facts = self.facts
        return StoredImage(self.config, facts.config_digest, facts.diff_ids, self.names)

    def layers(self, path: Path) -> Iterator[Layer]:
        """Yield its layers, where they lie in a plain tar file."""
        for diff_id, member in zip(self.facts.diff_ids, self.members, strict=True):
            content = Content((FileRange(path, member.offset, member.size),))
            # A plain layer may happen to begin like a gzip file.
            plain = member.sha256 == diff_id.removeprefix("sha256:")
            blob = Blob(f"sha256:{member.sha256}", member.size, content)
            yield Layer(diff_id, "none" if plain else member.compression, blob)


def images_in(members: Mapping[str, Member], where: str) -> Iterator[FoundImage]:
    """Resolve what `manifest.json` says of images against what was read.

    Args:
        members: All members of an archive.
        where: What the archive is, for errors.

    Yields:
        The images, each checked by its digests.

    Raises:
        Damaged: Something is missing or altered.
        InvalidInput: It is not an archive of images.
    """
    for entry in _manifest(members, where):
        try:
            config_name = str(entry["Config"])
            layer_names = [str(name) for name in entry["Layers"] or ()]
            names = [str(tag) for tag in entry.get("RepoTags") or ()]
        except (KeyError, TypeError, AttributeError) as error:
            raise _manifest_unreadable(where) from error
        config = _resolve(members, config_name, where)
        layers = [_resolve(members, name, where) for name in layer_names]
        facts = _checked_image(config, layers, where)
        familiar = tuple(_familiar(name, where) for name in names)
        yield FoundImage(facts, config.document, familiar, tuple(layers))


def _familiar(name: str, where: str) -> str:
    try:
        return parse_reference(name).familiar
    except InvalidInput as error:
        raise InvalidInput(
            f"it holds an image with an impossible name, {name!r}",
            where,
            "Save the image again under a proper name.",
        ) from error


def _manifest(members: Mapping[str, Member], where: str) -> list[Any]:
    member = members.get("manifest.json")
    if member is None:
        raise _no_manifest(members, where)
    try:
        manifest = json.loads(member.document)
    except ValueError as error:
        raise _manifest_unreadable(where) from error
    if not isinstance(manifest, list) or not manifest:
        raise _manifest_unreadable(where)
    return manifest


def _no_manifest(members: Mapping[str, Member], where: str) -> InvalidInput:
    if "index.json" in members:
        return InvalidInput(
            "it is an OCI layout without manifest.json, which Docker before 25 cannot load",
            where,
            "Make it with docker save instead, or with skopeo copy … docker-archive:FILE.",
        )
    if any(name.split("/")[0] in ("bin", "etc", "usr") for name in members):
        return InvalidInput(
            "it is the file system of a container (docker export), not an image",
            where,
            "Make it with docker save.",
        )
    return InvalidInput(
        "it is a tar file, but holds no images (no manifest.json)",
        where,
        "Name a file that docker save made.",
    )


def _manifest_unreadable(where: str) -> Damaged:
    return Damaged("its manifest.json is not readable", where, _AGAIN)


def _resolve(members: Mapping[str, Member], name: str, where: str) -> Member:
    """Find a member, through the links by which old archives share layers."""
    member = members.get(name)
    for _ in range(len(members)):
        if member is None or not member.link:
            break
        member = members.get(member.link)
    if member is None or member.link:
        raise Damaged(f"{name} is missing in it", where, _AGAIN)
    return member


def _checked_image(config: Member, layers: Sequence[Member], where: str) -> ImageFacts:
    named = _digest_in(config.name)
    if named and named != config.sha256:
        raise _altered(config, named, where)
    try:
        image = parse_image_config(config.document, "", [layer.unpacked_size for layer in layers])
    except ValueError as error:
        raise Damaged(f"{config.name} is no image configuration", where, _AGAIN) from error
    if len(image.diff_ids) != len(layers):
        raise Damaged(
            f"{config.name} names {len(image.diff_ids)} layers, manifest.json {len(layers)}",
            where,
            _AGAIN,
        )
    for layer, diff_id in zip(layers, image.diff_ids, strict=True):
        _check_layer(layer, diff_id, where)
    return image


def _check_layer(layer: Member, diff_id: str, where: str) -> None:
    if layer.compression == "zstd":
        # The standard library cannot unpack it; its own digest is in its name.
        named = _digest_in(layer.name)
        if not named:
            raise InvalidInput(
                f"{layer.name} is compressed with zstd, which cannot be checked here",
                where,
                "Make the archive with docker save.",
            )
        if named != layer.sha256:
            raise _altered(layer, named, where)
        return
    expected = diff_id.removeprefix("sha256:")
    # A plain layer may happen to begin like a gzip file.
    if expected not in (layer.unpacked_sha256, layer.sha256):
        raise _altered(layer, expected, where)


def _digest_in(name: str) -> str:
    match = re.search(r"(?:^|/)([a-f0-9]{64})(?:\.json)?$", name)
    return match[1] if match else ""


def _altered(member: Member, expected: str, where: str) -> Damaged:
    return Damaged(
        f"{member.name} ({member.size:,} bytes) is altered: its SHA-256 is "
        f"{member.sha256[:12]}…, not as recorded for {expected[:12]}…",
        where,
        _AGAIN,
    )
