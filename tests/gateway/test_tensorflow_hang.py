"""A TensorFlow Serving whose session hangs, is slow, or idles: real processes, the door between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from tests.gateway.conftest import make
from tests.support.host import Host, running, settle

ONLY = '[modes.A]\ntensorflow = { gpu = 0, memory = "20%" }\n'
PREDICT, ROWS = "/v1/models/resnet50:predict", {"instances": [[0.0] * 4]}


@contextmanager
def tensorflow(lib: Path, keys: str = "", **faults: object) -> Iterator[Host]:
    """TensorFlow alone behind its door, ready; suspicion after two seconds."""
    host = make(lib)
    host.write(ONLY, only=("tensorflow",), keys={"tensorflow": f'stuck_after = "2s"\n{keys}'})
    host.fault("tensorflow", **faults)
    with running(host):
        host.wait_ready()
        yield host
    shutil.rmtree(host.home, ignore_errors=True)


def ask(host: Host) -> threading.Thread:
    """A client that waits long."""

    def post() -> None:
        with suppress(requests.RequestException):
            requests.post(host.door("tensorflow", PREDICT), json=ROWS, timeout=60)

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    return thread


def finished(host: Host) -> float:
    """The engine's own counter of REST requests."""
    port = host.ports["tensorflow"] + 10000
    url = f"http://127.0.0.1:{port}/monitoring/prometheus/metrics"
    rows = host.session.get(url, timeout=5).text.splitlines()
    return next(float(row.split()[-1]) for row in rows if row.startswith(":tensorflow"))


def test_a_hung_session_is_found_though_status_answers_and_moves_its_counter(
    sim_lib: Path,
) -> None:
    """Idle nothing happens; with a request let in it is stuck and restarted, and serves again."""
    with tensorflow(sim_lib) as host:
        assert host.backend("tensorflow")["canaries"] == {"resnet50": "kept"}
        assert "canary kept" in host.ctl("why", "tensorflow").stdout
        pid = host.backend("tensorflow")["pids"][0]
        host.fault("tensorflow", hang=True)
        before = finished(host)
        host.wait(lambda: finished(host) >= before + 5, "status requests in its counter")
        assert not host.events("stuck"), "nobody has asked: no evidence"
        client = ask(host)
        told = host.wait_event("stuck", "tensorflow")
        assert "canary failed 2 times: no answer within" in told["MESSAGE"]
        host.wait_event("exit", "tensorflow")
        host.fault("tensorflow")
        host.wait(lambda: len(host.events("ready", "tensorflow")) == 2, "it to be back")
        host.wait_ready()
        assert host.backend("tensorflow")["pids"][0] != pid
        client.join(30)
        reply = requests.post(host.door("tensorflow", PREDICT), json=ROWS, timeout=10)
        assert reply.status_code == 200


def test_a_stopped_server_is_found_by_its_status(sim_lib: Path) -> None:
    """SIGSTOP: nothing answers; no traffic is needed for that."""
    with tensorflow(sim_lib) as host:
        os.kill(host.backend("tensorflow")["pids"][0], signal.SIGSTOP)
        host.wait_event("exit", "tensorflow")
        host.wait(lambda: len(host.events("ready", "tensorflow")) == 2, "it to be back")


def test_a_slow_model_is_not_restarted(sim_lib: Path) -> None:
    """Six seconds a prediction: its canary was no canary, its silence is told, its answer comes."""
    with tensorflow(sim_lib, predict_s=6.0) as host:
        why = host.backend("tensorflow")["canaries"]["resnet50"]
        assert why == "no answer within 5 s"
        assert f"no canary ({why})" in host.ctl("why", "tensorflow").stdout
        told: list[int] = []

        def post() -> None:
            url = host.door("tensorflow", PREDICT)
            told.append(requests.post(url, json=ROWS, timeout=60).status_code)

        client = threading.Thread(target=post)
        client.start()
        assert "not restarting" in host.wait_event("stuck", "tensorflow")["MESSAGE"]
        client.join(60)
        assert told == [200]
        assert host.backend("tensorflow")["restarts"] == 0


def test_the_operators_body_is_tried_instead(sim_lib: Path, tmp_path: Path) -> None:
    """A file of instances; one that is not there, or that the model refuses, is no canary."""
    body = tmp_path / "request.json"
    body.write_text(json.dumps(ROWS))
    for text, wanted in ((json.dumps(ROWS), "kept"), ('{"instances": []}', "HTTP 400")):
        body.write_text(text)
        with tensorflow(sim_lib, f'canary = "{body}"') as host:
            assert host.backend("tensorflow")["canaries"]["resnet50"].startswith(wanted)
    with tensorflow(sim_lib, f'canary = "{tmp_path}/none.json"') as host:
        assert "cannot be read: No such file" in host.backend("tensorflow")["canaries"]["resnet50"]


def test_idle_for_long_is_no_sign(sim_lib: Path) -> None:
    """Three times stuck_after without a request, its session hung all the while."""
    with tensorflow(sim_lib) as host:
        host.fault("tensorflow", hang=True)
        assert settle(lambda: not host.events("stuck"), 6.5)
        assert host.backend("tensorflow")["accepting"]
