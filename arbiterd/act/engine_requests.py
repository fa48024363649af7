"""Requests that make an engine load a model, give memory back or take it again: in order, each
within its own time, the first failure ends it. Whether the bytes moved is for core to see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import urllib3
from urllib3 import exceptions

from arbiterd.errors import ArbiterError
from arbiterd.files import strict_json
from arbiterd.model.health import HttpProbe

_CONNECT_S = 2.0
_BODY_LIMIT = 64 * 1024  # answers are a line of JSON, or an error text
_ABOUT_LIMIT = 16 * 1024**2  # what /api/show tells: templates, licences
_SAID_LIMIT = 300
_NO_SUCH_ROUTE = (404, 405)


class RequestFailed(ArbiterError):
    """An engine refused, failed or did not answer in time."""


def carry_out(
    what: str, url: str, probes: Sequence[HttpProbe], hide: Callable[[str], str] = str
) -> None:
    """Send ``probes`` to ``url``, in order. ``what`` opens the sentence: 'cannot unload qwen2.5:3b'.

    A 404 or 405 is an answer of versions that do not have the route: of a request that is not the
    last one it is passed over. Any other answer than 2xx ends it.

    Raises:
        RequestFailed: with one sentence: which request, and what the engine said to it.

    """
    if not probes:
        msg = f"{what}: this engine knows no request for it"
        raise RequestFailed(msg)
    with _connections() as pool:
        for number, probe in enumerate(probes, 1):
            status, said = _send(pool, what, url, probe)
            missing = status in _NO_SUCH_ROUTE and number < len(probes)
            if not missing and not 200 <= status < 300:
                words = _sentence(hide(said))[:_SAID_LIMIT]
                msg = f"{what}: {probe.method} {probe.path}: HTTP {status}: {words}"
                raise RequestFailed(msg)


def ask(what: str, url: str, probe: HttpProbe, hide: Callable[[str], str] = str) -> str:
    """The body of a 2xx answer.

    Raises:
        RequestFailed: as ``carry_out``.

    """
    with _connections() as pool:
        status, raw = _send(pool, what, url, probe, _ABOUT_LIMIT)
    if not 200 <= status < 300:
        said = _sentence(hide(raw))[:_SAID_LIMIT]
        msg = f"{what}: {probe.method} {probe.path}: HTTP {status}: {said}"
        raise RequestFailed(msg)
    return raw


def _connections() -> urllib3.PoolManager:
    """urllib3's own: no proxy of the environment comes between us and loopback."""
    return urllib3.PoolManager(num_pools=1, maxsize=1, retries=False)


def _send(
    pool: urllib3.PoolManager, what: str, url: str, probe: HttpProbe, limit: int = _BODY_LIMIT
) -> tuple[int, str]:
    """(status, body); the whole answer is there within the probe's time."""
    headers = dict(probe.headers)
    if probe.body is not None:
        headers.setdefault("Content-Type", "application/json")
    deadline = time.monotonic() + probe.timeout_s
    connect_s = min(_CONNECT_S, probe.timeout_s)
    try:
        reply = pool.request(
            probe.method,
            url + probe.path,
            body=None if probe.body is None else probe.body.encode(),
            headers=headers,
            timeout=urllib3.Timeout(connect=connect_s, read=probe.timeout_s),
            redirect=False,
            preload_content=False,
        )
        try:
            raw = _body(reply, deadline, limit)
        finally:
            reply.release_conn()
    except (exceptions.HTTPError, OSError, ValueError) as failed:
        msg = f"{what}: {probe.method} {probe.path}: {_why(failed, probe.timeout_s)}"
        raise RequestFailed(msg) from None
    return reply.status, raw.decode(errors="replace")


def _body(reply: urllib3.BaseHTTPResponse, deadline: float, limit: int) -> bytes:
    """At most ``limit`` bytes; a body that trickles must not outlive the deadline.

    Raises:
        TimeoutError: it would.

    """
    raw = bytearray()
    for part in reply.stream(1):
        raw += part
        if len(raw) >= limit:
            reply.close()
            break
        if time.monotonic() > deadline:
            reply.close()
            raise TimeoutError
    return bytes(raw)


def _why(failed: Exception, timeout_s: float) -> str:
    if isinstance(failed, exceptions.NewConnectionError):  # a kind of timeout to urllib3
        return "connection refused" if "refused" in str(failed) else "the connection broke off"
    if isinstance(failed, exceptions.TimeoutError | TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(failed, exceptions.ProtocolError | OSError):
        return "the connection broke off"
    return type(failed).__name__


def _sentence(body: str) -> str:
    """The engine's own words out of {"error": "..."}, {"error": {"message": "..."}} or plain text."""
    try:
        found = strict_json.loads(body)
    except ValueError:
        return " ".join(body.split())
    if isinstance(found, dict):
        error = found.get("error", found.get("detail"))
        if isinstance(error, dict):
            error = error.get("message")
        if isinstance(error, str):
            return error
    return " ".join(body.split())
