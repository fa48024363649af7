"""What the load gate hands on: a request's body to an engine, an answer to its client."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from arbiterd.gateway import live_map
from arbiterd.loadgate import incoming, ollama_body, stream_end
from arbiterd.loadgate.body_memory import FREE_BYTES

HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailers",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "content-encoding",
        "host",
        "expect",
    )
)
_WAITED_MS = 50  # shorter is not told: asking what is resident takes a moment, too


@dataclass(slots=True)
class Told:
    """What the answer's headers tell: how long it waited here (ms), and why or why it is from another."""

    waited_ms: int = 0
    why: str = ""

    def waited(self, began: float, why: str) -> None:
        """Since then (monotonic seconds), for this, unless there is a reason already."""
        self.waited_ms = round((time.monotonic() - began) * 1000)
        if self.waited_ms >= _WAITED_MS and not self.why:
            self.why = why

    def headers(self, inner: Mapping[str, str]) -> dict[str, str]:
        """Together with what the inner door has told."""
        waited = self.waited_ms + int(inner.get("X-Arbiter-Waited-Ms", "0") or 0)
        whys = [why for why in (self.why, inner.get("X-Arbiter-Why", "")) if why]
        out = {"X-Arbiter-Waited-Ms": str(waited)} if waited >= _WAITED_MS else {}
        return out | ({"X-Arbiter-Why": live_map.clean("; ".join(whys))} if whys else {})


def data(body: ollama_body.Sent, held: incoming.Held) -> bytes | AsyncIterator[memoryview | bytes]:
    """A small body as it is; a large one in pieces, dropped behind the last one."""
    if sum(len(one) for one in body) <= FREE_BYTES:
        return b"".join(ollama_body.pieces(body))

    async def large() -> AsyncIterator[memoryview | bytes]:
        for piece in ollama_body.pieces(body):
            yield piece
        held.drop()

    return large()


async def pass_on(
    request: web.Request, reply: aiohttp.ClientResponse, out: web.StreamResponse
) -> bool:
    """Every chunk at once; whether the answer has ended as its API ends answers."""
    end = stream_end.watch(request.method, request.path, reply.status, reply.headers)
    async for chunk in reply.content.iter_any():
        if end is not None:
            end.feed(chunk)
        await out.write(chunk)
    return end is None or end.told()


def kept(headers: Any) -> dict[str, str]:
    """Headers of an answer that go on to the client."""
    return {
        k: v for k, v in headers.items() if k.lower() not in HOP or k.lower() == "content-encoding"
    }
