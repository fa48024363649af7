"""Names and origins at the doors: DNS rebinding stays out, pages that may come are answered as by Ollama."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from arbiterd.gateway.hosts import Names, host_pattern, names_of, origin_pattern
from arbiterd.model.settings import Settings
from tests.support import wait_until
from tests.support.doors import OLLAMA_ANSWERS, OLLAMA_MODEL, VLLM_MODEL, Doors, doors, made

NAMED = {
    "hosts": ("llm.example.com", "*.lab.example.org"),
    "cors": ("https://app.example.com", "https://*.trusted.example"),
}
OURS = [
    None, "", "localhost", "LOCALHOST", "localhost:1", "localhost.", "localhost:", "a.localhost:99999", "127.0.0.1", "127.9.9.9:11434",
    "0.0.0.0", "8.8.8.8", "169.254.1.1:80", "100.64.0.1", "[::1]", "[::1]:80", "[fe80::1%25eth0]:1", "[2001:DB8::1]", "fd00::1",
    "llm.local", "LLM.Local.:80", "a.b.internal", "gpu-host", "GPU-HOST:11434", "gpu-host.lab.example", "llm.example.com",
    "llm.example.com.:443", "x.lab.example.org", "a.b.lab.example.org:1",
]  # fmt: skip
NOT_OURS = [
    "evil.com", "evil.com:11434", "evil.com.", "local", "internal", "xlocal", "localhost.evil.com", "127.0.0.1.evil.com", "127.0.0.1.nip.io",
    "999.1.1.1", "1.2.3.4.5", "localhost:x", "user@localhost", "localhost@evil.com", "localhost,evil.com", "evil.com#localhost",
    "gpu-host.evil.com", "lab.example.org", "xlab.example.org", "llm.example.com.evil.com", "[::1].evil.com", "evil.com/localhost",
]  # fmt: skip


def with_origins(base: Settings) -> Settings:
    """OLLAMA_ORIGINS in Ollama's env."""
    one = base.active.backends["ollama"]
    changed = {
        **base.active.backends,
        "ollama": replace(
            one, env={"OLLAMA_ORIGINS": "https://web.example.net, moz-extension://*"}
        ),
    }
    return replace(base, modes={"A": replace(base.active, backends=changed)})


@pytest.fixture(scope="module")
def loopback() -> Iterator[Doors]:
    """Bound to 127.0.0.1."""
    with doors(made(with_origins, **NAMED)) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        yield one


@pytest.fixture(scope="module")
def lan() -> Iterator[Doors]:
    """Bound to every network."""
    with doors(made(bind="0.0.0.0")) as one:
        yield one


@pytest.mark.parametrize("door", ["ollama", "llm"])
@pytest.mark.parametrize("host", OURS)
def test_own_names_and_every_ip_literal_are_answered(
    loopback: Doors, door: str, host: str | None
) -> None:
    """Rebinding needs a name of somebody else's; any port, letter case and a final dot are fine."""
    version = "1.0" if host is None else "1.1"
    assert loopback.ask(door, "/api/version", host=host, version=version).status == 200


