"""Looking into a box from outside: no process is started in it, so that waiting costs little."""

from __future__ import annotations

import http.client
import json
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Json = dict[str, Any]
STATE = Path(os.environ.get("SYSTEMD_BOX_DIR", "/run/systemd-box"))


def inside(name: str, path: str) -> Path:
    """This path of the box, as this machine reaches it. Absolute symlinks on the way would lead out.

    Raises:
        FileNotFoundError: the box is not up.

    """
    pid = (STATE / name / "init").read_text().split()[0]
    return Path(f"/proc/{pid}/root{path}")


def write(path: Path, text: str) -> None:
    """A file that everybody may read, with the folders above it; one that is there keeps its mode."""
    missing = [one for one in path.parents if not one.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        folder.chmod(0o755)
    new = not path.exists()
    path.write_text(text)
    if new:
        path.chmod(0o644)


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get(name: str, path: str) -> Json:
    """A GET at the daemon's admin socket.

    Raises:
        OSError, http.client.HTTPException, ValueError: no daemon, or one that is ending.

    """
    connection = _Unix(inside(name, "/run/gpu-arbiter/admin.sock"))
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            msg = f"status {reply.status}: {body[:200]!r}"
            raise ValueError(msg)
        found: Json = json.loads(body)
        return found
    finally:
        connection.close()


@contextmanager
def _following(name: str, since: float, match: tuple[str, ...]) -> Iterator[int]:
    journal = (STATE / name / "journal.dir").read_text().strip()
    argv = ["journalctl", "-q", "-D", journal, "-f", "--no-tail", "-o", "json", "--no-pager"]
    process = subprocess.Popen(
        [*argv, f"--since=@{since:.6f}", *match], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        yield process.stdout.fileno()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def entry(name: str, since: float, match: tuple[str, ...], timeout_s: float) -> Json | None:
    """The first journal entry of the box that matches, not older than ``since`` (wall time); None when
    none is written within ``timeout_s``. journalctl sleeps until the journal's files change.
    """
    end = time.monotonic() + timeout_s
    with _following(name, since, match) as pipe, selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        read = b""
        while b"\n" not in read:
            left = end - time.monotonic()
            if left <= 0 or not ready.select(left):
                return None
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                return None
            read += chunk
    found: Json = json.loads(read.partition(b"\n")[0])
    return found
