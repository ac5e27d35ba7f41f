"""Asking a Docker engine whether it is there."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import docker


def engine_answers(url: str) -> bool:
    """Whether a Docker engine answers at this URL within a few seconds."""
    parts = urlsplit(url)
    return _socket_answers(parts.path) if parts.scheme == "unix" else _client_answers(url)


def _socket_answers(path: str) -> bool:
    # docker's client leaks a socket per refused connection, and starting engines refuse many.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        try:
            connection.connect(path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in connection.recv(64)
        except OSError:
            return False


def _client_answers(url: str) -> bool:
    try:
        with docker.APIClient(base_url=url, timeout=5, version="1.41") as client:
            return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False
