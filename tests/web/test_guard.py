"""Who may read the API over TCP, and what a request may look like."""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiterd.model import strangers
from arbiterd.web.load_requests import LoadDesk
from arbiterd.web.server import WebServer
from arbiterd.web.snapshot import HOSTS_MAX, Holder
from tests.core.world import World, settings
from tests.support import free_port, wait_until
from tests.web.site import Site, published

STRANGER = 424242


def raw(address: tuple[str, int] | str, text: bytes) -> tuple[int, dict[str, str], Any]:
    """One request as it is written; every answer must be HTTP with a JSON body of the API's shape."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as one:
        one.settimeout(20)
        one.connect(address)
        one.sendall(text)
        got = b""
        while part := one.recv(65536):
            got += part
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body) if body else None


def change(site: Site, **arbiter: Any) -> None:
    """Other keys of [arbiter] are in force."""
    seen = site.holder.get()
    assert seen is not None
    new = replace(seen.settings, arbiter=replace(seen.settings.arbiter, **arbiter))
    site.holder.put(replace(seen, settings=new))


def get(site: Site, path: str, *headers: str) -> tuple[int, dict[str, str], Any]:
    """GET with these header lines."""
    lines = "".join(f"{one}\r\n" for one in headers)
    request = f"GET {path} HTTP/1.1\r\nConnection: close\r\n{lines}\r\n"
    return raw(("127.0.0.1", site.port), request.encode("latin-1"))


OWN_HOSTS = ("127.0.0.1", "[::1]:9480", "192.168.7.7:9480", "localhost", "LOCALHOST:80",
             "a.localhost", "gpu30.local", "box.internal:9480", socket.gethostname())  # fmt: skip
OTHER_HOSTS = ("evil.example", "evil.example:9480", "127.0.0.1.evil.example", "evil.example.",
               "localhost.evil.example", "127.0.0.1@evil.example", "localhost\xe9", "*")  # fmt: skip


def test_names_of_this_machine_are_answered(site: Site) -> None:
    """IP literals, localhost forms and own names: none of them can be rebound."""
    for host in OWN_HOSTS:
        assert get(site, "/v1/caps", f"Host: {host}")[0] == 200, host


@pytest.mark.parametrize("path", ["/", "/v1/status", "/metrics", "/livez", "/nothing"])
def test_another_name_is_refused_everywhere(site: Site, path: str) -> None:
    """DNS rebinding: a page of another name reads nothing; the answer has the line to write."""
    for host in OTHER_HOSTS:
        status, headers, body = get(site, path, f"Host: {host}")
        assert (status, body["error"]["code"]) == (403, "unknown_host"), host
        assert "[gateway] hosts = [" in body["error"]["message"]
        assert not [name for name in headers if name.startswith("access-control")]


def test_own_names_come_from_the_file(site: Site) -> None:
    """advertise and hosts, as at the doors; no Host at all is none of a page; two are nonsense."""
    seen = site.holder.get()
    assert seen is not None
    gateway = replace(seen.settings.gateway, advertise="gpu.example.com", hosts=("*.lab.example",))
    site.holder.put(replace(seen, settings=replace(seen.settings, gateway=gateway)))
    for host, status in (("gpu.example.com", 200), ("a.lab.example:1", 200), ("b.example", 403)):
        assert get(site, "/v1/caps", f"Host: {host}")[0] == status
    assert raw(("127.0.0.1", site.port), b"GET /v1/caps HTTP/1.0\r\n\r\n")[0] == 200
    assert get(site, "/v1/caps", "Host: localhost", "Host: evil.example")[0] == 400


BROWSERS = ("Origin: http://evil.example", "Sec-Fetch-Mode: cors", "Accept-Language: de",
            "accept-language: ", "User-Agent: Mozilla/5.0 (X11)")  # fmt: skip


def test_beyond_loopback_programs_come_by_any_name(site: Site) -> None:
    """Browsers are refused there as on loopback, also where a GET over plain HTTP has neither Origin nor
    Sec-Fetch-*; a program is answered, and the journal has the line to write, once.
    """
    change(site, listen="192.168.7.7:9480")
    for mark in BROWSERS:
        status, _, body = get(site, "/v1/status", "Host: gpu30.lan:9480", mark)
        assert (status, body["error"]["code"]) == (403, "unknown_host"), mark
    assert site.holder.said() == ()
    for agent in ("python-requests/2.32", "Prometheus/2.53", "curl/8.5"):
        assert get(site, "/v1/caps", "Host: GPU30.lan:9480", f"User-Agent: {agent}")[0] == 200
    (told,) = site.holder.said()
    assert 'hosts = ["gpu30.lan"]' in told.message
    assert get(site, "/v1/caps", "Host: gpu30.lan")[0] == 200
    assert site.holder.said() == (), "once"
    for number in range(100):
        assert get(site, "/v1/caps", f"Host: n{number}.lan")[0] == 200
    assert len(site.holder.said()) == HOSTS_MAX - 1, "a scanner fills no journal"


def test_no_page_of_another_origin_reads_an_answer(site: Site) -> None:
    """No CORS header is ever sent, to a preflight neither."""
    for method in ("GET", "OPTIONS"):
        text = (
            f"{method} /v1/backends/vllm/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        )
        text += "Origin: https://evil.example\r\nAccess-Control-Request-Method: GET\r\n\r\n"
        _, headers, _ = raw(("127.0.0.1", site.port), text.encode())
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["cross-origin-resource-policy"] == "same-origin"


# -- the token ---------------------------------------------------------------------------------------
@pytest.fixture
def token(site: Site, tmp_path: Path) -> Path:
    """A token in force."""
    path = tmp_path / "token"
    path.write_text("0123456789abcdef0123\n")
    path.chmod(0o600)
    change(site, token_file=str(path))
    return path


def _basic(text: str) -> str:
    return "Authorization: Basic " + base64.b64encode(text.encode()).decode()


def test_a_token_is_asked_for_by_api_and_page(site: Site, token: Path) -> None:
    """Bearer for programs, a password for browsers; the life sign alone is free."""
    good = ["Authorization: Bearer 0123456789abcdef0123", _basic("anyone:0123456789abcdef0123")]
    bad = ["Authorization: Bearer 0123456789abcdef012", "Authorization: Bearer", "X: y",
           "Authorization: Basic !!!", _basic("0123456789abcdef0123"), "Authorization: Bearer \xe9"]  # fmt: skip
    for path in ("/v1/status", "/v1/route?model=M", "/v1/backends/vllm/ready"):
        for line in good:
            assert get(site, path, "Host: localhost", line)[0] == 200
        for line in bad:
            status, headers, body = get(site, path, "Host: localhost", line)
            assert (status, body["error"]["code"]) == (401, "unauthorized")
            assert headers["www-authenticate"].startswith("Basic")
    for path in ("/", "/page.js", "/openapi.json", "/nothing"):
        assert get(site, path, "Host: localhost")[0] == 401
    assert get(site, "/livez", "Host: localhost")[0] == 200
    assert site.admin("/v1/status", "GET")[0] == 200, "arbiterctl needs no token"
    token.write_text("another-token-of-20-ch\n")
    line = "Authorization: Bearer another-token-of-20-ch"
    new = "Host: localhost", line
    wait_until(lambda: get(site, "/v1/caps", *new)[0] == 200, what="the new token")
    assert get(site, "/v1/caps", "Host: localhost", good[0])[0] == 401, "read again when it changes"


@pytest.mark.parametrize("how", ["gone", "empty", "short", "writable", "readable", "fifo"])
def test_a_token_file_that_will_not_do_shuts_the_api(site: Site, token: Path, how: str) -> None:
    """Nobody has the token then, not even who sends an empty one."""
    if how in ("gone", "fifo"):
        token.unlink()
    if how == "fifo":
        os.mkfifo(token, 0o600)
    if how in ("empty", "short"):
        token.write_text("" if how == "empty" else "0123456789\n")
    if how in ("writable", "readable"):
        token.chmod(0o620 if how == "writable" else 0o604)
    lines = ["Authorization: Bearer", "Authorization: Bearer " + "-" * 16, _basic(":")]
    for line in [*lines, "Authorization: Bearer 0123456789abcdef0123"]:
        assert get(site, "/v1/status", "Host: localhost", line)[0] == 401


# -- strangers ---------------------------------------------------------------------------------------
def _with_stranger(site: Site) -> None:
    """A process of another user holds memory, takes a port, and stands in incidents."""
    world = World(settings()).up()
    world.strangers[STRANGER] = (world.device().uuid, 2 << 30)
    world.tick(40)
    seen = published(world)
    taken = strangers.listener(STRANGER, "/opt/secret-miner --flag", "miner.service")
    doors = {"vllm": f"port 8000 is taken by {taken}"}
    gateway = replace(seen.observation.gateway, taken_doors=doors)
    site.holder.put(replace(seen, observation=replace(seen.observation, gateway=gateway)))


def test_strangers_are_named_to_outsiders_only_where_the_file_says_so(site: Site) -> None:
    """Beyond loopback, or behind a proxy, pids, users and commands of others are left out."""
    _with_stranger(site)
    planted = ("424242", "secret-miner", "of bob", "x.service", "miner.service")
    paths = ["/v1/status", "/v1/gpus", "/v1/backends", "/v1/incidents?limit=200", "/v1/caps",
             "/v1/route?model=M", "/v1/backends/vllm", "/v1/backends/vllm/ready"]  # fmt: skip

    def told(*headers: str) -> str:
        answers = [get(site, path, "Host: localhost", *headers)[2] for path in paths]
        return json.dumps([*answers, site.get("/metrics")[2]])

    assert not [word for word in planted if word not in told()], "on loopback, as until now"
    hidden = told("X-Forwarded-For: 192.168.7.7")
    assert not [word for word in planted if word in hidden]
    assert "an unmanaged process" in hidden
    change(site, listen="0.0.0.0:9480")
    hidden = told()
    assert not [word for word in planted if word in hidden]
    views = site.holder.get()
    assert views is not None
    pids = [pid for view in views.decision.backends.values() for pid in view.pids]
    assert pids
    assert all(str(pid) in hidden for pid in pids), "engines of ours are told"
    for word in planted:
        assert word in json.dumps(site.admin("/v1/status", "GET")[2]), "operators see all"
    change(site, expose="full")
    assert all(word in told() for word in planted)


words = st.text(max_size=40)


@given(words, words, words, words)
def test_no_name_of_a_process_can_escape_the_mask(
    command: str, user: str, unit: str, after: str
) -> None:
    """Whatever a process calls itself: brackets, line ends, 'pid 1 (x)'."""
    mark = "SECRETMARK"
    named = strangers.named(7, f"{command}{mark}{command}", f"{user}{mark}", f"{mark}{unit}")
    listening = strangers.listener(7, f"{command}{mark}", f"{unit}{mark}.service")
    for text in (named, listening):
        assert mark not in strangers.masked(
            f"held by {text}, vllm 1 GiB {after}".replace(mark, mark)
        )
        assert strangers.masked(text, {7}) == text


# -- odd requests ------------------------------------------------------------------------------------
ODD = ["²", "1²", "٣", "-1", "0", "1e2", "+5", " 5", "5 ", "201", "9" * 1000, "", "nan", "inf", "0x10",
       "1.0", "null", "\x00", "%ff", "１"]  # fmt: skip
ODD_TIMES = ["²", "yesterday", "9" * 1000, "", "nan", "1e400", "0001-01-01T00:00:00-23:59",
             "9999-12-31T23:59:59+23:59", "99999-01-01", "2026-13-01", "２０２６-01-01", "\x00",
             "2026-01-01T00:00:00+99:99", "-1", "0000-00-00"]  # fmt: skip


def _query(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def test_an_odd_limit_is_422(site: Site) -> None:
    """Whatever str.isdigit takes for a digit."""
    for text in ODD:
        status, _, body = site.get(f"/v1/incidents?limit={_query(text)}")
        assert (status, body["error"]["code"]) == (422, "bad_parameter"), text[:20]
        assert len(body["error"]["message"]) < 300


def test_an_odd_since_is_422_or_a_time(site: Site) -> None:
    """Years at the ends of datetime's range overflow in other zones."""
    for text in ODD_TIMES:
        status, _, body = site.get(f"/v1/incidents?since={_query(text)}")
        assert status in (200, 422), text[:20]
        assert status == 200 or body["error"]["code"] == "bad_parameter"
        assert status == 422 or text[:4].isdecimal()


