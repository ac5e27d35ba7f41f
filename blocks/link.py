"""How fast the line to a host is."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from blocks.content import Content
from blocks.outage import waited_out
from blocks.pouring import pour
from blocks.sending import Sending
from blocks.transfer import STALL, is_bulk

if TYPE_CHECKING:
    from blocks.host import Host

# Bytes that are enough to tell a slow line from a fast one; and those that tell how fast,
# when starting a program takes as long as sending the first ones.
SAMPLE = 2 << 20
LARGE_SAMPLE = 16 << 20

# What sending a sample to its end costs besides the bytes, in round trips of a command.
_OVERHEAD = 0.5


def link_rate(
    host: Host, content: Content, remote: str = "", sha256: str = "", *, sample: int = SAMPLE
) -> float:
    """Measure the line by sending the first megabytes of what is to be sent anyway.

    They become the beginning of its part (or the next piece, where there is one
    already), so that a `put` of the same content to the same place goes on behind them.

    Args:
        host: Where to.
        content: What is to be sent.
        remote: Where it is to be; if that is no file, the sample is thrown away there.
        sha256: Its hash, as the later `put` is given it.
        sample: Bytes to send.

    Returns:
        Bytes per second, at least 1.

    Raises:
        CrossgapError: As for `blocks.files.put`.
    """
    sent, seconds = 0, 0.0
    if remote:
        with closing(Sending(host, content, sha256)) as sending:
            sent, seconds = waited_out(host, lambda outage: sending.sample(remote, sample, outage))
    if not sent:
        sent, seconds = _sample_to_nowhere(host, content.cut(0, sample))
    begin = time.monotonic()
    host.run(["true"], timeout=60)
    overhead = _OVERHEAD * (time.monotonic() - begin)
    return max(1.0, sent / max(seconds - overhead, seconds / 4))


def _sample_to_nowhere(host: Host, content: Content) -> tuple[int, float]:
    """Send some bytes that nobody keeps."""
    argv = ["sh", "-c", "cat >/dev/null"]
    bulk = is_bulk(content.size)
    with host.start(argv, timeout=STALL, has_input=True, bulk=bulk) as command:
        begin = time.monotonic()
        sent = sum(pour(command, content))
        command.close_input()
        while command.read() is not None:
            pass
        return sent, time.monotonic() - begin
