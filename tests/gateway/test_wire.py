"""Bodies and protocols as clients really send them: HTTP/1.0, multipart, compressed, in chunks."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import requests

from arbiterd.loadgate import ollama_body
from arbiterd.loadgate.incoming import form_model
from arbiterd.model.gateway import Admit
from tests.support import PATIENCE_S
from tests.support.doors import (
    OLLAMA_ANSWERS,
    OLLAMA_MODEL,
    VLLM_MODEL,
    Doors,
    chunked,
    doors,
    made,
)

CHAT = "/v1/chat/completions"
MAX = 200_000
EVENT = ["data: 1\n\n", "data: [DONE]\n\n"]


@pytest.fixture(scope="module")
def wire() -> Iterator[Doors]:
    """Engines that keep what they were sent; one streams its chats."""
    with doors(made(max_body_bytes=MAX)) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        for engine in one.engines.values():
            engine.streams = {"/v1/completions"}
        yield one


def body_of(model: str, size: int = 0) -> bytes:
    """A chat whose model stands last, as old clients write it."""
    return json.dumps(
        {"messages": [{"role": "user", "content": "x" * size}], "model": model}
    ).encode()


@pytest.mark.parametrize(
    ("door", "model"),
    [("ollama", OLLAMA_MODEL), ("llm", OLLAMA_MODEL), ("llm", VLLM_MODEL), ("vllm", VLLM_MODEL)],
)
@pytest.mark.parametrize("keep", ["close", "keep-alive"])
def test_a_stream_to_an_http_1_0_client_ends_with_its_last_chunk(
    wire: Doors, door: str, model: str, keep: str
) -> None:
    """nginx's default towards its upstreams: no chunks, the connection's end is the answer's."""
    body = json.dumps({"model": model, "prompt": "x", "stream": True}).encode()
    headers = {"Content-Type": "application/json", "Connection": keep}
    reply = wire.ask(
        door, "/v1/completions", method="POST", body=body, headers=headers, version="1.0"
    )
    assert reply.status == 200
    assert "transfer-encoding" not in reply.headers
    assert reply.body.decode() == "".join(EVENT)


def form(
    model: str | None, size: int = 0, boundary: str = "xYz", field: str = 'name="model"'
) -> tuple[dict[str, str], bytes]:
    """An upload as OpenAI's clients send it; ``model`` after the file."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'.encode()
        + b"\x00\xff--\r\n" + b"x" * size + b"\r\n"
    ]  # fmt: skip
    if model is not None:
        parts.append(
            f"--{boundary}\r\nContent-Disposition: form-data; {field}\r\n\r\n{model}\r\n".encode()
        )
    parts.append(f"--{boundary}--\r\n".encode())
    return {"Content-Type": f"multipart/form-data; boundary={boundary}"}, b"".join(parts)


@pytest.mark.parametrize(
    "path", ["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits"]
)
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_form_is_routed_by_its_model_and_handed_on_as_it_came(
    wire: Doors, path: str, size: int
) -> None:
    """Within HAProxy's buffer and beyond it; byte for byte."""
    headers, body = form(VLLM_MODEL, size)
    reply = wire.ask("llm", path, method="POST", headers=headers, body=body)
    assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, "vllm")
    seen = wire.engines["vllm"].seen[-1]
    assert (seen.path, seen.body, seen.headers["content-type"]) == (
        path,
        body,
        headers["Content-Type"],
    )


def test_an_audio_form_for_ollama_passes_its_load_gate(wire: Doors) -> None:
    """/v1/audio/transcriptions loads a model there, too."""
    headers, body = form(OLLAMA_MODEL)
    for door in ("llm", "ollama"):
        reply = wire.ask(
            door, "/v1/audio/transcriptions", method="POST", headers=headers, body=body
        )
        assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, "ollama")
        assert wire.engines["ollama"].seen[-1].body == body
    headers, body = form("other:1b")
    assert (
        wire.ask(
            "ollama", "/v1/audio/transcriptions", method="POST", headers=headers, body=body
        ).status
        == 404
    )