TWICE = ("/v1/incidents?limit=1&limit=2", "/v1/incidents?since=2026-01-01&since=2026-01-02",
     "/v1/incidents?backend=a&backend=b", "/v1/route?model=M&model=N", "/v1/route?backend=a&backend=b",
     "/v1/route?model=", "/v1/route?model=&backend=")  # fmt: skip


def test_a_parameter_is_given_once(site: Site) -> None:
    """Two values would mean two things to two readers."""
    for query in TWICE:
        assert site.get(query)[0] == 422, query


@hypothesis.settings(deadline=None)
@given(st.text(max_size=60), st.sampled_from(["limit", "since", "backend", "model", "x"]),
       st.sampled_from(["/v1/incidents", "/v1/route", "/v1/status", "/v1/backends/"]))  # fmt: skip
def test_no_query_and_no_path_is_a_bug(text: str, name: str, path: str) -> None:
    """Never 500, always the API's shape."""
    site = _shared()
    for asked in (f"{path}?{name}={_query(text)}", f"{path}{_query(text)}"):
        status, _, body = site.get(asked)
        assert status in (200, 404, 422), (asked, body)


_SITE: list[Site] = []


def _shared() -> Site:
    """One server for all examples of a property."""
    if not _SITE:
        holder = Holder()
        holder.put(published(World(settings()).up()))
        port = free_port()
        path = Path(f"/tmp/{os.getpid()}.{port}.sock")
        from arbiterd.settings.reload import ReloadAnswer
        from arbiterd.web.admin import Admin

        answer = ReloadAnswer(accepted=True, mode="A")
        admin = Admin(submit=lambda _r: None, reload=lambda: answer)
        server = WebServer(holder, host="127.0.0.1", port=port, socket_path=path, admin=admin)
        server.start()
        _SITE.append(Site(server, holder, port, path, [], answer))
    return _SITE[0]


