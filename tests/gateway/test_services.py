"""HAProxy and the load gate as children: none is left behind unreaped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from arbiterd.act.gateway.services import GATE, DirectServices
from arbiterd.gateway.paths import paths
from arbiterd.linux import procfs
from tests.support import wait_until

# The main thread ends alone (exit, not exit_group); the other one does when its input is closed.
HALF_DEAD = """
import ctypes, os, sys, threading
threading.Thread(target=os.read, args=(int(sys.argv[1]), 1)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""


def test_a_child_whose_main_thread_ends_first_is_reaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a zombie that cannot be reaped until its other threads have ended."""
    where = paths(str(tmp_path), systemd=False)
    where.files.mkdir(parents=True)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    ours = os.open(fifo, os.O_RDWR)
    code = HALF_DEAD.replace("int(sys.argv[1])", f"os.open({str(fifo)!r}, os.O_RDWR)")
    monkeypatch.setattr(DirectServices, "_argv", lambda *_: [sys.executable, "-c", code])
    services = DirectServices(where)
    services.start(GATE)
    pid = services._children[GATE].pid
    wait_until(lambda: procfs.ref(pid) is None, 10, "its main thread's end")
    assert services._children[GATE].poll() is None
    os.write(ours, b"x")
    services.stop(GATE)
    assert not Path(f"/proc/{pid}").exists()
    os.close(ours)
