"""A real HTTP server before a registry that does on demand what bad days do.

It stands for a mirror that fails, a proxy that meddles, a link that breaks, a storage
that blobs are redirected to, and for the token service of a public registry.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

Kind = Literal["status", "stall", "cut", "reset", "flip", "page", "ignore-range", "redirect"]
_CHUNK = 1 << 16
_PAGE = "<!DOCTYPE html><html><head><title>Login 登录</title></head></html>".encode()


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: `status` answers with one; `stall`, `cut` and `reset` stop an answer after some
            bytes (a reset also throws away what has arrived and was not read yet); `flip`
            changes one byte; `page` answers with a web page and status 200; `ignore-range`
            sends all where a part was asked for; `redirect` sends elsewhere.
        path: Which requests, as a regular expression that is searched for in the path.
        times: How often; None for always.
        after: How many bytes of an answer pass before.
        status: For `status`.
        headers: Further headers, for `status`.
        target: Where to, for `redirect`, as the beginning of a URL.
    """

    kind: Kind
    path: str = "/blobs/"
    times: int | None = None
    after: int = 0
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    target: str = ""


@dataclass(frozen=True)
class Seen:
    """One request that came.

    Attributes:
        path: What was asked for.
        authorization: What was shown, or empty.
        range: The part that was asked for, or empty.
    """

    path: str
    authorization: str
    range: str


class Front:
    """A server before a registry that runs while the context does.

    Args:
        upstream: The registry's address, `host:port`; it speaks http.
        faults: What goes wrong, the first that fits a request.
        tokens: Whether a token is wanted, which the path /token here gives.
        user: Name and password that the giver of tokens wants to see; it gives them to
            anybody when left out.

    Attributes:
        address: Host and port.
        seen: The requests, in the order in which they came.
        sent: Bytes of the bodies that were sent.
    """

    def __init__(
        self,
        upstream: str,
        *faults: Fault,
        tokens: bool = False,
        user: tuple[str, str] | None = None,
    ) -> None:
        self.upstream = upstream
        self.faults = list(faults)
        self.seen: list[Seen] = []
        self.sent = 0
        self.wants_token = tokens
        self.user = user
        self.token = secrets.token_hex(8)
        self.over = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.front = self
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def asked(self, path: str) -> list[Seen]:
        """Return the requests whose path has this in it, as a regular expression."""
        return [seen for seen in self.seen if re.search(path, seen.path)]

    def fault_for(self, path: str) -> Fault | None:
        """Return what goes wrong with a request, and count that it has."""
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.path, path):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    front: Front

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections break here all the time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        front = self.server.front
        shown = self.headers.get("Authorization", "")
        with front.lock:
            front.seen.append(Seen(self.path, shown, self.headers.get("Range", "")))
        if self.path.startswith("/token"):
            self._give_token(shown)
        elif front.wants_token and shown != f"Bearer {front.token}":
            self._want_token()
        else:
            self._serve(front.fault_for(self.path))

    do_HEAD = do_GET  # noqa: N815

    def _serve(self, fault: Fault | None) -> None:
        if fault and fault.kind == "status":
            complaint = json.dumps({"errors": [{"code": "X", "message": "a bad day"}]}).encode()
            self._answer(fault.status, complaint, dict(fault.headers))
        elif fault and fault.kind == "page":
            self._answer(200, _PAGE, {"Content-Type": "text/html; charset=utf-8"})
        elif fault and fault.kind == "redirect":
            self._answer(307, b"", {"Location": f"{fault.target}{self.path}"})
        else:
            self._pass_on(fault)

    def _pass_on(self, fault: Fault | None) -> None:
        parts = urlsplit(self.path)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        dropped = {"host", "connection", "authorization", "proxy-connection"}
        if fault and fault.kind == "ignore-range":
            dropped.add("range")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        # A request to a proxy names the server that it is meant for.
        connection = http.client.HTTPConnection(
            parts.netloc or self.server.front.upstream, timeout=30
        )
        try:
            connection.request(self.command, path, headers=headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("date", "server", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self._copy(answer, fault)
        finally:
            connection.close()

    def _copy(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
        front = self.server.front
        begin = re.match(r"bytes (\d+)", answer.headers.get("Content-Range", ""))
        place = int(begin[1]) if begin else 0
        passed = 0
        limit = fault.after if fault and fault.kind in ("stall", "cut", "reset") else None
        while chunk := answer.read(_CHUNK if limit is None else min(_CHUNK, limit - passed)):
            if fault and fault.kind == "flip" and 0 <= fault.after - place - passed < len(chunk):
                changed = bytearray(chunk)
                changed[fault.after - place - passed] ^= 1
                chunk = bytes(changed)
            self.wfile.write(chunk)
            passed += len(chunk)
            with front.lock:
                front.sent += len(chunk)
            if passed == limit:
                break
        if limit is not None:
            self.wfile.flush()
            self._stop(fault)

    def _stop(self, fault: Fault | None) -> None:
        self.close_connection = True
        if fault and fault.kind == "stall":
            self.server.front.over.wait()
        elif fault and fault.kind == "reset":
            abort = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
        with suppress(OSError):
            self.connection.close()

    def _want_token(self) -> None:
        front = self.server.front
        challenge = f'Bearer realm="http://{front.address}/token",service="lab"'
        if found := re.match(r"/v2/(.+)/(?:manifests|blobs|tags)/", self.path):
            challenge += f',scope="repository:{found[1]}:pull"'
        self._answer(401, b"{}", {"WWW-Authenticate": challenge})

    def _give_token(self, shown: str) -> None:
        front = self.server.front
        wanted = parse_qs(urlsplit(self.path).query)
        secret = base64.b64encode(":".join(front.user or ()).encode()).decode()
        if "service" not in wanted or (front.user and shown != f"Basic {secret}"):
            self._answer(401, b"{}", {})
        else:
            self._answer(200, json.dumps({"token": front.token}).encode(), {})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
