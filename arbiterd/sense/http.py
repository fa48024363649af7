"""One bounded HTTP request to an engine: whole deadline, bounded body, no proxies, no redirects."""

from __future__ import annotations

import time

import requests
from requests.adapters import HTTPAdapter

from arbiterd.model.health import HttpProbe, HttpReply

BODY_LIMIT = 2 * 1024 * 1024  # vLLM's metrics page is some 60 KB


def session() -> requests.Session:
    """A session for one thread. Environment proxies never see a request to an engine."""
    made = requests.Session()
    made.trust_env = False
    made.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=0))
    return made


def ask(via: requests.Session, base_url: str, probe: HttpProbe) -> HttpReply:
    """Send the probe. Failures are replies with status 0 and a word for the reason."""
    began = time.monotonic()
    headers = dict(probe.headers)
    if probe.body is not None:
        headers.setdefault("Content-Type", "application/json")
    try:
        with via.request(
            probe.method,
            base_url + probe.path,
            data=probe.body,
            headers=headers,
            timeout=(min(probe.timeout_s, 2.0), probe.timeout_s),
            allow_redirects=False,
            stream=True,
        ) as reply:
            body = _body(reply, began + probe.timeout_s)
            took = (time.monotonic() - began) * 1000
            return HttpReply(reply.status_code, body, took)
    except requests.Timeout:
        error = f"no answer within {probe.timeout_s:g} s"
    except requests.ConnectionError as failed:
        error = _why(failed)
    except (requests.RequestException, ValueError, OSError) as failed:
        error = type(failed).__name__
    return HttpReply(0, "", (time.monotonic() - began) * 1000, error)


def _body(reply: requests.Response, deadline: float) -> str:
    """At most BODY_LIMIT bytes, and not one byte a second for ever."""
    out = bytearray()
    for chunk in reply.iter_content(65536):
        out += chunk
        if len(out) > BODY_LIMIT:
            break
        if time.monotonic() > deadline:
            raise requests.Timeout
    return out.decode(errors="replace")


def _why(failed: requests.ConnectionError) -> str:
    text = str(failed)
    if "refused" in text:
        return "connection refused"
    return "connection closed" if "aborted" in text or "reset" in text.lower() else "no connection"
