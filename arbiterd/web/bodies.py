"""Bodies of requests: small, complete in time, and JSON as RFC 8259 has it (400 or 413 otherwise)."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from arbiterd.files.strict_json import strict_json
from arbiterd.web.replies import BadBody

MOST = 64 * 1024
PATIENCE_S = 5.0  # for the rest of a body whose head has come


async def read(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object; {} for an empty one.

    Raises:
        BadBody: it is too large, packed, late or not a JSON object.

    """
    packed = request.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        msg = "the body is packed (Content-Encoding): send it as plain JSON"
        raise BadBody(msg)
    try:
        async with asyncio.timeout(PATIENCE_S):
            raw = await request.content.read(MOST + 1)
            while len(raw) <= MOST and (more := await request.content.read(MOST + 1)):
                raw += more
    except TimeoutError:
        msg = f"the body was not complete within {PATIENCE_S:g} s"
        raise BadBody(msg, 408) from None
    except (ValueError, web.RequestPayloadError) as error:
        msg = "the body does not end as its head says"
        raise BadBody(msg) from error
    if len(raw) > MOST:
        msg = f"the body is larger than {MOST} bytes"
        raise BadBody(msg, 413)
    return parse(raw) if raw.strip() else {}


def parse(raw: bytes) -> dict[str, Any]:
    """Strict JSON, an object.

    Raises:
        BadBody: it is something else.

    """
    try:
        found = strict_json(raw)
    except ValueError as error:
        msg = f"the body is not valid JSON: {str(error)[:120]}"
        raise BadBody(msg) from None
    if not isinstance(found, dict):
        msg = "the body is not a JSON object"
        raise BadBody(msg)
    return found
