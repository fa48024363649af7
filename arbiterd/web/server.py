"""The HTTP server: one thread with an event loop of its own, aiohttp, two doors.

TCP on ``listen`` is read only. The unix socket serves the same and, alone, the admin routes. How many
connections each takes, and how fast: web/lines.py; who may read over TCP: web/guard.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from arbiterd import aside
from arbiterd.errors import ArbiterError
from arbiterd.files.placing import hand_over
from arbiterd.gateway.paths import GROUP as GATE_GROUP
from arbiterd.linux.hostnames import HostNames
from arbiterd.secrets.redact import Redactor
from arbiterd.trace.recorder import Tap
from arbiterd.web.admin import GROUP, Admin
from arbiterd.web.guard import Guard
from arbiterd.web.lines import MOST_GATE, MOST_TCP, MOST_UNIX, Doorman, descriptors
from arbiterd.web.load_requests import LoadDesk
from arbiterd.web.page_stream import PageStream
from arbiterd.web.read import Read
from arbiterd.web.replies import as_json, hiding
from arbiterd.web.snapshot import Holder
from arbiterd.web.trace import TraceStream

_START_S, _STOP_S = 10.0, 3.0
_BODY_LIMIT = 64 * 1024
Opener = Callable[[], Coroutine[object, object, None]]


class WebServer:
    """``start`` may be called again after it has failed."""

    def __init__(
        self,
        holder: Holder,
        *,
        host: str,
        port: int,
        socket_path: Path,
        admin: Admin,
        loads: tuple[LoadDesk, Path] | None = None,
        tap: Tap | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self._redactor = redactor or Redactor()
        self._holder = holder
        self._host, self._port = host, port
        self._path = socket_path
        self._admin = admin
        self._loads = loads
        self._tap = tap
        self._read = Read(holder, self._redactor)
        self._page = PageStream(self._read.page_line, descriptors())
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._open: list[tuple[Doorman, web.AppRunner]] = []
        self._names = HostNames()
        self._unix = False
        self._tcp = False

    def start(self) -> None:
        """Open both doors.

        Raises:
            ArbiterError: an address cannot be had; what could be opened stays open.
        """
        if self._thread is None:
            self._thread = aside.thread(self._run, name="http")
            self._thread.start()
        if not self._unix:
            self._call(self._open_unix, f"unix socket {self._path}")
            if self._loads is not None:
                self._call(self._open_loads, f"unix socket {self._loads[1]}")
            self._unix = True
        if not self._tcp:
            self._call(self._open_tcp, f"{self._host}:{self._port} (arbiter.listen)")
            self._tcp = True

    def close(self) -> None:
        """Close both doors, once; requests that run get a moment."""
        if self._thread is None:
            return
        future = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with suppress(Exception):
            future.result(_STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_S)
        if not self._thread.is_alive():
            self._loop.close()
        self._thread = None
        with suppress(OSError):
            self._path.unlink()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, opener: Opener, what: str) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(opener(), self._loop)
        try:
            future.result(_START_S)
        except (OSError, TimeoutError) as error:
            number = getattr(error, "errno", None)
            why = os.strerror(number) if number and number > 0 else error.strerror or str(error)
            msg = f"cannot listen on {what}: {why}; free it or change [arbiter] listen"
            raise ArbiterError(msg) from None

    async def _serve(
        self, app: web.Application, most: int, *sockets: socket.socket, leave: bool = False
    ) -> None:
        """``leave``: a handler ends with its client."""
        app.logger.setLevel(logging.ERROR)
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
            handler_cancellation=leave,
        )
        # the outermost: the doorman knows of every request, whatever becomes of it
        doorman = Doorman(most, descriptors())
        app.middlewares.insert(0, doorman.around)
        await runner.setup()
        if runner.server is None:
            msg = "the application has no server"
            raise ArbiterError(msg)
        doorman.open(runner.server, *sockets)
        self._open.append((doorman, runner))

    def _reading(self, *more: Any) -> web.Application:
        order = [hiding(self._redactor), as_json, *more]
        app = web.Application(middlewares=order, client_max_size=_BODY_LIMIT)
        self._read.add_to(app)
        self._page.add_to(app)
        return app

    async def _open_tcp(self) -> None:
        # aside: the first to ask waits for a resolver
        asyncio.get_running_loop().run_in_executor(None, self._names.names)
        guard = Guard(self._holder, self._names.names, self._holder.heard)
        sockets = await _bound(self._host, self._port)
        await self._serve(self._reading(guard.check), MOST_TCP, *sockets)

    async def _open_unix(self) -> None:
        sock = _unix(self._path, GROUP)
        app = self._reading()
        self._admin.add_to(app)
        if self._tap is not None:
            TraceStream(self._tap, self._redactor).add_to(app)
        await self._serve(app, MOST_UNIX, sock)

    async def _open_loads(self) -> None:
        """The load gate's socket: it can ask for loads there, and nothing else."""
        if self._loads is None:
            return
        desk, path = self._loads
        hide = hiding(self._redactor)
        app = web.Application(middlewares=[hide, as_json], client_max_size=_BODY_LIMIT)
        desk.add_to(app)
        await self._serve(app, MOST_GATE, _unix(path, GATE_GROUP), leave=True)

    async def _close(self) -> None:
        for doorman, runner in self._open:
            doorman.close()
            await runner.cleanup()


async def _bound(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of ``host``.

    Raises:
        OSError: there is none, or one is taken.

    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    out: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in dict.fromkeys(found):
            one = socket.socket(family, kind, proto)
            out.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
    except OSError:
        for one in out:
            one.close()
        raise
    return out


def _unix(path: Path, group: str) -> socket.socket:
    """A bound socket for root and the group.

    Its mode is closed before it has a name: Linux gives the name the mode of the socket (net/unix/
    af_unix.c, unix_bind_bsd). A closed umask would close what other threads make meanwhile, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        hand_over(path, 0o660, group)
    except OSError:
        sock.close()
        raise
    return sock
