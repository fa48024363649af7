"""A fast engine for the gateway's benchmark: stamped tokens at a fixed rate, over SSE and NDJSON.

``python -m tests.bench.gateway_engine PORT``. It answers the few routes of Ollama that the load gate asks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop
from aiohttp import web

MODEL = "bench"
TOKENS, GAP_S = 100, 0.02
FOREVER = "2318-01-01T00:00:00Z"


async def stream(request: web.Request) -> web.StreamResponse:
    """TOKENS tokens, each with the moment it was sent."""
    await request.read()
    sse = request.path.startswith("/v1/")
    kind = "text/event-stream" if sse else "application/x-ndjson"
    reply = web.StreamResponse(headers={"Content-Type": kind})
    await reply.prepare(request)
    began = time.monotonic()
    for number in range(TOKENS):
        await asyncio.sleep(max(0.0, began + number * GAP_S - time.monotonic()))
        text = json.dumps({"t": time.time()})
        await reply.write((f"data: {text}\n\n" if sse else f"{text}\n").encode())
    await reply.write(b"data: [DONE]\n\n" if sse else b'{"done":true}\n')
    await reply.write_eof()
    return reply


async def chat(request: web.Request) -> web.StreamResponse:
    """A stream, or one small answer."""
    body = await request.json()
    if body.get("stream"):
        return await stream(request)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "ok"},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return web.json_response(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
            "usage": usage,
        }
    )


async def models(request: web.Request) -> web.Response:
    """The one model, resident for ever."""
    row = {"name": f"{MODEL}:latest", "size": 1000, "digest": "d", "expires_at": FOREVER}
    return web.json_response({"models": [row]})


async def show(_request: web.Request) -> web.Response:
    """It can complete."""
    return web.json_response({"model_info": {}, "capabilities": ["completion"]})


def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/api/generate", stream)
    app.router.add_get("/api/ps", models)
    app.router.add_get("/api/tags", models)
    app.router.add_post("/api/show", show)
    uvloop.install()
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        print=None,
        access_log=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
