"""Where the load gate asks: a unix socket of its own, since who faces the network must not be able to
open the operators' socket. A question stays open until core has granted or refused it, or it is late.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from aiohttp import web

from arbiterd.model.gateway import LoadAnswer, LoadAsk, LoadDone, LoadUndone, LoadVerdict
from arbiterd.model.strangers import masked
from arbiterd.web import bodies
from arbiterd.web.replies import answer, error

WAIT_MAX_S = 60.0


class LoadDesk:
    """``asks``, ``dones`` and ``answered`` are the loop's; the handlers run in the web thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._asks: dict[str, LoadAsk] = {}
        self._waiting: dict[str, asyncio.Future[LoadAnswer]] = {}
        self._last: dict[str, LoadAnswer] = {}
        self._dones: list[LoadDone] = []
        self._undones: list[LoadUndone] = []

    # -- the loop's side -----------------------------------------------------------------------
    def asks(self) -> tuple[LoadAsk, ...]:
        """Open questions."""
        if not self._asks:
            return ()
        with self._lock:
            return tuple(self._asks.values())

    def dones(self) -> tuple[LoadDone, ...]:
        """Loads that have ended since the last call."""
        if not self._dones:
            return ()
        with self._lock:
            out, self._dones = tuple(self._dones), []
            return out

    def undones(self) -> tuple[LoadUndone, ...]:
        """Models that clients have asked to leave since the last call."""
        if not self._undones:
            return ()
        with self._lock:
            out, self._undones = tuple(self._undones), []
            return out

    def answered(self, answers: Iterable[LoadAnswer], *, full: bool = False) -> None:
        """Hand the answers over; 'wait' stays open. ``full``: clients of a door may read of other users'
        processes.
        """
        for given in answers:
            one = given if full else replace(given, reason=masked(given.reason))
            with self._lock:
                if one.id in self._asks:  # else the asker has gone: nothing is kept for it
                    self._last[one.id] = one
                if one.verdict is LoadVerdict.WAIT:
                    continue
                self._asks.pop(one.id, None)
                future = self._waiting.pop(one.id, None)
            if future is not None:
                future.get_loop().call_soon_threadsafe(_settle, future, one)
            elif one.verdict is LoadVerdict.GRANT:
                self._end(one.id, "", "nobody waits for it any more")

    # -- the handlers' side --------------------------------------------------------------------
    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_post("/v1/loads", self.ask)
        app.router.add_post("/v1/loads/unloaded", self.unloaded)
        app.router.add_post("/v1/loads/done", self.done)

    async def ask(self, request: web.Request) -> web.Response:
        """{id, backend, model, predicted_bytes, wait_s, shares, resident} → {verdict, reason,
        retry_after_s}.
        """
        given = await bodies.read(request)
        try:
            asked = LoadAsk(
                str(given["id"]),
                str(given["backend"]),
                str(given["model"]),
                int(given["predicted_bytes"]),
                time.monotonic(),
                tuple(str(one) for one in given.get("shares") or ()),
                _rows(given.get("resident")),
            )
            wait_s = min(WAIT_MAX_S, max(0.0, float(given.get("wait_s", 10))))
        except (ValueError, KeyError, TypeError, OverflowError):
            return error(422, "bad_request", "send id, backend, model and predicted_bytes")
        future: asyncio.Future[LoadAnswer] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._asks.setdefault(asked.id, asked)
            self._waiting[asked.id] = future
        self._wake()
        try:
            found = await asyncio.wait_for(future, wait_s)
        except TimeoutError:
            found = self._forget(asked.id)
        except asyncio.CancelledError:
            self._forget(asked.id)
            self._end(asked.id, asked.backend, "the asker is gone")
            raise
        else:
            self._forget(asked.id)
        body = {"verdict": found.verdict.value, "reason": found.reason}
        return answer({**body, "retry_after_s": found.retry_after_s})

    async def done(self, request: web.Request) -> web.Response:
        """{id, backend, detail}: the load has ended, detail "" when well."""
        given = await bodies.read(request)
        try:
            name, backend = str(given["id"]), str(given.get("backend", ""))
        except (ValueError, KeyError, TypeError, OverflowError):
            return error(422, "bad_request", "send id")
        self._forget(name)
        self._end(name, backend, str(given.get("detail", ""))[:300])
        return answer({"accepted": True})

    async def unloaded(self, request: web.Request) -> web.Response:
        """{backend, model}: a client has asked for it to leave."""
        given = await bodies.read(request)
        try:
            undone = LoadUndone(str(given["backend"]), str(given["model"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            return error(422, "bad_request", "send backend and model")
        with self._lock:
            self._undones.append(undone)
        self._wake()
        return answer({"accepted": True})

    def _forget(self, name: str) -> LoadAnswer:
        with self._lock:
            self._asks.pop(name, None)
            self._waiting.pop(name, None)
            late = LoadAnswer(name, LoadVerdict.WAIT, "no room came free in time", 5)
            return self._last.pop(name, late)

    def _end(self, name: str, backend: str, detail: str) -> None:
        with self._lock:
            self._dones.append(LoadDone(name, backend, detail))
            self._last.pop(name, None)
        self._wake()


def _rows(given: object) -> tuple[tuple[str, int], ...] | None:
    """[[name, bytes], ...]; None when it was not told."""
    if not isinstance(given, list):
        return None
    return tuple((str(name), int(size)) for name, size in given)


def _settle(future: asyncio.Future[LoadAnswer], one: LoadAnswer) -> None:
    if not future.done():
        future.set_result(one)
