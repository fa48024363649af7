"""Actions carried out against real servers and processes: order, deadlines, sentences, lanes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest

from arbiterd.act.engine_requests import RequestFailed, carry_out
from arbiterd.act.executor import Executor
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.model.actions import (
    FreezeBackend,
    LoadModel,
    Outcome,
    SleepBackend,
    StartBackend,
    StopBackend,
    ThawBackend,
    UnloadModel,
    WakeBackend,
)
from arbiterd.model.health import HttpProbe
from arbiterd.model.launch import LaunchSpec
from tests.support import free_port, wait_until


class Engine(ThreadingHTTPServer):
    """Answers each path as told: (status, body), or not before ``go``, or a byte at a time."""

    daemon_threads = True

    def __init__(self, answers: dict[str, tuple[int, str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.bodies: list[str] = []
        self.go = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.server.bodies.append(self.rfile.read(length).decode())
        self.server.asked.append(self.path)
        status, body = self.server.answers.get(self.path, (404, "Not Found"))
        if body == "hang":
            self.server.go.wait(30)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            if body.startswith("trickle"):
                for char in body:
                    self.wfile.write(char.encode())
                    if self.server.go.wait(0.05):
                        break
            else:
                self.wfile.write(body.encode())
        except OSError:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Silent."""


@contextmanager
def engine(**answers: tuple[int, str]) -> Iterator[Engine]:
    """A server; names are paths."""
    one = Engine({f"/{name}": answer for name, answer in answers.items()})
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield one
    finally:
        one.go.set()
        one.shutdown()
        thread.join()
        one.server_close()


def post(path: str, timeout_s: float = 5.0, body: str | None = None) -> HttpProbe:
    """One request."""
    return HttpProbe("POST", path, body, timeout_s)


def test_requests_go_out_in_order() -> None:
    """Each with its body."""
    with engine(pause=(200, ""), sleep=(200, "")) as one:
        carry_out("cannot", one.url, (post("/pause", body='{"a": 1}'), post("/sleep")))
        assert one.asked == ["/pause", "/sleep"]
        assert one.bodies == ['{"a": 1}', ""]


@pytest.mark.parametrize("status", [404, 405])
def test_a_missing_route_counts_for_the_last_request_only(status: int) -> None:
    """A version without /pause sleeps all the same; one without /sleep does not."""
    with engine(pause=(status, "no"), sleep=(200, "")) as one:
        carry_out("cannot", one.url, (post("/pause"), post("/sleep")))
        assert one.asked == ["/pause", "/sleep"]
    with engine(pause=(200, ""), sleep=(status, '{"detail":"Not Found"}')) as one:
        with pytest.raises(RequestFailed) as failed:
            carry_out("cannot put vllm to sleep", one.url, (post("/pause"), post("/sleep")))
        sentence = f"cannot put vllm to sleep: POST /sleep: HTTP {status}: Not Found"
        assert str(failed.value) == sentence


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "Call to sleep method failed: x", "code": 500}}', "Call to sleep"),
        ('{"error": "server busy"}', "server busy"),
        ("plain\nwords", "plain words"),
        ("y" * 5000, "y" * 300),
    ],
)
def test_the_first_failure_ends_it_with_the_engines_words(body: str, said: str) -> None:
    """What comes after is not sent."""
    with engine(pause=(500, body), sleep=(200, "")) as one:
        with pytest.raises(RequestFailed, match=f"POST /pause: HTTP 500: {said}") as failed:
            carry_out("cannot", one.url, (post("/pause"), post("/sleep")))
        assert one.asked == ["/pause"]
        assert len(str(failed.value)) < 400


@pytest.mark.parametrize("how", ["hang", "trickle" * 100])
def test_each_request_has_its_own_deadline(how: str) -> None:
    """Silent or trickling: no answer within its time."""
    with engine(pause=(200, ""), sleep=(200, how)) as one:
        began = time.monotonic()
        with pytest.raises(RequestFailed, match=r"POST /sleep: no answer within 0\.3 s"):
            carry_out("cannot", one.url, (post("/pause", 5.0), post("/sleep", 0.3)))
        assert time.monotonic() - began < 4.0, "the deadline of another request counted"


