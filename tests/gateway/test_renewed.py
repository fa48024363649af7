"""Doors on a LAN address that speak TLS: a renewed certificate, unknown names, engines that are stopped."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from arbiterd.gateway import runtime
from tests.gateway.conftest import make, write
from tests.support import PATIENCE_S
from tests.support.host import MODEL, NAMES, Host, running

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
SSE = {"model": MODEL, "prompt": "x", "max_tokens": 40, "stream": True}
ASKED = {
    "tensorflow": ("/v1/models/resnet50:predict", {"instances": [[1.0]]}),
    "vllm": ("/v1/completions", {**SSE, "stream": False}),
    "ollama": ("/api/generate", {"model": "qwen2.5:3b", "prompt": "x", "stream": False}),
}


def certificate(path: Path) -> str:
    """A new certificate with its key, put in place as certbot does: at once. Returns the certificate."""
    key, crt, both = (path.with_suffix(end) for end in (".key", ".crt", ".new"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", crt],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(crt.read_text() + key.read_text())
    both.replace(path)
    return crt.read_text().strip()


@pytest.fixture(scope="module")
def lan(sim_lib: Path) -> Iterator[Host]:
    """Up, with a certificate."""
    host = make(sim_lib)
    certificate(host.home / "doors.pem")
    write(host, extra="")
    doors = f'[gateway]\nbind = "0.0.0.0"\ncertificate = "{host.home}/doors.pem"\n'
    host.config.write_text(host.config.read_text().replace("[gateway]\n", doors))
    host.session.verify = False
    with running(host):
        host.wait_ready()
        yield host
    shutil.rmtree(host.home, ignore_errors=True)


def ask(host: Host, door: str, path: str, body: object = None, **kw: object) -> requests.Response:
    """One request over TLS."""
    url = host.door(door, path).replace("http:", "https:")
    method = "GET" if body is None else "POST"
    # A connection of its own: a reload closes those that are idle.
    shown = {"Connection": "close", **kw.pop("headers", {})}  # type: ignore[dict-item]
    return host.session.request(method, url, json=body, timeout=120, headers=shown, **kw)  # type: ignore[arg-type]


def shown(host: Host, door: str) -> str:
    """The certificate that a new client sees."""
    return ssl.get_server_certificate(("127.0.0.1", host.ports[door]), timeout=PATIENCE_S).strip()


def test_a_renewed_certificate_is_shown_and_cuts_no_stream(lan: Host) -> None:
    """No reload by hand: new connections see it within seconds, a stream that runs comes to its end."""
    lan.fault("vllm", token_s=0.2)
    files = lan.home / "run/gateway"
    before = runtime.look(files / "runtime.sock", files / "live.map").pid
    with ask(lan, "vllm", "/v1/completions", SSE, stream=True) as stream:
        parts = stream.iter_content(None)
        got = next(parts)
        renewed = certificate(lan.home / "doors.pem")
        lan.wait(lambda: shown(lan, "vllm") == renewed, "the new certificate")
        assert runtime.look(files / "runtime.sock", files / "live.map").pid != before
        assert b"[DONE]" not in got
        got += b"".join(parts)
    assert got.rstrip().endswith(b"data: [DONE]")
    assert all(shown(lan, door) == renewed for door in (*NAMES, "llm"))
    lan.fault("vllm")


def test_an_unknown_name_is_told_once_with_the_line_to_add(lan: Host) -> None:
    """From HAProxy's log by way of the daemon to its journal."""
    for _ in range(3):
        reply = ask(lan, "ollama", "/api/version", headers={"Host": "strange.example"})
        assert reply.status_code == 200
    told = lan.wait_event("unknown_host")
    assert '[gateway] hosts = ["strange.example"]' in told["MESSAGE"]
    ask(lan, "ollama", "/api/version", headers={"Host": "other.example"})
    lan.wait_event("unknown_host", count=2)
    said = [event["MESSAGE"] for event in lan.events("unknown_host")]
    assert [sum(name in text for text in said) for name in ("strange", "other")] == [1, 1]


def test_when_all_engines_are_stopped_every_door_answers_503(lan: Host) -> None:
    """SIGSTOP: no engine could answer anything; a client gets 503 with Retry-After and waits for none."""
    for name in NAMES:
        lan.fault(
            name, start_delay_s=600
        )  # or one that is started anew serves while others still do
    pids = [pid for name in NAMES for pid in lan.backend(name)["pids"]]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        out = lambda: not any(lan.backend(name)["accepting"] for name in NAMES)  # noqa: E731
        lan.wait(out, "all to be out")
        for door, (path, body) in ASKED.items():
            reply = ask(lan, door, path, body)
            assert reply.status_code == 503, (door, reply.text)
            assert int(reply.headers["Retry-After"]) >= 1
        reply = ask(lan, "llm", "/v1/completions", SSE)
        assert reply.status_code == 503, reply.text
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue
        for name in NAMES:
            lan.fault(name)
    lan.wait_ready()