@pytest.fixture(scope="module", autouse=True)
def _end_shared() -> Iterator[None]:
    yield
    while _SITE:
        _SITE.pop().server.close()


LONG = b"x" * 9000
HEADS = [
    (b"GET /" + LONG + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {431, 414, 400}),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + LONG + b"\r\n\r\n", {431}),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + LONG + b": 1\r\n\r\n", {431}),
    (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n", {400, 431}),
    (b"GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", {400, 403}),
    (b"GET / HTTP/9.9\r\n\r\n", {400}),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, {400}),
    (b"GARBAGE\r\n\r\n", {400}),
    (b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {400, 404}),
    (b"GET /v1/caps HTTP/1.1\r\nHost: localhost\r\nExpect: nonsense\r\nConnection: close\r\n\r\n", {417}),
    (b"GET /v1/caps HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", {400}),
    (b"GET /v1/caps HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", {400}),
    (b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {400, 404, 405}),
    (b"GET /v1/\x00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {400, 404}),
]  # fmt: skip


def test_a_broken_head_is_refused_in_the_apis_shape(site: Site) -> None:
    """Before any route: still JSON with a code, and the connection ends."""
    for text, statuses in HEADS:
        status, headers, body = raw(("127.0.0.1", site.port), text)
        assert status in statuses, text[:60]
        assert headers["content-type"].startswith("application/json")
        assert body["error"]["message"]


