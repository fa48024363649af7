"""``arbiterctl top`` on a real terminal, over a running daemon."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

from tests.support.host import SHARED, Host


def test_top_is_live_on_a_terminal_and_ends_with_q(host: Host) -> None:
    """It draws the backends, ends by q with 0, and gives the terminal back as it was."""
    host.write(SHARED)
    host.start()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "arbiterd.cli", "--config", str(host.config), "top"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "60"}
    try:
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env
        ) as child:
            os.close(theirs)
            seen = b""
            until = time.monotonic() + 20
            while b"q ends" not in seen and time.monotonic() < until:
                if select.select([ours], [], [], 0.5)[0]:
                    seen += os.read(ours, 65536)
            assert b"vllm" in seen, seen
            os.write(ours, b"q")
            assert child.wait(10) == 0
    finally:
        os.close(ours)


def test_without_a_terminal_it_is_printed_once(host: Host) -> None:
    """For a pipe, as ``status``."""
    host.write(SHARED)
    host.start()
    done = host.ctl("top")
    assert done.returncode == 0, done.stderr
    assert "holder" in done.stdout
    assert "\x1b" not in done.stdout
