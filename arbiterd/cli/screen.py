"""Standard output and error of a command, without the secrets of the configuration that it is about."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from arbiterd.secrets.values import Secrets

_secrets: list[Secrets] = []


class _Screen:
    """A stream that hides as it is written to; everything else is the stream's own."""

    def __init__(self, plain: TextIO, secrets: Secrets) -> None:
        self.plain = plain
        self._secrets = secrets

    def write(self, text: str) -> int:
        self.plain.write(self._secrets.redactor.text(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


@contextmanager
def screened() -> Iterator[None]:
    """While a command runs. ``know`` tells what to hide."""
    secrets = Secrets(os.environ)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Screen(one, secrets)) for one in before)
    _secrets.append(secrets)
    try:
        yield
    finally:
        _secrets.pop()
        sys.stdout, sys.stderr = before


def know(path: Path) -> None:
    """Hide what this configuration and its files hold; one that cannot be read holds nothing."""
    for one in _secrets[-1:]:
        one.read(path)


def document(value: object) -> object:
    """A JSON document, hidden by its strings: a number may look like a key, and stays."""
    return _secrets[-1].redactor.document(value) if _secrets else value


def plain() -> TextIO:
    """Standard output for what is without secrets already."""
    return cast("TextIO", getattr(sys.stdout, "plain", sys.stdout))
