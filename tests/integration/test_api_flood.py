"""10,000 connections and 50 viewers of the page: the API sheds, the loop does not notice.

Lateness is the daemon's own account (loop.late_s, loop.missed). What a busy machine costs it is told apart
by the kernel: the time that its threads were ready to run and did not (schedstat).
"""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from arbiterd.web.lines import MOST_GATE, MOST_TCP, MOST_UNIX
from tests.support import PATIENCE_S, wait_until
from tests.support.host import SHARED, Host

CONNECTIONS, VIEWERS = 10_000, 50
TICKS = 60  # of a measurement
POLL_S = 0.1  # of SHARED


@dataclass(frozen=True)
class Lateness:
    """What the loop tells of itself, and how long its process waited for a CPU, in seconds."""

    ticks: int
    late_s: float
    missed: int
    waited_s: float

    def since(self, before: Lateness) -> Lateness:
        """The difference."""
        return Lateness(
            self.ticks - before.ticks,
            self.late_s - before.late_s,
            self.missed - before.missed,
            self.waited_s - before.waited_s,
        )

    @property
    def own_s(self) -> float:
        """Lateness for each tick that no lack of CPU accounts for."""
        return max(0.0, self.late_s - self.waited_s) / self.ticks


def _lateness(host: Host) -> Lateness:
    assert host.process is not None
    waited = 0
    for task in Path(f"/proc/{host.process.pid}/task").iterdir():
        with suppress(OSError):
            waited += int((task / "schedstat").read_text().split()[1])
    with requests.Session() as session:
        session.trust_env = False
        loop = session.get(host.url("/v1/status"), timeout=PATIENCE_S).json()["loop"]
    return Lateness(loop["tick"], loop["late_s"], loop["missed"], waited / 1e9)


def _measured(host: Host, began: Lateness, ticks: int) -> Lateness:
    found = [Lateness(0, 0.0, 0, 0.0)]

    def enough() -> bool:
        with suppress(requests.RequestException):
            found[0] = _lateness(host).since(began)
        return found[0].ticks >= ticks

    wait_until(enough, 120, f"{ticks} ticks")
    return found[0]


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may hold as many sockets as the kernel lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < CONNECTIONS + 500:
        pytest.skip(f"RLIMIT_NOFILE is {hard} here: {CONNECTIONS} connections cannot be opened")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _open(port: int, count: int) -> list[socket.socket]:
    """Connections that say nothing; none of them is waited for."""
    out = []
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        with suppress(BlockingIOError):
            one.connect(("127.0.0.1", port))
        out.append(one)
    return out


def _answers(host: Host) -> bool:
    """A new client is served, in its turn."""
    with suppress(requests.RequestException), requests.Session() as session:
        session.trust_env = False
        return session.get(host.url("/v1/caps"), timeout=PATIENCE_S).status_code == 200
    return False


@pytest.mark.usefixtures("many_files")
def test_ten_thousand_connections_and_fifty_viewers(host: Host) -> None:
    """The daemon lives, its descriptors are bounded, nothing is called hung or gone, and who asks in
    earnest is answered: by the page's own port, and by the operators' socket.
    """
    host.write(SHARED)
    host.start()
    host.wait_ready()
    assert host.process is not None
    before = host.mains()
    quiet = _measured(host, _lateness(host), TICKS)
    ticks = host.status()["loop"]["tick"]
    stop, served = threading.Event(), [0] * VIEWERS

    def view(number: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not stop.is_set():
                with suppress(requests.RequestException):
                    for path in ("/v1/status", "/v1/incidents?limit=12", "/v1/caps"):
                        served[number] += (
                            session.get(host.url(path), timeout=PATIENCE_S).status_code == 200
                        )
                stop.wait(1.0)

    viewers = [threading.Thread(target=view, args=(number,)) for number in range(VIEWERS)]
    began = _lateness(host)
    for viewer in viewers:
        viewer.start()
    idle = _open(host.listen, CONNECTIONS)
    slow = _open(host.listen, 200)
    try:
        wait_until(lambda: _answers(host), 60, "an answer beside 10,000 connections")
        most = MOST_TCP + MOST_UNIX + MOST_GATE
        for one in slow:  # a head that never ends
            with suppress(OSError):
                one.send(b"GET /v1/status HTTP/1.1\r\nX: ")
        wait_until(lambda: all(served), 60, "every viewer to be served")
        assert _descriptors(host.process.pid) < most + 200
        assert _answers(host)
        flooded = _measured(host, began, TICKS)
        assert host.process.poll() is None
    finally:
        stop.set()
        for one in (*idle, *slow):
            one.close()
        for thread in viewers:
            thread.join()
    wait_until(
        lambda: _descriptors(host.process.pid) < 200 if host.process else False, 60, "the end"
    )
    seen = host.status()
    assert seen["loop"]["tick"] > ticks
    assert host.mains() == before
    assert not [
        e for e in host.events() if e.get("ARBITER_EVENT") in ("driver_hung", "exit", "bug")
    ]
    assert Path(f"/proc/{host.process.pid}").exists()
    print(f"quiet {quiet}, flooded {flooded}")
    assert flooded.missed * POLL_S <= flooded.waited_s + quiet.late_s, "a tick was missed for it"
    assert flooded.own_s <= POLL_S / 4, f"ticks come late: {flooded}; without clients {quiet}"
