"""``GET /v1/stream``: what the page shows, a JSON line each second, the same bytes for all who look.

A request a second for each viewer costs ten times as much, most of it HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from arbiterd.web.replies import error, shaped

LIFE_S = 30.0  # then the viewer asks again, and name, token and what it may see are looked at again
_SLACK_S = 5.0  # a viewer that does not take its lines
MOST = 128  # a quarter of the connections: an open stream cannot make room for another request
_OF_FDS = 16  # so too where there are fewer descriptors


class PageStream:
    """``line`` renders for a request, or finds what has been rendered in this second. ``fds``: descriptors
    of the process.
    """

    def __init__(self, line: Callable[[web.Request], bytes], fds: int) -> None:
        self._line = line
        self._share = max(1, fds // _OF_FDS)
        self._viewers: set[asyncio.Task[Any]] = set()

    def add_to(self, app: web.Application) -> None:
        """Register the route."""
        app.router.add_get("/v1/stream", self.stream)
        app.on_shutdown.append(self._close)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """All lines end on the same second, so that one rendering serves them."""
        most = min(MOST, self._share)
        if len(self._viewers) >= most:
            return error(429, "busy", f"{most} pages look on already", 5)
        headers = {"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}
        reply = shaped(web.StreamResponse(headers=headers))
        task = asyncio.current_task()
        if task is None:
            raise web.HTTPServiceUnavailable
        self._viewers.add(task)
        try:
            async with asyncio.timeout(LIFE_S + _SLACK_S):
                first = self._line(request)  # 503 while there is none
                await reply.prepare(request)
                await reply.write(first)
                end = time.monotonic() + LIFE_S
                while (now := time.monotonic()) < end:
                    await asyncio.sleep(1 - now % 1)
                    await reply.write(self._line(request))
                await reply.write_eof()
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._viewers.discard(task)
        return reply

    async def _close(self, _app: web.Application) -> None:
        for task in self._viewers:
            task.cancel()
