"""Words of a foreign unit as they may be shown: its secrets stay out of our file. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from arbiterd.engines.flags import SECRET

HIDDEN = "..."
_ASSIGNED = re.compile(r"((?:--?)?[A-Za-z_][A-Za-z0-9_-]*)=(\"[^\"]*\"|'[^']*'|\S+)")
_FLAG = re.compile(r"(--[A-Za-z][A-Za-z0-9_-]*)(\s+)(\"[^\"]*\"|'[^']*'|[^\s-]\S*)")
_URL = re.compile(r"(://)[^/\s@]*:[^/\s@]*@")


def is_secret(name: str, value: str) -> bool:
    """Whether a variable's value is for nobody's eyes: by its name, or as a URL with a password."""
    return bool(SECRET.search(name) or _URL.search(value))


def shown(words: Sequence[str]) -> tuple[str, ...]:
    """The words with the values of secrets hidden, also within a script that is one word."""
    return tuple(_shown(words))


def _shown(words: Sequence[str]) -> Iterator[str]:
    before = ""
    for word in words:
        follows = before.startswith("--") and "=" not in before and SECRET.search(before)
        if follows and not word.startswith("-"):
            yield HIDDEN
        else:
            text = _ASSIGNED.sub(_assigned, word)
            text = _FLAG.sub(_flag, text)
            yield _URL.sub(rf"\1{HIDDEN}@", text)
        before = word


def _assigned(found: re.Match[str]) -> str:
    return f"{found[1]}={HIDDEN}" if SECRET.search(found[1]) else found[0]


def _flag(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}{HIDDEN}" if SECRET.search(found[1]) else found[0]
