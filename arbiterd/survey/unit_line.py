"""A unit's command line and text, as far as systemd's bus does not tell them. Pure.

The bus gives ExecStart= word by word but with its variables unexpanded (systemd expands them when it
starts the process), and every setting with its value in force, never which of them somebody wrote.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from arbiterd.engines.flags import SECRET

_BRACED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\$")
_WORD = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True, slots=True)
class Expanded:
    """``words``: what systemd would start. ``missing``: variables whose value cannot be told, since
    a file could not be read. ``secret``: variables left as they are written, since their names say
    that nobody may read them.
    """

    words: tuple[str, ...]
    missing: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()


def expanded(words: Sequence[str], env: Mapping[str, str], *, complete: bool) -> Expanded:
    """The words with their variables put in, by systemd's rules (systemd.service(5), "Command
    lines"): ``${NAME}`` anywhere in a word, ``$NAME`` as a word of its own, split at blanks with
    quotes respected, ``$$`` is a dollar. A variable that is not set is empty there; here only where
    the environment is ``complete``.
    """
    missing: list[str] = []
    secret: list[str] = []

    def value(name: str, written: str) -> str:
        if SECRET.search(name):
            secret.append(name)
            return written
        if name not in env and not complete:
            missing.append(name)
            return written
        return env.get(name, "")

    out: list[str] = list(words[:1])
    for word in words[1:]:
        alone = _WORD.fullmatch(word)
        if alone is None:
            out.append(
                _BRACED.sub(lambda m: value(m[1], m[0]) if m[1] else "$", word)  # `$$` has no name
            )
            continue
        text = value(alone[1], word)
        out += [word] if text == word else _split(text)
    return Expanded(tuple(out), tuple(dict.fromkeys(missing)), tuple(dict.fromkeys(secret)))


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an open quote: systemd would refuse the start
        return text.split()


def directives(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(name, value) of what the [Service] sections of a unit and its drop-ins set, in order, what a
    later empty assignment takes back left out.
    """
    out: list[tuple[str, str]] = []
    for text in texts:
        section = ""
        for line in _logical(text):
            if line.startswith("["):
                section = line
                continue
            name, found, value = (part.strip() for part in line.partition("="))
            if section != "[Service]" or not found:
                continue
            if not value:
                out = [one for one in out if one[0] != name]
            else:
                out.append((name, value))
    return tuple(out)


def _logical(text: str) -> Iterator[str]:
    """Lines without comments; one that ends in a backslash goes on in the next (systemd.syntax(7))."""
    held = ""
    for raw in text.splitlines():
        line = raw.strip()
        if not line and not held:
            continue
        if line.startswith(("#", ";")):
            continue  # also between the parts of a continued line
        if line.endswith("\\"):
            held += f"{line[:-1].strip()} "
            continue
        if held or line:
            yield f"{held}{line}".strip()
        held = ""
    if held:
        yield held.strip()
