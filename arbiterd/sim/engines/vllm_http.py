"""The stand-in vLLM's HTTP side as uvicorn and FastAPI answer: headers, 404, 405, CORS, the key."""

from __future__ import annotations

import json
import os
import select
import socket
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from arbiterd.sim.engines.common import Handler

# vllm/entrypoints/serve/middleware/authenticate.py
GUARDED = ("/v1", "/v2", "/inference", "/cohere")


class Left(Exception):
    """The client has gone, or the core was ended under its answer: nothing more is sent."""


class Http(Handler):
    """``open_routes``: method and path to the name of a method; development routes only answer with
    VLLM_SERVER_DEV_MODE=1. ``keys``: any of them opens what is guarded; () when none is asked.
    """

    open_routes: ClassVar[dict[tuple[str, str], str]] = {}
    dev_routes: ClassVar[dict[tuple[str, str], str]] = {}
    keys: ClassVar[tuple[str, ...]] = ()
    raw = b""

    def _dispatch(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        with suppress(BrokenPipeError, ConnectionResetError):
            self.raw = self._read()
            self._route(parts.path)

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = _dispatch  # noqa: N815

    def _route(self, path: str) -> None:
        if self.command != "OPTIONS" and path.startswith(GUARDED) and not self._has_key():
            self.reply(401, {"error": "Unauthorized"}, vary=False)
            return
        if self.command == "OPTIONS" and "Access-Control-Request-Method" in self.headers:
            self._preflight()
            return
        routes = self.open_routes
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            routes = {**routes, **self.dev_routes}
        name = routes.get((self.command, path))
        if name is not None:
            getattr(self, name)()
            return
        allowed = [method for method, known in routes if known == path]
        if allowed:
            self.reply(405, {"detail": "Method Not Allowed"}, headers={"allow": allowed[0]})
        else:
            self.reply(404, {"detail": "Not Found"})

    def _has_key(self) -> bool:
        """``Authorization: Bearer KEY``, the word in any case, one space."""
        scheme, _, given = (self.headers.get("Authorization") or "").partition(" ")
        return not self.keys or (scheme.lower() == "bearer" and given in self.keys)

    def _preflight(self) -> None:
        """Every origin, method and header is allowed unless flags say otherwise."""
        asked = self.headers.get("Access-Control-Request-Headers")
        more = {"access-control-allow-headers": asked} if asked else {}
        self.reply(
            200,
            "OK",
            "text/plain; charset=utf-8",
            headers={
                "access-control-allow-methods": "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
                "access-control-max-age": "600",
                "access-control-allow-origin": "*",
                **more,
            },
        )

    def _read(self) -> bytes:
        """The request's body, whatever its framing."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send_response(self, code: int, message: str | None = None) -> None:
        """uvicorn's own headers."""
        self.send_response_only(code, message)
        self.send_header("date", self.date_time_string())
        self.send_header("server", "uvicorn")

    def reply(
        self,
        status: int,
        value: Any = None,
        kind: str = "application/json",
        *,
        vary: bool = True,
        headers: dict[str, str] | None = None,
    ) -> None:
        """A whole answer; without a value it has neither body nor type."""
        text = value if isinstance(value, str) else _compact(value)
        raw = b"" if value is None else text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        if value is not None:
            self.send_header("content-type", kind)
        for name, one in (headers or {}).items():
            self.send_header(name, one)
        if vary:
            self.send_header("vary", "Origin")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def begin_events(self) -> None:
        """Headers of a stream of events."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("vary", "Origin")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, value: dict[str, Any]) -> None:
        """One event."""
        self.chunk(f"data: {_compact(value)}\n\n")

    def end_events(self) -> None:
        """[DONE] and the last chunk."""
        self.chunk("data: [DONE]\n\n")
        self.chunk("")

    def client_left(self) -> bool:
        """Whether the other side has closed the connection."""
        with suppress(OSError, ValueError):
            if not select.select([self.connection], [], [], 0)[0]:
                return False
            return not self.connection.recv(1, socket.MSG_PEEK)
        return True


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
