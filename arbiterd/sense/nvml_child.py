"""One NVML worker process as its owner sees it: pipes, the shared word, how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from arbiterd import aside
from arbiterd.files.trust import own_environ
from arbiterd.sense.nvml_answers import parsed

_STARTING = -2  # as in nvml_worker.py, which is not imported: it would bring pynvml along


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is asked. ``only`` None: every GPU; indices are NVML's."""

    seq: int
    processes: bool = False
    utilisation: bool = False
    skip: Collection[int] = ()
    only: Collection[int] | None = None
    watch: Mapping[str, int] | None = None
    events: bool = True

    def line(self) -> str:
        """As the worker reads it."""
        asked = {
            "seq": self.seq,
            "processes": self.processes,
            "utilisation": self.utilisation,
            "skip": sorted(self.skip),
            "events": self.events,
        }
        if self.only is not None:
            asked["only"] = sorted(self.only)
        if self.watch is not None:
            asked["watch"] = dict(self.watch)
        return json.dumps(asked) + "\n"


class Child:
    """A worker. ``on_line`` gets each answer, ``on_end`` its exit status, both in a reader thread.

    Raises:
        OSError: descriptors or pids are used up.

    """

    def __init__(
        self,
        on_line: Callable[[Child, dict[str, Any]], None],
        on_end: Callable[[Child, int], None],
    ) -> None:
        self.asked_at: float | None = None
        self.asked_seq = 0
        self.answered = False
        self._word = os.memfd_create("nvml-worker")
        os.ftruncate(self._word, 4096)
        os.pwrite(self._word, struct.pack("i", _STARTING), 0)
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-m",
                    "arbiterd.sense.nvml_worker",
                    str(os.getpid()),
                    str(self._word),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
                pass_fds=(self._word,),
                env=own_environ(),
            )
        except OSError:
            os.close(self._word)
            raise
        self._on_line = on_line
        self._on_end = on_end
        self.reader = aside.thread(self._read, name="nvml")
        try:
            self.reader.start()
        except RuntimeError as error:  # no thread to be had: as little use as no process
            self._discard()
            raise OSError(errno.EAGAIN, str(error)) from None

    def _discard(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._word)

    def ask(self, order: Order, now: float) -> bool:
        """Send an order; False when it has ended."""
        self.asked_seq, self.asked_at = order.seq, now
        try:
            _pipe(self.process.stdin).write(order.line())
        except (OSError, ValueError):
            return False
        return True

    def where(self) -> int:
        """NVML's index of the device whose calls it is in; negative: in none."""
        with suppress(OSError, struct.error):
            return int(struct.unpack("i", os.pread(self._word, 4, 0))[0])
        return -1

    def kill(self) -> None:
        """Make it end. May not help at once, nor ever (D state); does not wait."""
        with suppress(OSError, ValueError):
            _pipe(self.process.stdin).close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)

    def _read(self) -> None:
        for line in _pipe(self.process.stdout):
            answer = parsed(line)
            if answer is not None:
                self._on_line(self, answer)
        code = self.process.wait()
        _pipe(self.process.stdout).close()
        with suppress(OSError, ValueError):
            _pipe(self.process.stdin).close()
        word, self._word = self._word, -1
        os.close(word)
        self._on_end(self, code)


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise ValueError
    return stream
