"""A real GPU under the real daemon (`make test-device`): real NVML, PyTorch processes as generic
backends. Skipped with its reason where there is none. Figures are printed.
"""

from __future__ import annotations

import glob
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiterd.linux import procfs
from tests.support.host import Host

pytestmark = [pytest.mark.device, pytest.mark.timeout(600)]
TORCH = os.environ.get("GPU_ARBITER_TORCH_PYTHON", sys.executable)
# Takes its share with PyTorch, serves GET /health; with "oom" it asks for more than there is.
SERVER = """
import sys, torch
from http.server import BaseHTTPRequestHandler, HTTPServer
port, mib, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
held = torch.empty(mib * 2**20, dtype=torch.uint8, device="cuda")
if how == "oom":
    more = torch.empty(2**50, dtype=torch.uint8, device="cuda")
if how.startswith("ramp"):
    import threading, time
    def ramp(rate=int(how[4:]), step=64, kept=[]):
        time.sleep(5)
        while True:
            kept.append(torch.empty(step * 2**20, dtype=torch.uint8, device="cuda"))
            time.sleep(step / rate)
    threading.Thread(target=ramp, daemon=True).start()
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def _why_not() -> str:
    if not glob.glob("/dev/nvidia[0-9]*"):
        return "there is no NVIDIA GPU on this machine"
    import subprocess

    probe = [TORCH, "-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return f"{TORCH} has no PyTorch with CUDA; name one in GPU_ARBITER_TORCH_PYTHON"
    return ""


@pytest.fixture
def host(tmp_path: Path, sim_lib: Path) -> Iterator[Host]:
    """A host whose daemon meets the real NVML."""
    why = _why_not()
    if why:
        pytest.skip(why)
    one = Host(tmp_path, sim_lib)
    (tmp_path / "server.py").write_text(SERVER)
    yield one
    one.close()


def _write(host: Host, how: str = "serve", head: str = "") -> None:
    backend = (
        f'[backends.torch]\nkind = "generic"\nhealth = "/health"\nport = {host.ports["other"]}\n'
        f'command = ["{TORCH}", "{host.home}/server.py", "{{port}}", "2048", "{how}"]\n'
        f'restart_delay = "1s"\nenv = {{ GPU_SIM_FAULTS = "{host.home}/none" }}\n'
    )
    mode = '[modes.A]\ntorch = { gpu = 0, memory = "4GiB" }'
    host.write(mode, only=(), backends=backend)
    if head:
        host.config.write_text(host.config.read_text().replace("[arbiter]\n", f"[arbiter]\n{head}"))


def _start(host: Host) -> None:
    host.start(LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""))


def test_memory_is_attributed_and_comes_back_after_a_kill(host: Host) -> None:
    """The ledger names the process with more than it allocated (its context); after SIGKILL the
    bytes return, and only then it starts again.
    """
    _write(host)
    _start(host)
    host.wait_ready("torch")

    def held() -> int:
        row = next(r for r in host.gpu_row()["ledger"] if r["holder"] == "torch")
        return int(row["used"] or 0)

    host.wait(lambda: held() > 2 << 30, "its bytes in the ledger", 15)
    print(f"\nfigure: CUDA context beside 2 GiB: {(held() - (2 << 30)) / 2**20:.0f} MiB")
    main = host.backend("torch")["pids"][0]
    began = time.monotonic()
    os.kill(main, signal.SIGKILL)
    host.wait_event("exit", "torch")
    print(f"figure: SIGKILL to exit event: {(time.monotonic() - began) * 1000:.0f} ms")
    gone = host.wait_event("stop", "torch", 2)
    print(f"figure: bytes back after {gone['ARBITER_TOOK_MS']} ms")
    assert procfs.ref(main) is None
    assert int(gone["ARBITER_BYTES_FREED"]) >= 2 << 30
    host.wait(lambda: len(host.events("ready", "torch")) == 2, "it to be back")


def test_a_real_out_of_memory_is_classified(host: Host) -> None:
    """PyTorch's own text."""
    _write(host, "oom")
    _start(host)
    event = host.wait_event("oom", "torch")
    assert "oom_start" in event["MESSAGE"]


@pytest.mark.parametrize("rate", [200, 1000, 4000])
def test_a_ramp_of_the_allocator_is_ended_before_the_card_is_full(host: Host, rate: int) -> None:
    """Real cudaMalloc at a set rate: over its cap, then critical, then ended by the arbiter; PyTorch
    never says that the card is full. A large headroom brings the critical line near.
    """
    _write(host, "serve")
    _start(host)
    host.wait_ready("torch")
    free = int(host.gpu_row()["memory"]["free"])
    host.stop()
    head = f'headroom = "{(free - (8 << 30)) >> 20}MiB"\n'
    _write(host, f"ramp{rate}", head)
    _start(host)
    host.wait_ready("torch")
    event = host.wait_event("reclaim", "torch")
    began = time.monotonic()
    gone = host.wait_event("stop", "torch")
    print(f"\nfigure: {rate} MiB/s: {event['MESSAGE']}")
    print(f"figure: {rate} MiB/s: gone after {(time.monotonic() - began) * 1000:.0f} ms")
    print(f"figure: {rate} MiB/s: bytes back after {gone['ARBITER_TOOK_MS']} ms")
    assert not host.events("oom", "torch")
