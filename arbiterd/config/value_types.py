"""How the values of the configuration are written: each Form for pydantic.

A validator raises InvalidValue: what is wrong, and what would be right.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from arbiterd.errors import InvalidValue
from arbiterd.model.keys import Form
from arbiterd.model.settings import FOR_EVER_S
from arbiterd.quantities import parse_duration, parse_size

_DNS_NAME = re.compile(r"([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_ORIGIN = re.compile(r"[a-z*][a-z0-9+.*-]*://[]a-z0-9_.:*[-]+")


def _unit_value(value: object, example: str, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str):
        raise InvalidValue(f"{value!r} has no unit", f"write a {what} in quotes, like {example}")
    return value


def _size(value: object) -> int:
    return parse_size(_unit_value(value, '"512MiB"', "size"))


def _duration(value: object) -> float:
    return parse_duration(_unit_value(value, '"10s"', "duration"))


def _keep_alive(value: object) -> float:
    """As Ollama takes it (envconfig.KeepAlive): a duration, whole seconds, negative: for ever."""
    text = (
        str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    )
    if re.fullmatch(r"-?\d+", text):
        return FOR_EVER_S if text.startswith("-") else float(text)
    if text.startswith("-"):
        parse_duration(text[1:])
        return FOR_EVER_S
    if not text:
        raise InvalidValue(
            f"{value!r} is no duration", 'write "10m", seconds like 600, or -1 for ever'
        )
    return parse_duration(text)


def _whole(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, str) and not value.strip().isdigit()):
        raise InvalidValue(f"{value!r} is no whole number", "write one, like 8")
    return value


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidValue(f"{text[:60]!r} is no list in JSON", 'write ["NAME"]') from None


def _words(value: object) -> object:
    """From the environment a list arrives as JSON text."""
    if isinstance(value, str):
        if value.startswith("["):
            return _json(value)
        raise InvalidValue(f"{value!r} is no list", f'write ["{value}"]')
    return value


def _headroom(value: object) -> int | None:
    return None if value == "auto" else _size(value)


def _listen(value: object) -> str:
    text = str(value)
    host, _, port = text.rpartition(":")
    if isinstance(value, str) and host and port.isdigit() and 0 < int(port) < 65536:
        return text
    raise InvalidValue(f"{value!r} is no address", 'write "HOST:PORT", like "127.0.0.1:9480"')


def _address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(str(value)))
    except ValueError:
        right = 'write "127.0.0.1", or "0.0.0.0" for every network'
        raise InvalidValue(f"{value!r} is no IP address", right) from None


def _host_name(value: str) -> str:
    """``name``, ``*.name`` or ``*``; a DNS name as it is sent: lower case, IDNA."""
    text = value.strip().lower().rstrip(".")
    wild, text = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if wild + text == "*":
        return "*"
    with suppress(UnicodeError):
        text = text.encode("idna").decode()
        if _DNS_NAME.fullmatch(text) or _is_address(text.strip("[]")):
            return wild + text
    bare = re.sub(r"^[a-z]+://|[:/].*$", "", value.strip())
    like = bare if _DNS_NAME.fullmatch(bare.lower()) else "llm.example.com"
    raise InvalidValue(f"{value!r} is no host name", f'write the name alone, like "{like}"')


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        right = 'write one like "192.0.2.10" or "10.0.0.0/24"'
        raise InvalidValue(f"invalid address or network {text!r}", right) from None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _origin(value: str) -> str:
    """``scheme://host[:port]``, any part of it ``*``."""
    text = value.strip().rstrip("/").lower()
    if text == "*" or _ORIGIN.fullmatch(text):
        return text
    bare = re.sub(r"^[a-z]+://|/.*$", "", text)
    like = bare if _ORIGIN.fullmatch(f"https://{bare}") else "app.example.com"
    raise InvalidValue(f"{value!r} is no origin", f'write scheme and name, like "https://{like}"')


def _absolute(value: object) -> str:
    if isinstance(value, str) and value.startswith("/"):
        return value
    raise InvalidValue(f"{value!r} is no absolute path", "write one that begins with /")


def _absolute_or_none(value: object) -> str:
    return "" if value == "" else _absolute(value)


_MOST = 2**31 - 1  # what the engines' own options hold
_COUNT = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=_MOST)]
_WORDS = Annotated[list[str], BeforeValidator(_words)]
VALUES: Mapping[Form, Any] = {
    Form.TEXT: str,
    Form.SIZE: Annotated[int, BeforeValidator(_size)],
    Form.SIZE_OR_AUTO: Annotated[int | None, BeforeValidator(_headroom)],
    Form.DURATION: Annotated[float, BeforeValidator(_duration)],
    Form.KEEP_ALIVE: Annotated[float, BeforeValidator(_keep_alive)],
    Form.COUNT: _COUNT,
    Form.WHOLE: Annotated[int, BeforeValidator(_whole), Field(ge=0, le=_MOST)],
    Form.PORT: Annotated[int, BeforeValidator(_whole), Field(ge=1, le=65535)],
    Form.PORT_OR_OFF: Annotated[int, BeforeValidator(_whole), Field(ge=0, le=65535)],
    Form.ADDRESS: Annotated[str, BeforeValidator(_address)],
    Form.LISTEN: Annotated[str, BeforeValidator(_listen)],
    Form.FILE: Annotated[str, BeforeValidator(_absolute)],
    Form.FILE_OR_NONE: Annotated[str, BeforeValidator(_absolute_or_none)],
    Form.WORDS: _WORDS,
    Form.COUNTS: list[_COUNT],
    Form.NETWORKS: Annotated[_WORDS, AfterValidator(lambda given: [_network(o) for o in given])],
    Form.HOST_NAMES: Annotated[
        _WORDS, AfterValidator(lambda given: [_host_name(one) for one in given])
    ],
    Form.ORIGINS: Annotated[_WORDS, AfterValidator(lambda given: [_origin(o) for o in given])],
}
