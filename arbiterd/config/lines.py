"""Line numbers of keys in a TOML text. No TOML library for Python reports them.

Only a valid text gets here (tomllib has parsed it), so this walks it instead of parsing it: table
headers, keys at the start of a line, strings and brackets to be skipped. Keys inside an inline table
share the line on which they stand.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

Path = tuple[str, ...]
_KEY = re.compile(
    r"""((?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
_STRINGS = (r'"""(?:[^\\]|\\.)*?"""', r"'''.*?'''", r'"(?:[^"\\\n]|\\.)*"', r"'[^'\n]*'")
_BLANKED = re.compile("|".join((r"#[^\n]*", *_STRINGS)), re.DOTALL)
_INSIDE = "\0"  # of a string; no valid text has this character


def _parts(text: str) -> Path:
    return tuple(_name(part) for part in _PART.findall(text))


def _name(part: str) -> str:
    """A key as TOML means it: escapes count in double quotes only."""
    if part[0] not in "\"'":
        return part
    return str(next(iter(tomllib.loads(f"{part} = 0"))))


@dataclass(slots=True)
class _Open:
    """An open bracket: of which value, and the how-manieth element comes next."""

    path: Path
    array: bool
    index: int = 0


class Lines:
    """1-based lines of key paths. Array tables count: ('failover', '0', 'to')."""

    def __init__(self, text: str) -> None:
        self._at: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}
        self._walk(_blank(text).split("\n"), text.split("\n"))

    def of(self, path: Path) -> int:
        """The line of this key, or of the nearest table above it that has one; 1 when none has."""
        for end in range(len(path), 0, -1):
            found = self._at.get(path[:end])
            if found:
                return found
        return 1

    def has(self, path: Path) -> bool:
        """Whether the file writes this very key."""
        return path in self._at

    def _walk(self, blanked: list[str], lines: list[str]) -> None:
        table: Path = ()
        stack: list[_Open] = []
        for number, (line, raw) in enumerate(zip(blanked, lines, strict=True), 1):
            if not stack and line.lstrip().startswith("["):
                parts = _parts(raw[: line.index("]")])
                table = self._header(parts, number, array=line.lstrip().startswith("[["))
                continue
            self._keys(line, raw, number, table, stack)

    def _header(self, path: Path, number: int, *, array: bool) -> Path:
        if array:
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            self._at.setdefault(path, number)
            path = (*path, str(index))
        self._at.setdefault(path, number)
        return path

    def _keys(self, line: str, raw: str, number: int, table: Path, stack: list[_Open]) -> None:
        """Every key of this line; ``stack``: the brackets that are open."""
        position = 0
        last = stack[-1].path if stack else table
        expects_key = not stack or not stack[-1].array
        while position < len(line):
            char = line[position]
            if char in " \t\r" or char == _INSIDE:
                position += 1
                continue
            found = _KEY.match(raw, position) if expects_key else None
            if found is not None:
                base = stack[-1].path if stack else table
                last = (*base, *_parts(found[1]))
                self._at.setdefault(last, number)
                position, expects_key = found.end(), False
                continue
            if char == "#":
                break
            if char in "{[":
                inner = stack[-1] if stack else None
                path = (*inner.path, str(inner.index)) if inner and inner.array else last
                self._at.setdefault(path, number)
                stack.append(_Open(path, array=char == "["))
                expects_key = char == "{"
            elif char in "}]" and stack:
                stack.pop()
                expects_key = False
            elif char == "," and stack:
                stack[-1].index += 1
                expects_key = not stack[-1].array
            position += 1


def _blank(text: str) -> str:
    """The text without what strings and comments say, their quotes, ``#`` and newlines kept: brackets and
    keys in them do not count.
    """

    def dull(match: re.Match[str]) -> str:
        first, inside = match[0][0], re.sub(r"[^\n]", _INSIDE, match[0][1:])
        return first + inside

    return _BLANKED.sub(dull, text)


def flatten(value: Mapping[str, object], prefix: Path = ()) -> set[Path]:
    """Every key path of a parsed file."""
    out: set[Path] = set()
    for key, inner in value.items():
        out.add((*prefix, key))
        if isinstance(inner, Mapping):
            out |= flatten(inner, (*prefix, key))
    return out
