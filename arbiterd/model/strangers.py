"""How unmanaged processes are named in sentences, and how these names are taken out again.

One shape for all: 'pid 4711 (python3 of bob, session-3.scope)', so that an API that faces a network can
leave out what is nobody's business there. The words are those of another user's process: they cannot
close the bracket, break the line or forge another name.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_WORD_MAX = 80
_FORBIDDEN = re.compile(r"[()\x00-\x1f\x7f]")
_SHAPE = re.compile(r"\bpid (\d+)( of [^\s()]+)?( \([^()]*\))?(; systemctl disable --now \S+)?")
HIDDEN = "an unmanaged process"


def word(text: str) -> str:
    """A command, user or unit as it may stand within the brackets."""
    return _FORBIDDEN.sub("_", text)[:_WORD_MAX]


def named(pid: int, command: str, user: str, unit: str) -> str:
    """A holder of memory: 'pid 4711 (python3 of bob, session-3.scope)'."""
    what = command.partition(" ")[0].rpartition("/")[2] if command else "unknown"
    whose = f" of {word(user)}" if user else ""
    return f"pid {pid} ({word(what)}{whose}, {word(unit) or 'no unit'})"


def listener(pid: int, command: str, unit: str) -> str:
    """Who listens on a port: 'pid 7 of ollama.service (ollama serve); systemctl disable --now ...'."""
    unit = re.sub(r"\s", "_", word(unit))
    where = f" of {unit}" if unit else ""
    hint = f"; systemctl disable --now {unit}" if unit.endswith(".service") else ""
    return f"pid {pid}{where} ({word(command)}){hint}"


def masked(text: str, own: Collection[int] = ()) -> str:
    """``text`` without the names of processes; those of ``own`` (pids of engines) stay."""
    if "pid " not in text:
        return text
    return _SHAPE.sub(lambda found: found[0] if int(found[1]) in own else HIDDEN, text)
