"""The settings of servers, workers and commands, as environments of their processes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

SETTINGS_FILE = Path(__file__).resolve().parent / "prefect.server.env"


def client_environment(
    inherited: Mapping[str, str], *, home: Path, api_url: str, auth_string: str
) -> dict[str, str]:
    """Return the environment of a worker, or of a command that talks to the server.

    Args:
        inherited: The environment of this process. Its Prefect settings belong
            to another server and are left out.
        home: Prefect's folder.
        api_url: The server's API.
        auth_string: `user:password`, or empty without authentication.
    """
    environment = {
        name: value for name, value in inherited.items() if not name.startswith("PREFECT_")
    }
    environment |= offline_settings()
    environment |= {"PREFECT_HOME": str(home), "PREFECT_API_URL": api_url}
    if auth_string:
        environment["PREFECT_API_AUTH_STRING"] = auth_string
    host = api_url.split("//", 1)[1].rsplit(":", 1)[0]
    for name in ("NO_PROXY", "no_proxy"):  # calls to the API never take a proxy
        entries = [entry for entry in environment.get(name, "").split(",") if entry]
        environment[name] = ",".join(dict.fromkeys([*entries, "127.0.0.1", "localhost", host]))
    return environment


def server_environment(
    client: Mapping[str, str], *, listen: str, port: int, api_url: str, auth_string: str
) -> dict[str, str]:
    """Return the environment of the server itself.

    Args:
        client: What `client_environment` returned.
        listen: The address to listen on.
        port: The port to listen on.
        api_url: Where browsers reach the API; without it the UI only works on
            port 4200.
        auth_string: `user:password`, or empty without authentication.
    """
    environment = {
        **client,
        "PREFECT_SERVER_API_HOST": listen,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": api_url,
    }
    if auth_string:
        environment["PREFECT_SERVER_API_AUTH_STRING"] = auth_string
    return environment


def offline_settings(path: Path = SETTINGS_FILE) -> dict[str, str]:
    """Return the settings that keep Prefect from calling out: `NAME=value` lines."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def stored_auth_string(home: Path) -> str:
    """Return a server's `user:password`, made at its first use and kept mode 0600.

    Args:
        home: The server's folder.
    """
    path = home / "auth"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"admin:{secrets.token_urlsafe(18)}\n")
    return path.read_text().strip()
