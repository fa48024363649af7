"""JSON answers, and errors as the contract has them: {"error": {"code", "message"}}."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from arbiterd.secrets.redact import Redactor

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    # No page of another origin reads an answer: no CORS header is ever sent, and none may embed one.
    "Cross-Origin-Resource-Policy": "same-origin",
}


def answer(body: object, status: int = 200, retry_after_s: int = 0) -> web.Response:
    """A JSON response."""
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
    return web.Response(
        text=as_text(body), status=status, headers=headers, content_type="application/json"
    )


def as_text(body: object) -> str:
    """A body as JSON without spaces."""
    return json.dumps(body, separators=(",", ":"))


def error(status: int, code: str, message: str, retry_after_s: int = 0) -> web.Response:
    """An error response."""
    return answer({"error": {"code": code, "message": message}}, status, retry_after_s)


class Hidden(web.Response):
    """A response whose body has passed the redactor already: one that is kept passes it once."""


def hiding(redactor: Redactor) -> Middleware:
    """What every answer passes on its way out: no secret stands in a body."""

    @web.middleware
    async def hide(request: web.Request, handler: Handler) -> web.StreamResponse:
        reply = await handler(request)
        if isinstance(reply, Hidden):
            return reply
        if isinstance(reply, web.Response) and isinstance(reply.body, bytes):
            if reply.content_type == "application/json":
                reply.text = redactor.json(reply.body.decode())
            elif reply.content_type == "text/plain":
                reply.body = redactor.labels(reply.body.decode()).encode()
        return reply

    return hide


class BadParameter(Exception):
    """A query parameter that cannot be used (422)."""


class BadBody(Exception):
    """A body that cannot be used; ``status`` is 400, 408 or 413."""

    def __init__(self, text: str, status: int = 400) -> None:
        self.status = status
        super().__init__(text)


def shaped(reply: web.StreamResponse) -> web.StreamResponse:
    """With the headers that every answer has."""
    for key, value in _SAFE.items():
        reply.headers.setdefault(key, value)
    return reply


@web.middleware
async def as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a JSON error: unknown path, wrong method, bad parameter, our own bug."""
    try:
        reply = await handler(request)
    except BadParameter as bad:
        reply = error(422, "bad_parameter", str(bad))
    except BadBody as bad:
        reply = error(bad.status, "bad_request", str(bad))
        reply.force_close()  # the rest of it may still come
    except web.HTTPMethodNotAllowed as wrong:
        allowed = ", ".join(sorted(wrong.allowed_methods))
        reply = error(405, "method_not_allowed", f"{request.method} is not allowed here; {allowed}")
        reply.headers["Allow"] = allowed
    except web.HTTPNotFound:
        text = f"there is no {shown(request.path)}; /openapi.json lists what there is"
        reply = error(404, "not_found", text)
    except web.HTTPException as failed:
        reply = error(failed.status, "http_error", failed.reason)
    except Exception:
        request.app.logger.exception("rendering %s failed", shown(request.path))
        reply = error(500, "bug", "this answer could not be made; the journal says why")
    return shaped(reply)


def shown(text: str, most: int = 200) -> str:
    """What a client sent, as it may stand in an answer."""
    return ascii(text)[1:-1][:most]
