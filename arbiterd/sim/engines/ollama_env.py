"""The stand-in Ollama's environment (envconfig/config.go): what it reads, and what it says of values
that it cannot read. A bad value is a warning and the default, never an end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from arbiterd.sim.engines.go_words import FOR_EVER_S, duration, log

PORT = 11434
_OWN_ORIGINS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds; ``context_length`` 0: by the card's memory; ``load_timeout_s`` 0: none."""

    host: str
    port: int
    max_loaded: int
    max_queue: int
    parallel: int
    context_length: int
    keep_alive_s: float
    load_timeout_s: float
    origins: tuple[str, ...]
    load_s: float = 0.4


def _warn(words: str, source: str, **fields: object) -> None:
    now = datetime.now().strftime("%Y/%m/%d %H:%M:%S")  # noqa: DTZ005 - local, as Go's log
    shown = " ".join(f"{name}={value}" for name, value in fields.items())
    sys.stderr.write(f"{now} {source}: WARN {words} {shown}\n")
    sys.stderr.flush()


def _number(key: str, default: int, *, again: bool) -> int:
    text = (os.environ.get(key) or "").strip("\"' ")
    if not text:
        return default
    if text.isdecimal():
        return int(text)
    words, fields = "invalid environment variable, using default", {"key": key, "value": text}
    if again:
        log("WARN", "config.go:263", words, **fields, default=default)
    else:
        _warn(words, "config.go:263", **fields, default=default)
    return default


def _seconds(key: str, default: float) -> float:
    text = (os.environ.get(key) or "").strip("\"' ")
    found = default
    with suppress(ValueError):
        found = float(text) if text.lstrip("-").isdecimal() else duration(text)
    return found


def address(*, warn: Callable[..., None] | None = None) -> tuple[str, int]:
    """OLLAMA_HOST; a port that is none is 11434."""
    text = (os.environ.get("OLLAMA_HOST") or "").strip("\"' ")
    text = text.split("://")[-1].split("/")[0]
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(PORT)
    number = int(port) if port.isdecimal() else -1
    if not 0 <= number <= 65535:
        if warn is not None:
            warn("invalid port, using default", "config.go:51", port=port, default=PORT)
        number = PORT
    return host.strip("[]") or "127.0.0.1", number


def read() -> Settings:
    """All of it, with warnings."""
    host, port = address(warn=_warn)
    found = {}
    for again in (False, True):
        found = {
            "max_loaded": _number("OLLAMA_MAX_LOADED_MODELS", 0, again=again),
            "max_queue": _number("OLLAMA_MAX_QUEUE", 512, again=again),
            "parallel": _number("OLLAMA_NUM_PARALLEL", 1, again=again),
            "context_length": _number("OLLAMA_CONTEXT_LENGTH", 0, again=again),
        }
    keep = _seconds("OLLAMA_KEEP_ALIVE", 300.0)
    hosts = ("localhost", "127.0.0.1", "0.0.0.0")  # nosec B104 # names in Origin
    given = [one for one in (os.environ.get("OLLAMA_ORIGINS") or "").split(",") if one]
    own = [
        f"{scheme}://{one}{rest}"
        for one in hosts
        for rest in ("", ":*")
        for scheme in ("http", "https")
    ]
    return Settings(
        host=host,
        port=port,
        keep_alive_s=FOR_EVER_S if keep < 0 else keep,
        load_timeout_s=max(0.0, _seconds("OLLAMA_LOAD_TIMEOUT", 300.0)),
        origins=(*given, *own, *_OWN_ORIGINS),
        **{**found, "max_loaded": found["max_loaded"] or 3, "parallel": found["parallel"] or 1},
    )
