"""A small HTTP/1.x server on asyncio that behaves on the wire as Go's net/http does.

A library's server would answer malformed requests, HTTP/1.0, HEAD, Expect and clients that leave in
its own way, and these are what the load gate and HAProxy meet when they stand before a real Ollama.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import NoReturn

MAX_HEAD = (1 << 20) + 4096  # Go's DefaultMaxHeaderBytes and its slop
BUFFERED = 2048  # a longer answer is sent in chunks, as Go does when it does not know the length
_PLAIN = "text/plain; charset=utf-8"


class _Malformed(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Closed(Exception):
    """The client is gone."""


class Request:
    """One request and the way to answer it. ``body`` is read by ``read``."""

    def __init__(
        self, connection: _Connection, method: str, target: str, version: str, head: dict[str, str]
    ) -> None:
        self._connection = connection
        self.method, self.version, self.headers = method, version, head
        self.path, _, self.query = target.partition("?")
        self.host = head.get("host", "")
        self.status = 0
        self.began = time.monotonic()
        self.body: bytes | None = None
        self._chunked = False
        self._sent: dict[str, str] = {}

    def header(self, name: str, value: str) -> None:
        """A header that every answer to this request carries."""
        self._sent[name] = value

    async def read(self) -> bytes:
        """The whole body, asked for first where the client waits to be asked."""
        if self.body is None:
            if self.headers.get("expect", "").lower() == "100-continue":
                await self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.body = await self._connection.body(self.headers)
        return self.body

    async def reply(
        self, status: int, body: bytes | None = None, kind: str | None = None, **headers: str
    ) -> None:
        """A whole answer; without a body it has no type."""
        head = {name.replace("_", "-"): value for name, value in headers.items()}
        if kind is not None:
            head = {"Content-Type": kind, **head}
        raw = body or b""
        if len(raw) > BUFFERED:
            await self._begin(status, head)
            if self.method != "HEAD":
                await self.chunk(raw)
                await self.finish()
            return
        if status != HTTPStatus.NO_CONTENT and (raw or self.method != "HEAD"):
            head["Content-Length"] = str(len(raw))
        await self._head(status, head)
        if self.method != "HEAD" and status != HTTPStatus.NO_CONTENT:
            await self._connection.write(raw)

    async def begin(
        self, kind: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """The head of a stream."""
        await self._begin(status, {"Content-Type": kind, **(headers or {})})

    async def _begin(self, status: int, head: dict[str, str]) -> None:
        self._chunked = self.version == "1.1"
        if self._chunked and self.method != "HEAD":
            head["Transfer-Encoding"] = "chunked"
        await self._head(status, head)

    async def chunk(self, raw: bytes) -> None:
        """A piece of the stream."""
        if self._chunked:
            raw = b"%x\r\n%b\r\n" % (len(raw), raw)
        await self._connection.write(raw)

    async def finish(self) -> None:
        """The end of the stream."""
        if self._chunked:
            await self._connection.write(b"0\r\n\r\n")

    async def _head(self, status: int, head: Mapping[str, str]) -> None:
        self.status = status
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        lines = [f"HTTP/{self.version} {status} {phrase}"]
        for name, value in {**self._sent, **head}.items():
            lines += [f"{name}: {one}" for one in value.split("\n")]
        lines.append(time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()))
        await self._connection.write("\r\n".join([*lines, "", ""]).encode())


Handler = Callable[[Request], Awaitable[None]]


class _Connection:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
    ) -> None:
        self._reader, self._writer, self._handler = reader, writer, handler
        self._have = b""

    async def write(self, raw: bytes) -> None:
        self._writer.write(raw)
        await self._writer.drain()

    async def _more(self) -> None:
        found = await self._reader.read(1 << 18)
        if not found:
            raise _Closed
        self._have += found

    async def serve(self) -> None:
        """Requests one after the other until one side has had enough."""
        try:
            while await self._one():
                pass
        except _Malformed as error:
            await self._refuse(error.status, str(error))
        except (_Closed, ConnectionError):
            pass
        finally:
            self._writer.close()

    async def _refuse(self, status: int, text: str) -> None:
        """As Go: the answer, then a moment for the client to read it although it is still sending."""
        words = f"{status} {HTTPStatus(status).phrase}"
        head = f"HTTP/1.1 {words}\r\nContent-Type: {_PLAIN}\r\nConnection: close\r\n\r\n"
        with suppress(ConnectionError, TimeoutError):
            await self.write((head + words + text).encode())
            self._writer.write_eof()
            async with asyncio.timeout(0.5):
                while await self._reader.read(1 << 16):
                    pass

    async def _one(self) -> bool:
        head = await self._head()
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            _bad()
        if words[2] not in {"HTTP/1.0", "HTTP/1.1"}:
            raise _Malformed(505, ": unsupported protocol version")
        if not words[1].startswith("/"):
            _bad()
        version, found = words[2][5:], _headers(lines[1:])
        if version == "1.1" and "host" not in found:
            raise _Malformed(400, ": missing required Host header")
        if not found.get("content-length", "0").isdigit():
            _bad()
        request = Request(self, words[0], words[1], version, found)
        await self._handle(request)
        if request.body is None and "expect" not in found:
            await request.read()
        closing = found.get("connection", "").lower() == "close"
        return version == "1.1" and request.body is not None and not closing

    async def _head(self) -> bytes:
        while b"\r\n\r\n" not in self._have:
            if len(self._have) > MAX_HEAD:
                raise _Malformed(431, "")
            await self._more()
        head, self._have = self._have.split(b"\r\n\r\n", 1)
        if len(head) > MAX_HEAD:
            raise _Malformed(431, "")
        return head

    async def body(self, headers: Mapping[str, str]) -> bytes:
        """Read it."""
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return await self._exactly(int(headers.get("content-length") or 0))
        parts = []
        while size := int((await self._line()).split(b";")[0], 16):
            parts.append(await self._exactly(size))
            await self._line()
        while await self._line():
            pass
        return b"".join(parts)

    async def _line(self) -> bytes:
        while b"\r\n" not in self._have:
            await self._more()
        line, self._have = self._have.split(b"\r\n", 1)
        return line

    async def _exactly(self, size: int) -> bytes:
        parts, there = [self._have], len(self._have)
        while there < size:
            found = await self._reader.read(1 << 18)
            if not found:
                raise _Closed
            parts.append(found)
            there += len(found)
        whole = b"".join(parts)
        self._have = whole[size:]
        return whole[:size]

    async def _handle(self, request: Request) -> None:
        """The handler, cancelled when the client leaves: so Go's request context ends."""
        if request.headers.get("expect") is None:
            await request.read()
        work = asyncio.ensure_future(self._handler(request))
        watch = asyncio.ensure_future(self._until_closed(request))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            gone = not work.done()
            work.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await watch
            with suppress(asyncio.CancelledError, ConnectionError):
                await work
        if gone:
            raise _Closed

    async def _until_closed(self, request: Request) -> None:
        while request.body is None:  # noqa: ASYNC110 - only for clients that wait to be asked
            await asyncio.sleep(0.05)
        with suppress(_Closed, ConnectionError):
            while True:
                await self._more()


def _bad() -> NoReturn:
    raise _Malformed(400, "")


def _headers(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            _bad()
        found[name.lower()] = value.strip()
    return found


async def listen(host: str, port: int, handler: Handler) -> asyncio.Server:
    """Bind to an address; it serves once ``start_serving`` is called.

    Raises:
        OSError: it cannot be bound.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Connection(reader, writer, handler).serve()

    return await asyncio.start_server(
        connected, host or None, port, backlog=1024, start_serving=False
    )
