"""Streams that stop without their API's last word."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from arbiterd.loadgate import incoming, stream_end
from arbiterd.loadgate.relay import Told
from arbiterd.loadgate.server import Gate

NDJSON, SSE = "application/x-ndjson", "text/event-stream; charset=utf-8"
TOKEN = b'{"model":"m","response":"\\"done\\":true [DONE]","done":false}\n'
DONE = b'{"model":"m","response":"","done":true,"done_reason":"stop","context":[1,2]}\n'
CHUNK = b'data: {"choices":[{"text":"data: [DONE]"}]}\n\n'
COMPLETED = b"event: response.completed\ndata: " + b"x" * 300_000 + b"\n\n"
ERROR = b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'

CASES = [
    ("/api/generate", NDJSON, [TOKEN, DONE], True),
    ("/api/chat", NDJSON, [TOKEN * 2 + DONE[:-1]], True),
    ("/api/generate", NDJSON, [TOKEN, TOKEN], False),
    ("/api/generate", NDJSON, [TOKEN, DONE[:9]], False),
    ("/api/generate", NDJSON, [DONE, TOKEN], False),
    ("/api/chat", NDJSON, [TOKEN, ERROR], True),
    ("/api/chat", NDJSON, [], False),
    ("/v1/completions", SSE, [CHUNK, b"data: [DONE]\n\n"], True),
    ("/v1/chat/completions", SSE, [CHUNK, b"data: [DONE]"], True),
    ("/v1/chat/completions", SSE, [CHUNK.replace(b"\n", b"\r\n"), b"data: [DONE]\r\n\r\n"], True),
    ("/v1/chat/completions", SSE, [CHUNK, CHUNK], False),
    ("/v1/messages", SSE, [b"event: content_block_stop\ndata: {}\n\n"], False),
    ("/v1/messages", SSE, [b'event: message_stop\ndata: {"type":"message_stop"}\n\n'], True),
    ("/v1/messages", SSE, [b'event: error\ndata: {"type":"error"}\n\n'], True),
    ("/v1/responses", SSE, [b"event: response.output_text.delta\ndata: {}\n\n"], False),
    ("/v1/responses", SSE, [b"event: response.created\ndata: {}\n\n", COMPLETED], True),
    ("/v1/responses", SSE, [b"event: response.incomplete\ndata: {}\n\n"], True),
]


def watched(path: str, kind: str, chunks: Sequence[bytes]) -> bool:
    """What the watch says at the end."""
    end = stream_end.watch("POST", path, 200, {"Content-Type": kind})
    assert end is not None
    for chunk in chunks:
        end.feed(chunk)
    return end.told()


@pytest.mark.parametrize(("path", "kind", "chunks", "whole"), CASES)
def test_the_last_record_tells(path: str, kind: str, chunks: list[bytes], whole: bool) -> None:
    """In whatever pieces it comes; what a model says is not its end."""
    assert watched(path, kind, chunks) is whole
    text = b"".join(chunks)
    small = text[:400] + text[-400:] if len(text) > 1000 else text
    if len(text) <= 1000:
        assert watched(path, kind, [small[i : i + 1] for i in range(len(small))]) is whole


def test_what_is_not_a_stream_is_not_watched() -> None:
    """Status and length tell of whole answers; a list may be long and has no last word."""
    kind = {"Content-Type": NDJSON}
    assert stream_end.watch("HEAD", "/api/generate", 200, kind) is None
    assert stream_end.watch("POST", "/api/generate", 500, kind) is None
    assert stream_end.watch("POST", "/api/pull", 200, kind) is None
    assert (
        stream_end.watch("POST", "/api/generate", 200, {"Content-Type": "application/json"}) is None
    )
    assert stream_end.watch("POST", "/api/chat", 200, {**kind, "Content-Encoding": "gzip"}) is None
    assert stream_end.watch("POST", "/v1/embeddings", 200, {"Content-Type": SSE}) is None


@asynccontextmanager
async def _between(
    folder: Path, kind: str, chunks: Sequence[bytes], seen: list[str]
) -> AsyncIterator[aiohttp.ClientSession]:
    """An engine that says these chunks and ends cleanly, the gate's relay before it."""

    async def engine(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Accept-Encoding", "-"))
        if "gzip" in seen[-1]:
            body = gzip.compress(b"".join(chunks))
            return web.Response(
                body=body, headers={"Content-Encoding": "gzip"}, content_type=NDJSON
            )
        out = web.StreamResponse(headers={"Content-Type": kind})
        await out.prepare(request)
        for chunk in chunks if request.method != "HEAD" else ():
            await out.write(chunk)
        return out

    gate = Gate(folder / "gate.json")

    async def relay(request: web.Request) -> web.StreamResponse:
        return await gate._relay(
            request, "ollama", (await request.read(),), Told(), incoming.Held()
        )

    runners = []
    for name, handler in (("inner", engine), ("gate", relay)):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(folder / name)).start()
        runners.append(runner)
    inner = aiohttp.UnixConnector(str(folder / "inner"))
    gate.inner["ollama"] = aiohttp.ClientSession(connector=inner, auto_decompress=False)
    front = aiohttp.UnixConnector(str(folder / "gate"))
    async with aiohttp.ClientSession(connector=front) as via:
        yield via
    await gate.inner["ollama"].close()
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize(("path", "kind", "chunks", "whole"), CASES)
def test_a_client_sees_an_error_where_the_end_is_missing(
    tmp_path: Path, path: str, kind: str, chunks: list[bytes], whole: bool
) -> None:
    """All bytes come, and then a broken connection instead of a clean end."""

    async def run() -> tuple[bytes, bool]:
        got = bytearray()
        seen: list[str] = []
        async with (
            _between(tmp_path, kind, chunks, seen) as via,
            via.post(f"http://x{path}", json={"stream": True}) as reply,
        ):
            try:
                async for chunk in reply.content.iter_any():
                    got += chunk
            except aiohttp.ClientError:
                return bytes(got), False
        assert seen == ["identity"], "an encoded stream could not be watched"
        return bytes(got), True

    got, clean = asyncio.run(run())
    assert clean is whole
    assert b"".join(chunks).startswith(got)
    assert not whole or got == b"".join(chunks)


def test_head_and_whole_answers_pass(tmp_path: Path) -> None:
    """Nothing is awaited in a body that is not there."""

    async def run() -> list[int]:
        out = []
        async with _between(tmp_path, "application/json", [json.dumps({}).encode()], []) as via:
            for method in ("HEAD", "GET", "POST"):
                async with via.request(method, "http://x/api/generate") as reply:
                    await reply.read()
                    out.append(reply.status)
        return out

    assert asyncio.run(run()) == [200, 200, 200]
