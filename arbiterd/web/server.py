"""The HTTP server: one thread with an event loop of its own, aiohttp, two doors.

TCP on ``listen`` is read only. The unix socket serves the same and, alone, the admin routes.
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

from aiohttp import web

from arbiterd.errors import ArbiterError
from arbiterd.gateway.paths import GROUP as GATE_GROUP
from arbiterd.placing import hand_over
from arbiterd.redact import Redactor
from arbiterd.tap import Tap
from arbiterd.web.admin import GROUP, Admin
from arbiterd.web.holder import Holder
from arbiterd.web.loads import LoadDesk
from arbiterd.web.read import Read
from arbiterd.web.replies import as_json, hiding
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
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._runners: list[web.AppRunner] = []
        self._unix = False
        self._tcp = False

    def start(self) -> None:
        """Open both doors.

        Raises:
            ArbiterError: an address cannot be had; what could be opened stays open.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="http", daemon=True)
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
        """Close both doors; requests that run get a moment."""
        if self._thread is None:
            return
        future = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with suppress(Exception):
            future.result(_STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_S)
        if not self._thread.is_alive():
            self._loop.close()
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
            why = os.strerror(number) if number else str(error)
            msg = f"cannot listen on {what}: {why}; free it or change [arbiter] listen"
            raise ArbiterError(msg) from None

    async def _runner(self, *, admin: bool) -> web.AppRunner:
        app = web.Application(
            middlewares=[hiding(self._redactor), as_json], client_max_size=_BODY_LIMIT
        )
        app.logger.setLevel(logging.ERROR)
        Read(self._holder).add_to(app)
        if admin:
            self._admin.add_to(app)
            if self._tap is not None:
                TraceStream(self._tap, self._redactor).add_to(app)
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=30.0
        )
        await runner.setup()
        return runner

    async def _open_tcp(self) -> None:
        runner = await self._runner(admin=False)
        try:
            await web.TCPSite(runner, self._host, self._port, reuse_address=True).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runners.append(runner)

    async def _open_unix(self) -> None:
        sock = _unix(self._path, GROUP)
        try:
            runner = await self._runner(admin=True)
            await web.SockSite(runner, sock).start()
        except OSError:
            sock.close()
            raise
        self._runners.append(runner)

    async def _open_loads(self) -> None:
        """The load gate's socket: it can ask for loads there, and nothing else."""
        if self._loads is None:
            return
        desk, path = self._loads
        app = web.Application(middlewares=[hiding(self._redactor)], client_max_size=_BODY_LIMIT)
        desk.add_to(app)
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
            handler_cancellation=True,
        )
        await runner.setup()
        await web.SockSite(runner, _unix(path, GATE_GROUP)).start()
        self._runners.append(runner)

    async def _close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()


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
