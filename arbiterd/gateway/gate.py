"""The load gate: ``python -m arbiterd.gateway.gate FILE``. Its own process and unit.

Every body that can make Ollama load a model passes here once: parsed, clamped, held until its load
fits, handed on to HAProxy's inner door. It streams and buffers no answer. It outlives the daemon:
without one, resident models go on and loads wait ``queue_timeout``, then 503.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from arbiterd.gateway import bodies, ends, live, probes
from arbiterd.gateway.layout import owner_of
from arbiterd.gateway.loads import Loads, Refused

_BIG = 256 * 1024  # bytes: parsed in a thread, so that no other stream waits for it
_HOP = frozenset(
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
_LISTS = ("/api/tags", "/v1/models")
_RELOAD_S = 1.0


class Gate:
    """Routes, clamps, holds, relays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = 0
        self._live_stamp = 0
        self._live: dict[str, str] = {}
        self.config: dict[str, Any] = {}
        self.inner: dict[str, aiohttp.ClientSession] = {}
        self.loads: dict[str, Loads] = {}

    # -- configuration -------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Read the file again when it has changed."""
        stamp = self._path.stat().st_mtime_ns
        if stamp == self._stamp:
            return
        found = json.loads(self._path.read_text())
        self._stamp = stamp
        self.config = found
        for name in set(self.inner) - set(found["backends"]):
            await self.inner.pop(name).close()
            self.loads.pop(name, None)
        for name, one in found["backends"].items():
            if name not in self.inner:
                self.inner[name] = aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(one["inner"], limit=0),
                    timeout=aiohttp.ClientTimeout(total=None),
                    auto_decompress=False,
                )
            if one["gated"]:
                loads = self.loads.setdefault(name, Loads(name))
                loads.configure(one, found["loads"])

    def live(self) -> dict[str, str]:
        """The map that HAProxy has, too."""
        with suppress(OSError):
            stamp = os.stat(self.config["live"]).st_mtime_ns
            if stamp != self._live_stamp:
                self._live = live.parse(Path(self.config["live"]).read_text())
                self._live_stamp = stamp
        return self._live

    # -- requests ------------------------------------------------------------------------------
    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request from HAProxy."""
        if request.path == "/livez":
            return web.Response(text="ok")
        try:
            return await self._route(request)
        except Refused as refused:
            return _error(request, refused.status, str(refused), refused.retry_after_s)
        except bodies.BadBody as bad:
            return _error(request, 400, str(bad))
        except aiohttp.ClientError as error:
            text = f"the way to the engine is cut: {type(error).__name__}"
            return _error(request, 502, text, 5)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        door = request.headers.get("x-arbiter-door", "")
        want = request.headers.get("x-arbiter-want", "")
        probed = request.headers.get(probes.HEADER, "")
        if probed in self.inner:  # the daemon's own, by HAProxy's probe socket: nothing is held
            return await self._relay(request, probed, b"")
        if request.method in ("GET", "HEAD") and request.path in _LISTS:
            return await self._list(request, door)
        raw = await request.read()
        if len(raw) > _BIG:
            body = await asyncio.get_running_loop().run_in_executor(None, bodies.parse, raw)
        else:
            body = bodies.parse(raw)
        name = self._target(body.model, door, want)
        if name not in self.loads:
            return await self._relay(request, name, raw)
        loads = self.loads[name]
        # HAProxy has an eye on the client; when it is gone this handler is cancelled, held or not.
        loads.device_bytes = int(self.live().get(f"dev:{name}", "0") or 0)
        async with loads.admitted(body, request.path) as ticket:
            if ticket.answer is not None:
                return web.json_response(ticket.answer)
            return await self._relay(request, name, ticket.sent)

    def _target(self, model: str, door: str, want: str) -> str:
        """Which backend: HAProxy's word, or for a body beyond its buffer the model's."""
        state = self.live()
        name = want
        if not name:
            if not model:
                msg = "the body names no model"
                raise Refused(msg, status=400)
            own = door if door in self.config["backends"] else ""
            name = own or owner_of(self.config["models"], self.loads, model)
        if name not in self.config["backends"]:
            msg = f"no backend has the model {model!r}"
            raise Refused(msg, status=404)
        out = state.get(f"st:{name}", "shed") != "up"
        standin = state.get(f"fo:{name}:{model}", "")
        if want and door == want:
            return name
        if not want and (out or door == name) and standin in self.config["backends"]:
            return standin
        if not want and door == name and name not in self.loads:
            # HAProxy came here because the engine did not answer, and nobody stands in for it
            wait = int(state.get(f"ra:{name}", "5") or 5)
            why = state.get(f"why:{name}", "") or "it does not answer"
            msg = f"{name} is out and nobody else has {model!r}: {why}"
            raise Refused(msg, retry_after_s=max(1, wait))
        if want and door not in ("", "llm", want):
            # failover: only what the live map says may stand in for this door
            if not any(k.startswith(f"fo:{door}:") and v == want for k, v in state.items()):
                msg = f"{door} is out and nobody stands in for it"
                raise Refused(msg)
            if model and f"fo:{door}:{model}" not in state:
                msg = f"{door} is out and nobody else has {model!r}"
                raise Refused(msg, retry_after_s=int(state.get(f"ra:{door}", "5") or 5))
        return name

    async def _list(self, request: web.Request, door: str) -> web.StreamResponse:
        """/api/tags and /v1/models: what may be used, not what lies on the disk."""
        if door == "llm" and request.path == "/v1/models":
            rows = [
                {"id": m, "object": "model", "owned_by": b}
                for m, b in self.config["models"].items()
                if m != "*"
            ]
            return web.json_response({"object": "list", "data": rows})
        name = door if door in self.loads else next(iter(self.loads), "")
        if not name:
            msg = "no Ollama here"
            raise Refused(msg, status=404)
        loads = self.loads[name]
        async with self.inner[name].get(f"http://localhost{request.path}") as reply:
            if reply.status != 200:
                return web.Response(
                    status=reply.status, body=await reply.read(), headers=_kept(reply.headers)
                )
            found = await reply.json(content_type=None)
        key, field = ("data", "id") if request.path == "/v1/models" else ("models", "name")
        found[key] = [
            one for one in found.get(key) or [] if loads.is_allowed(str(one.get(field, "")))
        ]
        return web.json_response(found)

    async def _relay(self, request: web.Request, name: str, body: bytes) -> web.StreamResponse:
        """Hand on; every chunk at once."""
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        headers["x-arbiter-via"] = "gate"
        if "Host" in request.headers:  # HAProxy rewrites it, towards Ollama only
            headers["Host"] = request.headers["Host"]
        headers["Accept-Encoding"] = "identity"  # an encoded stream cannot be watched for its end
        session = self.inner[name]
        url = f"http://localhost{request.raw_path}"
        async with session.request(
            request.method, url, data=body, headers=headers, allow_redirects=False
        ) as reply:
            out = web.StreamResponse(status=reply.status, headers=_kept(reply.headers))
            length = reply.headers.get("Content-Length")
            if length is not None:
                out.content_length = int(length)
            await out.prepare(request)
            try:
                whole = await _pass_on(request, reply, out)
            except aiohttp.ClientError:
                whole = False  # the engine died mid-answer
            if not whole:  # cut it off, so that it does not look finished
                if request.transport is not None:
                    request.transport.abort()
                return out
            await out.write_eof()
            return out


async def _pass_on(
    request: web.Request, reply: aiohttp.ClientResponse, out: web.StreamResponse
) -> bool:
    """Every chunk at once; whether the answer has ended as its API ends answers."""
    end = ends.watch(request.method, request.path, reply.status, reply.headers)
    async for chunk in reply.content.iter_any():
        if end is not None:
            end.feed(chunk)
        await out.write(chunk)
    return end is None or end.told()


def _kept(headers: Any) -> dict[str, str]:
    return {
        k: v for k, v in headers.items() if k.lower() not in _HOP or k.lower() == "content-encoding"
    }


def _error(request: web.Request, status: int, text: str, retry_after_s: int = 0) -> web.Response:
    """In the shape of the API that was asked."""
    body: dict[str, Any] = {"error": text}
    if request.path.startswith("/v1/"):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        code = {503: "overloaded", 404: "model_not_found"}.get(status)
        body = {"error": {"message": text, "type": kind, "param": None, "code": code}}
    headers = {"Retry-After": str(max(1, min(120, retry_after_s or 5)))} if status >= 500 else {}
    return web.json_response(body, status=status, headers=headers)


async def serve(path: Path) -> None:
    """Until SIGTERM; streams under way are finished first."""
    gate = Gate(path)
    await gate.refresh()
    app = web.Application(client_max_size=int(gate.config["max_body_bytes"]))
    app.router.add_route("*", "/{path:.*}", gate.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=60.0)
    await runner.setup()
    socket = Path(gate.config["socket"])
    with suppress(FileNotFoundError):
        os.unlink(socket)
    os.umask(0o007)
    site = web.UnixSite(runner, str(socket), backlog=1024)
    await site.start()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    while not ended.is_set():
        with suppress(OSError, ValueError, KeyError):
            await gate.refresh()
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _RELOAD_S)
    await runner.cleanup()
    for session in gate.inner.values():
        await session.close()


def main() -> int:
    """Run."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m arbiterd.gateway.gate GATE.JSON\n")
        return 2
    try:
        uvloop.run(serve(Path(sys.argv[1])))
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"gate: {sys.argv[1]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
