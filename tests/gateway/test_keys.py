"""Keys and TLS at the doors: real HAProxy and gate, an engine that demands a key as vLLM does."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from arbiterd.model.gateway import Admit
from arbiterd.model.settings import Settings
from arbiterd.secrets.keyring import Keyring
from arbiterd.store import state_files
from tests.core.world import VLLM, backend
from tests.support import PATIENCE_S
from tests.support.doors import OLLAMA_ANSWERS, OLLAMA_MODEL, VLLM_MODEL, Doors, doors, made

CHAT = "/v1/chat/completions"
BODY = {"model": VLLM_MODEL, "messages": []}
HEALTH = {"tensorflow": "/v1/models", "vllm": "/health", "ollama": "/api/version", "llm": "/health"}


def bearer(key: str) -> dict[str, str]:
    """As OpenAI's clients send it."""
    return {"Authorization": f"Bearer {key}"}


def keyed(given: Settings, **change: object) -> Settings:
    """vLLM with these settings."""
    mode = given.active
    one = replace(mode.backends["vllm"], **change)  # type: ignore[arg-type]
    return replace(given, modes={"A": replace(mode, backends={**mode.backends, "vllm": one})})


@contextmanager
def keyed_doors(**gateway: Any) -> Iterator[Doors]:
    """vLLM demands sk-engine; Ollama stands in for it."""
    with doors(keyed(made(**gateway), env={"VLLM_API_KEY": "sk-engine"})) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        one.engines["vllm"].key = "sk-engine"
        yield one


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """Doors that ask for a key of their own."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("# two of them\nsk-alice\n\n  sk-bob  \n")
    with keyed_doors(key_file=str(file)) as one:
        yield one


# -- doors with a key of their own ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("door", "path", "shape"),
    [
        ("tensorflow", "/v1/models/m:predict", str),
        ("vllm", CHAT, dict),
        ("ollama", "/api/chat", str),
        ("ollama", CHAT, dict),
        ("llm", CHAT, dict),
        ("llm", "/api/tags", str),
        ("ollama", "/api/tags", str),
    ],
)
@pytest.mark.parametrize(
    "headers", [{}, bearer("sk-engine"), bearer("sk-alic"), bearer(""), {"X-Api-Key": "no"}]
)
def test_without_a_key_of_the_file_every_door_answers_401(
    asked: Doors, door: str, path: str, shape: type, headers: dict[str, str]
) -> None:
    """In the shape of the API; the engine hears nothing."""
    before = [len(engine.seen) for engine in asked.engines.values()]
    method = "GET" if path == "/api/tags" else "POST"
    reply = asked.ask(
        door, path, method=method, headers=headers, body=b"{}" if method == "POST" else b""
    )
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert isinstance(reply.json["error"], shape)
    assert [len(engine.seen) for engine in asked.engines.values()] == before


@pytest.mark.parametrize("headers", [bearer("sk-alice"), bearer("sk-bob"), {"X-Api-Key": "sk-bob"}])
def test_with_a_key_of_the_file_every_door_opens(asked: Doors, headers: dict[str, str]) -> None:
    """vLLM gets its own key, the others none: a door's key is no engine's business."""
    assert asked.post("vllm", CHAT, BODY, headers=headers).status == 200
    assert asked.engines["vllm"].seen[-1].headers["authorization"] == "Bearer sk-engine"
    assert "x-api-key" not in asked.engines["vllm"].seen[-1].headers
    assert asked.post("llm", CHAT, BODY, headers=headers).status == 200
    chat = {"model": OLLAMA_MODEL, "messages": []}
    assert asked.post("ollama", "/api/chat", chat, headers=headers).status == 200
    assert (
        asked.post("tensorflow", "/v1/models/m:predict", {"instances": [1]}, headers=headers).status
        == 200
    )
    for name in ("ollama", "tensorflow"):
        assert not {"authorization", "x-api-key"} & asked.engines[name].seen[-1].headers.keys()
    listed = asked.ask("llm", "/v1/models", headers=headers).json["data"]
    assert VLLM_MODEL in {row["id"] for row in listed}


@pytest.mark.parametrize("door", HEALTH)
def test_health_urls_ask_nobody_for_a_key(asked: Doors, door: str) -> None:
    """A load balancer has none."""
    assert asked.ask(door, HEALTH[door]).status == 200


def test_with_a_key_of_the_doors_failover_asks_no_other(asked: Doors) -> None:
    """The door has asked already."""
    asked.failover[("vllm", VLLM_MODEL)] = "ollama"
    asked.say("vllm", Admit.AWAY)
    try:
        reply = asked.post("vllm", CHAT, BODY, headers=bearer("sk-alice"))
        assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, "ollama")
        assert asked.post("vllm", CHAT, BODY).status == 401
    finally:
        asked.failover.clear()
        asked.say("vllm", Admit.UP)


# -- no key at the doors: what an engine's key guards stays guarded --------------------------------
@pytest.fixture(scope="module")
def plain() -> Iterator[Doors]:
    """Doors that ask for nothing, before a vLLM that does."""
    with keyed_doors() as one:
        yield one


@pytest.mark.parametrize("door", ["vllm", "llm"])
def test_failover_from_a_keyed_backend_compares_the_clients_key(plain: Doors, door: str) -> None:
    """Without it, or with another one, 401; with vLLM's own the substitute answers."""
    plain.failover[("vllm", VLLM_MODEL)] = "ollama"
    plain.say("vllm", Admit.AWAY)
    try:
        heard = len(plain.engines["ollama"].seen)
        for headers in ({}, bearer("wrong"), {"X-Arbiter-Keyed": "vllm"}, {"x-arbiter-keyed": "*"}):
            reply = plain.post(door, CHAT, BODY, headers=headers)
            assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key"), headers
        bodies = [s for s in plain.engines["ollama"].seen[heard:] if s.method == "POST"]
        assert bodies == []
        reply = plain.post(door, CHAT, BODY, headers=bearer("sk-engine"))
        assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, "ollama")
    finally:
        plain.failover.clear()
        plain.say("vllm", Admit.UP)


