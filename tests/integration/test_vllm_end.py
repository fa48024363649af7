"""The end of a vLLM whose client does not leave: bounded, with a door and without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from arbiterd.linux import procfs
from tests.support import PATIENCE_S
from tests.support.host import MODEL, Host, running

MODES = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }'
BODY = {"model": MODEL, "prompt": "x", "max_tokens": 8000, "stream": True}


def _host(home: Path, lib: Path, *, gateway: bool) -> Host:
    one = Host(home, lib, gateway=gateway)
    one.fault("vllm", token_s=0.05)
    one.write(MODES, only=("vllm",), keys={"vllm": "max_in_flight = 3\nmax_queue = 4"})
    return one


@pytest.fixture(params=[True, False], ids=["door", "no door"])
def host(request: pytest.FixtureRequest, tmp_path: Path, sim_lib: Path) -> Iterator[Host]:
    """vLLM alone; each token takes 50 ms, so that a stream lasts minutes."""
    with running(_host(tmp_path, sim_lib, gateway=request.param)) as one:
        one.wait_ready("vllm")
        yield one


def _stream(host: Host) -> Iterator[bytes]:
    """The lines of an open stream that has begun."""
    url = host.door("vllm", "/v1/completions")
    reply = host.session.post(url, json=BODY, stream=True, timeout=PATIENCE_S)
    assert reply.status_code == 200
    lines: Iterator[bytes] = reply.iter_lines(chunk_size=1)
    assert next(lines)
    return lines


def test_a_client_that_stays_holds_up_no_restart(host: Host) -> None:
    """Drained, stopped, killed in the end, started anew; its stream has no end that looks like one."""
    pids = host.backend("vllm")["pids"]
    bound = " ".join(procfs.command(pids[0]).split())
    assert ("--max-num-queued-reqs" in bound) is not host.gateway
    assert host.gateway or "--max-num-queued-reqs 7" in bound
    lines = _stream(host)
    assert host.ctl("restart", "vllm").returncode == 0
    host.wait(lambda: not any(procfs.ref(pid) for pid in pids), "every process to be gone")
    host.wait(lambda: len(host.events("ready", "vllm")) >= 2, "vLLM to be ready again")
    seen: list[bytes] = []
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        seen.extend(lines)
    assert b"data: [DONE]" not in seen
