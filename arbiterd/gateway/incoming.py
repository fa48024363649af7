"""The request as the load gate takes it: its body, whole, unpacked and bounded; the model it names."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

import aiohttp
from aiohttp import web

from arbiterd.gateway import bodies
from arbiterd.gateway.loads import Refused

_BIG = 256 * 1024  # bytes: parsed in a thread, so that no other stream waits for it
# what aiohttp unpacks here without further libraries
_ENCODINGS = frozenset(("", "identity", "gzip", "deflate"))


@dataclass(frozen=True, slots=True)
class Incoming:
    """``body``: None for a form, which is handed on as it came. ``model``: "" when it names none."""

    raw: bytes
    model: str
    body: bodies.Body | None = None


async def read(request: web.Request, most: int) -> bytes:
    """The body, unpacked.

    Raises:
        Refused: larger than ``most`` bytes (413), or packed in a way that is not known here (415).
        BadBody: it does not unpack.

    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        msg = f"Content-Encoding {encoding[:40]!r} is not supported: send gzip, deflate or none"
        raise Refused(msg, status=415)
    parts, size = [], 0
    try:
        async for part in request.content.iter_any():
            size += len(part)
            if size > most:
                msg = f"the body is larger than {most} bytes: [gateway] max_body"
                raise Refused(msg, status=413)
            parts.append(part)
    except (
        aiohttp.ClientError,
        web.RequestPayloadError,
        aiohttp.http_exceptions.HttpProcessingError,
    ) as error:
        # aiohttp's parser puts "400, message:" and a new line before its words
        text = str(getattr(error, "message", "") or error).strip()
        msg = f"the body cannot be read: {text[:120]}"
        raise bodies.BadBody(msg) from None
    return b"".join(parts)


async def parse(request: web.Request, raw: bytes) -> Incoming:
    """Which model it is for.

    Raises:
        BadBody: neither a JSON object nor a form.

    """
    kind = request.headers.get("Content-Type", "")
    if len(raw) > _BIG:
        return await asyncio.get_running_loop().run_in_executor(None, _parse, kind, raw)
    return _parse(kind, raw)


def _parse(kind: str, raw: bytes) -> Incoming:
    if kind.strip().lower().startswith("multipart/"):
        return Incoming(raw, form_model(kind, raw))
    body = bodies.parse(raw)
    return Incoming(raw, body.model, body)


def form_model(kind: str, raw: bytes) -> str:
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
        raise bodies.BadBody(msg)
    model, start = "", raw.index(mark)
    while (end := raw.find(b"\r\n" + mark, start)) >= 0:
        # the line of the boundary, the part's header, an empty line, its content
        top = raw.find(b"\r\n", start, end)
        gap = raw.find(b"\r\n\r\n", start, end)
        if 0 <= top <= gap:
            fields = BytesHeaderParser().parsebytes(raw[top + 2 : gap + 4])
            if fields.get_param("name", header="content-disposition") == "model":
                model = raw[gap + 4 : end].decode("utf-8", "replace").strip()
        start = end + 2
    return model
