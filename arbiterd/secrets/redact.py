"""Text and documents without secrets. Pure: ``values`` finds the values, this file hides them.

A value is hidden wherever it stands whole: as it is, and as JSON, a URL, a shell, HTML or base64 writes
it (a Basic header, a query in an access log). What a program has changed otherwise (cut, hashed, spelt
backwards) cannot be found.
"""

from __future__ import annotations

import base64
import html
import json
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote, quote_plus

HIDDEN = "[redacted]"
LEAST = 8  # characters; a shorter value would hide ordinary words, and is no key that holds
_LABEL = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_ESCAPE = re.compile(r"%[0-9A-F]{2}")


class Redactor:
    """Values once learned stay known: an engine may still run with a key that the file has lost.
    Every method may be called by any thread. ``generation`` grows with each value that is learned.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._values: frozenset[str] = frozenset()
        self._forms: tuple[str, ...] = ()
        self.generation = 0
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """Hide these from now on, as far as they have LEAST characters."""
        found = {part for value in values for part in _parts(value)}
        with self._lock:
            if found <= self._values:
                return
            self._values |= found
            forms = {form for value in self._values for form in _forms(value)}
            self._forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))
            self.generation += 1

    def has(self, text: str) -> bool:
        """Whether a secret stands in it."""
        return any(form in text for form in self._forms)

    def text(self, text: str) -> str:
        """The text with every secret hidden, also where lines break within one."""
        if not self._forms:
            return text
        return "\n".join(self.lines(text.split("\n")))

    def lines(self, lines: Sequence[str]) -> tuple[str, ...]:
        """Consecutive lines of output; a secret that goes on in the next line is hidden whole."""
        whole = "".join(lines)
        if not self.has(whole):
            return tuple(lines)
        spans = list(_spans(whole, self._forms))
        out, start = [], 0
        for line in lines:
            out.append(_without(line, start, spans))
            start += len(line)
        return tuple(out)

    def document(self, value: object) -> object:
        """A JSON document: keys and strings; numbers stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(key) if isinstance(key, str) else key: self.document(one)
                for key, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.document(one) for one in value]
        return value

    def json(self, text: str) -> str:
        """A document that is written already; read again only where there is something to hide."""
        if not self.has(text):
            return text
        end = text[len(text.rstrip("\n")) :]
        made = self.document(json.loads(text))
        return json.dumps(made, separators=(",", ":")) + end  # ASCII: half a surrogate has no UTF-8

    def labels(self, text: str) -> str:
        """Prometheus text: values of labels and nothing else, since a number may look like a key."""
        if not self.has(text):
            return text
        return _LABEL.sub(lambda found: self.text(found[0]), text)


def _parts(value: str) -> Iterator[str]:
    """The value, each of its lines, and each of a list of keys in one value."""
    for one in (value, *value.splitlines(), *re.split(r"[,;\s]+", value)):
        plain = one.strip()
        if len(plain) >= LEAST:
            yield plain


def _forms(value: str) -> Collection[str]:
    """How programs write this value; without line ends, as ``lines`` compares."""
    plain = json.dumps(value)[1:-1]
    found = {
        value,
        plain,
        json.dumps(value, ensure_ascii=False)[1:-1],
        json.dumps(plain)[1:-1],  # a document within a document
        repr(value)[1:-1],
        value.replace("'", "'\"'\"'"),
        value.replace("'", "'\\''"),
        html.escape(value),
        html.escape(value, quote=False),
        *_base64(value.encode(errors="surrogatepass")),
    }
    raw = value.encode(errors="surrogatepass")
    for escaped in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        found |= {escaped, _ESCAPE.sub(lambda one: one[0].lower(), escaped)}
    whole = {form.replace("\n", "") for form in found}
    return (whole | {form.replace("\r", "") for form in whole}) - {""}


def _base64(raw: bytes) -> Iterator[str]:
    """What of it is the same whatever stands before it (``user:``) and behind it."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + raw).decode()
        core = text[(0, 2, 3)[before] : (before + len(raw)) * 8 // 6]
        yield core
        yield core.replace("+", "-").replace("/", "_")


def _spans(text: str, forms: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where secrets stand, in order; those that overlap or touch are one."""
    found = []
    for form in forms:
        at = text.find(form)
        while at >= 0:
            found.append((at, at + len(form)))
            at = text.find(form, at + 1)
    begin = end = -1
    for first, last in sorted(found):
        if first > end:
            if end >= 0:
                yield begin, end
            begin = first
        end = max(end, last)
    if end >= 0:
        yield begin, end


def _without(line: str, start: int, spans: Iterable[tuple[int, int]]) -> str:
    """``line``, which begins at ``start``: a span's first line says so, the others lose its rest."""
    out, at, end = [], start, start + len(line)
    for first, last in spans:
        if last <= start or first >= end:
            continue
        out.append(line[at - start : max(first, at) - start])
        if first >= start:
            out.append(HIDDEN)
        at = min(last, end)
    return "".join((*out, line[at - start :]))
