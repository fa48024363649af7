"""Bodies of requests: small, complete in time, and JSON as RFC 8259 has it (400 or 413 otherwise)."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from aiohttp import web

from arbiterd.web.replies import BadBody

MOST = 64 * 1024
DEEPEST = 32
_DIGITS = 20  # 2**64 and a sign
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
    """Strict JSON: no NaN, no number beyond a float, no key twice, no nesting without end.

    Raises:
        BadBody: it is something else.

    """
    try:
        found = json.loads(
            raw.decode(),
            object_pairs_hook=_once,
            parse_constant=_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except UnicodeDecodeError:
        msg = "the body is not UTF-8"
        raise BadBody(msg) from None
    except RecursionError:
        msg = "the body is nested too deeply"
        raise BadBody(msg) from None
    except ValueError as error:
        msg = f"the body is not valid JSON: {str(error)[:120]}"
        raise BadBody(msg) from None
    if _depth(found) > DEEPEST:
        msg = "the body is nested too deeply"
        raise BadBody(msg)
    if not isinstance(found, dict):
        msg = "the body is not a JSON object"
        raise BadBody(msg)
    return found


def _depth(value: object) -> int:
    """How deep lists and objects lie in each other."""
    deep, level = 0, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        deep += 1
        level = [
            inner for one in level for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return deep


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        msg = "a key is given twice"
        raise ValueError(msg)
    return out


def _constant(text: str) -> NoReturn:
    msg = f"{text} is not a JSON number"
    raise ValueError(msg)


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        msg = "a number is too large"
        raise ValueError(msg)
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        msg = "a number is too large"
        raise ValueError(msg)
    return number