def test_a_dead_keyed_engine_opens_nothing_either() -> None:
    """The first request that finds it dead goes to the gate by another way."""
    with keyed_doors() as one:
        one.failover[("vllm", VLLM_MODEL)] = "ollama"
        one.tell()
        one.engines["vllm"].close()
        assert one.post("vllm", CHAT, BODY).status == 401
        reply = one.post("vllm", CHAT, BODY, headers=bearer("sk-engine"))
        assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, "ollama")


def test_the_unified_list_hides_what_a_key_guards(plain: Doors) -> None:
    """vLLM does not tell its models without its key, so this door does not either."""
    names = {row["id"] for row in plain.ask("llm", "/v1/models").json["data"]}
    assert VLLM_MODEL not in names
    assert OLLAMA_MODEL in names
    shown = plain.ask("llm", "/v1/models", headers=bearer("sk-engine")).json["data"]
    assert VLLM_MODEL in {row["id"] for row in shown}


def test_the_engine_itself_judges_a_key_while_it_is_there(plain: Doors) -> None:
    """The client's own header goes through."""
    reply = plain.post("vllm", CHAT, BODY)
    assert (reply.status, reply.json) == (401, {"error": "Unauthorized"})
    assert plain.post("vllm", CHAT, BODY, headers=bearer("sk-engine")).status == 200


@pytest.mark.parametrize("door", ["vllm", "llm"])
def test_a_key_that_nobody_knows_guards_too(door: str) -> None:
    """The arbiter was answered 401: no client can prove that it has the key, so nobody stands in."""
    ring = Keyring()
    ring.heard("vllm", 401)
    with doors(made(), ring) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        one.failover[("vllm", VLLM_MODEL)] = "ollama"
        one.say("vllm", Admit.AWAY)
        for headers in ({}, bearer("sk-engine"), {"X-Arbiter-Keyed": "vllm"}):
            assert one.post(door, CHAT, BODY, headers=headers).status == 401
        assert [s for s in one.engines["ollama"].seen if s.method == "POST"] == []
        listed = {row["id"] for row in one.ask("llm", "/v1/models").json["data"]}
        assert VLLM_MODEL not in listed


def test_what_the_gate_asks_for_a_client_has_the_clients_key(plain: Doors) -> None:
    """One model of the list, and HEAD: 401 without vLLM's key, an answer with it."""
    plain.engines["vllm"].answers["/v1/models"] = {"data": [{"id": VLLM_MODEL}]}
    path = f"/v1/models/{VLLM_MODEL.replace('/', '%2F')}"
    for headers, status in (({}, 401), (bearer("no"), 401), (bearer("sk-engine"), 200)):
        assert plain.ask("vllm", path, headers=headers).status == status
        assert plain.ask("vllm", "/v1/models", method="HEAD", headers=headers).status == status