def test_nobody_there_is_a_sentence() -> None:
    """Connection refused."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RequestFailed, match="POST /sleep: connection refused"):
        carry_out("cannot", url, (post("/sleep"),))
    with pytest.raises(RequestFailed, match="knows no request for it"):
        carry_out("cannot unload m", url, ())


# -- the executor -------------------------------------------------------------------------------
@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[DirectLauncher]:
    """Real processes."""
    made = DirectLauncher(tmp_path, lambda: None)
    made.adopt()
    yield made
    made.stop("probe", 0.0)
    made.close()


@contextmanager
def running(launcher: DirectLauncher, probe: HttpProbe | None = None) -> Iterator[Executor]:
    """An executor whose loads are ``probe``."""
    one = Executor(launcher, lambda _: probe, lambda: None)
    yield one
    one.close()


def ended(executor: Executor, count: int = 1, within_s: float = 10.0) -> list[Outcome]:
    """The next outcomes."""
    out: list[Outcome] = []

    def enough() -> bool:
        out.extend(executor.outcomes())
        return len(out) >= count

    wait_until(enough, within_s)
    return out


def test_every_reclaim_has_its_outcome(launcher: DirectLauncher) -> None:
    """Done, or why not, by the same action."""
    with engine(ok=(200, "{}"), bad=(500, "CUDA Error: out of memory")) as one, running(
        launcher, post("/ok")
    ) as executor:  # fmt: skip
        good, bad = (post("/ok"),), (post("/bad"),)
        for action, ok in (
            (UnloadModel("1", "o", "", "r", one.url, "m", good), True),
            (SleepBackend("2", "v", "", "r", one.url, good), True),
            (WakeBackend("3", "v", "", "r", one.url, bad), False),
            (LoadModel("4", "o", "", "r", one.url, "m", 1.0, 5.0), True),
            (ThawBackend("5", "v", "", "r"), True),
            (FreezeBackend("6", "v", "", "r", 1.0), False),
        ):
            executor.apply([action])
            outcome = ended(executor)[0]
            assert outcome.action is action
            assert outcome.ok is ok, outcome
            assert bool(outcome.detail) is not ok


def test_a_load_of_an_engine_that_loads_nothing_says_so(launcher: DirectLauncher) -> None:
    """No request, no silence."""
    with running(launcher) as executor:
        executor.apply([LoadModel("1", "v", "", "r", "http://127.0.0.1:1", "m", 1.0, 5.0)])
        assert ended(executor)[0].detail.startswith("cannot load m: ")


def test_nothing_that_hangs_holds_up_a_stop_of_the_same_card(launcher: DirectLauncher) -> None:
    """More sleeps and loads than threads, none comes to an end: a real process is stopped."""
    argv = (sys.executable, "-c", "import time; time.sleep(600)")
    with engine(slow=(200, "hang")) as one, running(launcher, post("/slow", 30.0)) as executor:
        spec = LaunchSpec("probe", argv, {}, "i")
        executor.apply([StartBackend("0", "probe", "GPU-1", "r", spec)])
        assert ended(executor)[0].ok
        hung = (post("/slow", 30.0),)
        executor.apply([SleepBackend(f"s{i}", "v", "GPU-1", "r", one.url, hung) for i in range(4)])
        executor.apply([LoadModel("l", "o", "GPU-1", "r", one.url, "m", 1.0, 30.0)])
        wait_until(lambda: len(one.asked) == 2, 5, "both workers to hang")
        executor.apply([StopBackend("x", "probe", "GPU-1", "r", 5.0)])
        outcome = ended(executor)[0]
        assert outcome.ok
        assert outcome.action.id == "x"
        other = WakeBackend("y", "v", "GPU-2", "r", one.url, (post("/none"),))
        executor.apply([other])
        assert ended(executor)[0].action is other, "another card is not concerned at all"
        one.go.set()
        ended(executor, 5)


class _Slow:
    """A launcher whose start comes to an end when it may, and that knows what it has started."""

    def __init__(self) -> None:
        self.may, self.entered = threading.Event(), threading.Event()
        self.running: set[str] = set()

    def start(self, spec: LaunchSpec) -> None:
        self.entered.set()
        assert self.may.wait(60)
        self.running.add(spec.backend)

    def stop(self, backend: str, grace_s: float) -> None:
        del grace_s
        self.running.discard(backend)


@pytest.mark.parametrize("under_way", [True, False], ids=["under way", "still queued"])
def test_a_stop_never_overtakes_the_start_before_it(under_way: bool) -> None:
    """One under way comes to its end first and one still queued is dropped: nothing is left running."""
    launcher = _Slow()
    with running(cast("DirectLauncher", launcher)) as executor:
        spec = LaunchSpec("probe", ("x",), {}, "i")
        busy = [StartBackend(f"b{i}", f"b{i}", "GPU-1", "r", replace(spec, backend=f"b{i}"))
                for i in range(0 if under_way else 2)]  # fmt: skip
        executor.apply([*busy, StartBackend("start", "probe", "GPU-1", "r", spec)])
        assert launcher.entered.wait(60)
        executor.apply([StopBackend("stop", "probe", "GPU-1", "r", 5.0)])
        if under_way:
            assert not executor.outcomes()
        else:
            assert ended(executor)[0].action.id == "stop", "nobody else's start is waited for"
        launcher.may.set()
        found = {one.action.id: one for one in ended(executor, len(busy) + (2 if under_way else 1))}
        assert found["start"].ok is under_way
        assert launcher.running == {one.backend for one in busy}
