"""Daemons and arbiterctls of a test, forked from one process that has imported them.

Imports are nine tenths of a daemon's start and of most commands. One such process per test worker takes
orders on a socket: each is a fork that goes on as ``python -m arbiterd`` or ``python -m arbiterd.cli`` does,
with its own environment, standard streams and session. Its /proc/PID/cmdline is this module's, and its
/proc/PID/environ is its parent's: who looks at them starts the program itself.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

DAEMON, CTL = "arbiterd", "arbiterctl"
_MOST = 128 * 1024  # bytes of an order: argv and environment
Order = dict[str, Any]


# -- in the process that forks ---------------------------------------------------------------------
def _import_all() -> None:
    """What a daemon and the commands import."""
    from importlib import import_module

    import arbiterd.daemon.main  # noqa: F401
    from arbiterd.cli import COMMANDS

    for where in {one.path.partition(":")[0] for one in COMMANDS.values()} | {"app", "common"}:
        import_module(f"arbiterd.cli.{where}")


def _serve(orders: socket.socket) -> Callable[[], object] | None:
    """Fork by orders until the tests' side is gone; in a fork: what it has to run."""
    while True:
        raw, fds, _, _ = socket.recv_fds(orders, _MOST, 3)
        if not raw:
            return None
        order: Order = json.loads(raw)
        if "reap" in order:
            _, status = os.waitpid(order["reap"], 0)
            orders.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            orders.close()
            return _become(order, fds)
        for fd in fds:
            os.close(fd)
        orders.send(str(pid).encode())


def _become(order: Order, fds: Sequence[int]) -> Callable[[], object]:
    if order["session"]:
        os.setsid()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = [order["what"], *order["argv"]]
    if order["what"] == DAEMON:
        from arbiterd.__main__ import main as daemon

        return daemon
    from arbiterd.cli import main as ctl

    return ctl


def _main() -> None:
    _import_all()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    orders = socket.socket(fileno=int(sys.argv[1]))
    run = _serve(orders)
    if run is not None:
        sys.exit(run())  # type: ignore[arg-type]


# -- on the tests' side ----------------------------------------------------------------------------
class Forked:
    """One fork: what a test uses of subprocess.Popen."""

    def __init__(self, forks: Forks, pid: int, out: IO[str] | None, err: IO[str] | None) -> None:
        self.pid = pid
        self.stdout, self.stderr = out, err
        self.returncode: int | None = None
        self._forks = forks
        self._guard = threading.Lock()
        self._ends = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        with self._guard:
            if self.returncode is None and select.select([self._ends], [], [], 0)[0]:
                self.returncode = int(self._forks.ask({"reap": self.pid}))
                os.close(self._ends)
                self._ends = -1
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, as soon as it has ended."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            with suppress(OSError, ValueError):  # another thread has reaped it
                select.select([self._ends], [], [], left)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Both outputs to their ends."""
        told = ["", ""]

        def read(number: int, file: IO[str]) -> None:
            told[number] = file.read()

        pipes = [(n, one) for n, one in enumerate((self.stdout, self.stderr)) if one is not None]
        readers = [threading.Thread(target=read, args=one, daemon=True) for one in pipes]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()  # the test has failed: what it leaves open would be told to the next one
            raise
        finally:
            for reader in readers:
                reader.join(timeout)
            for _, file in pipes:
                file.close()
        return told[0], told[1]

    def send_signal(self, number: int) -> None:
        """A signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that forks, for one LD_LIBRARY_PATH: the loader reads that at an exec only."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._guard = threading.Lock()
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders = mine
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forks", str(its.fileno())],
                env=dict(environ),
                stdout=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                start_new_session=True,
            )
        atexit.register(self.close)

    def ask(self, order: Order, fds: Sequence[int] = ()) -> bytes:
        """One order, one answer."""
        with self._guard:
            socket.send_fds(self._orders, [json.dumps(order).encode()], fds)
            answer = self._orders.recv(64)
        assert answer, "the process that forks has ended"
        return answer

    def close(self) -> None:
        """End it; what it has forked goes on."""
        self._orders.close()
        self._process.wait()

    def daemon(self, argv: Sequence[str], environ: Mapping[str, str], log: IO[bytes]) -> Forked:
        """A daemon that writes into this file."""
        return self._fork(DAEMON, argv, environ, (log.fileno(), log.fileno()), (None, None))

    def ctl(self, argv: Sequence[str], environ: Mapping[str, str]) -> Forked:
        """An arbiterctl whose outputs are piped."""
        ends = [os.pipe(), os.pipe()]
        out, err = (os.fdopen(read, encoding="utf-8") for read, _ in ends)
        try:
            return self._fork(CTL, argv, environ, (ends[0][1], ends[1][1]), (out, err))
        finally:
            for _, write in ends:
                os.close(write)

    def _fork(
        self, what: str, argv: Sequence[str], environ: Mapping[str, str],
        outputs: tuple[int, int], pipes: tuple[IO[str] | None, IO[str] | None],
    ) -> Forked:  # fmt: skip
        order = {
            "what": what, "argv": list(argv), "env": dict(environ), "cwd": os.getcwd(),
            "session": what == DAEMON,
        }  # fmt: skip
        with open(os.devnull, "rb") as nothing:
            pid = int(self.ask(order, (nothing.fileno(), *outputs)))
        return Forked(self, pid, *pipes)


_ready: dict[str, Forks] = {}
_making = threading.Lock()


def forks(environ: Mapping[str, str]) -> Forks:
    """This worker's for this LD_LIBRARY_PATH (there are two: with the simulated GPU and without), made when
    it is first asked for.
    """
    library = environ.get("LD_LIBRARY_PATH", "")
    with _making:
        if library not in _ready:
            _ready[library] = Forks(environ)
    return _ready[library]


def arbiterctl(
    argv: Sequence[str], environ: Mapping[str, str], timeout_s: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Run it to its end.

    Raises:
        subprocess.TimeoutExpired: it was killed.

    """
    return ended(forks(environ).ctl(argv, environ), argv, timeout_s)


def ended(
    process: Forked | subprocess.Popen[str], argv: Sequence[str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """What came of it; killed when it takes longer.

    Raises:
        subprocess.TimeoutExpired: it was killed.

    """
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(list(argv), process.wait(), out, err)


if __name__ == "__main__":
    _main()
