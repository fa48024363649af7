"""``arbiterctl top`` on a real terminal, over a running daemon."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE_S, wait_until
from tests.support.host import SHARED, Host

LOOKED_AT_S = 10.0
pytestmark = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="needs tmux (scripts/setup installs it as root)"
)


class Terminal:
    """A tmux server of this test's own: one window of 160 x 50, read as a person sees it."""

    def __init__(self, socket: Path, command: str) -> None:
        self._socket = str(socket)
        env = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        self._tmux(
            "-f", "/dev/null", "new-session", "-d", "-x", "160", "-y", "50", command, env=env
        )

    def _tmux(self, *words: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *words],
            env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def screen(self) -> str:
        """What stands there now."""
        return self._tmux("capture-pane", "-p")

    def type(self, keys: str) -> None:
        """Type."""
        self._tmux("send-keys", keys)

    def close(self) -> None:
        """End this server and nobody else's."""
        subprocess.run(
            ["tmux", "-S", self._socket, "kill-server"], capture_output=True, check=False
        )


@pytest.fixture
def terminal(host: Host, tmp_path: Path) -> Iterator[Terminal]:
    """``top`` in a window; the shell beside it says how it ended."""
    host.write(SHARED)
    host.start()
    argv = [
        sys.executable,
        "-m",
        "arbiterd.cli",
        "--config",
        str(host.config),
        "top",
        "--every",
        "0.5",
    ]
    one = Terminal(
        tmp_path / "tmux", f"sh -c {shlex.quote(shlex.join(argv) + '; echo ended $?; cat')}"
    )
    yield one
    one.close()


def test_top_goes_on_for_ten_seconds_and_survives_the_daemon(
    host: Host, terminal: Terminal
) -> None:
    """Frame after frame tells a later tick; a dead daemon is said on the next frame, a new one is
    shown again; q ends it with 0. Without a terminal, for a pipe, it is printed once, as ``status``.
    """
    piped = host.ctl("top")
    assert piped.returncode == 0, piped.stderr
    assert "holder" in piped.stdout
    assert "\x1b" not in piped.stdout
    ticks: list[int] = []

    def tick() -> int:
        found = re.search(r"tick (\d+)", terminal.screen())
        return int(found[1]) if found else -1

    wait_until(lambda: tick() >= 0, 40, "the first frame")
    until = time.monotonic() + LOOKED_AT_S
    while time.monotonic() < until:
        before = tick()
        wait_until(lambda before=before: tick() > before, 30, "a later frame")  # type: ignore[misc]
        ticks.append(tick())
    assert ticks == sorted(ticks)
    assert len(set(ticks)) >= 2
    assert "vllm" in terminal.screen()
    assert terminal.screen().count("gpu-arbiter 0.") == 1, "one frame at a time"
    host.kill()
    wait_until(lambda: "no daemon answers" in terminal.screen(), 30, "the dead daemon is said")
    host.start()
    wait_until(lambda: tick() >= 0, 40, "the new daemon is shown")
    terminal.type("q")
    wait_until(lambda: "ended 0" in terminal.screen(), 30, "q ends it")
