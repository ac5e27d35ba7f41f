"""What a model consists of, and its bytes, asked of tiny hubs that speak real HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import (
    AuthenticationRefused,
    Cancelled,
    ConnectionLost,
    ConnectionRefused,
    CrossgapError,
    Damaged,
    InvalidInput,
    NotFound,
    TimedOut,
    Unreachable,
)
from blocks.model_hub import HubEndpoint, HubKind, ModelHub
from tasks.models.files import ModelFile, Revision
from tasks.models.hub.hub import Hub
from tasks.models.hub.places import Place
from tasks.models.places import probe
from tasks.transfer import turns
from tasks.transfer.web import Throttled

COMMIT = "c0ffee" + "0" * 34
BYTES = bytes(range(256)) * 40
WEIGHTS = ModelFile("weights 1#?%.bin", len(BYTES), sha256="a" * 64)
PINNED = Revision("org/model", "main", COMMIT, (WEIGHTS,))
TOKEN = "hf_hush"


@dataclass(frozen=True)
class Seen:
    """A request."""

    url: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    connection: tuple[str, int]

    @property
    def range(self) -> tuple[int, int] | None:
        text = self.headers.get("Range", "").removeprefix("bytes=")
        first, _, last = text.partition("-")
        return (int(first), int(last)) if text else None


@dataclass(frozen=True)
class Reply:
    """An answer.

    Args:
        status: The HTTP status.
        content: Its body.
        headers: Instead of or beside a right Content-Length.
        hold: Keeps silent behind the body until it is set, then breaks off.
    """

    status: int = 200
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None


Answers = Callable[[Seen], Reply]


class TinyHub:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.seen: list[Seen] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = parse_qs(parts.query)
                seen = Seen(
                    self.path, unquote(parts.path), query, self.headers, self.client_address
                )
                hub.seen.append(seen)
                reply = hub.answers(seen)
                self.send_response(reply.status)
                headers = {"Content-Length": str(len(reply.content)), **reply.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.content)
                if reply.hold:
                    reply.hold.wait()
                if reply.hold or headers["Content-Length"] != str(len(reply.content)):
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing of clients that have heard enough."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"

    def __enter__(self) -> TinyHub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def start() -> Iterator[Callable[[Answers], TinyHub]]:
    with ExitStack() as running:
        yield lambda answers: running.enter_context(TinyHub(answers))


Start = Callable[[Answers], TinyHub]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_FIRST_WAIT", 0.0)


def document(value: Any, **headers: str) -> Reply:
    return Reply(
        content=json.dumps(value).encode(), headers={"Content-Type": "application/json", **headers}
    )


def entry(path: str, large: bool = False) -> dict[str, Any]:
    small = {"type": "file", "path": path, "size": 9, "oid": "b" * 40}
    return {**small, "lfs": {"oid": "a" * 64, "size": 9, "pointerSize": 134}} if large else small


def model(**pages: Reply) -> Answers:
    """A hub with one model; of its API, parts may be replaced."""
    info = {"id": "org/model", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]}
    parts = {
        "revision": document(info),
        "tree": document([entry("config.json"), entry("w/model.bin", large=True)]),
        "refs": document(
            {"branches": [{"name": "main"}, {"name": "fp8"}], "tags": [{"name": "v1"}]}
        ),
        **pages,
    }

    def answers(seen: Seen) -> Reply:
        found = next((name for name in parts if f"/org/model/{name}" in seen.path), "")
        return parts[found] if found else Reply(404, headers={"X-Error-Code": "RepoNotFound"})

    return answers


def hub_of(*endpoints: TinyHub | str, kind: HubKind = "huggingface", **values: Any) -> Hub:
    stall = values.pop("stall_seconds", 30.0)
    urls = [one if isinstance(one, str) else one.url for one in endpoints]
    block = ModelHub(endpoints=[HubEndpoint(url=url, kind=kind) for url in urls], **values)
    return Hub.of(block, stall_seconds=stall)


def closed_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


class TestResolving:
    def test_a_revision_is_pinned_with_all_its_files_but_no_folders(self, start: Start) -> None:
        listing = [entry("w/model.bin", large=True), entry("config.json")]
        listing.append({"type": "directory", "path": "w", "oid": "c" * 40, "size": 0})
        mirror = start(model(tree=document(listing)))
        with hub_of(mirror) as hub:
            assert hub.resolve(" org/model ", "main") == Revision(
                "org/model",
                "main",
                COMMIT,
                (
                    ModelFile("config.json", 9, git_sha1="b" * 40),
                    ModelFile("w/model.bin", 9, sha256="a" * 64),
                ),
                mirror.host,
            )
        assert [seen.path for seen in mirror.seen] == [
            "/api/models/org/model/revision/main",
            f"/api/models/org/model/tree/{COMMIT}",
        ]
        assert mirror.seen[1].query == {"recursive": ["true"], "expand": ["false"]}

    def test_the_second_page_is_asked_for_at_the_mirror_and_below_its_prefix(
        self, start: Start
    ) -> None:
        def answers(seen: Seen) -> Reply:
            if "/tree/" not in seen.path:
                return document({"sha": COMMIT})
            if "cursor" in seen.query:
                return document([entry("b")])
            path = f"/api/models/org/model/tree/{COMMIT}?cursor=Zm9v%3D"
            return document([entry("a")], Link=f'<https://hub.invalid{path}>; rel="next"')

        mirror = start(answers)
        with hub_of(f"{mirror.url}/hf/") as hub:
            found = hub.resolve("org/model")
        assert [file.path for file in found.files] == ["a", "b"]
        assert found.endpoint == f"{mirror.host}/hf"
        assert mirror.seen[-1].path == f"/hf/api/models/org/model/tree/{COMMIT}"
        assert mirror.seen[-1].query["cursor"] == ["Zm9v="]

    def test_pages_that_go_round_in_circles_end(self, start: Start) -> None:
        again = document([entry("config.json")], Link='<https://hub.invalid/?cursor=1>; rel="next"')
        with hub_of(start(model(tree=again))) as hub, pytest.raises(Damaged, match="no end"):
            hub.resolve("org/model")

    def test_a_list_that_lost_a_page_is_noticed(self, start: Start) -> None:
        named = [{"rfilename": name} for name in ("config.json", "w/model.bin", "z.bin")]
        mirror = start(model(revision=document({"sha": COMMIT, "siblings": named})))
        with hub_of(mirror) as hub, pytest.raises(Damaged, match=r"lacks 1 of .* 'z\.bin' among"):
            hub.resolve("org/model")

    def test_a_slash_in_a_revision_is_part_of_its_name(self, start: Start) -> None:
        mirror = start(model())
        with hub_of(mirror) as hub:
            hub.resolve("org/model", "refs/pr/1")
        assert mirror.seen[0].url == "/api/models/org/model/revision/refs%2Fpr%2F1"

    def test_an_old_name_has_no_organisation(self, start: Start) -> None:
        def answers(seen: Seen) -> Reply:
            return document([entry("a")] if "/tree/" in seen.path else {"sha": COMMIT})

        mirror = start(answers)
        with hub_of(mirror) as hub:
            assert hub.resolve("gpt2").model == "gpt2"
        assert mirror.seen[0].path == "/api/models/gpt2/revision/main"

    def test_a_commit_that_is_asked_for_is_the_one_that_is_given(self, start: Start) -> None:
        with hub_of(start(model())) as hub:
            assert hub.resolve("org/model", COMMIT).commit == COMMIT
            with pytest.raises(Damaged, match="was asked for"):
                hub.resolve("org/model", "d" * 40)

    @pytest.mark.parametrize(
        ("pages", "words"),
        [
            ({"revision": document({"sha": "main"})}, "as the commit, which is none"),
            ({"revision": document([])}, "as the commit, which is none"),
            ({"tree": document({"error": "x"})}, "its file list is none"),
            ({"tree": document([1])}, "its file list is none"),
            ({"tree": document([entry("../x")])}, "leads out of the folder"),
            ({"tree": document([entry("config.json")] * 2)}, "lists a file twice"),
            ({"tree": Reply(content=b"{")}, "no JSON"),
        ],
    )
    def test_an_answer_that_makes_no_sense_is_damage(
        self, start: Start, pages: dict[str, Reply], words: str
    ) -> None:
        with hub_of(start(model(**pages))) as hub, pytest.raises(Damaged, match=words):
            hub.resolve("org/model")

    @pytest.mark.parametrize("answer", [Reply(500), Reply(404), Reply(content=b"no JSON")])
    def test_the_next_endpoint_is_asked_when_one_fails(self, start: Start, answer: Reply) -> None:
        first, second = start(lambda _: answer), start(model())
        with hub_of(first, second) as hub:
            assert hub.resolve("org/model").endpoint == second.host
        assert first.seen

    def test_a_mirror_that_is_down_is_passed_over(self, start: Start) -> None:
        second = start(model())
        with hub_of(f"http://{closed_port()}", second) as hub:
            assert hub.resolve("org/model").endpoint == second.host

    def test_what_each_endpoint_said_is_told_when_none_helps(self, start: Start) -> None:
        down, lacking = closed_port(), start(lambda _: Reply(404))
        with hub_of(f"http://{down}", lacking) as hub, pytest.raises(CrossgapError) as failed:
            hub.resolve("org/model")
        assert f"{down}: nothing listens there" in failed.value.what
        assert f"{lacking.host}: the hub has no such model" in failed.value.what

    def test_modelscope_is_not_asked_what_a_model_consists_of(self, start: Start) -> None:
        scope, mirror = start(lambda _: Reply(500)), start(model())
        endpoints = [HubEndpoint(url=scope.url, kind="modelscope"), HubEndpoint(url=mirror.url)]
        with Hub(endpoints) as hub:
            found = hub.resolve("org/model")
            assert [place.name for place in hub.places(found)] == [scope.host, mirror.host]
        assert not scope.seen
        with pytest.raises(InvalidInput, match="none of its endpoints"):
            hub_of(scope, kind="modelscope")

    @pytest.mark.parametrize("code", [{"X-Error-Code": "RevisionNotFound"}, {}])
    def test_an_unknown_revision_is_answered_with_those_that_exist(
        self, start: Start, code: dict[str, str]
    ) -> None:
        mirror = start(model(revision=Reply(404, headers=code)))
        with hub_of(mirror) as hub, pytest.raises(NotFound) as failed:
            hub.resolve("org/model", "fp16")
        assert failed.value.what == "the model exists, but has no revision 'fp16'"
        assert failed.value.remedy == "It has fp8, main, v1."

    def test_a_misspelt_model_is_not_taken_for_a_misspelt_revision(self, start: Start) -> None:
        with hub_of(start(model())) as hub, pytest.raises(NotFound, match="no such model"):
            hub.resolve("org/modle", "main")

    def test_a_hub_that_wants_a_pause_gets_it(self, start: Start) -> None:
        replies = iter([Reply(429, headers={"Retry-After": "0"})])
        answers = model()
        mirror = start(lambda seen: next(replies, None) or answers(seen))
        with hub_of(mirror) as hub:
            assert hub.resolve("org/model").commit == COMMIT

    @pytest.mark.parametrize("page", ["revision", "tree"])
    def test_a_web_page_is_called_one(self, start: Start, page: str) -> None:
        login = Reply(content=b"<title>Login</title>", headers={"Content-Type": "text/html"})
        with hub_of(start(model(**{page: login}))) as hub, pytest.raises(Unreachable) as failed:
            hub.resolve("org/model")
        assert "a web page (titled 'Login')" in failed.value.what

    def test_a_token_is_shown_to_the_hub_and_stays_out_of_messages(self, start: Start) -> None:
        mirror = start(lambda _: Reply(401))
        with hub_of(mirror, token=f" {TOKEN}\n") as hub:
            with pytest.raises(AuthenticationRefused, match="refused the token") as failed:
                hub.resolve("org/model")
            assert TOKEN not in str(failed.value) + repr(vars(hub))
        assert {seen.headers["Authorization"] for seen in mirror.seen} == {f"Bearer {TOKEN}"}

    def test_a_token_that_can_be_none_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(InvalidInput, match="characters that no token has") as failed:
            hub_of("https://hub.invalid", token="hush hush")
        assert "hush hush" not in str(failed.value)


class TestProxies:
    def test_no_proxy_variable_matters_unless_asked_for(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy"):
            monkeypatch.setenv(name, "socks5h://127.0.0.1:1")
            monkeypatch.setenv(name.upper(), "nonsense://")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        mirror = start(model())
        with hub_of(mirror) as hub:
            assert hub.resolve("org/model").commit == COMMIT
        with pytest.raises(InvalidInput, match="only http proxies are known"):
            hub_of(mirror, use_proxy=True)

    def test_an_http_proxy_is_used_when_asked_for(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy = start(model())
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with hub_of("http://hub.invalid", use_proxy=True) as hub:
            assert hub.resolve("org/model").endpoint == "hub.invalid"
        assert {seen.headers["Host"] for seen in proxy.seen} == {"hub.invalid"}


def part(seen: Seen, content: bytes = BYTES) -> Reply:
    """Answer as a server that knows ranges does."""
    if seen.range is None:
        return Reply(content=content)
    first, last = seen.range
    told = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
    return Reply(206, content[first : last + 1], {"Content-Range": told})


def read(place: Place, first: int = 0, stop: int = len(BYTES), file: ModelFile = WEIGHTS) -> bytes:
    with place.open(file, first, stop) as body:
        return b"".join(iter(lambda: body.read(1000), b""))


@contextmanager
def place_of(*endpoints: TinyHub, revision: Revision = PINNED, **values: Any) -> Iterator[Place]:
    with hub_of(*endpoints, **values) as hub:
        yield hub.places(revision)[0]


class TestBytes:
    def test_a_range_is_what_was_asked_for(self, start: Start) -> None:
        mirror = start(part)
        with place_of(mirror) as place:
            assert place.name == mirror.host
            with place.open(WEIGHTS, 100, 700) as body:
                assert (body.first, body.whole) == (100, False)
                assert 0 < len(body.read(10)) <= 10
            assert read(place, 100, 700) == BYTES[100:700]
        assert mirror.seen[0].path == f"/org/model/resolve/{COMMIT}/{WEIGHTS.path}"
        assert mirror.seen[0].range == (100, 699)
        assert mirror.seen[0].headers["Accept-Encoding"] == "identity"

    def test_a_server_that_knows_no_ranges_gives_everything(self, start: Start) -> None:
        with place_of(start(lambda _: Reply(content=BYTES))) as place:
            with place.open(WEIGHTS, 100, 700) as body:
                assert (body.first, body.whole) == (0, True)
            assert read(place, 100, 700) == BYTES
            with place.open(WEIGHTS, 0, len(BYTES)) as body:
                assert not body.whole

    def test_an_empty_file_is_read_without_a_range(self, start: Start) -> None:
        empty = ModelFile("empty", 0, git_sha1="b" * 40)
        mirror = start(lambda seen: part(seen, b""))
        with place_of(mirror) as place:
            assert read(place, 0, 0, empty) == b""
            assert probe(place, empty) == mirror.host
        assert mirror.seen[0].range is None

    @pytest.mark.parametrize(
        "told",
        [
            "",
            "bytes 101-700/10240",
            "bytes 99-699/10240",
            "bytes 100-700/10240",
            "bytes 100-99/10240",
            "bytes 100-699/10241",
            "bytes 100-699/*",
            "bytes */10240",
        ],
    )
    def test_another_part_than_was_asked_for_is_refused(self, start: Start, told: str) -> None:
        reply = Reply(206, BYTES[100:700], {"Content-Range": told} if told else {})
        with place_of(start(lambda _: reply)) as place:
            with pytest.raises(Damaged, match="were asked for") as failed:
                read(place, 100, 700)
            assert failed.value.retryable

    def test_less_than_was_asked_for_is_taken(self, start: Start) -> None:
        reply = Reply(206, BYTES[100:200], {"Content-Range": "bytes 100-199/10240"})
        with place_of(start(lambda _: reply)) as place:
            assert read(place, 100, 700) == BYTES[100:200]

    def test_no_more_is_given_than_was_announced(self, start: Start) -> None:
        reply = Reply(206, BYTES[100:900], {"Content-Range": "bytes 100-699/10240"})
        with place_of(start(lambda _: reply)) as place:
            assert read(place, 100, 700) == BYTES[100:700]

    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (Reply(content=BYTES[1:]), "with 10239 bytes where the file has 10240"),
            (Reply(416, headers={"Content-Range": "bytes */99"}), "is one of 99 bytes, where"),
            (Reply(416), "is shorter, where the hub lists 10240"),
            (Reply(content=BYTES, headers={"Content-Encoding": "gzip"}), "comes compressed"),
        ],
    )
    def test_another_file_than_the_hub_lists_is_refused(
        self, start: Start, reply: Reply, words: str
    ) -> None:
        with place_of(start(lambda _: reply)) as place:
            with pytest.raises(Damaged, match=words) as failed:
                read(place, 100, 700)
            assert failed.value.retryable

    def test_a_web_page_in_place_of_a_file_is_called_one(self, start: Start) -> None:
        page = Reply(content=bytes(len(BYTES)), headers={"Content-Type": "text/html"})
        with place_of(start(lambda _: page)) as place:
            with pytest.raises(Unreachable, match="a web page"):
                read(place)
            real = ModelFile("docs/index.html", len(BYTES), git_sha1="b" * 40)
            assert read(place, file=real) == page.content

    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (Reply(401, headers={"X-Error-Code": "GatedRepo"}), AuthenticationRefused),
            (Reply(404, headers={"X-Error-Code": "EntryNotFound"}), NotFound),
            (Reply(429, headers={"Retry-After": "9"}), Throttled),
            (Reply(500), Unreachable),
        ],
    )
    def test_a_refusal_is_explained(
        self, start: Start, reply: Reply, kind: type[CrossgapError]
    ) -> None:
        with place_of(start(lambda _: reply)) as place, pytest.raises(kind) as failed:
            read(place)
        assert failed.value.where.startswith(f"{WEIGHTS.path} of 'org/model' from 127.0.0.1:")

    def test_a_body_that_is_cut_short_is_a_broken_connection(self, start: Start) -> None:
        cut = {"Content-Range": "bytes 0-10239/10240", "Content-Length": "10240"}
        mirror = start(lambda _: Reply(206, BYTES[:5000], cut))
        with place_of(mirror) as place, pytest.raises(ConnectionLost):
            read(place)

    @pytest.mark.parametrize("begun", [b"", BYTES[:5000]])
    def test_a_silent_server_is_given_up(self, start: Start, begun: bytes) -> None:
        hold = threading.Event()
        headers = {"Content-Range": "bytes 0-10239/10240", "Content-Length": "10240"}
        mirror = start(lambda _: Reply(206, begun, headers, hold))
        with place_of(mirror, stall_seconds=0.2) as place, pytest.raises(TimedOut):
            read(place)
        hold.set()

    def test_a_cancelled_run_does_not_wait_for_a_silent_server(self, start: Start) -> None:
        hold = threading.Event()
        headers = {"Content-Range": "bytes 0-10239/10240", "Content-Length": "10240"}
        mirror = start(lambda _: Reply(206, BYTES[:5000], headers, hold))
        cancellation = Cancellation()
        with (
            cancellation_scope(cancellation),
            place_of(mirror, stall_seconds=600) as place,
            place.open(WEIGHTS, 0, len(BYTES)) as body,
        ):
            have = 0
            while have < 5000:
                have += len(body.read(1000))
            threading.Timer(0.1, cancellation.cancel).start()
            with pytest.raises(Cancelled):
                body.read(1000)
        hold.set()

    def test_a_connection_is_used_again(self, start: Start) -> None:
        mirror = start(part)
        with place_of(mirror) as place:
            for first in range(0, 3000, 1000):
                read(place, first, first + 1000)
        assert len({seen.connection for seen in mirror.seen}) == 1

    def test_modelscope_is_asked_in_its_own_way_and_without_the_token(self, start: Start) -> None:
        mirror = start(part)
        endpoints = [HubEndpoint(url=mirror.url, kind="modelscope"), HubEndpoint(url="http://x")]
        with Hub(endpoints, token=TOKEN) as hub:
            assert read(hub.places(PINNED)[0], 5, 10) == BYTES[5:10]
        (seen,) = mirror.seen
        assert seen.path == "/api/v1/models/org/model/repo"
        assert seen.query == {"Revision": ["master"], "FilePath": [WEIGHTS.path]}
        assert "Authorization" not in seen.headers


class Sending:
    """A mirror that sends on to a store by signed links, of which only the latest is good."""

    def __init__(self, start: Start, status: int = 403) -> None:
        self.signed = 0
        self._status = status
        self.store = start(self._stored)
        self.mirror = start(self._link)

    def _link(self, seen: Seen) -> Reply:
        self.signed += 1
        return Reply(302, headers={"Location": f"{self.store.url}/blob?sign={self.signed}"})

    def _stored(self, seen: Seen) -> Reply:
        return part(seen) if seen.query["sign"] == [str(self.signed)] else Reply(self._status)


class TestSendingOn:
    def test_a_link_is_asked_for_once_and_never_shown_the_token(self, start: Start) -> None:
        sending = Sending(start)
        with place_of(sending.mirror, token=TOKEN) as place:
            assert probe(place, WEIGHTS) == sending.store.host
            assert read(place, 0, 5) + read(place, 5, 10) == BYTES[:10]
        assert len(sending.mirror.seen) == 1
        assert sending.mirror.seen[0].headers["Authorization"] == f"Bearer {TOKEN}"
        assert len(sending.store.seen) == 3
        assert not any("Authorization" in seen.headers for seen in sending.store.seen)

    def test_a_redirect_within_the_hub_keeps_the_token(self, start: Start) -> None:
        def answers(seen: Seen) -> Reply:
            if "/resolve/" in seen.path:
                return Reply(307, headers={"Location": "/cache/blob"})
            return part(seen) if "Authorization" in seen.headers else Reply(401)

        mirror = start(answers)
        with place_of(mirror, token=TOKEN) as place:
            assert read(place, 0, 5) + read(place, 5, 10) == BYTES[:10]
            assert probe(place, WEIGHTS) == mirror.host
        assert [seen.path for seen in mirror.seen].count("/cache/blob") == len(mirror.seen) - 1

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
    def test_an_expired_link_is_asked_for_anew(self, start: Start, status: int) -> None:
        sending = Sending(start, status)
        with place_of(sending.mirror) as place:
            read(place, 0, 5)
            sending.signed = 7
            assert read(place, 5, 10) == BYTES[5:10]
        assert sending.signed == 8

    def test_a_new_link_that_is_refused_names_both_hosts(self, start: Start) -> None:
        sending = Sending(start)
        sending.store.answers = lambda _: Reply(403)
        with place_of(sending.mirror) as place, pytest.raises(Unreachable) as failed:
            read(place, 0, 5)
        assert "link that it gives is refused" in failed.value.what
        assert sending.mirror.host in failed.value.where
        assert sending.store.host in failed.value.where
        assert "sign=" not in str(failed.value)
        assert sending.signed == 1

    def test_a_store_that_failed_is_not_gone_back_to_without_asking(self, start: Start) -> None:
        sending = Sending(start)
        with place_of(sending.mirror) as place:
            read(place, 0, 5)
            stored = sending.store.answers
            sending.store.answers = lambda _: Reply(503)
            with pytest.raises(Unreachable, match="error 503"):
                read(place, 5, 10)
            sending.store.answers = stored
            assert read(place, 5, 10) == BYTES[5:10]
        assert sending.signed == 2

    def test_a_host_out_of_reach_is_named_with_what_to_do(self, start: Start) -> None:
        away = closed_port()
        mirror = start(lambda _: Reply(302, headers={"Location": f"http://{away}/blob?sign=x"}))
        with place_of(mirror) as place, pytest.raises(ConnectionRefused) as failed:
            probe(place, WEIGHTS)
        assert failed.value.where.endswith(f"from {mirror.host}, which sends on to {away}")
        assert f"{mirror.host} leaves the sending of files to {away}" in failed.value.remedy
        assert "opened in the firewall" in failed.value.remedy
        assert "use_proxy" in failed.value.remedy
        assert "sign=" not in str(failed.value)
