"""All tests but the long ones, in two halves side by side.

    python -m tests.run

Those that need hosts, an engine or a browser wait most of the time; those that need none
of it keep a processor busy. These run beside the others, at a lower priority, and are
told of when the others have ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

_NICE = 10


def main() -> int:
    """Run both halves and return the worse exit code."""
    pytest = [sys.executable, "-m", "pytest"]
    with tempfile.TemporaryFile() as output:
        beside = subprocess.Popen(
            [*pytest, "-q", "-p", "no:cacheprovider", "-m", "hostless and not torture"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.nice(_NICE),  # noqa: PLW1509 - nothing is threaded yet
        )
        try:
            code = subprocess.run(
                [*pytest, "-m", "not hostless and not torture"], check=False
            ).returncode
            other = beside.wait()
        except BaseException:
            beside.send_signal(signal.SIGINT)
            beside.wait()
            raise
        output.seek(0)
        print("==> Beside, without hosts:", flush=True)  # noqa: T201
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return code or other


if __name__ == "__main__":
    sys.exit(main())
