"""The demo: the real daemon, the real loop, stand-in engines, a simulated pair of GPUs.

Everything lives in one folder of its own, on free ports below 32768; Ctrl-C ends every process and
removes the folder.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import requests

from arbiterd.errors import EX_REFUSED
from arbiterd.sim.gpu import STATE_ENV, SimGpu, build

TEMPLATE = Path(__file__).resolve().parents[2] / "etc" / "demo.toml"
PROFILES = ("rtx4090-24g", "rtx4090-24g")
READY_WITHIN_S = 60.0
LEAK_MIB_S = 250  # the demo's own leak: over its cap, named, and ended before the card is full
LEAK_WITHIN_S = 60.0
_END_S = 30.0


def free_ports(count: int) -> list[int]:
    """Free ports below 32768 whose engine twin (+10000) is free as well."""
    found: list[int] = []
    for port in random.sample(range(12000, 21900), 2000):
        if _free(port) and _free(port + 10000):
            found.append(port)
        if len(found) == count:
            return found
    msg = "no free ports between 12000 and 21900"
    raise OSError(msg)


def _free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Demo:
    """One demo run in a folder of its own."""

    def __init__(self, home: Path | None = None, profiles: tuple[str, ...] = PROFILES) -> None:
        self.home = home or Path(tempfile.mkdtemp(prefix="gpu-arbiter-demo-"))
        self._mine = home is None
        self.lib = build()
        self.state = self.home / "gpu-state"
        self.gpu = SimGpu.create(self.state, self.lib, profiles)
        self.config = self.home / "gpu-arbiter.toml"
        self.ports = dict(
            zip(
                ("LISTEN", "TF_PORT", "TF_GRPC_PORT", "VLLM_PORT", "OLLAMA_PORT", "LLM_PORT"),
                free_ports(6),
                strict=True,
            )
        )
        for folder in ("faults", "models/resnet50/1", "state", "run"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        self.config.write_text(self._config())

    @property
    def url(self) -> str:
        """Where page and API are."""
        return f"http://127.0.0.1:{self.ports['LISTEN']}"

    def _config(self) -> str:
        sim = {STATE_ENV: str(self.state), "GPU_SIM_LIB": str(self.lib)}
        words = {
            "HOME": str(self.home),
            "PYTHON": sys.executable,
            "SIM_ENV": ", ".join(f'{key} = "{value}"' for key, value in sim.items()),
            **{name: str(port) for name, port in self.ports.items()},
        }
        text = TEMPLATE.read_text()
        for key, value in words.items():
            text = text.replace(f"@{key}@", value)
        return text

    def environ(self) -> Mapping[str, str]:
        """The daemon's environment: the simulated NVML, and nothing that would change the demo."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPU_ARBITER_")}
        return {
            **kept,
            STATE_ENV: str(self.state),
            "GPU_SIM_LIB": str(self.lib),
            "LD_LIBRARY_PATH": str(self.lib),
        }

    def run(self) -> int:
        """Daemon in the foreground until Ctrl-C."""
        daemon = subprocess.Popen(
            [sys.executable, "-m", "arbiterd", "--config", str(self.config)],
            env=self.environ(),
            start_new_session=True,  # Ctrl-C reaches us, we pass it on once
        )
        signal.signal(signal.SIGTERM, lambda *_: daemon.send_signal(signal.SIGTERM))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` leaves it ignored
        threading.Thread(target=self._say_when_ready, args=(daemon,), daemon=True).start()
        self._say_where()
        try:
            return daemon.wait()
        except KeyboardInterrupt:
            print("\nmake run: Ctrl-C, stopping the engines in order", flush=True)
            daemon.send_signal(signal.SIGINT)
            return self._end(daemon)
        finally:
            self.close()

    def _end(self, daemon: subprocess.Popen[bytes]) -> int:
        try:
            return 0 if daemon.wait(timeout=_END_S) == 0 else EX_REFUSED
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            daemon.kill()
            daemon.wait()
            print("make run: the daemon had to be killed", file=sys.stderr)
            return EX_REFUSED

    def close(self) -> None:
        """Give the GPU and the folder back."""
        self.gpu.close()
        if self._mine:
            shutil.rmtree(self.home, ignore_errors=True)

    def _say_where(self) -> None:
        """What to look at and what to break; each fault with its undo. Processes are named by the pid
        that the API tells: a pattern would hit the engines of another demo or of a test run as well.
        """
        python, home = sys.executable, self.home
        ctl = Path(python).with_name("arbiterctl")
        sim = f"{STATE_ENV}={self.state} GPU_SIM_LIB={self.lib} {python} -m arbiterd.sim.gpuctl"
        pid = (
            f"curl -s {self.url}/v1/backends/vllm | "
            f"{python} -c 'import json, sys; print(min(json.load(sys.stdin)[\"pids\"]))'"
        )
        vllm, ollama = self.ports["VLLM_PORT"], self.ports["OLLAMA_PORT"]
        print(
            f"""
  page      {self.url}/
  API       {self.url}/v1/status   {self.url}/metrics   {self.url}/openapi.json
  doors     TensorFlow :{self.ports["TF_PORT"]}  vLLM :{vllm}  Ollama :{ollama}  every LLM :{self.ports["LLM_PORT"]}
            real HAProxy in front of stand-in engines

  try, in another terminal:
    {ctl} --config {self.config} status
    curl -s '{self.url}/v1/route?model=Qwen/Qwen2.5-3B-Instruct'
    curl -s 127.0.0.1:{vllm}/v1/completions -H 'Content-Type: application/json' \\
         -d '{{"model":"Qwen/Qwen2.5-3B-Instruct","prompt":"hello","max_tokens":8}}'
    {ctl} --config {self.config} top
    {ctl} --config {self.config} why tensorflow        # after the leak below

  break it, and undo it:
    echo '{{"leak_mib_per_s": 250}}' > {home}/faults/tensorflow.json   # a leak
      undo: rm {home}/faults/tensorflow.json
    echo '{{"hang": true}}' > {home}/faults/vllm.json    # hung, yet /health answers 200: it is restarted
      undo: rm {home}/faults/vllm.json
    kill -KILL $({pid})    # a crash: what is left of it is cleaned up, its memory awaited
      undo: none needed, it is started again
    curl -si 127.0.0.1:{vllm}/v1/completions -H 'Content-Type: application/json' \\
         -d '{{"model":"Qwen/Qwen2.5-3B-Instruct","prompt":"hello","max_tokens":8}}'   # Ollama answers for it
    {sim} hold 0 3GiB    # an unmanaged process takes memory: named, never signalled; idle models make room
      undo: Ctrl-C in that terminal
    {sim} lose 0         # the card falls off the bus
      undo: {sim} restore 0    # engines that hold nothing any more are started anew
    {ctl} --config {self.config} mode B      # or edit the line `mode` and run: {ctl} --config {self.config} reload
      undo: {ctl} --config {self.config} mode A

  Ctrl-C stops everything and leaves nothing behind.
""",
            flush=True,
        )

    def _say_when_ready(self, daemon: subprocess.Popen[bytes]) -> None:
        began = time.monotonic()
        with requests.Session() as session:
            session.trust_env = False
            while daemon.poll() is None and time.monotonic() - began < READY_WITHIN_S:
                try:
                    found = session.get(f"{self.url}/v1/status", timeout=2).json()["backends"]
                except (requests.RequestException, ValueError, KeyError):
                    time.sleep(0.1)
                    continue
                if found and all(one["phase"] == "ready" and one["accepting"] for one in found):
                    took = time.monotonic() - began
                    print(
                        f"\n  all three engines are ready after {took:.1f} s: {self.url}/\n",
                        flush=True,
                    )
                    self._show(session, daemon)
                    return
                time.sleep(0.2)

    def _show(self, session: requests.Session, daemon: subprocess.Popen[bytes]) -> None:
        """One leak, healed by the restart it leads to: what the arbiter is for, seen without typing."""
        print(
            f"  now TensorFlow begins to leak {LEAK_MIB_S} MiB a second; watch it being named, held and\n"
            "  ended before the card overflows, while the two others keep their pids:\n",
            flush=True,
        )
        fault = self.home / "faults" / "tensorflow.json"
        fault.write_text(json.dumps({"leak_mib_per_s": LEAK_MIB_S}))
        began = time.monotonic()
        while daemon.poll() is None and time.monotonic() - began < LEAK_WITHIN_S:
            time.sleep(0.1)
            try:
                found = session.get(f"{self.url}/v1/backends/tensorflow", timeout=2).json()
            except (requests.RequestException, ValueError):
                continue
            if found.get("phase") in ("stopping", "backoff", "waiting", "starting"):
                break
        fault.unlink(missing_ok=True)
