"""Connections of the API: how many, how long, how fast.

The API shares a process with the control loop: a client may cost neither its descriptors nor its ticks.
So connections are bounded, an idle one makes room for a new one and is closed after IDLE_S, and both
connections and requests are taken at a bounded pace (docs/security.md has the lateness that was
measured). What is too fast waits in the kernel's queue or in its own connection; nothing is refused.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from arbiterd.web.replies import Handler, error, shaped, shown

IDLE_S = 15.0  # Prometheus, whose scrapes are further apart, connects anew
MOST_TCP, MOST_UNIX, MOST_GATE = 512, 64, 512
ACCEPTS_PER_S, REQUESTS_PER_S = 500.0, 400.0
_BURST = 64
_QUEUE = 128  # of the kernel: with the pace of accepts at most 0.3 s of waiting
_SWEEP_S = 1.0
_NO_FD_S = 1.0
_SHARE = 4  # of all descriptors, one in so many at most for each kind of connection
_FDS = 4096  # what we ask for, as LimitNOFILE= of the unit


def descriptors() -> int:
    """Raise the soft limit of open files towards the hard one; returns what is in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FDS if hard == resource.RLIM_INFINITY else min(_FDS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


class Pace:
    """So many a second, a burst ahead of it."""

    def __init__(self, per_s: float) -> None:
        self._step = 1.0 / per_s
        self._next = 0.0

    def wait_s(self, now: float) -> float:
        """Take a turn: how long to wait for it, 0 for at once."""
        self._next = max(self._next, now - _BURST * self._step) + self._step
        return max(0.0, self._next - now)


class Line(web.RequestHandler):
    """One connection. Errors below the routes have the API's shape as well."""

    def __init__(
        self, doorman: Doorman, server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        # Bodies are taken as they are: none of them is large enough to be worth packing.
        options: dict[str, Any] = {"access_log": None, "auto_decompress": False}
        super().__init__(server, loop=loop, keepalive_timeout=IDLE_S, **options)
        self._doorman = doorman
        self.busy = False
        self.since = loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counted from here."""
        super().connection_made(transport)
        self._doorman.made(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Until here."""
        self._doorman.lost(self)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP, or larger than a request may be."""
        del request
        if isinstance(exc, LineTooLong):
            reply = error(431, "too_large", "a line of the request's head is over 8190 bytes")
        elif status == 400:
            why = shown(" ".join((message or "").split()), 120)
            reply = error(400, "bad_request", f"this is not a valid HTTP request: {why}")
        else:
            reply = error(status, "bug", "this answer could not be made; the journal says why")
        reply.force_close()
        return shaped(reply)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Failures that never reached a route."""
        if isinstance(resp, web.HTTPException):
            resp = shaped(error(resp.status, "http_error", resp.reason))
        return await super().finish_response(request, resp, start_time)

    def abort(self) -> None:
        """Close at once, whatever waits to be sent."""
        if self.transport is not None:
            self.transport.abort()


class Doorman:
    """Takes connections for one application. Everything runs in the web thread."""

    def __init__(self, most: int, fds: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._server: web.Server | None = None
        self._most = max(4, min(most, fds // _SHARE))
        self._lines: dict[Line, None] = {}  # the one that has been idle longest first
        self._coming: set[asyncio.Task[Any]] = set()
        self._sockets: list[socket.socket] = []
        self._accepts, self._requests = Pace(ACCEPTS_PER_S), Pace(REQUESTS_PER_S)
        self._sweeper: asyncio.TimerHandle | None = None

    def open(self, server: web.Server, *sockets: socket.socket) -> None:
        """Listen on these for ``server``."""
        self._server = server
        for one in sockets:
            one.listen(_QUEUE)
            one.setblocking(False)
            self._sockets.append(one)
            self._loop.add_reader(one.fileno(), self._accept, one)
        self._sweep()

    def close(self) -> None:
        """Take no more; open connections are the server's to close."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for one in self._sockets:
            self._loop.remove_reader(one.fileno())
            one.close()
        self._sockets.clear()

    def made(self, line: Line) -> None:
        """A connection begins."""
        self._lines[line] = None

    def lost(self, line: Line) -> None:
        """It has ended."""
        self._lines.pop(line, None)

    @web.middleware
    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A request is on its way: its connection is not idle, and its turn comes at the pace."""
        line = request.protocol
        if not isinstance(line, Line):
            return await handler(request)
        line.busy = True
        try:
            wait = self._requests.wait_s(self._loop.time())
            if wait:
                await asyncio.sleep(wait)
            return await handler(request)
        finally:
            line.busy, line.since = False, self._loop.time()
            if line in self._lines:
                del self._lines[line]
                self._lines[line] = None

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                one, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError:  # no descriptor is left: what waits, waits
                self._pause(listening, _NO_FD_S)
                return
            self._take(one)
            wait = self._accepts.wait_s(self._loop.time())
            if wait:
                self._pause(listening, wait)
                return

    def _pause(self, listening: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listening.fileno())
        self._loop.call_later(seconds, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _take(self, one: socket.socket) -> None:
        if len(self._lines) + len(self._coming) >= self._most and not self._make_room():
            one.close()
            return
        one.setblocking(False)
        made: Awaitable[object] = self._loop.connect_accepted_socket(self._line, one)
        task = asyncio.ensure_future(made)
        self._coming.add(task)
        task.add_done_callback(self._came)

    def _line(self) -> Line:
        if self._server is None:
            raise ConnectionAbortedError
        return Line(self, self._server, self._loop)

    def _came(self, task: asyncio.Task[Any]) -> None:
        self._coming.discard(task)
        if not task.cancelled():
            task.exception()  # a client that has gone already is no news

    def _make_room(self) -> bool:
        for line in self._lines:
            if not line.busy:
                self._end(line)
                return True
        return False

    def _end(self, line: Line) -> None:
        self._lines.pop(line, None)
        line.abort()

    def _sweep(self) -> None:
        """Close what has been idle, or has not taken its answer, for too long."""
        now = self._loop.time()
        for line in [one for one in self._lines if not one.busy and now - one.since > IDLE_S]:
            self._end(line)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
