"""The load gate's server; loadgate/__main__.py starts it.

Every body that can make Ollama load a model passes here once: parsed, clamped, held until its load
fits, handed on to HAProxy's inner door. It streams and buffers no answer. It outlives the daemon:
without one, resident models go on and loads wait ``queue_timeout``, then 503.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from arbiterd.engines.ollama import LOAD_ROUTES
from arbiterd.gateway import live_map, probes
from arbiterd.gateway.keys import ALL, KEYED
from arbiterd.gateway.layout import owner_of
from arbiterd.linux.heap import Trimmer
from arbiterd.loadgate import incoming, ollama_body
from arbiterd.loadgate.admission import Loads, Refused
from arbiterd.loadgate.body_memory import TOTAL_BYTES, Room
from arbiterd.loadgate.lists import ONE, Lists
from arbiterd.loadgate.relay import HOP, Told, data, kept, pass_on

_LISTS = ("/api/tags", "/v1/models", "/api/ps")
_RELOAD_S = 1.0
_READ_BYTES = 64 * 1024  # of each connection, read before anybody asks for it
_LINE_BYTES = 64 * 1024  # HAProxy's buffer; the doors refuse lines beyond frontend.LINE_MAX
_CODES = {401: "invalid_api_key", 404: "model_not_found", 503: "overloaded"}


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
        self.room = Room()

    # -- configuration -------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Read the file again when it has changed."""
        stamp = self._path.stat().st_mtime_ns
        if stamp == self._stamp:
            return
        found = json.loads(self._path.read_text())
        self._stamp = stamp
        self.config = found
        # a body that max_body allows must fit, if it is the only one
        self.room.total = max(TOTAL_BYTES, found["max_body_bytes"])
        for name in set(self.inner) - set(found["backends"]):
            await self.inner.pop(name).close()
            self.loads.pop(name, None)
        for name, one in found["backends"].items():
            if name not in self.inner:
                self.inner[name] = aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(one["inner"], limit=0),
                    timeout=aiohttp.ClientTimeout(total=None),
                    auto_decompress=False,
                    # an engine that is dead sends its requests back to here: round and round
                    headers={"x-arbiter-via": "gate"},
                )
            if one["gated"]:
                loads = self.loads.setdefault(name, Loads(name))
                loads.configure(one, found["loads"])

    def live(self) -> dict[str, str]:
        """The map that HAProxy has, too."""
        with suppress(OSError):
            stamp = os.stat(self.config["live"]).st_mtime_ns
            if stamp != self._live_stamp:
                self._live = live_map.parse(Path(self.config["live"]).read_text())
                self._live_stamp = stamp
        return self._live

    # -- requests ------------------------------------------------------------------------------
    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request from HAProxy."""
        if request.path == "/livez":
            return web.Response(text="ok")
        told, held = Told(), incoming.Held()
        try:
            return await self._route(request, told, held)
        except Refused as refused:
            error = _error(request, refused.status, str(refused), refused.retry_after_s)
            error.headers.update(told.headers({}))
            return error
        except ollama_body.BadBody as bad:
            return _error(request, 400, str(bad))
        except aiohttp.ClientError as error:
            text = f"the way to the engine is cut: {type(error).__name__}"
            return _error(request, 502, text, 5)
        finally:
            held.drop()

    async def _route(
        self, request: web.Request, told: Told, held: incoming.Held
    ) -> web.StreamResponse:
        door = request.headers.get("x-arbiter-door", "")
        want = request.headers.get("x-arbiter-want", "")
        probed = request.headers.get(probes.HEADER, "")
        if probed in self.inner:  # the daemon's own, by HAProxy's probe socket: nothing is held
            return await self._relay(request, probed, (), told, held)
        if "x-arbiter-via" in request.headers:  # from here, and its engine was not there either
            msg = f"neither {door} nor its substitute answers"
            raise Refused(msg)
        if request.method == "OPTIONS":  # asks nobody for a key, so it must move nothing
            return web.Response(status=204, headers={"Allow": "GET, HEAD, POST, OPTIONS"})
        if request.method in ("GET", "HEAD"):
            return await self._read(request, door, want)
        await incoming.read(request, self.config["max_body_bytes"], self.room, held)
        if want and want == door and want not in self.loads:  # here to be unpacked
            return await self._relay(request, want, ollama_body.whole(held.source), told, held)
        found = await incoming.parse(request, held.source)
        raw = ollama_body.whole(held.source)
        name = self._target(found, door, want)
        home = request.headers.get("x-arbiter-home", "") or self._home(found.model, door)
        self._guard(request, home, name)
        if name != home:
            why = self.live().get(f"why:{home}", "") or "it does not answer"
            told.why = f"failover from {home}: {why.removeprefix(f'{home}: ')}"
        if name not in self.loads or request.path not in LOAD_ROUTES:
            return await self._relay(request, name, raw, told, held)
        loads = self.loads[name]
        # HAProxy has an eye on the client; when it is gone this handler is cancelled, held or not.
        loads.device_bytes = int(self.live().get(f"dev:{name}", "0") or 0)
        body = found.body or ollama_body.Body((("model", found.model),), found.model)
        began = time.monotonic()
        try:
            async with loads.admitted(body, request.path) as ticket:
                told.waited(began, f"load of {found.model}")
                if ticket.answer is not None:
                    return web.json_response(ticket.answer)
                sent = ticket.sent if found.body else raw
                return await self._relay(request, name, sent, told, held)
        except Refused:
            told.waited(began, f"load of {found.model}")
            raise

    def _target(self, found: incoming.Incoming, door: str, want: str) -> str:
        """Which backend: HAProxy's word, or for a body beyond its buffer the model's."""
        model, state = found.model, self.live()
        name = want
        if not name:
            if not model:
                msg = "the body names no model"
                raise Refused(msg, status=400)
            name = self._home(model, door)
        if name not in self.config["backends"]:
            msg = f"no backend has the model {model!r}"
            raise Refused(msg, status=404)
        out = state.get(f"st:{name}", "shed") != "up"
        standin = state.get(f"fo:{name}:{model}", "")
        if found.body is None:
            standin = ""  # a substitute for chats takes no forms
        if want and door == want:
            return name
        if not want and (out or door == name) and standin in self.config["backends"]:
            return standin
        if not want and door == name and name not in self.loads:
            raise self._absent(name, f", and no other backend serves {model!r}")
        if want and door not in ("", "llm", want):
            # failover: only what the live map says may stand in for this door
            if not any(k.startswith(f"fo:{door}:") and v == want for k, v in state.items()):
                msg = f"{door} is out and has no failover backend"
                raise Refused(msg)
            if model and f"fo:{door}:{model}" not in state:
                msg = f"{door} is out, and no other backend serves {model!r}"
                raise Refused(msg, retry_after_s=int(state.get(f"ra:{door}", "5") or 5))
        return name

    def _home(self, model: str, door: str) -> str:
        """The backend whose model this is: the door's own; at the unified door the model's owner, of
        several the first that takes work, or an adapter's, which the engine has told.
        """
        if door in self.config["backends"]:
            return door
        live = self.live()
        many = self.config["several"].get(model, ())
        up = next((name for name in many if live.get(f"st:{name}") == "up"), "")
        return (
            up or live.get(f"m:{model}", "") or owner_of(self.config["models"], self.loads, model)
        )

    def _guard(self, request: web.Request, home: str, name: str) -> None:
        """A substitute must not open what a key guards: the client has shown the key of the backend
        that it asked for, or HAProxy would not have said so.
        """
        if name != home and home in _locked(request, self.config["keyed"]):
            msg = f"{home} is out, and its substitute answers only those who have the key of {home}"
            raise Refused(msg, status=401)

    def _absent(self, name: str, more: str = "") -> Refused:
        """The engine did not answer, so HAProxy sent the request here; it has no failover backend."""
        wait = int(self.live().get(f"ra:{name}", "5") or 5)
        why = self.live().get(f"why:{name}", "") or "it does not answer"
        return Refused(f"{name} is out{more}: {why}", retry_after_s=max(1, wait))

    async def _read(self, request: web.Request, door: str, want: str) -> web.Response:
        """A list of models, or what an engine knows by GET only."""
        path = request.path
        if path in _LISTS or path.startswith(ONE):
            locked = _locked(request, self.config["keyed"])
            lists = Lists(self.config, self.inner, self.loads, self.live(), locked, _shown(request))
            return web.json_response(await lists.answer(path, door, want))
        if not want and door in self.inner:
            raise self._absent(door)
        if want not in self.inner:
            msg = f"{path}: no such route"
            raise Refused(msg, status=404)
        url = f"http://localhost{request.raw_path}"
        async with self.inner[want].get(url, headers=_shown(request)) as reply:
            return web.Response(
                status=reply.status, body=await reply.read(), headers=kept(reply.headers)
            )

    async def _relay(
        self,
        request: web.Request,
        name: str,
        body: ollama_body.Sent,
        told: Told,
        held: incoming.Held,
    ) -> web.StreamResponse:
        """Hand on; every chunk at once."""
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        if "Host" in request.headers:  # HAProxy rewrites it, towards Ollama only
            headers["Host"] = request.headers["Host"]
        headers["Accept-Encoding"] = "identity"  # an encoded stream cannot be watched for its end
        session = self.inner[name]
        url = f"http://localhost{request.raw_path}"
        if body:
            headers["Content-Length"] = str(sum(len(one) for one in body))
        async with session.request(
            request.method, url, data=data(body, held), headers=headers, allow_redirects=False
        ) as reply:
            shown = CIMultiDict(kept(reply.headers))
            shown.update(told.headers(reply.headers))
            out = web.StreamResponse(status=reply.status, headers=shown)
            length = reply.headers.get("Content-Length")
            if length is not None:
                out.content_length = int(length)
            elif request.version < HttpVersion11:
                out.force_close()  # no chunks in HTTP/1.0: the end of the connection is the end
            await out.prepare(request)
            try:
                whole = await pass_on(request, reply, out)
            except aiohttp.ClientError:
                whole = False  # the engine died mid-answer
            if not whole:  # cut it off, so that it does not look finished
                if request.transport is not None:
                    request.transport.abort()
                return out
            await out.write_eof()
            return out


def _locked(request: web.Request, keyed: list[str]) -> frozenset[str]:
    """Of the backends that demand a key, those whose key the client has not shown at the door. Where
    the doors ask for a key of their own, it is enough (gateway/keys.py).
    """
    words = frozenset(request.headers.getall(KEYED, ()))
    return frozenset() if ALL in words else frozenset(keyed) - words


def _shown(request: web.Request) -> dict[str, str]:
    """The client's key: where the doors ask for none, its engine judges it."""
    given = request.headers.get("Authorization")
    return {"Authorization": given} if given else {}


def _error(request: web.Request, status: int, text: str, retry_after_s: int = 0) -> web.Response:
    """In the shape of the API that was asked."""
    body: dict[str, Any] = {"error": text}
    if request.path.startswith("/v1/"):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        code = _CODES.get(status)
        body = {"error": {"message": text, "type": kind, "param": None, "code": code}}
    headers = {"Retry-After": str(max(1, min(120, retry_after_s or 5)))} if status >= 500 else {}
    return web.json_response(body, status=status, headers=headers)


async def serve(path: Path) -> None:
    """Until SIGTERM; streams under way are finished first."""
    gate = Gate(path)
    await gate.refresh()
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", gate.handle)
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=60.0,
        auto_decompress=False,  # a whole chunk at once: 64 KiB become 64 MiB (loadgate/incoming.py)
        read_bufsize=_READ_BYTES,
        max_line_size=_LINE_BYTES,
        max_field_size=_LINE_BYTES,
    )
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
    trimmer = Trimmer()
    while not ended.is_set():
        trimmer.look(time.monotonic())
        with suppress(OSError, ValueError, KeyError):
            await gate.refresh()
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _RELOAD_S)
    await runner.cleanup()
    for session in gate.inner.values():
        await session.close()
