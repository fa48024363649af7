"""Many requests at once, each answer kept: what a crowd of clients sees at a door."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class Answer:
    """One answer. ``status`` 0: none came; ``chunks``: (seconds since the start, bytes)."""

    status: int
    retry_after: str = ""
    body: bytes = b""
    took_s: float = 0.0
    error: str = ""
    chunks: list[tuple[float, bytes]] = field(default_factory=list)


async def one(session: aiohttp.ClientSession, url: str, body: Any, **kw: Any) -> Answer:
    """One POST, read to its end."""
    began = time.monotonic()
    out = Answer(0)
    try:
        async with session.post(url, json=body, **kw) as reply:
            out.status = reply.status
            out.retry_after = reply.headers.get("Retry-After", "")
            async for chunk in reply.content.iter_any():
                out.chunks.append((time.monotonic() - began, chunk))
    except (aiohttp.ClientError, TimeoutError) as error:
        out.error = type(error).__name__
    out.body = b"".join(chunk for _, chunk in out.chunks)
    out.took_s = time.monotonic() - began
    return out


def session(timeout_s: float = 60.0) -> aiohttp.ClientSession:
    """Without a limit of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    )


def crowd(url: str, body: Any, count: int, timeout_s: float = 60.0) -> list[Answer]:
    """So many at once."""

    async def run() -> list[Answer]:
        async with session(timeout_s) as via:
            return list(await asyncio.gather(*(one(via, url, body) for _ in range(count))))

    return asyncio.run(run())
