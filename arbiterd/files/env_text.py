"""Files of variables as systemd's EnvironmentFile= reads them, and how one is written.

The rules of systemd 252, src/basic/env-file.c: quotes open only where a value begins, a backslash
keeps the next character (a line's end is left out), nothing is expanded. What systemd drops is
dropped here, too: a name that is none, a value with control characters. So both launchers and the
containers get the same from one file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # env_value_is_valid allows tab and newline
_SPACE = " \t\n\r"
_ESCAPED = '"\\`$'


def usable(name: str, value: str) -> bool:
    """Whether systemd hands this variable to a process."""
    return bool(VARIABLE.fullmatch(name)) and not _CONTROL.search(value)


def parse(text: str) -> dict[str, str]:
    """The variables of a file; the last of a name counts."""
    out: dict[str, str] = {}
    at = 0
    while at < len(text):
        char = text[at]
        if char in _SPACE:
            at += 1
        elif char in "#;":
            at = _comment(text, at)
        else:
            at = _assignment(text, at, out)
    return out


def _comment(text: str, at: int) -> int:
    """Past a comment; a backslash at its line's end continues it (until systemd 254)."""
    while at < len(text) and text[at] != "\n":
        at += 2 if text[at] == "\\" else 1
    return at + 1


def _assignment(text: str, at: int, out: dict[str, str]) -> int:
    """Read one NAME=VALUE; returns where the next line begins."""
    end = at
    while end < len(text) and text[end] not in "=\n":
        end += 1
    if end >= len(text) or text[end] == "\n":
        return end + 1  # no assignment
    name = text[at:end].rstrip(_SPACE)
    value, end = _value(text, end + 1)
    if usable(name, value):
        out[name] = value
    return end


def _value(text: str, at: int) -> tuple[str, int]:
    done: list[str] = []  # what quotes have closed
    while at < len(text):
        char = text[at]
        if char == "\n":
            return "".join(done), at + 1
        if char in _SPACE:
            at += 1
        elif char in "'\"":
            part, at = _quoted(text, at + 1, char)
            done.append(part)
        else:
            part, at = _bare(text, at)
            return "".join(done) + part, at
    return "".join(done), at


def _quoted(text: str, at: int, quote: str) -> tuple[str, int]:
    out: list[str] = []
    while at < len(text) and text[at] != quote:
        if text[at] == "\\" and quote == '"' and at + 1 < len(text):
            at += 1
            if text[at] in _ESCAPED:
                out.append(text[at])
            elif text[at] != "\n":
                out.append("\\" + text[at])
        else:
            out.append(text[at])
        at += 1
    return "".join(out), at + 1


def _bare(text: str, at: int) -> tuple[str, int]:
    """To the end of the line: quotes are plain characters here, blanks at the end are left out."""
    out: list[str] = []
    keep = 0
    while at < len(text) and text[at] != "\n":
        if text[at] == "\\":
            at += 1
            if at < len(text) and text[at] != "\n":
                out.append(text[at])
            keep = len(out)
        else:
            out.append(text[at])
            if text[at] not in _SPACE:
                keep = len(out)
        at += 1
    return "".join(out[:keep]), at + 1


def render(env: Mapping[str, str]) -> str:
    """A file from which systemd reads exactly these variables."""
    rows = []
    for name, value in env.items():
        escaped = re.sub(rf"([{re.escape(_ESCAPED)}])", r"\\\1", value)
        rows.append(f'{name}="{escaped}"\n')
    return "".join(rows)


def keys_in(text: str) -> tuple[str, ...]:
    """The keys of a file: one a line; blank lines and comments (#) are left out."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
