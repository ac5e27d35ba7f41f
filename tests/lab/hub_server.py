"""How the lab's hub answers: HTTP in front of the models it has."""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from tests.lab.hub_body import Body, Source, asked_part
from tests.lab.hub_documents import model_info, modelscope_answer, modelscope_files, refs, tree
from tests.lab.hub_faults import BODIES, FILES, HEADS, INSTEAD, RANGES, Fault, Seen
from tests.lab.hub_files import Commit, HubFile, HubModel

if TYPE_CHECKING:
    from tests.lab.hub import LabHub
    from tests.lab.registry import LabAuthority

COUNTERS = "/_lab/counters"
"""Where a hub in a process of its own tells what it has counted; no fault befalls it."""

_PAGE = "<!DOCTYPE html><html><head><title>Login 登录</title></head></html>".encode()
_EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
_JSON = "application/json; charset=utf-8"
_BINARY = "application/octet-stream"


class _Refusal(Exception):  # noqa: N818
    """An answer other than what was asked for."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


class HubServer(ThreadingHTTPServer):
    """A host that listens on 127.0.0.1.

    Args:
        hub: Whose models it serves.
        name: `hub`, or `cdn` for one that serves signed links only.
        port: Where; any free one for 0.
        authority: Signs its certificate.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, hub: LabHub, name: str, port: int, authority: LabAuthority | None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.hub = hub
        self.name = name
        self._open: set[socket.socket] = set()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if authority else None
        if self._tls and authority:
            self._tls.load_cert_chain(authority.certificate, authority.key)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls:
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        self.hub.note_connections(1)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self._open.discard(request)
        self.hub.note_connections(-1)

    def end_connections(self) -> None:
        """End what clients keep open."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break: here they do all the time."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub
        self._sending = ""
        self._body = Body(self.connection, self.hub.over, self._note_sent)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        if self.path == COUNTERS:
            counted = json.dumps(self.hub.counters()).encode()
            self._send(200, counted, 0, len(counted), {"Content-Type": _JSON}, None)
            return
        self._asked = unquote(self.path)
        self._shown = self.headers.get("Authorization", "")
        parts = urlsplit(self.path)
        self._query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        wanted = self.headers.get("Range", "")
        seen = Seen(self.server.name, self.command, self._asked, wanted, self._shown)
        self.hub.note_request(seen)
        if fault := self.hub.take_fault(INSTEAD, self.command, self._asked):
            self._fail(fault)
            return
        try:
            self._route(parts.path)
        except _Refusal as refusal:
            self._refuse(refusal)

    do_HEAD = do_GET  # noqa: N815

    def _route(self, path: str) -> None:
        routes = _CDN_ROUTES if self.server.name == "cdn" else _ROUTES
        for pattern, answer in routes:
            if found := pattern.fullmatch(path):
                answer(self, **{k: unquote(v or "") for k, v in found.groupdict().items()})
                return
        raise _Refusal(404, "", "Sorry, we can't find the page you are looking for.")

    # What the hub answers

    def _give_info(self, model: str, revision: str = "main") -> None:
        kept = self._model(model)
        commit = self._commit(kept, revision)
        blobs = self._query.get("blobs", "").lower() in ("1", "true")
        self._send_document(model_info(kept, commit, blobs=blobs))

    def _give_refs(self, model: str) -> None:
        self._send_document(refs(self._model(model)))

    def _give_tree(self, model: str, revision: str, path: str = "") -> None:
        commit = self._commit(self._model(model), revision)
        recursive, expand = (
            self._query.get(name, "").lower() in ("1", "true") for name in ("recursive", "expand")
        )
        entries = tree(commit, path.strip("/"), recursive=recursive, expand=expand)
        if entries is None:
            raise _Refusal(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
        entries = self.hub.rewrite(self._asked, entries)
        size = min(self.hub.page_size, int(self._query.get("limit", self.hub.page_size)))
        begin = int(base64.urlsafe_b64decode(self._query.get("cursor", "")) or 0)
        headers = {}
        if len(entries) > begin + size:
            headers["Link"] = self._link_to_page(begin + size)
        self._send_json(entries[begin : begin + size], headers)

    def _link_to_page(self, begin: int) -> str:
        fault = self.hub.take_fault({"next-page"}, self.command, self._asked)
        cursor = base64.urlsafe_b64encode(str(begin).encode()).decode()
        query = urlencode({**self._query, "cursor": cursor})
        path = urlsplit(self.path).path
        return f'<{fault.target if fault else self.hub.url}{path}?{query}>; rel="next"'

    def _resolve(self, model: str, revision: str, path: str) -> None:
        kept = self._model(model)
        commit = self._commit(kept, revision)
        self._check_gate(kept)
        told = {"X-Repo-Commit": commit.id}
        file = commit.files.get(path)
        if not file:
            raise _Refusal(404, "EntryNotFound", "Entry not found", told)
        self._lead_to(kept, commit, file, told)

    def _lead_to(
        self, model: HubModel, commit: Commit, file: HubFile, told: dict[str, str]
    ) -> None:
        """Send a file, or to where it is."""
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": file.etag}
        if fault := self.hub.take_fault({"redirect"}, self.command, self._asked):
            self._redirect(302, fault.target + self.path, told | linked)
        elif file.lfs:
            target = self.hub.sign_link(model.name, commit, file)
            self._redirect(302, target, told | linked)
        elif self.hub.resolve_cache and file.size and not (model.gated or model.private):
            target = f"/api/resolve-cache/models/{quote(model.name)}/{commit.id}/{file.quoted}"
            query = urlencode({self.path: "", "etag": file.etag})
            self._redirect(307, f"{target}?{query}", told)
        else:
            self._send_file(model.name, file, told)

    def _give_cached(self, model: str, revision: str, path: str) -> None:
        commit = self._commit(self._model(model), revision)
        file = commit.files.get(path)
        if not file:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        self._send_file(model, file, {"X-Repo-Commit": commit.id})

    def _give_signed(self, path: str) -> None:
        link = self.hub.use_link(self._query.get("Signature", ""), self.command)
        if not link or not path.endswith(f"/{link.file.path}"):
            self._send_bytes(403, _EXPIRED, "application/xml", {})
        else:
            # The real client follows a link that stays on its host and asks there for this.
            own = self.server.name == "hub"
            told = {"X-Repo-Commit": link.commit.id} if own else {}
            self._send_file(link.model, link.file, told)

    # What ModelScope answers

    def _give_modelscope_files(self, model: str) -> None:
        commit = self._modelscope_commit(model)
        root = self._query.get("Root", "").strip("/")
        recursive = self._query.get("Recursive", "").lower() == "true"
        self._send_document(modelscope_files(commit, root, recursive=recursive))

    def _give_modelscope_file(self, model: str, revision: str = "", path: str = "") -> None:
        commit = self._modelscope_commit(model, revision)
        kept = self._model(model)
        self._check_gate(kept)
        file = commit.files.get(path or self._query.get("FilePath", ""))
        if not file:
            raise _Refusal(404, "modelscope", "文件不存在 (no such file)")
        if file.lfs:
            self._lead_to(kept, commit, file, {})
        else:
            self._send_file(model, file, {})

    def _modelscope_commit(self, model: str, revision: str = "") -> Commit:
        kept = self.hub.models.get(model)
        if not kept or (kept.private and model not in self._allowed()):
            raise _Refusal(404, "modelscope", "获取模型信息失败 (record not found)")
        commit = kept.find_on_modelscope(revision or self._query.get("Revision", "master"))
        if not commit:
            raise _Refusal(404, "modelscope", "版本不存在 (no such revision)")
        return commit

    # Who may see what

    def _allowed(self) -> set[str]:
        token = self._shown.removeprefix("Bearer ")
        if not self._shown:
            return set()
        if token not in self.hub.tokens:
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _model(self, name: str) -> HubModel:
        allowed = self._allowed()
        kept = self.hub.models.get(name)
        if kept and (not kept.private or name in allowed):
            return kept
        if self._shown:
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        raise _Refusal(401, "RepoNotFound", "Invalid username or password.")

    def _commit(self, model: HubModel, revision: str) -> Commit:
        if commit := model.find(revision or "main"):
            return commit
        raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _check_gate(self, model: HubModel) -> None:
        if model.gated and model.name not in self._allowed():
            why = (
                "You are not in the authorized list. Ask for access on its page."
                if self._shown
                else "You must have access to it and be authenticated to access it."
            )
            status = 403 if self._shown else 401
            raise _Refusal(
                status, "GatedRepo", f"Access to model {model.name} is restricted. {why}"
            )

    # How it is sent

    def _send_file(self, model: str, file: HubFile, told: dict[str, str]) -> None:
        part = asked_part(self.headers.get("Range", ""), file.size)
        if self.headers.get("If-Range", file.etag) != file.etag:
            part = None
        begin, end = part or (0, file.size)
        kinds = FILES if self.command == "GET" else HEADS
        if not part:
            kinds -= RANGES
        fault = self.hub.take_fault(kinds, self.command, self._asked, (begin, end))
        kind = fault.kind if fault else ""
        if kind == "ignore-range":
            part, begin, end = None, 0, file.size
        headers = {**told, "ETag": file.etag, "Accept-Ranges": "bytes"}
        if part and begin >= end:
            headers["Content-Range"] = f"bytes */{file.size}"
            self._send_bytes(416, b"", _BINARY, headers)
            return
        if part and kind != "range-as-200":
            total = file.size + (fault.by if fault and kind == "content-range" else 0)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{total}"
        status = 206 if "Content-Range" in headers else 200
        self._sending = f"{model}/{file.path}"
        with file.content.open("rb") as content:
            self._send(
                status, content.fileno(), begin, end, {"Content-Type": _BINARY, **headers}, fault
            )

    def _note_sent(self, size: int) -> None:
        if self._sending:
            self.hub.note_sent(self._sending, size)

    def _send_document(self, document: object) -> None:
        self._send_json(self.hub.rewrite(self._asked, document), {})

    def _send_json(self, document: object, headers: Mapping[str, str]) -> None:
        content = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")
        self._send_bytes(200, content, _JSON, headers)

    def _redirect(self, status: int, target: str, headers: Mapping[str, str]) -> None:
        content = f"Found. Redirecting to {target}".encode()
        self._send_bytes(status, content, "text/plain", {**headers, "Location": target})

    def _refuse(self, refusal: _Refusal) -> None:
        headers = dict(refusal.headers)
        if refusal.code == "modelscope":
            document = modelscope_answer(10010205001, refusal.message)
        else:
            document = {"error": refusal.message}
            headers["X-Error-Message"] = refusal.message
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
        if refusal.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="Authentication required"'
        content = json.dumps(document, ensure_ascii=False).encode()
        self._send_bytes(refusal.status, content, _JSON, headers)

    def _fail(self, fault: Fault) -> None:
        if fault.kind == "page":
            self._send_bytes(200, _PAGE, "text/html; charset=utf-8", {})
        else:
            content = json.dumps({"error": "a bad day"}).encode()
            self._send_bytes(fault.status, content, _JSON, fault.headers)

    def _send_bytes(
        self, status: int, content: bytes, kind: str, headers: Mapping[str, str]
    ) -> None:
        self._sending = ""
        fault = None
        if status == 200 and self.command == "GET":
            fault = self.hub.take_fault(BODIES, self.command, self._asked)
        self._send(status, content, 0, len(content), {"Content-Type": kind, **headers}, fault)

    def _send(
        self,
        status: int,
        source: Source,
        begin: int,
        end: int,
        headers: Mapping[str, str],
        fault: Fault | None,
    ) -> None:
        if fault and fault.after < 0:
            self._body.stop(fault)
        length = end - begin
        if fault and fault.kind == "content-length":
            length += fault.by
            self.close_connection = True  # nobody could tell where the next answer begins
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(max(length, 0)))
        self.end_headers()
        if self.command != "HEAD":
            self._body.send(source, begin, end, self.hub.rate if self._sending else None, fault)


_MODEL = "(?P<model>[^/]+/[^/]+|[^/]+)"
_PAIR = "(?P<model>[^/]+/[^/]+)"
_REVISION = "(?P<revision>[^/]+)"
_FILE = "(?P<path>.+)"
_CDN_ROUTES: list[tuple[re.Pattern[str], Callable[..., None]]] = [
    (re.compile("/cdn/(?P<path>.+)"), _Handler._give_signed),
]
_ROUTES: list[tuple[re.Pattern[str], Callable[..., None]]] = [
    *_CDN_ROUTES,
    (re.compile(f"/api/v1/models/{_PAIR}/repo/files"), _Handler._give_modelscope_files),
    (re.compile(f"/api/v1/models/{_PAIR}/repo"), _Handler._give_modelscope_file),
    (re.compile(f"/models/{_PAIR}/resolve/{_REVISION}/{_FILE}"), _Handler._give_modelscope_file),
    (re.compile(f"/api/models/{_MODEL}/refs"), _Handler._give_refs),
    (re.compile(f"/api/models/{_MODEL}/revision/{_REVISION}"), _Handler._give_info),
    (re.compile(f"/api/models/{_MODEL}/tree/{_REVISION}(?:/(?P<path>.*))?"), _Handler._give_tree),
    (re.compile(f"/api/models/{_MODEL}"), _Handler._give_info),
    (
        re.compile(f"/api/resolve-cache/models/{_MODEL}/(?P<revision>[0-9a-f]{{40}})/{_FILE}"),
        _Handler._give_cached,
    ),
    (re.compile(f"/{_MODEL}/resolve/{_REVISION}/{_FILE}"), _Handler._resolve),
]
