"""The request as the load gate takes it: its body, whole, unpacked and bounded; the model it names."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Final

import aiohttp
from aiohttp import web

from arbiterd.loadgate import ollama_body
from arbiterd.loadgate.admission import Refused
from arbiterd.loadgate.body_memory import FREE_BYTES, Lease, Room

STALL_S: Final = 10.0  # without a byte of a body that has begun
GRACE_S: Final = 5.0  # while others wait for room, a body that is slower than this is given up
SLOW_BYTES_S: Final = 256 * 1024
_STEP = 64 * 1024  # bytes that are unpacked at a time; the loop goes on in between
_DEFLATE_MOST = 1032  # times: what deflate can make of a byte
_PARTS_MOST = 1000  # parts of a form
_HEADER_MOST = 16 * 1024  # bytes of a part's header
_WBITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
# one at a time, in a thread, so that no other stream waits for it and no two take its memory
_PARSER = ThreadPoolExecutor(1, "parse")


@dataclass(frozen=True, slots=True)
class Incoming:
    """``body``: None for a form, which is handed on as it came. ``model``: "" when it names none."""

    model: str
    body: ollama_body.Body | None = None


class Held:
    """A body in memory, and its share of the room; ``drop`` gives back both."""

    def __init__(self) -> None:
        self.source = ollama_body.Source()
        self._lease: Lease | None = None

    async def need(self, room: Room, size: int) -> None:
        """Wait for so much room, once.

        Raises:
            Refused: there is none in time.

        """
        if self._lease is None and size > FREE_BYTES:
            self._lease = await room.take(size)

    def settle(self) -> None:
        """The body is whole: what it does not need is given back."""
        if self._lease is not None:
            self._lease.shrink(len(self.source.raw))

    def drop(self) -> None:
        """It has been sent, or is not to be."""
        self.source.drop()
        if self._lease is not None:
            self._lease.release()


class Unpacker:
    """A body's encoding taken off, in bounded pieces."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inflate = zlib.decompressobj(_WBITS[encoding])
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most _STEP bytes.

        Raises:
            BadBody: it does not unpack.

        """
        try:
            while data:
                if (
                    self._encoding == "deflate"
                    and not self._began
                    and data[0] & 0x0F != zlib.DEFLATED
                ):
                    self._inflate = zlib.decompressobj(
                        -zlib.MAX_WBITS
                    )  # raw, as some clients send it
                self._began = True
                if self._inflate.eof:  # gzip allows several members
                    if self._encoding != "gzip":
                        msg = "the body goes on behind its compressed data"
                        raise ollama_body.BadBody(msg)
                    self._inflate = zlib.decompressobj(_WBITS["gzip"])
                if out := self._inflate.decompress(data, _STEP):
                    yield out
                data = self._inflate.unconsumed_tail or self._inflate.unused_data
        except zlib.error as error:
            msg = f"the body does not unpack: {str(error)[:120]}"
            raise ollama_body.BadBody(msg) from None

    def end(self) -> None:
        """No more data.

        Raises:
            BadBody: it is cut off.

        """
        if not self._inflate.eof:
            msg = "the body does not unpack: it is cut off"
            raise ollama_body.BadBody(msg)


async def read(request: web.Request, most: int, room: Room, held: Held) -> None:
    """The body into ``held``, unpacked.

    Raises:
        Refused: larger than ``most`` bytes (413), packed in a way that is not known here (415), too slow
            (408), or no room for it (503).
        BadBody: it does not unpack.

    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", *_WBITS):
        msg = f"Content-Encoding {encoding[:40]!r} is not supported: send gzip, deflate or none"
        raise Refused(msg, status=415)
    unpacker = Unpacker(encoding) if encoding in _WBITS else None
    length = request.content_length
    if unpacker is None and length is not None:
        _within(length, most)
        await held.need(room, length)
    expected = most if length is None else min(most, length * _DEFLATE_MOST)
    out, began = bytearray(), time.monotonic()
    held.source.raw = out
    while part := await _next(request, room):
        for piece in unpacker.feed(part) if unpacker else (part,):
            _within(len(out) + len(piece), most)
            if len(out) + len(piece) > FREE_BYTES:
                await held.need(room, expected)
            out += piece
            if unpacker:
                await asyncio.sleep(0)
        took = time.monotonic() - began
        if room.waiting and took > GRACE_S and len(out) < took * SLOW_BYTES_S:
            raise _slow()
    if unpacker and request.body_exists:
        unpacker.end()
    held.settle()


async def _next(request: web.Request, room: Room) -> bytes:
    if request.content.is_eof():  # all of it is here
        return await _read(request)
    with room.reads():
        return await _read(request)


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(STALL_S):
            return await request.content.readany()
    except TimeoutError:
        raise _slow() from None
    except (
        aiohttp.ClientError,
        web.RequestPayloadError,
        aiohttp.http_exceptions.HttpProcessingError,
    ) as error:
        # aiohttp's parser puts "400, message:" and a new line before its words
        text = str(getattr(error, "message", "") or error).strip()
        msg = f"the body cannot be read: {text[:120]}"
        raise ollama_body.BadBody(msg) from None


def _slow() -> Refused:
    return Refused("the body took too long to arrive", status=408)


def _within(size: int, most: int) -> None:
    if size > most:
        msg = f"the body is larger than {most} bytes: [gateway] max_body"
        raise Refused(msg, status=413)


async def parse(request: web.Request, source: ollama_body.Source) -> Incoming:
    """Which model it is for.

    Raises:
        BadBody: neither a JSON object nor a form.

    """
    kind = request.headers.get("Content-Type", "")
    if len(source.raw) > FREE_BYTES:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_PARSER, _parse, kind, source)
    return _parse(kind, source)


def _parse(kind: str, source: ollama_body.Source) -> Incoming:
    if kind.strip().lower().startswith("multipart/"):
        return Incoming(form_model(kind, source.raw))
    body = ollama_body.parse(source)
    return Incoming(body.model, body)


def form_model(kind: str, raw: bytes | bytearray) -> str:
    """The field ``model`` of a multipart body (RFC 7578), "" when there is none; the last one counts.

    Raises:
        BadBody: it is not one.

    """
    header = Message()
    header["content-type"] = kind
    boundary = header.get_boundary()
    mark = b"--" + str(boundary or "").encode()
    if not boundary or mark not in raw:
        msg = "the body is not a multipart form: no boundary"
        raise ollama_body.BadBody(msg)
    model, start, left = "", raw.index(mark), _PARTS_MOST
    while (end := raw.find(b"\r\n" + mark, start)) >= 0:
        # the line of the boundary, the part's header, an empty line, its content
        top = raw.find(b"\r\n", start, end)
        gap = raw.find(b"\r\n\r\n", start, end)
        left -= 1
        if left < 0 or gap - top > _HEADER_MOST:
            msg = f"a form has at most {_PARTS_MOST} parts, a part's header {_HEADER_MOST} bytes"
            raise ollama_body.BadBody(msg)
        if 0 <= top <= gap:
            fields = BytesHeaderParser().parsebytes(bytes(raw[top + 2 : gap + 4]))
            if fields.get_param("name", header="content-disposition") == "model":
                model = (
                    raw[gap + 4 : min(end, gap + 4 + _HEADER_MOST)]
                    .decode("utf-8", "replace")
                    .strip()
                )
        start = end + 2
    return model
