"""Talking to the daemon over its unix socket.

HTTP/1.0: one request a connection, the answer ends with it, nothing is chunked. That needs no HTTP library;
Python's imports TLS and e-mail, a third of what `arbiterctl status` costs.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias
from urllib.parse import quote

from arbiterd.errors import ArbiterError
from arbiterd.files import strict_json
from arbiterd.files.owned import connect

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


_STREAM_S = 3600.0  # silence of a stream is no error
_LINE = 65536


class Unreachable(ArbiterError):
    """The daemon does not answer (exit status 69)."""


class Refused(ArbiterError):
    """The daemon said no; ``body`` is its answer (exit status 1)."""

    def __init__(self, message: str, status: int, body: Json) -> None:
        self.status = status
        self.body = body
        super().__init__(message)


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
        try:
            with self._exchange("GET", path, _STREAM_S) as (status, file, _):
                if status >= 400:
                    body = _parsed(file.read().decode(errors="replace"), status)
                    raise Refused(_message(body, status), status, body)
                yield (line.decode() for line in file)
        except PermissionError:
            raise Unreachable(self._forbidden()) from None
        except OSError as error:
            msg = f"the daemon at {self.path} does not answer, or has ended: {error}"
            raise Unreachable(msg) from None

    def _forbidden(self) -> str:
        return (
            f"may not open {self.path}: be root or a member of group gpu-arbiter "
            "(usermod -aG gpu-arbiter NAME)"
        )

    def _ask(self, method: str, path: str, timeout_s: float | None = None) -> Json:
        try:
            with self._exchange(method, path, timeout_s or self._timeout_s) as (status, file, size):
                raw = file.read(size)
            if len(raw) < size:
                raise ConnectionError("the answer ends too early")
        except PermissionError:
            raise Unreachable(self._forbidden()) from None
        except (FileNotFoundError, ConnectionRefusedError):
            msg = f"no daemon answers at {self.path}: systemctl status gpu-arbiter"
            raise Unreachable(msg) from None
        except OSError as error:
            msg = f"the daemon does not answer at {self.path}: {error}"
            raise Unreachable(msg) from None
        body = _parsed(raw.decode(errors="replace"), status)
        if status >= 400:
            raise Refused(_message(body, status), status, body)
        return body

    @contextmanager
    def _exchange(
        self, method: str, path: str, timeout_s: float
    ) -> Iterator[tuple[int, BinaryIO, int]]:
        """(status, body, its length; -1: to the end).

        Raises:
            OSError: no answer, or none in HTTP.

        """
        ask = f"{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            connect(sock, self.path)
            sock.sendall(ask.encode("ascii"))
            with sock.makefile("rb") as file:
                protocol, _, rest = file.readline(_LINE).partition(b" ")
                if not protocol.startswith(b"HTTP/1.") or not rest[:3].isdigit():
                    raise ConnectionError("the answer is not HTTP" if protocol else "it hung up")
                size = -1
                while line := file.readline(_LINE).strip():
                    key, _, value = line.partition(b":")
                    if key.lower() == b"content-length" and value.strip().isdigit():
                        size = int(value)
                yield int(rest[:3]), file, size


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
