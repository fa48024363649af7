"""Requests over raw sockets, and what came back, byte for byte: an HTTP library would hide framing,
cut connections and odd requests, which are what the cases are about.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_OWN_HEADERS = {"date", "content-length", "transfer-encoding", "content-type"}


@dataclass(slots=True)
class Answer:
    """One answer. ``framing``: length, chunked, close (ended by the connection) or none; ``end``:
    clean, cut (the connection ended before the body did), "client closed" or "no answer within Ns".
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    framing: str = "none"
    end: str = "clean"
    body: bytes = b""
    chunks: int = 0
    interim: int | None = None

    @property
    def rest(self) -> dict[str, str]:
        """Headers that have no field of their own."""
        return {name: value for name, value in self.headers.items() if name not in _OWN_HEADERS}


def text(value: Any) -> Any:
    """A step's value with its ``{"repeat": "x", "characters": N}`` written out."""
    if isinstance(value, dict):
        if value.keys() == {"repeat", "characters"}:
            length = int(value["characters"])
            return (value["repeat"] * (length // len(value["repeat"]) + 1))[:length]
        return {name: text(one) for name, one in value.items()}
    if isinstance(value, list):
        return [text(one) for one in value]
    return value


def body_of(step: Mapping[str, Any]) -> bytes | None:
    """The body's bytes: JSON, or raw characters that stand for bytes."""
    if "raw" in step:
        return str(text(step["raw"])).encode("latin-1")
    if "body" not in step:
        return None
    value = text(step["body"])
    if "big" in step:
        value = {**value, "padding": "x" * int(step["big"])}
    raw = json.dumps(value).encode()
    return gzip.compress(raw) if step.get("gzip") else raw


def request(step: Mapping[str, Any], port: int) -> tuple[bytes, bytes]:
    """Head and body of the request that a step describes."""
    body = body_of(step)
    headers: dict[str, str] = {} if step.get("no_host") else {"Host": f"127.0.0.1:{port}"}
    if body is not None:
        if not step.get("no_type"):
            headers["Content-Type"] = "application/json"
        if step.get("gzip"):
            headers["Content-Encoding"] = "gzip"
        if step.get("chunked"):
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body))
    elif step["method"] in {"POST", "PUT"}:
        headers["Content-Length"] = "0"
    headers.update({k: str(text(v)) for k, v in step.get("headers", {}).items()})
    lines = [f"{step['method']} {step['path']} HTTP/{step.get('http', '1.1')}"]
    lines += [f"{name}: {value.replace('@PORT@', str(port))}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    if body and step.get("chunked"):
        middle = len(body) // 2
        parts = (body[:middle], body[middle:], b"")
        body = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)
    return head, body or b""


class Gone(Exception):
    """The connection ended early."""


class Exchange:
    """One connection; asks one request after the other on it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._have = b""
        self._deadline = 0.0

    def close(self) -> None:
        """Leave, as a client that gives up does."""
        with _quiet():
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def ask(self, step: Mapping[str, Any], timeout_s: float) -> Answer:
        """Send one request and read its whole answer."""
        answer = Answer()
        head, body = request(step, self.port)
        self._deadline = time.monotonic() + timeout_s
        leave_after = int(step.get("give_up_after_chunks", 0))
        try:
            self._send(head if "Expect" in step.get("headers", {}) else head + body)
            self._head(answer)
            if answer.status == 100:
                answer.interim = 100
                self._socket.sendall(body)
                self._head(answer)
            self._body(answer, step["method"], leave_after)
        except TimeoutError:
            answer.end = f"no answer within {step.get('timeout', timeout_s):g}s"
        except (Gone, OSError):
            answer.end = "cut"
        return answer

    def _send(self, raw: bytes) -> None:
        with _quiet():  # a server may refuse and close before it has read everything
            self._socket.sendall(raw)

    def _more(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        found = self._socket.recv(65536)
        if not found:
            raise Gone
        self._have += found

    def _line(self) -> bytes:
        while b"\r\n" not in self._have:
            self._more()
        line, self._have = self._have.split(b"\r\n", 1)
        return line

    def _exactly(self, size: int) -> bytes:
        while len(self._have) < size:
            self._more()
        found, self._have = self._have[:size], self._have[size:]
        return found

    def _head(self, answer: Answer) -> None:
        answer.status = int(self._line().split()[1])
        answer.headers = {}
        while line := self._line().decode("latin-1"):
            name, _, value = line.partition(":")
            answer.headers[name.lower()] = value.strip()

    def _body(self, answer: Answer, method: str, leave_after: int) -> None:
        if method == "HEAD" or answer.status in {204, 304}:
            return
        if answer.headers.get("transfer-encoding") == "chunked":
            answer.framing = "chunked"
            while size := int(self._line(), 16):
                answer.body += self._exactly(size)
                answer.chunks += 1
                self._exactly(2)
                if answer.chunks == leave_after:
                    answer.end = "client closed"
                    return
            self._line()
        elif "content-length" in answer.headers:
            answer.framing = "length"
            size = int(answer.headers["content-length"])
            try:
                answer.body = self._exactly(size)
            except Gone:
                answer.body = self._have
                raise
        else:
            answer.framing = "close"
            try:
                while True:
                    self._more()
            except Gone:
                answer.body = self._have


class _quiet:  # noqa: N801 - reads as a keyword
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, OSError) and kind is not TimeoutError
