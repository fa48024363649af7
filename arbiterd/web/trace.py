"""``GET /v1/admin/trace``: the ticks of the daemon as they come, one JSON line each."""

from __future__ import annotations

import json
import time

from aiohttp import web

from arbiterd.secrets.redact import Redactor
from arbiterd.trace.lines import Writer
from arbiterd.trace.recorder import KEPT, Tap
from arbiterd.web import params
from arbiterd.web.replies import error

_IDLE_S = 5.0
MOST = 4  # recordings at a time


class TraceStream:
    """Over the admin socket only (web/admin.py asks who it is): a trace names processes, users, models. It
    holds no secrets.
    """

    def __init__(self, tap: Tap, redactor: Redactor | None = None) -> None:
        self._tap = tap
        self._redactor = redactor or Redactor()

    def add_to(self, app: web.Application) -> None:
        """Register the route."""
        app.router.add_get("/v1/admin/trace", self.stream)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """``?seconds=N`` ends it by itself; else the client does."""
        seconds = params.seconds(request)
        if len(self._tap.listeners) >= MOST:
            return error(429, "busy", f"{MOST} recordings run already")
        reply = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        listener = self._tap.open()
        try:
            await reply.prepare(request)
            writer, end = Writer(self._redactor), time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                for tick in await listener.take(min(left, _IDLE_S)):
                    for line in writer.lines(tick):
                        await reply.write(line.encode())
                if listener.late:
                    text = f"the reader was {KEPT} ticks behind"
                    await reply.write(json.dumps({"error": text}).encode() + b"\n")
                    break
        finally:
            self._tap.close(listener)
        await reply.write_eof()
        return reply
