"""Prefect's UI with the demo's history, and a worker, until Ctrl-C.

python -m deployments.ui [--listen ADDRESS]
"""

from __future__ import annotations

import argparse
import sys
import time

from blocks.errors import CrossgapError
from deployments.register import register
from deployments.server import PrivateServer, exit_on_signals

NAME = "demo"
"""The server whose history it is; `deployments.demo` fills it."""

PORT = 4280


def main(arguments: list[str] | None = None) -> int:
    """Serve the demo's history until Ctrl-C.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m deployments.ui", description=__doc__)
    parser.add_argument(
        "--listen", default="127.0.0.1", help="this machine's address for other desks"
    )
    options = parser.parse_args(arguments)
    exit_on_signals()
    server = PrivateServer(NAME, port=PORT, listen=options.listen)
    try:
        with server:
            with server.connected():
                register()  # the address may be another than the demo's
            server.start_worker()
            print(f"The Prefect UI is at {server.ui_url} (Ctrl-C ends it).", flush=True)
            if server.auth_string:
                print(f"It asks for this once: {server.auth_string}", flush=True)
                print(f"(kept in {server.home / 'auth'})", flush=True)
            while (failure := server.failure()) is None:
                time.sleep(1)
            raise failure
    except CrossgapError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


if __name__ == "__main__":
    sys.exit(main())
