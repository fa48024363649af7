"""Threads beside the loop: each has a name, and work that is done once has a thread of its own.

Where the system refuses a thread (pids used up: TasksMax, a fork bomb), the work is begun as soon as there
is room again. Callers are in the middle of a tick: it is nothing that they could do better, and nothing
that may end the daemon.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

AGAIN_S = 0.5
NAME_MAX = 15  # what the kernel keeps of a thread's name


def thread(run: Callable[..., object], *args: object, name: str) -> threading.Thread:
    """A daemon thread, not begun yet. The kernel knows its name as well: ``ps -L``, ``top -H``
    (docs/threads.md lists them).
    """

    def told() -> None:
        with suppress(OSError), open("/proc/thread-self/comm", "w", encoding="utf-8") as comm:
            comm.write(name[:NAME_MAX])
        run(*args)

    return threading.Thread(target=told, name=name, daemon=True)


@dataclass(frozen=True, slots=True)
class _Work:
    run: Callable[..., object]
    args: tuple[Any, ...]
    name: str

    def begin(self) -> bool:
        """Whether its thread runs."""
        try:
            thread(self.run, *self.args, name=self.name).start()
        except RuntimeError:  # "can't start new thread": clone(2) says EAGAIN
            return False
        return True


class _Keeper:
    """Begins later what could not be begun. Its own thread is made with the first work, in good time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Work] = deque()
        self._there = False
        self._news = threading.Event()

    def begin(self, work: _Work) -> None:
        """Now, or in its turn."""
        with self._lock:
            if not self._there:
                self._there = _Work(self._run, (), "aside").begin()
            if not self._waiting and work.begin():
                return
            self._waiting.append(work)
        self._news.set()

    def _run(self) -> None:
        while True:
            self._news.wait()
            with self._lock:
                while self._waiting and self._waiting[0].begin():
                    self._waiting.popleft()
                if not self._waiting:
                    self._news.clear()
                    continue
            threading.Event().wait(AGAIN_S)


_keeper = _Keeper()


def aside(run: Callable[..., object], *args: object, name: str) -> None:
    """Run this in a daemon thread, now or as soon as the system allows one; never raises."""
    _keeper.begin(_Work(run, args, name))