@pytest.mark.parametrize("door", ["ollama", "llm"])
@pytest.mark.parametrize("host", NOT_OURS)
def test_any_other_name_is_403_on_loopback(loopback: Doors, door: str, host: str) -> None:
    """With a sentence that has the line to add, whatever the route and method."""
    before = len(loopback.engines["ollama"].seen)
    for method, path in (("GET", "/"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/api/chat")):
        reply = loopback.ask(door, path, method=method, host=host)
        assert reply.status == 403, (method, path)
        said = reply.json["error"]
        said = said["message"] if path.startswith("/v1") else said
        assert f"{host.lower()} is not a name of this host" in said
        assert f'[gateway] hosts = ["{host.lower()}"]' in said
    assert len(loopback.engines["ollama"].seen) == before


@pytest.mark.parametrize("door", ["ollama", "llm"])
def test_the_request_targets_own_host_counts_too(loopback: Doors, door: str) -> None:
    """Absolute form: HTTP/1.0 may leave Host out, HTTP/1.1 may not contradict it."""
    assert loopback.ask(door, "http://evil.com/", host=None, version="1.0").status == 403
    assert loopback.ask(door, "http://u@evil.com/", host=None, version="1.0").status == 403
    assert loopback.ask(door, "http://evil.com/", host="localhost").status == 400
    assert loopback.ask(door, "http://evil.com/", host="evil.com").status == 403
    assert loopback.ask(door, "http://LOCALHOST/", host="localhost").status == 200


def test_other_doors_are_as_open_as_their_engines(loopback: Doors) -> None:
    """vLLM and TensorFlow Serving look at no Host; a proxy in front may name them as it likes."""
    body = {"model": VLLM_MODEL, "messages": []}
    assert loopback.post("vllm", "/v1/chat/completions", body, host="evil.com").status == 200
    assert loopback.engines["vllm"].seen[-1].headers["host"] == "evil.com"


@pytest.mark.parametrize("door", ["ollama", "llm"])
@pytest.mark.parametrize(
    "mark",
    [{"Origin": "http://evil.com"}, {"Sec-Fetch-Site": "same-origin"}, {"sec-fetch-mode": "cors"}],
)
def test_on_a_lan_bind_a_browser_with_an_unknown_name_is_403(
    lan: Doors, door: str, mark: dict[str, str]
) -> None:
    """Only a browser can be rebound."""
    reply = lan.ask(door, "/api/version", host="llm.lan", headers=mark)
    assert reply.status == 403
    assert 'hosts = ["llm.lan"]' in reply.json["error"]


@pytest.mark.parametrize("door", ["ollama", "llm"])
def test_on_a_lan_bind_all_others_are_served(lan: Doors, door: str) -> None:
    """curl, an SDK or a proxy by a name that only the LAN's DNS knows."""
    assert lan.ask(door, "/api/version", host="llm.lan").status == 200
    assert (
        lan.ask(
            door, "/api/version", host="192.168.1.5", headers={"Origin": "http://192.168.1.5"}
        ).status
        == 200
    )


def test_ollama_sees_its_own_name_and_the_old_one_beside_it(loopback: Doors) -> None:
    """By the direct way and through the gate; and no Origin."""
    own = loopback.settings.active.backends["ollama"].engine_port
    origin = {"Origin": "http://localhost:3000"}
    loopback.ask("ollama", "/", host="llm.example.com:80", headers=origin)
    direct = loopback.engines["ollama"].seen[-1]
    loopback.post(
        "llm", "/api/chat", {"model": OLLAMA_MODEL}, host="llm.example.com", headers=origin
    )
    gated = loopback.engines["ollama"].seen[-1]
    assert (direct.path, gated.path) == ("/", "/api/chat")
    for seen, host in ((direct, "llm.example.com:80"), (gated, "llm.example.com")):
        assert seen.headers["host"] == f"localhost:{own}"
        assert seen.headers["x-forwarded-host"] == host
        assert "origin" not in seen.headers


WELCOME = [
    "http://localhost", "https://localhost:3000", "http://127.0.0.1:8080", "http://0.0.0.0", "app://x", "file://", "tauri://localhost",
    "vscode-webview://abc", "https://web.example.net", "moz-extension://1234", "https://app.example.com", "https://a.trusted.example",
    "http://gpu-host:3000", "https://llm.example.com", "HTTP://LOCALHOST:3000",
]  # fmt: skip
STRANGERS = [
    "null", "https://evil.com", "http://localhost.evil.com", "https://app.example.com.evil.com", "chrome-extension://abcdef", "http://printer.local",
    "https://xtrusted.example", "https://web.example.net:444", "http://203.0.113.9", "evil://localhost",
]  # fmt: skip


@pytest.mark.parametrize("door", ["ollama", "llm"])
@pytest.mark.parametrize("origin", WELCOME)
def test_a_known_origin_is_answered_as_by_ollama(loopback: Doors, door: str, origin: str) -> None:
    """Preflight 204 with what the engine allows; answers, errors among them, name the origin."""
    ask = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization",
    }
    before = loopback.ask(door, "/api/chat", method="OPTIONS", headers=ask, host="10.0.0.1")
    assert before.status == 204
    assert before.headers["access-control-allow-origin"] == origin.lower()
    assert (
        before.headers["access-control-allow-methods"] == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    )
    assert before.headers["access-control-allow-headers"].startswith(
        "Authorization,Content-Type,User-Agent,Accept,"
    )
    assert before.headers["access-control-max-age"] == "43200"
    for path, status in (("/api/tags", 200), ("/v1/models", 200), ("/nope", 403)):
        reply = loopback.ask(door, path, headers={"Origin": origin}, host="10.0.0.1")
        assert reply.status == status
        assert reply.headers["access-control-allow-origin"] == origin.lower()
        assert "Origin" in reply.headers["vary"]
    chat = loopback.post(
        door, "/api/chat", {"model": OLLAMA_MODEL}, headers={"Origin": origin}, host="10.0.0.1"
    )
    assert (chat.status, chat.headers["access-control-allow-origin"]) == (200, origin.lower())


@pytest.mark.parametrize("door", ["ollama", "llm"])
@pytest.mark.parametrize("origin", STRANGERS)
def test_a_strange_origin_is_403_by_every_method(loopback: Doors, door: str, origin: str) -> None:
    """A page of somebody else's may neither read nor write, with or without preflight."""
    before = len(loopback.engines["ollama"].seen)
    for method in ("OPTIONS", "GET", "POST"):
        reply = loopback.ask(door, "/api/tags", method=method, headers={"Origin": origin})
        assert reply.status == 403
        assert f'[gateway] cors = ["{origin}"]' in reply.json["error"]
        assert "access-control-allow-origin" not in reply.headers
    assert len(loopback.engines["ollama"].seen) == before


def test_an_empty_origin_is_none(loopback: Doors) -> None:
    """As for Ollama (gin-contrib/cors): answered, and nobody is allowed to read it."""
    for door in ("ollama", "llm"):
        reply = loopback.ask(door, "/api/tags", host="10.0.0.1", headers={"Origin": ""})
        assert (reply.status, reply.headers.get("access-control-allow-origin")) == (200, None)


def test_a_page_of_the_door_itself_needs_no_permission(loopback: Doors) -> None:
    """Origin equal to Host, as in gin-contrib/cors; another port of the same host is told so."""
    for host in ("10.0.0.5:11434", "llm.example.com", "x.local"):
        reply = loopback.ask("ollama", "/api/tags", host=host, headers={"Origin": f"http://{host}"})
        assert (reply.status, reply.headers.get("access-control-allow-origin")) == (200, None)
    other = loopback.ask(
        "ollama", "/api/tags", host="10.0.0.5:11434", headers={"Origin": "http://10.0.0.5:3000"}
    )
    assert (other.status, other.headers["access-control-allow-origin"]) == (
        200,
        "http://10.0.0.5:3000",
    )


def test_every_origin_and_every_name_when_the_file_says_so() -> None:
    """cors = ["*"], hosts = ["*"]: answered with a star, which allows no credentials."""
    with doors(made(cors=("*",), hosts=("*",))) as one:
        reply = one.ask(
            "llm", "/v1/models", host="evil.com", headers={"Origin": "https://anybody.example"}
        )
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "*")
        assert (
            one.ask("llm", "/api/chat", method="OPTIONS", headers={"Origin": "null"}).status == 204
        )


