"""Talking to the daemon over its unix socket."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from arbiterd.errors import ArbiterError
from arbiterd.files import strict_json
from arbiterd.files.owned import connect

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


class Unreachable(ArbiterError):
    """The daemon does not answer (exit status 69)."""


class Refused(ArbiterError):
    """The daemon said no; ``body`` is its answer (exit status 1)."""

    def __init__(self, message: str, status: int, body: Json) -> None:
        self.status = status
        self.body = body
        super().__init__(message)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        connect(self.sock, self._path)


class Client:
    """One daemon. Requests raise Unreachable or Refused."""

    def __init__(self, socket_path: Path, timeout_s: float = 10.0) -> None:
        self.path = socket_path
        self._timeout_s = timeout_s

    def get(self, path: str) -> Json:
        """Read."""
        return self._ask("GET", path)

    def post(self, path: str, timeout_s: float | None = None) -> Json:
        """Change."""
        return self._ask("POST", path, timeout_s)

    @contextmanager
    def lines(self, path: str) -> Iterator[Iterator[str]]:
        """A stream of lines, until it ends or the caller leaves. Silence is no error."""
        connection = _UnixConnection(self.path, 3600.0)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            if reply.status >= 400:
                body = _parsed(reply.read().decode(errors="replace"), reply.status)
                raise Refused(_message(body, reply.status), reply.status, body)
            yield (line.decode() for line in reply)
        except PermissionError:
            raise Unreachable(self._forbidden()) from None
        except (OSError, http.client.HTTPException) as error:
            msg = f"the daemon at {self.path} does not answer, or has ended: {error}"
            raise Unreachable(msg) from None
        finally:
            connection.close()

    def _forbidden(self) -> str:
        return (
            f"may not open {self.path}: be root or a member of group gpu-arbiter "
            "(usermod -aG gpu-arbiter NAME)"
        )

    def _ask(self, method: str, path: str, timeout_s: float | None = None) -> Json:
        connection = _UnixConnection(self.path, timeout_s or self._timeout_s)
        try:
            connection.request(method, path, headers={"Content-Length": "0"})
            reply = connection.getresponse()
            text = reply.read().decode(errors="replace")
        except PermissionError:
            raise Unreachable(self._forbidden()) from None
        except (FileNotFoundError, ConnectionRefusedError):
            msg = f"no daemon answers at {self.path}: systemctl status gpu-arbiter"
            raise Unreachable(msg) from None
        except (OSError, http.client.HTTPException) as error:
            msg = f"the daemon does not answer at {self.path}: {error}"
            raise Unreachable(msg) from None
        finally:
            connection.close()
        body = _parsed(text, reply.status)
        if reply.status >= 400:
            raise Refused(_message(body, reply.status), reply.status, body)
        return body


def _parsed(text: str, status: int) -> Json:
    try:
        body: Json = strict_json.loads(text)
    except ValueError:
        body = {"error": {"code": str(status), "message": text[:300]}}
    return body


def segment(name: str) -> str:
    """A name as one path segment."""
    return quote(name, safe="")


def _message(body: Json, status: int) -> str:
    if isinstance(body, dict):
        error = body.get("error")
        if isinstance(error, dict) and "message" in error:
            return str(error["message"])
    return f"HTTP {status}"
