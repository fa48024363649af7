"""Parameters of a request's query, each at most once and of the documented form (422 otherwise)."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from aiohttp import web

from arbiterd.web.replies import BadParameter, shown

LIMIT, LIMIT_MAX = 50, 200
_SHOWN = 60
_SINCE_MAX = 40  # bytes; 2026-01-31T12:00:00.000000+00:00 has 32


def one(request: web.Request, name: str) -> str | None:
    """The parameter, None where it is not given.

    Raises:
        BadParameter: it is given twice.

    """
    given = request.query.getall(name, [])
    if len(given) > 1:
        msg = f"{name} is given {len(given)} times; give it once"
        raise BadParameter(msg)
    return given[0] if given else None


def limit(request: web.Request) -> int:
    """``limit``: how many rows.

    Raises:
        BadParameter: it is not a number from 1 to LIMIT_MAX.

    """
    text = one(request, "limit")
    if text is None:
        return LIMIT
    # Digits of ASCII: '²' is a digit to str.isdigit, and int() refuses it.
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= LIMIT_MAX:
        msg = f"limit={shown(text, _SHOWN)}: expected a whole number from 1 to {LIMIT_MAX}"
        raise BadParameter(msg)
    return int(text)


def since(request: web.Request) -> float:
    """``since``: epoch seconds, 0 where it is not given.

    Raises:
        BadParameter: it is not an ISO 8601 time.

    """
    text = one(request, "since")
    if text is None:
        return 0.0
    try:
        # Years 1 and 9999 leave datetime's range in other zones.
        when = datetime.fromisoformat(text.replace(" ", "+") if len(text) <= _SINCE_MAX else "")
        return (when if when.tzinfo else when.astimezone()).astimezone(UTC).timestamp()
    except (ValueError, OverflowError, OSError):
        msg = f"since={shown(text, _SHOWN)}: expected an ISO 8601 time, e.g. 2026-01-31T12:00:00Z"
        raise BadParameter(msg) from None


def seconds(request: web.Request) -> float:
    """``seconds``: how long a stream lasts; infinity where it is not given.

    Raises:
        BadParameter: it is not a number above 0.

    """
    text = one(request, "seconds")
    if text is None:
        return math.inf
    plain = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text)
    if not plain or float(text) <= 0:
        msg = f"seconds={shown(text, _SHOWN)}: expected a number above 0, e.g. 60"
        raise BadParameter(msg)
    return float(text)