BODIES = {
    "deep": b'{"a":' * 900 + b"1" + b"}" * 900,
    "deeper": b"[" * 30000,
    "nan": b'{"a":NaN}',
    "infinite": b'{"a":-Infinity}',
    "huge": b'{"a":1e400}',
    "digits": b'{"a":' + b"9" * 1000 + b"}",
    "twice": b'{ "a":1,"a":2}',
    "list": b"[]",
    "text": b"x=1",
    "binary": b"\xff\xfe\x00",
    "large": b'{"a":"' + b"x" * 70000 + b'"}',
}
POSTS = ["reload", "stop-all", *(f"backends/vllm/{v}" for v in ("drain", "resume", "reset-cap"))]


@pytest.mark.parametrize("post", POSTS)
def test_a_body_that_will_not_do_changes_nothing(site: Site, post: str) -> None:
    """400 or 413, and no request reaches the daemon."""
    for name, body in BODIES.items():
        head = f"POST /v1/admin/{post} HTTP/1.1\r\nHost: x.local\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        status, _, answer = raw(str(site.socket_path), head.encode() + body)
        assert status == (413 if name == "large" else 400), name
        assert answer["error"]["code"] == "bad_request"
    assert site.asked == []


def test_a_packed_body_is_refused(site: Site) -> None:
    """Nothing is unpacked here: neither garbage nor a bomb."""
    for coding in ("gzip", "deflate", "br", "zstd", "nonsense"):
        head = (
            f"POST /v1/admin/stop-all HTTP/1.1\r\nHost: x.local\r\nContent-Encoding: {coding}\r\n"
        )
        end = "Content-Length: 20\r\nConnection: close\r\n\r\n"
        assert raw(str(site.socket_path), (head + end).encode() + b"\x1f\x8b" + b"x" * 18)[0] == 400
    assert site.asked == []