def test_patterns_hold_nothing_but_what_they_say() -> None:
    """Dots are dots, and a name is no part of another."""
    names = Names(("a.b", "*.c.d"), ("https://*.e.f",))
    hosts, origins = re.compile(host_pattern(names)), re.compile(origin_pattern(names))
    assert all(hosts.search(one) for one in ("a.b", "x.c.d:1", ""))
    assert not any(hosts.search(one) for one in ("axb", "za.b", "c.d", "a.b\n.evil.com"))
    assert origins.search("https://x.e.f")
    assert not any(origins.search(one) for one in ("http://x.e.f", "https://x.exf", "https://e.f"))


def test_the_names_of_a_file_and_of_the_machine() -> None:
    """hosts, advertise, hostname and FQDN; OLLAMA_ORIGINS beside cors; loopback or not."""
    base = made(with_origins, advertise="LLM.lan.", bind="::1", **NAMED)
    found = names_of(base, ("Gpu-Host", "localhost"))
    assert found.hosts == ("gpu-host", "localhost", "llm.lan", *NAMED["hosts"])
    assert found.origins == (*NAMED["cors"], "https://web.example.net", "moz-extension://*")
    assert found.closed
    assert not names_of(made(bind="192.168.1.7")).closed


def test_an_unknown_name_that_was_served_is_in_the_log_once_a_request(lan: Doors) -> None:
    """How the daemon comes to know it."""
    import socket

    path = lan.where.log
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(path))
        log.settimeout(10)
        try:
            lan.ask("ollama", "/", host="Odd.lan:11434")
            lines: list[str] = []

            def told() -> bool:
                lines.append(log.recv(65536).decode())
                return lines[-1].rstrip("\0\n").endswith(" odd.lan:11434")

            wait_until(told, 10, "the log line")
        finally:
            path.unlink()
