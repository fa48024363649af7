"""The stand-in Ollama's program beside ``serve``: --version, ps, list."""

from __future__ import annotations

import errno
import json
import os
import urllib.error
import urllib.request
from typing import Any

from arbiterd.sim.engines.common import say
from arbiterd.sim.engines.ollama_env import address
from arbiterd.sim.engines.ollama_models import models_folder
from arbiterd.sim.engines.ollama_scheduler import VERSION


def main(words: list[str]) -> int:
    """Run one command."""
    match words:
        case ["--version"] | ["-v"]:
            return _version()
        case ["ps"]:
            return _table("/api/ps", "NAME    ID    SIZE    PROCESSOR    CONTEXT    UNTIL ")
        case ["list"] | ["ls"]:
            return _table("/api/tags", "NAME    ID    SIZE    MODIFIED    ")
        case ["serve", flag] if flag.startswith("-"):
            say(f"Error: unknown flag: {flag}")
        case ["serve", *more]:
            say(f"Error: accepts 0 arg(s), received {len(more)}")
        case _:
            say(f'Error: unknown command "{" ".join(words[:1])}" for "ollama"')
    return 1


def _asked(path: str) -> dict[str, Any] | None:
    """What the server at OLLAMA_HOST answers, None when there is none."""
    host, port = address()
    shown = f"[{host}]" if ":" in host else host
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{shown}:{port}{path}", timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except (urllib.error.URLError, OSError, ValueError):
        return None


def _version() -> int:
    """The server's version; the program's own is told where no server answers or it differs
    (cmd/cmd.go, versionHandler).
    """
    found = _asked("/api/version")
    if found is None:
        print("Warning: could not connect to a running Ollama instance")
    else:
        print(f"ollama version is {found['version']}")
    if found is None or found["version"] != VERSION:
        print(f"Warning: client version is {VERSION}")
    return 0


def _table(path: str, head: str) -> int:
    found = _asked(path)
    if found is None:
        say("Error: could not connect to ollama server, run 'ollama serve' to start it")
        return 1
    print(head)
    for row in found["models"]:
        print(f"{row['name']}    {row['digest'][:12]}    {row['size'] // 1000} KB    ")
    return 0


def models_folder_fails() -> str:
    """Why ``serve`` ends for its models folder, "" when it does not. The stand-in makes none."""
    path = models_folder()
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there) or "/"
    if not os.path.isdir(there):
        return f"Error: mkdir {path}: not a directory: ensure path elements are traversable"
    if there != path and there.startswith("/proc"):
        why = os.strerror(errno.ENOENT).lower()
        return f"Error: mkdir {path}: {why}: ensure path elements are traversable"
    return ""
