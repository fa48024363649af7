"""A TensorFlow Serving whose session hangs, is slow, or idles: real processes, the door between."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.gateway.conftest import make
from tests.support import PATIENCE_S
from tests.support.host import Host, settle
from tests.support.lending import Lender

ONLY = '[modes.A]\ntensorflow = { gpu = 0, memory = "20%" }\n'
PREDICT, ROWS = "/v1/models/resnet50:predict", {"instances": [[0.0] * 4]}


@pytest.fixture(scope="module")
def lender(sim_lib: Path) -> Iterator[Lender]:
    """TensorFlow alone behind its door; suspicion after two seconds."""

    def written() -> Host:
        host = make(sim_lib)
        host.write(ONLY, only=("tensorflow",), keys={"tensorflow": 'stuck_after = "2s"\n'})
        return host

    one = Lender(written)
    yield one
    one.close()


def anew(host: Host, keys: str = "", **faults: object) -> str:
    """TensorFlow started anew, with these keys and faults: what became of its canary."""
    text = host.config.read_text().replace('stuck_after = "2s"\n', f'stuck_after = "2s"\n{keys}\n')
    host.config.write_text(text)
    host.fault("tensorflow", **faults)
    assert host.ctl("reload", "--wait=done").returncode == 0
    begun = host.mark()
    assert host.ctl("restart", "tensorflow").returncode == 0
    host.wait(lambda: host.events("ready", "tensorflow", begun), "another TensorFlow")
    host.wait_ready()
    return str(host.backend("tensorflow")["canaries"]["resnet50"])


def ask(host: Host) -> threading.Thread:
    """A client that waits long."""

    def post() -> None:
        with suppress(requests.RequestException):
            requests.post(host.door("tensorflow", PREDICT), json=ROWS, timeout=PATIENCE_S)

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    return thread


def finished(host: Host) -> float:
    """The engine's own counter of REST requests."""
    port = host.ports["tensorflow"] + 10000
    url = f"http://127.0.0.1:{port}/monitoring/prometheus/metrics"
    rows = host.session.get(url, timeout=PATIENCE_S).text.splitlines()
    return next(float(row.split()[-1]) for row in rows if row.startswith(":tensorflow"))


def test_a_hung_session_is_found_though_status_answers_and_moves_its_counter(host: Host) -> None:
    """Idle nothing happens; with a request let in it is stuck and restarted, and serves again."""
    assert host.backend("tensorflow")["canaries"] == {"resnet50": "kept"}
    assert "canary kept" in host.ctl("why", "tensorflow").stdout
    pid = host.backend("tensorflow")["pids"][0]
    host.fault("tensorflow", hang=True)
    # three times stuck_after without a request: nobody has asked, so there is no evidence
    before = finished(host)
    host.wait(lambda: finished(host) >= before + 5, "status requests in its counter")
    assert settle(lambda: not host.events("stuck"), 6.5)
    assert host.backend("tensorflow")["accepting"]
    client = ask(host)
    told = host.wait_event("stuck", "tensorflow")
    assert "canary failed 2 times: no answer within" in told["MESSAGE"]
    host.wait_event("exit", "tensorflow")
    host.fault("tensorflow")
    host.wait(lambda: len(host.events("ready", "tensorflow")) == 1, "it to be back")
    host.wait_ready()
    assert host.backend("tensorflow")["pids"][0] != pid
    client.join(30)
    reply = requests.post(host.door("tensorflow", PREDICT), json=ROWS, timeout=PATIENCE_S)
    assert reply.status_code == 200


def test_a_stopped_server_is_found_by_its_status(host: Host) -> None:
    """SIGSTOP: nothing answers; no traffic is needed for that."""
    stopped = host.mains()["tensorflow"]
    os.kill(stopped, signal.SIGSTOP)
    host.wait_event("exit", "tensorflow")
    host.wait(lambda: len(host.events("ready", "tensorflow")) == 1, "it to be back")
    assert host.mains()["tensorflow"] != stopped


def test_a_slow_model_is_not_restarted(host: Host) -> None:
    """Six seconds a prediction: its canary was no canary, its silence is told, its answer comes."""
    why = anew(host, predict_s=6.0)
    restarts = host.backend("tensorflow")["restarts"]
    assert why == "no answer within 5 s"
    assert f"no canary ({why})" in host.ctl("why", "tensorflow").stdout
    told: list[int] = []

    def post() -> None:
        url = host.door("tensorflow", PREDICT)
        told.append(requests.post(url, json=ROWS, timeout=PATIENCE_S).status_code)

    client = threading.Thread(target=post)
    client.start()
    assert "not restarting" in host.wait_event("stuck", "tensorflow")["MESSAGE"]
    client.join(60)
    assert told == [200]
    assert host.backend("tensorflow")["restarts"] == restarts
    host.fault("tensorflow")
    assert anew(host) == "kept"


def test_the_operators_body_is_tried_instead(host: Host, tmp_path: Path) -> None:
    """A file of instances; one that is not there, or that the model refuses, is no canary."""
    body, text = tmp_path / "request.json", host.config.read_text()
    body.write_text(json.dumps(ROWS))
    assert anew(host, f'canary = "{body}"') == "kept"
    body.write_text('{"instances": []}')
    assert anew(host).startswith("HTTP 400")
    body.unlink()
    assert "cannot be read: No such file" in anew(host)
    host.config.write_text(text)  # a canary is tried at a start only
    assert anew(host) == "kept"