ASKS = (*BODIES.values(), b'{"id":1,"backend":2,"model":[],"predicted_bytes":1e308,"wait_s":0}',
                                  b'{"id":"a","backend":"b","model":"m","predicted_bytes":"x"}',
                                  b'{"id":"a","backend":"b","model":"m","predicted_bytes":1,"resident":[1]}',
                                  b'{"id":"a","backend":"b","model":"m","predicted_bytes":1,"shares":5}')  # fmt: skip


def test_the_gates_socket_takes_no_nonsense_either(tmp_path: Path) -> None:
    """Who faces the network may have been taken over: 400, 413 or 422, never 500."""
    from arbiterd.settings.reload import ReloadAnswer
    from arbiterd.web.admin import Admin

    desk = LoadDesk(lambda: None)
    admin = Admin(submit=lambda _r: None, reload=lambda: ReloadAnswer(accepted=True, mode="A"))
    server = WebServer(Holder(), host="127.0.0.1", port=free_port(), socket_path=tmp_path / "a",
                       admin=admin, loads=(desk, tmp_path / "l"))  # fmt: skip
    server.start()
    try:
        for path, body in itertools.product(("", "/done", "/unloaded"), ASKS):
            head = f"POST /v1/loads{path} HTTP/1.1\r\nHost: x.local\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            status, _, answer = raw(str(tmp_path / "l"), head.encode() + body)
            if status != 200:
                assert status in (400, 413, 422), (path, status)
                assert answer["error"]["code"] == "bad_request"
    finally:
        server.close()
