"""One arbiter per runtime_dir: a lock file that names its holder."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from arbiterd.errors import AlreadyRunning
from arbiterd.files.owned import claim
from arbiterd.linux import procfs

FORK_S = 5.0


class Lock:
    """An flock on runtime_dir/lock, held until close or the end of the process. ``problem``: what was
    wrong with the folder's mode.
    """

    def __init__(self, runtime_dir: Path) -> None:
        """Take it.

        Raises:
            AlreadyRunning: somebody holds it; carries the pid.
            FolderRefused: the folder belongs to another user.
            OSError: the folder cannot be written.

        """
        self.problem = claim(runtime_dir)
        path = runtime_dir / "lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        if not self._take():
            holder = _pid_in(self._fd)
            os.close(self._fd)
            raise AlreadyRunning(str(path), holder)
        self._path = path
        os.ftruncate(self._fd, 0)
        with suppress(OSError):  # a full disk: the lock holds, its holder's pid is not told
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _take(self) -> bool:
        """A daemon that was killed while it started a process is gone, and that process holds the lock
        until its exec: waited for.
        """
        deadline = time.monotonic() + FORK_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                pid = _pid_in(self._fd)
                if (pid and procfs.ref(pid)) or time.monotonic() >= deadline:
                    return False
                time.sleep(0.02)
            else:
                return True

    def lost(self) -> bool:
        """Whether the folder (or this file in it) was removed or replaced: another daemon could start."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        mine = os.fstat(self._fd)
        return (found.st_dev, found.st_ino) != (mine.st_dev, mine.st_ino)

    def close(self) -> None:
        """Give it back."""
        os.close(self._fd)


def _pid_in(fd: int) -> int:
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else 0


def holder(runtime_dir: Path) -> tuple[int, str] | None:
    """(pid, command) of the arbiter that holds the lock of this folder, None when nobody does."""
    try:
        fd = os.open(runtime_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pid = _pid_in(fd)
        return pid, procfs.command(pid) if pid else ""
    else:
        return None
    finally:
        os.close(fd)
