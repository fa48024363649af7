"""Who listens where, also on a host with many connections."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest

from arbiterd.linux import ports


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_listener_is_named_by_its_pid(family: socket.AddressFamily) -> None:
    """Ours and a child's; a port that nobody listens on has none, a connection is no listener."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as one:
        try:
            one.bind((host, 0))
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error.strerror}")
        port = one.getsockname()[1]
        assert ports.listener(port) is None
        one.listen()
        assert ports.holders((port,)) == [(port, os.getpid())]
        with socket.create_connection((host, port)) as other:
            assert ports.holders((other.getsockname()[1],)) == []
    assert ports.listener(port) is None
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True);"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert ports.listener(port) == child.pid
        child.communicate("")


def test_connections_cost_no_memory() -> None:
    """Looking for listeners holds less than the text of the kernel's table, here of 300 rows and more."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
        for _ in range(150):
            stack.enter_context(socket.create_connection(server.getsockname()))
            stack.enter_context(server.accept()[0])
        ports.listening()
        tracemalloc.start()
        try:
            found = ports.listening()
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert server.getsockname()[1] in {port for port, _ in found}
        assert peak - held < len(Path("/proc/net/tcp").read_bytes()) / 2


def test_a_lack_of_descriptors_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, not "nobody listens": who asks keeps what was known."""

    def full(*_: object, **__: object) -> object:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="Too many"):
        ports.holders((80,))
    assert ports.listener(80) is None
