"""arbiterctl in a child that is forked from this process: its imports, most of what a call costs, are done.

What the child has of its own: environment, standard streams, exit status, descriptors. What it shares with no real
start: interpreter options and the loader's view of LD_LIBRARY_PATH. A few tests start the real command.
"""

from __future__ import annotations

import gc
import io
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import BinaryIO

from arbiterd.cli import _COMMANDS, _command, main


@cache
def _load() -> None:
    for path in (*_COMMANDS.values(), "caps:caps"):
        _command(path)


def arbiterctl(
    argv: Sequence[str], env: Mapping[str, str], timeout_s: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Run it to its end.

    Raises:
        subprocess.TimeoutExpired: it was killed.

    """
    _load()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _be(argv, env, out, err)
        status = _wait(pid, argv, timeout_s)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(list(argv), os.waitstatus_to_exitcode(status), *texts)


def _wait(pid: int, argv: Sequence[str], timeout_s: float) -> int:
    watched = os.pidfd_open(pid)
    try:
        if not select.select([watched], [], [], timeout_s)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise subprocess.TimeoutExpired(list(argv), timeout_s)
    finally:
        os.close(watched)
    return os.waitpid(pid, 0)[1]


def _be(argv: Sequence[str], env: Mapping[str, str], out: BinaryIO, err: BinaryIO) -> None:
    """The child; never returns."""
    code = 1
    try:
        gc.freeze()  # no object of the parent is collected here: it would close a number of ours
        for number, file in ((1, out), (2, err)):
            os.dup2(file.fileno(), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                try:
                    os.close(int(name))
                except OSError:  # that of the listing itself
                    continue
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["arbiterctl", *argv]
        sys.stdin, sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, mode, closefd=False), write_through=True)
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        code = _run(argv)
    finally:
        os._exit(code)


def _run(argv: Sequence[str]) -> int:
    try:
        main(argv)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
