"""Throttling: fewer in flight at run time cuts nothing, and the lower limit holds for who comes next.

The real keeper and HAProxy; the engine ends each answer when the test says so.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from arbiterd.act.gateway.reconciler import GatewayKeeper
from arbiterd.act.gateway.services import DirectServices
from arbiterd.config import load
from arbiterd.gateway import runtime
from arbiterd.gateway.paths import paths
from arbiterd.model.gateway import Admit, BackendWish, GatewayWish
from arbiterd.model.reading import Known
from tests.support import PATIENCE_S, free_port, wait_until
from tests.support.host import settle

CONFIG = """
mode = "A"
[arbiter]
runtime_dir = "{home}/run"
state_dir = "{home}/state"
[gateway]
llm_port = 0
[backends.vllm]
command = ["vllm", "serve", "M"]
port = {port}
max_in_flight = 4
[modes.A]
vllm = {{ gpu = 0, memory = "50%" }}
"""


class Engine(ThreadingHTTPServer):
    """Counts who is in; ``leave`` lets so many of them end."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.inside = self.most = 0
        self.lock = threading.Lock()
        self.leave = threading.Semaphore(0)
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, *args: object) -> None:
        """HAProxy's checks hang up early."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        with server.lock:
            server.inside += 1
            server.most = max(server.most, server.inside)
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"begin")
        server.leave.acquire(timeout=PATIENCE_S)
        with server.lock:
            server.inside -= 1
        self.wfile.write(b"-end.")

    def log_message(self, *args: object) -> None:
        """Silent."""


class Doors:
    """One backend behind its door."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        (home / "run").mkdir()
        self.config = home / "gpu-arbiter.toml"
        self.config.write_text(CONFIG.format(home=home, port=self.port))
        self.settings = load(self.config, {}).settings
        self.paths = paths(str(home / "run"), systemd=False)
        self.engine = Engine(self.settings.active.backends["vllm"].engine_port)
        self.serving = threading.Thread(target=self.engine.serve_forever, args=(0.01,))
        self.serving.start()
        self.keeper = GatewayKeeper(
            self.paths, DirectServices(self.paths), lambda: None, systemd=False
        )
        self.wish = BackendWish("vllm", Admit.UP, True, "", 1, 1, 4, 16)

    def limit(self, count: int) -> None:
        """Order it, as the loop does each tick, until HAProxy has it."""
        self.wish = replace(self.wish, max_in_flight=count)
        wait_until(lambda: self._tick() == str(count), 10, f"the limit {count}")

    def _tick(self) -> str:
        self.keeper.order(GatewayWish({"vllm": self.wish}), self.settings)
        try:
            look = runtime.look(self.paths.runtime, self.paths.live)
        except runtime.GatewayGone:
            return ""
        rows = {f"{row.proxy}/{row.name}": row for row in look.rows}
        row = rows.get("be-vllm/engine")
        return row.values.get("slim", "") if row is not None else ""

    def traffic(self) -> tuple[int, int]:
        """(in flight, queued) as the keeper tells core."""
        self._tick()
        found = self.keeper.latest(time.monotonic()).traffic.get("vllm")
        return (found.value.in_flight, found.value.queued) if isinstance(found, Known) else (-1, -1)

    def ask(self, replies: list[str]) -> threading.Thread:
        """One request; its status and body go into ``replies``."""

        def run() -> None:
            with requests.Session() as session:
                session.trust_env = False
                url = f"http://127.0.0.1:{self.port}/v1/completions"
                reply = session.post(url, json={"model": "M", "prompt": "x"}, timeout=PATIENCE_S)
                replies.append(f"{reply.status_code} {reply.text}")

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def close(self) -> None:
        """End all of it."""
        for _ in range(64):
            self.engine.leave.release()
        self.keeper.stop()
        self.engine.shutdown()
        self.serving.join()
        self.engine.server_close()


@pytest.fixture
def doors() -> Iterator[Doors]:
    """Up, four may be in flight."""
    home = Path(tempfile.mkdtemp(prefix="gpua-thr-", dir="/tmp"))
    one = Doors(home)
    one.keeper.start()
    try:
        one.limit(4)
        yield one
    finally:
        one.close()
        shutil.rmtree(home, ignore_errors=True)


def test_a_lower_limit_cuts_nothing_and_holds_for_new_requests(doors: Doors) -> None:
    """Four run, the limit falls to one: they end whole; nobody enters before only one would run."""
    replies: list[str] = []
    threads = [doors.ask(replies) for _ in range(4)]
    wait_until(lambda: doors.engine.inside == 4, 10, "four to be in")
    doors.limit(1)
    threads += [doors.ask(replies) for _ in range(2)]
    wait_until(lambda: doors.traffic() == (4, 2), 10, "two to wait")
    for left in (3, 2, 1):
        doors.engine.leave.release()
        wait_until(lambda left=left: doors.engine.inside == left, 5)  # type: ignore[misc]
        assert settle(lambda left=left: doors.engine.inside == left, 0.2)  # type: ignore[misc]
    wait_until(lambda: doors.traffic() == (1, 2), 5, "the last of the four to run, both to wait")
    assert replies == ["200 begin-end."] * 3
    doors.engine.leave.release()
    wait_until(lambda: doors.traffic() == (1, 1), 5, "one of them to be let in")
    assert doors.engine.inside == 1
    doors.engine.leave.release()
    wait_until(lambda: doors.traffic() == (1, 0), 5)
    doors.engine.leave.release()
    for thread in threads:
        thread.join(10)
    assert replies == ["200 begin-end."] * 6
    assert doors.engine.most == 4


def test_a_limit_that_rises_again_lets_in_who_waits(doors: Doors) -> None:
    """Back additively: each step lets one more in at once."""
    replies: list[str] = []
    doors.limit(1)
    threads = [doors.ask(replies) for _ in range(4)]
    wait_until(lambda: doors.traffic() == (1, 3), 10)
    for count in (2, 3, 4):
        doors.limit(count)
        wait_until(lambda count=count: doors.engine.inside == count, 5)  # type: ignore[misc]
    for _ in threads:
        doors.engine.leave.release()
    for thread in threads:
        thread.join(10)
    assert replies == ["200 begin-end."] * 4


def test_a_new_file_is_served_once_another_worker_answers(doors: Doors) -> None:
    """A reload is only asked for: until HAProxy's next worker is there, the old settings are what counts."""

    def serves() -> str:
        doors.keeper.order(GatewayWish({"vllm": doors.wish}), doors.settings)
        return doors.keeper.latest(time.monotonic()).serves

    wait_until(lambda: serves() == doors.settings.source.sha256, 10, "the first file")
    worker = runtime.look(doors.paths.runtime, doors.paths.live).pid
    text = doors.config.read_text()
    doors.config.write_text(text.replace("max_in_flight", 'request_timeout = "7s"\nmax_in_flight'))
    doors.settings = load(doors.config, {}).settings
    wait_until(lambda: serves() == doors.settings.source.sha256, 10, "the next file")
    assert runtime.look(doors.paths.runtime, doors.paths.live).pid != worker
    assert "timeout server 7000" in doors.paths.config.read_text()
