"""The read-only API: everything from the last published snapshot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib import resources

from aiohttp import web

from arbiterd.model.backend import BackendView
from arbiterd.model.published import Published
from arbiterd.report.api import common, ladder, route, status
from arbiterd.report.metrics import exposition
from arbiterd.report.outsiders import own_pids, without_strangers
from arbiterd.secrets.redact import Redactor
from arbiterd.web import params
from arbiterd.web.guard import OUTSIDER
from arbiterd.web.openapi import document
from arbiterd.web.replies import BadParameter, Hidden, answer, as_text, error, shown
from arbiterd.web.snapshot import Holder

_KEPT = (
    64  # answers of one tick; a client that makes up parameters gets its own, and no more memory
)
_PAGE_INCIDENTS = 12
# Rendering holds Python's lock, which the loop's thread waits for: so long at a time, then it gives way.
_SLICE_S, _GIVE_WAY_S = 0.0005, 0.001
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


class Read:
    """Handlers by path, of both doors: what is rendered once, without secrets, is the answer to all."""

    def __init__(self, holder: Holder, redactor: Redactor) -> None:
        self._holder = holder
        self._redactor = redactor
        self._of: tuple[Published, int] | None = None
        self._bodies: dict[tuple[str, str, bool], bytes] = {}
        self._second = -1
        self._pages: dict[tuple[str, bool], bytes] = {}
        self._scrape: tuple[Published, int, bytes] | None = None
        self._scraping = asyncio.Lock()
        self._schema = as_text(document())
        folder = resources.files("arbiterd.web") / "page"
        self._files = {
            name: (folder / name).read_bytes() for name in ("index.html", "page.css", "page.js")
        }

    def add_to(self, app: web.Application) -> None:
        """Register every route."""
        get = app.router.add_get
        get("/livez", self.livez)
        get("/readyz", self.readyz)
        get("/v1/status", self.status)
        get("/v1/gpus", self.gpus)
        get("/v1/backends", self.backends)
        get("/v1/backends/{name}", self.backend)
        get("/v1/backends/{name}/ready", self.ready)
        app.router.add_options("/v1/backends/{name}/ready", self.ready)
        get("/v1/route", self.route)
        get("/v1/incidents", self.incidents)
        get("/v1/caps", self.caps)
        get("/metrics", self.metrics)
        get("/openapi.json", self.openapi)
        get("/", self.page)
        get("/page.css", self.page)
        get("/page.js", self.page)

    def _now(self) -> Published:
        published = self._holder.get()
        if published is None:
            raise web.HTTPServiceUnavailable
        return published

    def _view(self, request: web.Request) -> BackendView | None:
        return self._now().decision.backends.get(request.match_info["name"])

    def _no_backend(self, request: web.Request) -> web.Response:
        known = ", ".join(self._now().decision.backends) or "none"
        name = request.match_info["name"]
        return error(404, "not_found", f"there is no backend '{shown(name, 60)}'; there is {known}")

    async def livez(self, _request: web.Request) -> web.Response:
        """Whether the control loop runs. Never about backends."""
        late = self._holder.late_s()
        if late:
            return error(503, "late", f"the last tick ended {late:.1f} s ago", 1)
        return answer({"ok": True})

    async def readyz(self, _request: web.Request) -> web.Response:
        """Whether at least one backend accepts."""
        views = self._now().decision.backends.values()
        names = [view.name for view in views if view.accepting]
        if names:
            return answer({"ok": True, "accepting": names})
        retry = min((view.retry_after_s for view in views if view.retry_after_s), default=30)
        return error(503, "unavailable", "no backend accepts work", max(1, retry))

    async def status(self, request: web.Request) -> web.Response:
        """Everything."""
        host = host_of(request)
        return self._kept(request, host, lambda seen: status.status(seen, host))

    async def gpus(self, request: web.Request) -> web.Response:
        """GPUs with their ledgers."""
        return self._kept(request, "", lambda seen: {"gpus": status.gpus(seen)})

    async def backends(self, request: web.Request) -> web.Response:
        """All backends."""
        host = host_of(request)
        return self._kept(request, host, lambda seen: {"backends": status.backends(seen, host)})

    async def backend(self, request: web.Request) -> web.Response:
        """One backend."""
        view = self._view(request)
        if view is None:
            return self._no_backend(request)
        host = host_of(request)
        return self._kept(request, host, lambda seen: status.backend(seen, view, host))

    async def ready(self, request: web.Request) -> web.Response:
        """What a load balancer asks before routing."""
        view = self._view(request)
        if view is None:
            return self._no_backend(request)
        body = self._shown(request, status.ready(view))
        if view.accepting and not self._holder.late_s():
            return answer(body)
        return answer(body, 503, max(1, view.retry_after_s))

    async def route(self, request: web.Request) -> web.Response:
        """Where to send a request now."""
        asked = {key: params.one(request, key) for key in ("model", "backend")}
        given = {key: value for key, value in asked.items() if value}
        if len(given) != 1:
            msg = "give one of ?model=NAME and ?backend=NAME"
            raise BadParameter(msg)
        host = host_of(request)
        if "model" in given:
            found = route.by_model(self._now(), given["model"], host)
        else:
            found = route.by_backend(self._now(), given["backend"], host)
        return answer(self._shown(request, found.body()), found.status, found.retry_after_s)

    async def incidents(self, request: web.Request) -> web.Response:
        """Incidents, newest first."""
        limit, since = params.limit(request), params.since(request)
        backend = params.one(request, "backend")

        def build(seen: Published) -> object:
            found = [
                one
                for one in seen.decision.incidents
                if one.opened_at >= since and (not backend or one.backend == backend)
            ]
            return {"incidents": [common.incident(one) for one in found[:limit]]}

        return self._kept(request, f"{limit} {since} {backend}", build)

    async def caps(self, request: web.Request) -> web.Response:
        """What OOMs have taught."""
        return self._kept(request, "", lambda seen: {"caps": ladder.caps(seen)})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus."""
        async with self._scraping:
            seen, known = self._now(), self._redactor.generation
            kept = self._scrape
            if kept is None or kept[0] is not seen or kept[1] != known:
                kept = self._scrape = seen, known, await self._scraped(seen)
        age = exposition.text(exposition.age(seen))  # the one that grows while nothing is published
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return Hidden(body=kept[2] + age.encode(), headers=headers)

    async def _scraped(self, seen: Published) -> bytes:
        out = []
        began = time.monotonic()
        for family in exposition.families(seen, self._holder.counts()):
            out.append(exposition.text(family))
            if time.monotonic() - began > _SLICE_S:
                await asyncio.sleep(_GIVE_WAY_S)
                began = time.monotonic()
        return self._redactor.labels("".join(out)).encode()

    def page_line(self, request: web.Request) -> bytes:
        """What the page shows: one rendering a second for all who see the same."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._pages = second, {}
        host, seen = host_of(request), self._now()
        key = (host, request.get(OUTSIDER, False))
        line = self._pages.get(key)
        if line is None:
            body = {
                "status": status.status(seen, host),
                "incidents": [
                    common.incident(one) for one in seen.decision.incidents[:_PAGE_INCIDENTS]
                ],
                "caps": ladder.caps(seen),
            }
            line = self._rendered(request, body) + b"\n"
            if len(self._pages) < _KEPT:
                self._pages[key] = line
        return line

    async def openapi(self, _request: web.Request) -> web.Response:
        """The schema of all this."""
        return web.Response(text=self._schema, content_type="application/json")

    def _kept(
        self, request: web.Request, about: str, build: Callable[[Published], object]
    ) -> web.Response:
        """The answer of this tick, rendered once however many read it. ``about``: what it depends on
        besides the path.
        """
        seen, known = self._now(), self._redactor.generation
        if self._of is None or seen is not self._of[0] or known != self._of[1]:
            self._of, self._bodies = (seen, known), {}
        key = (request.path, about, request.get(OUTSIDER, False))
        body = self._bodies.get(key)
        if body is None:
            body = self._rendered(request, build(seen))
            if len(self._bodies) < _KEPT:
                self._bodies[key] = body
        return Hidden(body=body, content_type="application/json", charset="utf-8")

    def _rendered(self, request: web.Request, body: object) -> bytes:
        return self._redactor.json(as_text(self._shown(request, body))).encode()

    def _shown(self, request: web.Request, body: object) -> object:
        if not request.get(OUTSIDER, False):
            return body
        return without_strangers(body, own_pids(self._now()))

    async def page(self, request: web.Request) -> web.Response:
        """The page and its two files."""
        name = request.path.lstrip("/") or "index.html"
        kind = _TYPES[name.rsplit(".", 1)[-1]]
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8")


def host_of(request: web.Request) -> str:
    """The address this request came in on, without the port; "" over the unix socket."""
    transport = request.transport
    name = transport.get_extra_info("sockname") if transport else None
    if not isinstance(name, tuple):
        return ""
    asked = request.host.rsplit(":", 1)[0] if ":" in request.host else request.host
    return asked if asked and _plain(asked) else str(name[0])


def _plain(host: str) -> bool:
    return all(char.isalnum() or char in ".-_:[]" for char in host)