def test_what_a_form_lacks_is_said(wire: Doors) -> None:
    """No model 400, an unknown one 404, no form at all 400: in OpenAI's shape."""
    for model, status in ((None, 400), ("", 400), ("nobody", 404)):
        headers, body = form(model)
        reply = wire.ask("llm", "/v1/images/edits", method="POST", headers=headers, body=body)
        assert (reply.status, "message" in reply.json["error"]) == (status, True)
    bad = wire.ask(
        "llm",
        "/v1/images/edits",
        method="POST",
        headers={"Content-Type": "multipart/form-data"},
        body=b"x",
    )
    assert bad.status == 400


def test_a_passing_state_is_503_for_forms_never_400(wire: Doors) -> None:
    """vLLM is out: with Retry-After at both doors, and nobody stands in who takes no forms."""
    wire.failover[("vllm", VLLM_MODEL)] = "ollama"
    wire.say("vllm", Admit.SHED, "restarting")
    try:
        for size in (10, 100_000):
            headers, body = form(VLLM_MODEL, size)
            for door in ("llm", "vllm"):
                reply = wire.ask(
                    door, "/v1/audio/transcriptions", method="POST", headers=headers, body=body
                )
                assert (reply.status, reply.headers.get("retry-after")) == (503, "7"), (
                    door,
                    size,
                    reply,
                )
                assert "restarting" in reply.json["error"]["message"]
    finally:
        wire.failover.clear()
        wire.say("vllm", Admit.UP)


@pytest.mark.parametrize("door", ["llm", "ollama"])
def test_a_body_over_max_body_is_413_in_the_apis_shape(wire: Doors, door: str) -> None:
    """Also when only its unpacked size is, and for a client that sends all of it first."""
    big = body_of(OLLAMA_MODEL, MAX)
    packed = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    for path, headers, body in (
        (CHAT, {}, big),
        (CHAT, packed, gzip.compress(big)),
        ("/v1/audio/transcriptions", *form(OLLAMA_MODEL, MAX)),
        ("/v1/audio/transcriptions", *form(OLLAMA_MODEL, 20_000_000)),
    ):
        reply = requests.post(
            wire_url(wire, door, path), data=body, headers=headers, timeout=PATIENCE_S
        )
        assert reply.status_code == 413, (path, len(body))
        assert "max_body" in reply.json()["error"]["message"]
    fits = wire.ask(door, CHAT, method="POST", body=body_of(OLLAMA_MODEL, MAX - 1000))
    assert fits.status == 200


def wire_url(wire: Doors, door: str, path: str) -> str:
    """Of a door."""
    return f"http://127.0.0.1:{wire.ports[door]}{path}"


DOORS = [
    ("llm", OLLAMA_MODEL, "ollama"),
    ("llm", VLLM_MODEL, "vllm"),
    ("ollama", OLLAMA_MODEL, "ollama"),
    ("vllm", VLLM_MODEL, "vllm"),
]


@pytest.mark.parametrize(("door", "model", "engine"), DOORS)
@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "identity", ""])
@pytest.mark.parametrize("chunks", [False, True])
def test_compressed_and_chunked_bodies_are_taken_at_every_llm_door(
    wire: Doors, door: str, model: str, engine: str, size: int, encoding: str, chunks: bool
) -> None:
    """The engine gets plain JSON: neither vLLM nor Ollama unpacks."""
    plain = body_of(model, size)
    packers: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
    body = packers.get(encoding.lower(), bytes)(plain)
    headers = {"Content-Type": "application/json"}
    if encoding:
        headers["Content-Encoding"] = encoding
    if chunks:
        headers["Transfer-Encoding"] = "chunked"
    reply = wire.ask(
        door, CHAT, method="POST", headers=headers, body=chunked(body) if chunks else body
    )
    assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, engine), reply
    seen = wire.engines[engine].seen[-1]
    assert json.loads(seen.body) == json.loads(plain)
    assert seen.headers.get("content-encoding", "identity") == "identity"


def test_tensorflow_unpacks_itself(wire: Doors) -> None:
    """Its server takes gzip (net_http): handed on untouched, in chunks as well."""
    packed = gzip.compress(b'{"instances": [1]}')
    for chunks in (False, True):
        headers = {"Content-Encoding": "gzip"} | (
            {"Transfer-Encoding": "chunked"} if chunks else {}
        )
        reply = wire.ask(
            "tensorflow",
            "/v1/models/m:predict",
            method="POST",
            headers=headers,
            body=chunked(packed) if chunks else packed,
        )
        assert reply.status == 200
        seen = wire.engines["tensorflow"].seen[-1]
        assert (seen.body, seen.headers["content-encoding"]) == (packed, "gzip")


