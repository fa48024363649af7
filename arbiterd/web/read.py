"""The read-only API: everything from the last published snapshot."""

from __future__ import annotations

from datetime import datetime
from importlib import resources

from aiohttp import web

from arbiterd.model.backend import BackendView
from arbiterd.model.published import Published
from arbiterd.report import ladder, metrics, route, shape, status
from arbiterd.web.holder import Holder
from arbiterd.web.openapi import document
from arbiterd.web.replies import BadParameter, answer, error

_LIMIT, _LIMIT_MAX = 50, 200
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


class Read:
    """Handlers by path."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
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
        return error(404, "not_found", f"there is no backend {name!r}; there is {known}")

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
        return answer(status.status(self._now(), host_of(request)))

    async def gpus(self, _request: web.Request) -> web.Response:
        """GPUs with their ledgers."""
        return answer({"gpus": status.gpus(self._now())})

    async def backends(self, request: web.Request) -> web.Response:
        """All backends."""
        return answer({"backends": status.backends(self._now(), host_of(request))})

    async def backend(self, request: web.Request) -> web.Response:
        """One backend."""
        view = self._view(request)
        if view is None:
            return self._no_backend(request)
        return answer(status.backend(self._now(), view, host_of(request)))

    async def ready(self, request: web.Request) -> web.Response:
        """What a load balancer asks before routing."""
        view = self._view(request)
        if view is None:
            return self._no_backend(request)
        if view.accepting and not self._holder.late_s():
            return answer(status.ready(view))
        return answer(status.ready(view), 503, max(1, view.retry_after_s))

    async def route(self, request: web.Request) -> web.Response:
        """Where to send a request now."""
        known = {"model", "backend"}
        given = {key: value for key, value in request.query.items() if key in known and value}
        if len(given) != 1:
            msg = "give one of ?model=NAME and ?backend=NAME"
            raise BadParameter(msg)
        host = host_of(request)
        if "model" in given:
            found = route.by_model(self._now(), given["model"], host)
        else:
            found = route.by_backend(self._now(), given["backend"], host)
        return answer(found.body(), found.status, found.retry_after_s)

    async def incidents(self, request: web.Request) -> web.Response:
        """Incidents, newest first."""
        limit = _limit(request.query.get("limit"))
        since = _since(request.query.get("since"))
        backend = request.query.get("backend")
        found = [
            one
            for one in self._now().decision.incidents
            if one.opened_at >= since and (not backend or one.backend == backend)
        ]
        return answer({"incidents": [shape.incident(one) for one in found[:limit]]})

    async def caps(self, _request: web.Request) -> web.Response:
        """What OOMs have taught."""
        return answer({"caps": ladder.caps(self._now())})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus."""
        body = metrics.render(self._now(), self._holder.counts())
        return web.Response(
            body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def openapi(self, _request: web.Request) -> web.Response:
        """The schema of all this."""
        return answer(document())

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


def _limit(text: str | None) -> int:
    if text is None:
        return _LIMIT
    if not text.isdigit() or not 1 <= int(text) <= _LIMIT_MAX:
        msg = f"limit={text!r} is no number from 1 to {_LIMIT_MAX}"
        raise BadParameter(msg)
    return int(text)


def _since(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        when = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        msg = f"since={text!r} is no ISO 8601 time; write 2026-01-31T12:00:00Z"
        raise BadParameter(msg) from None
    return when.astimezone().timestamp()
