"""One bounded HTTP request to an engine: whole deadline, bounded body, no proxies, no redirects.

urllib3 itself, not requests on top of it: probes are most of what the daemon does, and this halves
their cost (docs/benchmarks.md). It never looks at proxies of the environment.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import urllib3
from urllib3 import exceptions

from arbiterd.files.owned import connect
from arbiterd.model.health import HttpProbe, HttpReply

BODY_LIMIT = 2 * 1024 * 1024  # vLLM's metrics page is some 60 KB
_CONNECT_S = 2.0


Hide = Callable[[str], str]


NO_DESCRIPTOR = "no file descriptor is left in this process"  # says nothing of the engine
_SHORT = (os.strerror(errno.EMFILE), os.strerror(errno.ENFILE))


class TooSlow(Exception):
    """The body trickles past the deadline."""


class _Pool(urllib3.PoolManager):
    hide: Hide = staticmethod(str)


def session(hide: Hide = str) -> _Pool:
    """Connections for one thread; kept alive between probes. ``hide`` takes the secrets out of the words
    of a failure, before they are cut.
    """
    made = _Pool(num_pools=1, maxsize=1, retries=False)
    made.hide = hide
    return made


class _UnixConnection(urllib3.connection.HTTPConnection):
    def __init__(self, path: Path, **kw: Any) -> None:
        super().__init__("localhost", **kw)
        self._path = str(path)

    def _new_conn(self) -> socket.socket:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.settimeout(self.timeout)
            connect(one, self._path)
        except OSError as error:
            one.close()
            raise exceptions.NewConnectionError(self, str(error)) from error
        return one


class _UnixPool(urllib3.HTTPConnectionPool):
    def __init__(self, path: Path, hide: Hide) -> None:
        self.hide = hide
        super().__init__("localhost", maxsize=1, retries=False)
        self._path = path

    def _new_conn(self) -> _UnixConnection:
        return _UnixConnection(self._path, timeout=self.timeout.connect_timeout)


def unix_session(path: Path, hide: Hide = str) -> _UnixPool:
    """The same over a unix socket: ``ask`` it with "" as the base URL."""
    return _UnixPool(path, hide)


Via = _Pool | _UnixPool  # an engine's port, or a unix socket


def ask(
    via: Via, base_url: str, probe: HttpProbe, more: Mapping[str, str] | None = None
) -> HttpReply:
    """Send the probe, with ``more`` headers. Failures are replies with status 0 and a word for the
    reason.
    """
    began = time.monotonic()
    headers = {**(more or {}), **probe.headers}
    if probe.body is not None:
        headers.setdefault("Content-Type", "application/json")
    try:
        reply = via.request(
            probe.method,
            base_url + probe.path,
            body=probe.body,
            headers=headers,
            timeout=urllib3.Timeout(connect=min(probe.timeout_s, _CONNECT_S), read=probe.timeout_s),
            redirect=False,
            preload_content=False,
        )
        try:
            body = _body(reply, began + probe.timeout_s)
            body = body if reply.status == 200 else via.hide(body)
        finally:
            reply.release_conn()
        return HttpReply(reply.status, body, (time.monotonic() - began) * 1000)
    except exceptions.NewConnectionError as failed:  # first: it is a kind of timeout to urllib3
        error = "connection refused" if "refused" in str(failed) else "no connection"
        if any(text in str(failed) for text in _SHORT):
            error = NO_DESCRIPTOR
    except (exceptions.TimeoutError, TooSlow):
        error = f"no answer within {probe.timeout_s:g} s"
        return HttpReply(0, "", (time.monotonic() - began) * 1000, error, timed_out=True)
    except (exceptions.HTTPError, OSError, ValueError) as failed:
        closed = "aborted" in str(failed) or "reset" in str(failed).lower()
        error = "connection closed" if closed else type(failed).__name__
    return HttpReply(0, "", (time.monotonic() - began) * 1000, error)


def _body(reply: urllib3.BaseHTTPResponse, deadline: float) -> str:
    """At most BODY_LIMIT bytes, and not one byte a second for ever."""
    out = bytearray()
    for chunk in reply.stream(65536):
        out += chunk
        if len(out) > BODY_LIMIT:
            reply.close()
            break
        if time.monotonic() > deadline:
            reply.close()
            raise TooSlow
    return out.decode(errors="replace")