def test_a_preflight_without_a_key_moves_nothing(tmp_path: Path) -> None:
    """OPTIONS asks for no key. With a body and a dead engine it reaches the gate, and no substitute."""
    file = tmp_path / "keys"
    file.write_text("sk-alice\n")
    with keyed_doors(key_file=str(file)) as one:
        one.failover[("vllm", VLLM_MODEL)] = "ollama"
        one.tell()
        one.engines["vllm"].close()
        page = {"Origin": "https://app.example", "Content-Type": "application/json"}
        raw = json.dumps(BODY).encode()
        assert one.ask("vllm", CHAT, method="OPTIONS", headers=page, body=raw).status == 204
        assert [s for s in one.engines["ollama"].seen if s.path == CHAT] == []


# -- where keys come from --------------------------------------------------------------------------
def test_where_an_engines_key_is_known_from(tmp_path: Path) -> None:
    """Command before environment, `env` before env_file, read again when the file changes."""
    file = tmp_path / "vllm.env"
    file.write_text('VLLM_API_KEY="sk-file"\n')
    one = backend("vllm", VLLM.kind, env_file=str(file))
    ring = Keyring()
    assert ring.engine(one) == ("sk-file",)
    file.write_text("VLLM_API_KEY=sk-file-2\n")
    assert ring.engine(one) == ("sk-file-2",)
    assert ring.engine(replace(one, env={"VLLM_API_KEY": "sk-env"})) == ("sk-env",)
    command = ("vllm", "serve", "M", "--api-key", "sk-a", "sk-b", "--dtype", "half")
    assert ring.engine(replace(one, command=command)) == ("sk-a", "sk-b")
    assert ring.engine(replace(one, env_file=str(tmp_path / "nowhere"))) == ()
    inside = ("env", "-u", "X", "VLLM_API_KEY=sk-inside", "vllm", "serve", "M")
    assert ring.engine(replace(one, command=inside)) == ("sk-inside",)
    words = replace(one.vllm, config_words=("--api-key", "sk-yaml"))
    assert ring.engine(replace(one, vllm=words)) == ("sk-yaml",)
    assert ring.engine(replace(one, env={"VLLM_API_KEY": "sk\nvllm sk-other"})) == ()
    assert ring.bearer(one) == bearer("sk-file-2")
    assert ring.doors(str(tmp_path / "nowhere")) == ()


def test_who_has_answered_401_is_known_to_a_later_daemon(tmp_path: Path) -> None:
    """By name only; an engine that is down cannot say it again, and its substitute must not answer all."""
    kept = tmp_path / "keyed.json"
    first = state_files.keyed(tmp_path)
    Keyring(first.load(), first.save).heard("vllm", 401)
    first.close()
    second = state_files.keyed(tmp_path)
    later = Keyring(second.load(), second.save)
    assert later.refusing == {"vllm"}
    assert kept.stat().st_mode & 0o077 == 0o040
    later.heard("vllm", 200)
    second.close()
    assert state_files.keyed(tmp_path).load() == frozenset()
    kept.write_text("{not json")
    third = state_files.keyed(tmp_path)
    assert (third.load(), len(third.problems), kept.exists()) == (frozenset(), 1, False)


# -- TLS -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own for localhost, key and chain in one file."""
    folder = tmp_path_factory.mktemp("pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", folder / "key", "-out", folder / "crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_text((folder / "crt").read_text() + (folder / "key").read_text())
    return both


def test_with_a_certificate_every_door_speaks_tls(pem: Path) -> None:
    """Verified by the client; plain HTTP gets no answer; streams pass."""
    with doors(made(certificate=str(pem))) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(pem)
            for door, path in HEALTH.items():
                url = f"https://localhost:{one.ports[door]}{path}"
                assert session.get(url, timeout=PATIENCE_S).status_code == 200
            url = f"https://localhost:{one.ports['vllm']}{CHAT}"
            assert session.post(url, json=BODY, timeout=PATIENCE_S).json()["engine"] == "vllm"
        context = ssl.create_default_context(cafile=str(pem))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", one.ports["vllm"]), timeout=PATIENCE_S) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as spoken,
        ):
            assert spoken.selected_alpn_protocol() == "h2"
            assert spoken.version() in ("TLSv1.2", "TLSv1.3")
        assert one.ask("vllm", "/health").status in (0, 400)
