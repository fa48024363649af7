"""What no engine should see is refused at the door, in the shape of the API that was asked."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pytest

from tests.support.doors import OLLAMA_ANSWERS, OLLAMA_MODEL, Doors, Reply, chunked, doors, made

CHAT = "/v1/chat/completions"
HEALTH = {
    "tensorflow": "/v1/models/m",
    "vllm": "/v1/models",
    "ollama": "/api/tags",
    "llm": "/v1/models",
}


@pytest.fixture(scope="module")
def wire() -> Iterator[Doors]:
    """Engines that keep what they were sent."""
    with doors(made()) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        yield one


def said(reply: Reply, *, openai: bool) -> str:
    """The error's text, where it belongs in this shape."""
    assert reply.headers["content-type"].startswith("application/json")
    error = reply.json["error"]
    if openai:
        assert error["type"] == "invalid_request_error"
    return str(error["message"] if openai else error)


MODEL = f'"model":"{OLLAMA_MODEL}"'.encode()
BAD = {
    "nested 900 deep": b"{" + MODEL + b',"tools":' + b"[" * 900 + b"]" * 900 + b"}",
    "objects nested 900 deep": b"{" + MODEL + b',"a":' + b'{"a":' * 900 + b"1" + b"}" * 901,
    "1e400": b"{" + MODEL + b',"temperature":1e400}',
    "-1e400 inside": b"{" + MODEL + b',"messages":[{"content":-1e400}]}',
    "1e400 in options": b"{" + MODEL + b',"options":{"temperature":1e400}}',
    "NaN": b"{" + MODEL + b',"temperature":NaN}',
    "Infinity inside": b"{" + MODEL + b',"a":[[Infinity]]}',
    "two values": b"{" + MODEL + b"}{}",
    "a trailing comma": b"{" + MODEL + b",}",
    "cut off": b"{" + MODEL + b',"a":[1,',
    "a control character": b"{" + MODEL + b',"a":"\x01"}',
    "400 digits": b"{" + MODEL + b',"seed":' + b"9" * 400 + b"}",
}


@pytest.mark.parametrize("name", list(BAD))
@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.parametrize("way", ["plain", "gzip", "chunked"])
def test_what_is_no_json_reaches_no_engine(wire: Doors, name: str, size: int, way: str) -> None:
    """Within HAProxy's buffer and beyond it, packed and in chunks, on OpenAI's and Ollama's own routes."""
    body = BAD[name].replace(MODEL, MODEL + b',"prompt":"' + b"x" * size + b'"', 1)
    headers = {"Content-Type": "application/json"}
    if way == "gzip":
        body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
    elif way == "chunked":
        body, headers = chunked(body), {**headers, "Transfer-Encoding": "chunked"}
    before = len(wire.engines["ollama"].seen)
    for door in ("ollama", "llm"):
        for path in (CHAT, "/api/generate"):
            reply = wire.ask(door, path, method="POST", headers=headers, body=body)
            assert reply.status == 400, (door, path, reply)
            assert said(reply, openai=path == CHAT)
    assert len(wire.engines["ollama"].seen) == before


@pytest.mark.parametrize("door", ["ollama", "llm", "vllm"])
@pytest.mark.parametrize(
    "body",
    [b"no gzip", gzip.compress(b"{}" * 999)[:-9], gzip.compress(b"{}") + b"more", b"\x1f\x8b"],
    ids=["no gzip", "cut off", "more behind", "two bytes"],  # packed bytes have the time in them
)
def test_garbage_for_gzip_is_400(wire: Doors, door: str, body: bytes) -> None:
    """No gzip, cut off, more behind it."""
    before = {name: len(one.seen) for name, one in wire.engines.items()}
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    reply = wire.ask(door, CHAT, method="POST", headers=headers, body=body)
    assert (reply.status, bool(said(reply, openai=True))) == (400, True)
    assert {name: len(one.seen) for name, one in wire.engines.items()} == before


@pytest.mark.parametrize("door", list(HEALTH))
def test_a_long_header_line_is_400_in_the_doors_shape(wire: Doors, door: str) -> None:
    """8,190 bytes pass, one more does not; nor does a header beyond HAProxy's buffer, or a long URL."""
    path, openai = HEALTH[door], HEALTH[door].startswith("/v1/") and door != "tensorflow"
    fits = wire.ask(door, path, headers={"A": "x" * (8190 - 3)})
    assert fits.status == 200, fits
    for extra in (1, 5000):
        reply = wire.ask(door, path, headers={"A": "x" * (8190 - 3 + extra)})
        assert (reply.status, "8190" in said(reply, openai=openai)) == (400, True)
    several = wire.ask(door, path, headers={"A": "x" * 5000, "B": "x" * 5000})
    assert several.status == 200
    reply = wire.ask(door, path + "?" + "x" * 8200)
    assert (reply.status, "URL" in said(reply, openai=openai)) == (400, True)
    # HAProxy's parser answers before any rule has run, in its own words
    assert wire.ask(door, path, headers={f"A{i}": "x" * 8000 for i in range(9)}).status == 400


@pytest.mark.parametrize("door", list(HEALTH))
@pytest.mark.parametrize(
    "path",
    ['/odd"path', '/odd","x":"', "/odd%22path", "/odd<b>path", "/odd'path", "/odd%0d%0apath"],
)
def test_a_path_in_a_403_is_escaped(wire: Doors, door: str, path: str) -> None:
    """The body is one JSON object with one member, and the path in it as it was."""
    reply = wire.ask(door, path)
    assert reply.status == 403
    assert list(reply.json) == ["error"]
    text = (
        reply.json["error"]["message"]
        if isinstance(reply.json["error"], dict)
        else reply.json["error"]
    )
    assert path in text


@pytest.mark.parametrize(
    "line", ["A B: x", "A(: x", "Content-Length: 3", "Transfer-Encoding: x", "A: \x00"]
)
def test_what_haproxy_cannot_parse_reaches_nobody(wire: Doors, line: str) -> None:
    """Two lengths, an unknown transfer encoding, characters that no header has."""
    name, _, value = line.partition(": ")
    body = json.dumps({"model": OLLAMA_MODEL, "messages": []}).encode()
    before = len(wire.engines["ollama"].seen)
    reply = wire.ask("ollama", CHAT, method="POST", headers={name: value}, body=body)
    assert 400 <= reply.status < 500
    assert len(wire.engines["ollama"].seen) == before


def test_what_the_gates_parser_refuses_is_told_in_json(wire: Doors) -> None:
    """A character that HAProxy lets pass and aiohttp does not: its plain text is restated."""
    body = json.dumps({"model": OLLAMA_MODEL, "messages": []}).encode()
    for path in (CHAT, "/api/chat"):
        reply = wire.ask("ollama", path, method="POST", headers={"A": "\x01"}, body=body)
        assert reply.headers["content-type"].startswith("application/json"), reply
        assert reply.status in (200, 400)
