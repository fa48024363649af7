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

from tests.support import PATIENCE_S

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
    """A file that everybody may read, whole at once, with the folders above it; one that is there keeps
    its owner and mode.
    """
    for folder in [one for one in reversed(path.parents) if not one.exists()]:
        folder.mkdir()
        folder.chmod(0o755)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(0o644)
    if path.exists():
        os.chown(temporary, path.stat().st_uid, path.stat().st_gid)
        temporary.chmod(path.stat().st_mode & 0o7777)
    temporary.replace(path)


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
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


def entry(name: str, since: float, match: tuple[str, ...], said: str = "") -> Json | None:
    """The first journal entry of the box that matches, not older than ``since`` (wall time) and with
    ``said`` in its message; None when none is written within PATIENCE_S. journalctl sleeps until the
    journal's files change.
    """
    end = time.monotonic() + PATIENCE_S
    with _following(name, since, match) as pipe, selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        read = b""
        while (left := end - time.monotonic()) > 0 and ready.select(left):
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                break
            *lines, read = (read + chunk).split(b"\n")
            for line in lines:
                found: Json = json.loads(line)
                if said in found["MESSAGE"]:
                    return found
    return None
