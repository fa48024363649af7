"""The lock of runtime_dir: whoever holds it, and what a killed daemon leaves of it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arbiterd.daemon.lock import Lock
from arbiterd.errors import AlreadyRunning


def _held_by_child(folder: Path, pid: int) -> subprocess.Popen[bytes]:
    """A child that inherited the lock of a daemon with this pid; it ends when its stdin does."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.pwrite(fd, f"{pid}\n".encode(), 0)
    line = [sys.executable, "-I", "-c", "input()"]
    child = subprocess.Popen(line, pass_fds=[fd], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    os.close(fd)
    return child


def test_what_a_killed_daemon_was_forking_is_waited_for(tmp_path: Path) -> None:
    """Its fork holds the lock until the exec; nobody else runs, so the next start does not give up."""
    gone = subprocess.Popen([sys.executable, "-I", "-c", ""])
    gone.wait()
    child = _held_by_child(tmp_path, gone.pid)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(Lock, tmp_path)
        assert child.stdin is not None
        child.stdin.close()
        job.result(60).close()
    child.wait()


def test_a_living_holder_is_named_at_once(tmp_path: Path) -> None:
    """Another arbiter: no wait."""
    child = _held_by_child(tmp_path, os.getpid())
    try:
        with pytest.raises(AlreadyRunning) as refused:
            Lock(tmp_path)
        assert refused.value.pid == os.getpid()
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()
