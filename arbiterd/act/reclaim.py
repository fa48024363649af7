"""Requests that make an engine load a model, give memory back or take it again: in order, each
within its own time, the first failure ends it. Whether the bytes moved is for core to see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import requests

from arbiterd import strict_json
from arbiterd.errors import ArbiterError
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
    with requests.Session() as session:
        session.trust_env = False  # no proxy of the environment comes between us and loopback
        for number, probe in enumerate(probes, 1):
            status, said = _send(session, what, url, probe)
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
    with requests.Session() as session:
        session.trust_env = False
        status, raw = _send(session, what, url, probe, _ABOUT_LIMIT)
    if not 200 <= status < 300:
        said = _sentence(hide(raw))[:_SAID_LIMIT]
        msg = f"{what}: {probe.method} {probe.path}: HTTP {status}: {said}"
        raise RequestFailed(msg)
    return raw


def _send(
    session: requests.Session, what: str, url: str, probe: HttpProbe, limit: int = _BODY_LIMIT
) -> tuple[int, str]:
    """(status, body); the whole answer is there within the probe's time."""
    headers = dict(probe.headers)
    if probe.body is not None:
        headers.setdefault("Content-Type", "application/json")
    deadline = time.monotonic() + probe.timeout_s
    try:
        with session.request(
            probe.method,
            url + probe.path,
            data=None if probe.body is None else probe.body.encode(),
            headers=headers,
            timeout=(min(_CONNECT_S, probe.timeout_s), probe.timeout_s),
            allow_redirects=False,
            stream=True,
        ) as reply:
            raw = bytearray()
            for part in reply.iter_content(1):  # a body that trickles must not outlive the deadline
                raw += part
                if len(raw) >= limit:
                    break
                if time.monotonic() > deadline:
                    raise requests.Timeout
            return reply.status_code, raw.decode(errors="replace")
    except requests.RequestException as error:
        why = _why(error, probe.timeout_s)
    msg = f"{what}: {probe.method} {probe.path}: {why}"
    raise RequestFailed(msg)


def _why(error: requests.RequestException, timeout_s: float) -> str:
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, requests.ConnectionError):
        return "connection refused" if "refused" in str(error) else "the connection broke off"
    return type(error).__name__


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