@pytest.mark.parametrize("door", ["llm", "ollama", "vllm"])
def test_a_body_that_does_not_unpack_is_the_clients_fault(wire: Doors, door: str) -> None:
    """400 for broken gzip, 415 for an encoding that is not known; in the API's shape."""
    broken = wire.ask(
        door, CHAT, method="POST", headers={"Content-Encoding": "gzip"}, body=b"no gzip at all"
    )
    assert (broken.status, "message" in broken.json["error"]) == (400, True)
    unknown = wire.ask(door, CHAT, method="POST", headers={"Content-Encoding": "br"}, body=b"x")
    assert (unknown.status, "gzip" in unknown.json["error"]["message"]) == (415, True)


def test_packed_bodies_fail_over_as_plain_ones_do(wire: Doors) -> None:
    """The gate reads the model that HAProxy cannot."""
    wire.failover[("vllm", VLLM_MODEL)] = "ollama"
    wire.say("vllm", Admit.SHED, "restarting")
    try:
        for door in ("llm", "vllm"):
            headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
            reply = wire.ask(
                door, CHAT, method="POST", headers=headers, body=gzip.compress(body_of(VLLM_MODEL))
            )
            assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, "ollama"), reply
    finally:
        wire.failover.clear()
        wire.say("vllm", Admit.UP)


def test_reading_what_ollama_only_shows_loads_nothing(wire: Doors) -> None:
    """/api/show at the unified door: no lease, no clamp; at its own door packed, too."""
    before = len(wire.engines["ollama"].seen)
    assert wire.post("llm", "/api/show", {"model": OLLAMA_MODEL}).status == 200
    packed = gzip.compress(json.dumps({"model": OLLAMA_MODEL}).encode())
    assert (
        wire.ask(
            "ollama", "/api/show", method="POST", headers={"Content-Encoding": "gzip"}, body=packed
        ).status
        == 200
    )
    paths = [(seen.path, json.loads(seen.body)) for seen in wire.engines["ollama"].seen[before:]]
    assert paths == [("/api/show", {"model": OLLAMA_MODEL})] * 2


@pytest.mark.parametrize(
    ("field", "model"),
    [
        ('name="model"', "M"),
        ("name=model", "M"),
        ('name="Model"', ""),
        ('filename="model"; name="file"', ""),
        ('NAME="model"', "M"),
    ],
)
def test_the_field_of_a_form(field: str, model: str) -> None:
    """By its name, quoted or not; a file of that name is none."""
    headers, body = form("M", field=field)
    assert form_model(headers["Content-Type"], body) == model


def test_a_form_is_read_by_its_own_boundary() -> None:
    """Quoted, with a preamble, with lookalikes in the file; no boundary is no form."""
    _, body = form("M", boundary="a'b c")
    assert form_model('multipart/form-data; boundary="a\'b c"', b"preamble\r\n" + body) == "M"
    for kind, raw in (("multipart/form-data", body), ("multipart/form-data; boundary=other", body)):
        with pytest.raises(ollama_body.BadBody, match="boundary"):
            form_model(kind, raw)


def test_the_limit_of_bodies_is_the_files(tmp_path: object) -> None:
    """[gateway] max_body reaches the gate; a reload changes it without a restart."""
    with doors(replace(made(max_body_bytes=2000))) as one:
        assert (
            one.post("ollama", "/api/chat", {"model": OLLAMA_MODEL, "prompt": "x" * 3000}).status
            == 413
        )
        config = json.loads(one.where.gate_config.read_text())
        one.where.gate_config.write_text(json.dumps({**config, "max_body_bytes": 10_000}))
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        from tests.support import wait_until

        wait_until(
            lambda: (
                one.post(
                    "ollama", "/api/chat", {"model": OLLAMA_MODEL, "prompt": "x" * 3000}
                ).status
                == 200
            ),
            15,
            "the new limit",
        )
