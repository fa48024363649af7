"""JSON checked in place: nothing is built of it, so that a hostile body costs no memory. Pure.

A parser that builds values takes up to 30 times the size of a body of empty lists. Here regular
expressions pass over flat stretches, a loop over deeper ones. One match covers at most some 16,000 short
values (milliseconds, with the interpreter's lock held) or one string.
"""

from __future__ import annotations

import json
import math
import re
from typing import Final

Raw = bytes | bytearray

DEPTH_MAX: Final = 500  # Go stops at 10,000; Python's own parser much earlier
STEPS_MAX: Final = 1_000_000  # some two seconds; chats of 32 MiB take a few thousand
MEMBERS_MAX: Final = 1000  # of the outermost object
KEY_MAX: Final = 4096  # bytes

_WS = rb"[ \t\n\r]*+"
_PLAIN = rb'[^"\\\x00-\x1f]'
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_LONG = b"{0,65536}+"  # longer stretches are passed piece by piece, by the loop
_STRING = b'"' + _PLAIN + _LONG + b"(?:" + _ESCAPE + _PLAIN + _LONG + b'){0,1024}+"'
# surely finite: 100 digits and an exponent of two
_NUMBER = rb"-?+(?:0|[1-9][0-9]{0,99}+)(?:\.[0-9]{1,100}+)?+(?:[eE][+-]?+[0-9]{1,2}+)?+(?![0-9.eE])"
_SCALAR = b"(?:" + _STRING + b"|" + _NUMBER + b"|true|false|null)"
_KEYED = _STRING + _WS + b":" + _WS
_MOST = b"{0,64}+"  # repeats of one match: two levels of 64 within a run of 64


def _row(item: bytes, closer: bytes) -> bytes:
    """Items, each with the comma behind it; the last one stands before ``closer``."""
    end = b"\\" + closer
    more = b"(?:," + _WS + b"(?!" + end + b")|(?=" + end + b"))"
    return b"(?>" + item + _WS + more + b")" + _MOST


def _level(inner: bytes) -> bytes:
    """A value whose containers hold ``inner``."""
    array = rb"\[" + _WS + _row(inner, b"]") + rb"\]"
    an_object = rb"\{" + _WS + _row(_KEYED + inner, b"}") + rb"\}"
    return b"(?>" + _SCALAR + b"|" + array + b"|" + an_object + b")"


_VALUE = _level(_level(_SCALAR))
_ROWS = {
    b"]": re.compile(_row(_VALUE, b"]")).match,
    b"}": re.compile(_row(_KEYED + _VALUE, b"}")).match,
}
_value = re.compile(_VALUE).match
_key = re.compile(b"(" + _STRING + b")" + _WS + b":" + _WS).match
_piece = re.compile(b"(?:" + _PLAIN + b"{1,65536}+|(?:" + _ESCAPE + b"){1,1024}+)").match
_space = re.compile(_WS).match
_any_number = re.compile(rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+").match


class NotJson(ValueError):
    """Where and why it is none."""


def _wrong(what: str, at: int) -> NotJson:
    return NotJson(f"{what} at byte {at}")


def _after_space(raw: Raw, at: int) -> int:
    found = _space(raw, at)
    return found.end() if found else at


def members(raw: Raw) -> list[tuple[str, int, int]]:
    """Every member of the outermost object, duplicates included: its key, and the bytes from and to
    of its value.

    Raises:
        NotJson: no JSON object, or more than one value; nested more than DEPTH_MAX deep; a number that no
            64-bit float holds; more than MEMBERS_MAX members, or more values than STEPS_MAX allows.

    """
    at, steps = _after_space(raw, 0), [STEPS_MAX]
    if raw[at : at + 1] != b"{":
        _end_of(raw, at, steps)  # says what is wrong, if it is no JSON at all
        msg = "not an object"
        raise NotJson(msg)
    out: list[tuple[str, int, int]] = []
    at = _after_space(raw, at + 1)
    closed = raw[at : at + 1] == b"}"
    while not closed:
        named = _key(raw, at)
        if named is None:
            raise _wrong("expected a key", at)
        if len(out) >= MEMBERS_MAX:
            raise _wrong(f"more than {MEMBERS_MAX} members", at)
        if len(named[1]) > KEY_MAX:
            raise _wrong(f"a key of more than {KEY_MAX} bytes", at)
        start = named.end()
        end = _end_of(raw, start, steps)
        out.append((str(json.loads(bytes(named[1]))), start, end))
        at, more = _close(raw, end, [b"}"])
        closed = not more
    if _after_space(raw, at + (0 if out else 1)) != len(raw):
        raise _wrong("more than one value", at)
    return out


def _end_of(raw: Raw, at: int, steps: list[int]) -> int:
    """The end of the value that begins at ``at``."""
    open_: list[bytes] = []  # what closes the containers that are open
    while True:
        steps[0] -= 1
        if steps[0] < 0:
            raise _wrong("too many values", at)
        closer = open_[-1] if open_ else b""
        if closer:
            found = _ROWS[closer](raw, at)
            if found and found.end() > at:
                at = found.end()
                if raw[at : at + 1] != closer:
                    continue
                at, more = _close(raw, at, open_)
                if not more:
                    return at
                continue
        if closer == b"}":
            named = _key(raw, at)
            if named is None:
                raise _wrong("expected a key", at)
            at = named.end()
        deeper, at = _step(raw, at)
        if deeper:
            open_.append(deeper)
            if len(open_) > DEPTH_MAX:
                msg = f"nested more than {DEPTH_MAX} deep"
                raise NotJson(msg)
            continue
        at, more = _close(raw, at, open_)
        if not more:
            return at


def _step(raw: Raw, at: int) -> tuple[bytes, int]:
    """Past one value: ("", its end); or into a container: (what closes it, its first value)."""
    found = _value(raw, at)
    if found is not None:
        return b"", found.end()
    first = raw[at : at + 1]
    if first == b'"':
        return b"", _end_of_string(raw, at)
    if first in (b"[", b"{"):
        inside = _after_space(raw, at + 1)
        closer = b"]" if first == b"[" else b"}"
        if raw[inside : inside + 1] == closer:
            return b"", inside + 1
        return closer, inside
    number = _any_number(raw, at)
    if number is None:
        raise _wrong("expected a value" if at < len(raw) else "unexpected end", at)
    if not math.isfinite(float(bytes(number[0]))):
        raise _wrong("a number that is out of range", at)
    return b"", number.end()


def _end_of_string(raw: Raw, at: int) -> int:
    """Of a long one."""
    at += 1
    while found := _piece(raw, at):
        at = found.end()
    if raw[at : at + 1] != b'"':
        raise _wrong("a string that does not end, or an invalid character in it", at)
    return at + 1


def _close(raw: Raw, at: int, open_: list[bytes]) -> tuple[int, bool]:
    """After a value: past what closes here; whether another value comes."""
    while open_:
        at = _after_space(raw, at)
        next_ = raw[at : at + 1]
        if next_ == b",":
            return _after_space(raw, at + 1), True
        if next_ != open_[-1]:
            raise _wrong(f"expected , or {open_[-1].decode()}", at)
        open_.pop()
        at += 1
    return at, False
