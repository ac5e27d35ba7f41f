"""Puts an archive together on a host out of staged layers, and pipes it into its engine.

What lies around the layers is sent as one small file, the glue. A tar file
consists of blocks, so dd can cut the glue where a layer belongs; the host needs
nothing but coreutils.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.images.blobs import Blob
from tasks.images.layout import BLOCK, LayoutImage, segments


@dataclass(frozen=True)
class Assembly:
    """How an archive is put together on a host.

    Args:
        glue: What is around its layers.
        steps: Shell commands that print it, in order; they read the glue from
            descriptor 3.
    """

    glue: bytes
    steps: tuple[str, ...]

    @property
    def key(self) -> str:
        """Names the archive: equal ones have equal keys."""
        whole = self.glue + "\n".join(self.steps).encode()
        return hashlib.sha256(whole).hexdigest()[:32]

    def load_argv(self, glue_path: str) -> list[str]:
        """Return the command that loads the archive.

        Args:
            glue_path: Where the glue lies on the host, absolute.
        """
        # Opened once: a run that takes over from a killed one removes the file and puts
        # the same one there, while the load of the other is still at work.
        script = 'exec 3<"$1" || exit 1\n{\n' + "\n".join(self.steps) + "\n} | docker load"
        return ["sh", "-c", script, "sh", glue_path]


def assemble(images: Sequence[LayoutImage], staged: Callable[[Blob], str]) -> Assembly:
    """Plan how an archive is put together on a host.

    Args:
        images: What it holds.
        staged: Gives the absolute path of a layer on the host.
    """
    glue = bytearray()
    steps: list[str] = []
    for segment in segments(images):
        if isinstance(segment, Blob):
            steps.append(f"cat {shlex.quote(staged(segment))} || exit 1")
        elif len(segment) % BLOCK:
            steps.append(f"head -c {len(segment)} /dev/zero")
        else:
            steps.append(f"dd bs={BLOCK} count={len(segment) // BLOCK} <&3 2>/dev/null")
            glue += segment
    return Assembly(bytes(glue), tuple(steps))
