"""Models of TensorFlow Serving that lie elsewhere: its unit reaches loopback only, and cannot read them."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

from arbiterd.config.parse import KeyPath, Report
from arbiterd.engines.flags import value_of
from arbiterd.model.settings import BackendSettings, Kind

# TensorFlow's file systems go by scheme (s3, gs, hdfs, viewfs, har, http, abfs, ...); two are local.
_REMOTE = re.compile(r"(?<![\w+.-])(?!(?:file|ram)://)[A-Za-z][A-Za-z0-9+.-]*://[^\s\"']*")
_MOST = 1024 * 1024


def remote(text: str) -> str:
    """The first path of another host in it, "" without one."""
    found = _REMOTE.search(text)
    return found[0] if found else ""


def check_remote(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """Behind the doors only: its gRPC cannot bind loopback, so IPAddressDeny= does it (engines/container.py
    has another way for images).
    """
    if backend.kind is not Kind.TENSORFLOW or backend.image or report.broken(*at, "command"):
        return
    for where, path in _paths(backend):
        report.add(
            (*at, "command"),
            f"{where} is {path}, and this engine's unit reaches loopback only (its gRPC cannot bind there)",
            "copy the model to a folder of this host, or run it as image = ...",
            "warning",
        )


def _paths(backend: BackendSettings) -> Iterator[tuple[str, str]]:
    """(what names it, the path). Secrets of a URL's userinfo are hidden by whoever prints it."""
    words = iter(backend.command[1:])
    for word in words:
        path = remote(word)
        if path:
            flag = word.partition("=")[0] if word.startswith("-") else "an argument"
            yield flag, path
    name = value_of(backend.command, "model-config-file")
    if name and not remote(name):
        for path in dict.fromkeys(_REMOTE.findall(_text(name))):
            yield f"base_path in {name}", path


def _text(name: str) -> str:
    """A regular file's first MiB; "" when it cannot be read, which is the engine's to say."""
    try:
        path = Path(name)
        if not stat.S_ISREG(path.stat().st_mode):
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST)
    except OSError:
        return ""
