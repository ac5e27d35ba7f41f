"""Bytes from here into the standard input of a command on a host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from blocks.content import Content
from blocks.pouring import pour
from blocks.transfer import STALL, Pace, Progress, is_bulk

if TYPE_CHECKING:
    from blocks.host import CommandResult, Host, RunningCommand

# The end of what a command prints is what it ends with; the rest is not kept.
_KEPT = 1 << 16


def feed(
    host: Host,
    argv: Sequence[str],
    content: Content,
    *,
    sudo: bool = False,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> CommandResult:
    """Run a command that reads bytes from here; nothing is stored on the way.

    Args:
        host: Where the command runs.
        argv: The command and its arguments, unquoted.
        content: What it reads.
        sudo: Whether it needs root.
        progress: Is told the bytes that were handed over, and in all.
        pace: Limits the rate.

    Returns:
        How it ended, with the last 64 KiB of each output; a command that ends
        before it has read everything is no error here.

    Raises:
        TimedOut: It neither read nor printed anything for `STALL` seconds.
        Unreachable: The connection died.
        CrossgapError: As for `Host.run`.
    """
    from blocks.host import CommandResult

    begin = time.monotonic()
    out, err = bytearray(), bytearray()

    def listen(command: RunningCommand, timeout: float) -> bool:
        if (pair := command.read(timeout)) is None:
            return False
        if pair[0] or pair[1]:
            command.extend(STALL)
        out.extend(pair[0])
        err.extend(pair[1])
        del out[:-_KEPT], err[:-_KEPT]
        return True

    bulk = is_bulk(content.size)
    with host.start(argv, timeout=STALL, sudo=sudo, has_input=True, bulk=bulk) as command:
        handed = 0
        with suppress(BrokenPipeError):
            for count in pour(command, content, pace):
                if count:
                    command.extend(STALL)
                handed += count
                if progress:
                    progress(handed, content.size)
                listen(command, 0)
        command.close_input()
        while listen(command, 0.5):
            pass
        code = command.finish()
    seconds = time.monotonic() - begin
    return CommandResult(
        code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), seconds
    )
