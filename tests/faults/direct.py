"""The direct launcher: real daemon, HAProxy, load gate and stand-in engines on two simulated GPUs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from arbiterd.linux import procfs
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, SimGpu
from tests.faults.stage import VLLM_MODEL, Json, Missing, Stage, until
from tests.support import free_port

DISK_MIB = 24
NAMES = ("tensorflow", "vllm", "ollama")
SECRET = "sk-planted-4711-secret-value"  # in the environment of vLLM


class DirectStage(Stage):
    """``disk``: run, state, logs and configuration each on a small file system of its own."""

    def __init__(self, lib: Path, *, disk: bool = False) -> None:
        super().__init__()
        self.names = NAMES
        self.home = Path(tempfile.mkdtemp(prefix="gpua-f-"))
        self.lib, self.disk = lib, disk
        self.run, self.state = self.home / "run", self.home / "state"
        self.faults, self.logs, self.etc = (self.home / n for n in ("faults", "logs", "etc"))
        for folder in (self.run, self.state, self.faults, self.logs, self.etc):
            folder.mkdir()
            if disk and folder is not self.faults:
                size = f"size={DISK_MIB}m,mode=755"
                subprocess.run(["mount", "-t", "tmpfs", "-o", size, "faults", str(folder)], check=True)  # fmt: skip
        (self.home / "models/resnet50/1").mkdir(parents=True)
        self.gpu = SimGpu.create(self.home / "gpu", lib, ("rtx4090-24g", "rtx4090-24g"))
        self.listen = free_port()
        self.ports = {name: free_port() for name in (*NAMES, "grpc", "llm")}
        self.config = self.etc / "gpu-arbiter.toml"
        self.log = self.logs / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.write_config()

    def write_config(self) -> str:
        """The good file; returns it."""
        parts = [
            (
                f'mode = "A"\n[arbiter]\nlisten = "127.0.0.1:{self.listen}"\nlauncher = "direct"\n'
                f'log = "json"\npoll = "100ms"\nstate_dir = "{self.state}"\nruntime_dir = "{self.run}"\n'
                f"[gateway]\nllm_port = {self.ports['llm']}\n"
            )
        ]
        parts += [f"[backends.{name}]\n{self._backend(name)}" for name in NAMES]
        parts.append(
            '[modes.A]\ntensorflow = { gpu = 0, memory = "20%" }\n'
            'vllm = { gpu = 0, memory = "55%" }\nollama = { gpu = 1, memory = "20%" }\n'
        )
        text = "\n".join(parts)
        self.config.write_text(text)
        secrets = self.etc / "vllm.env"
        secrets.touch(0o600)
        secrets.write_text(f"HF_TOKEN={SECRET}\n")
        return text

    def _backend(self, name: str) -> str:
        module = f'"{sys.executable}", "-m", "arbiterd.sim.engines.{name}"'
        common = (
            f'port = {self.ports[name]}\nrestart_delay = "200ms"\nrestart_delay_max = "1s"\n'
            'drain_timeout = "1s"\nstuck_after = "5s"\n'
            f'env = {{ {STATE_ENV} = "{self.home}/gpu", {LIB_ENV} = "{self.lib}", '
            f'GPU_SIM_FAULTS = "{self.faults}/{name}.json" }}\n'
        )
        match name:
            case "tensorflow":
                return (
                    f'command = [{module}]\nmodels = {{ resnet50 = "{self.home}/models/resnet50" }}\n'
                    f"grpc_port = {self.ports['grpc']}\n{common}"
                )
            case "vllm":
                return (
                    f'command = [{module}, "serve", "{VLLM_MODEL}"]\nmax_model_len = 8192\n'
                    f'env_file = "{self.etc}/vllm.env"\n{common}'
                )
            case _:
                more = 'models = ["qwen2.5:3b"]\nversion = "0.33.0"\n'
                return f'command = [{module}, "serve"]\n{more}{common}'

    # -- the daemon ----------------------------------------------------------------------------
    def start(self, *, stderr: int | None = None, environ: dict[str, str] | None = None) -> None:
        """Start the daemon and wait for its API. ``stderr``: a descriptor instead of the log."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPU_ARBITER_")}
        sim = {STATE_ENV: str(self.home / "gpu"), LIB_ENV: str(self.lib)}
        with self.log.open("ab") as log:
            out = log.fileno() if stderr is None else stderr
            self.process = subprocess.Popen(
                [sys.executable, "-m", "arbiterd", "--config", str(self.config)],
                env={**kept, **sim, "LD_LIBRARY_PATH": str(self.lib), **(environ or {})},
                stderr=out,
                stdout=out,
                start_new_session=True,
            )
        until(self._answers, "the API of a new daemon")

    def _answers(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            msg = f"the daemon ended with {code}: {self.log.read_text(errors='replace')[-1500:]}"
            raise Missing(msg)
        return self.get("/livez", 2).status_code == 200

    def daemon_pid(self) -> int:
        """Of the daemon, 0 while there is none."""
        if self.process is None or self.process.poll() is not None:
            return 0
        return self.process.pid

    def kill_daemon(self) -> None:
        """SIGKILL; everything else goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def revive(self) -> None:
        """Under the direct launcher whoever started it does it again."""
        if self.daemon_pid() == 0:
            self.start()

    def restart(self, environ: dict[str, str] | None = None) -> None:
        """SIGKILL and a new one: it adopts."""
        if self.daemon_pid():
            self.kill_daemon()
        self.start(environ=environ)

    # -- the journal ---------------------------------------------------------------------------
    def mark(self) -> int:
        """Bytes of the log so far."""
        return self.log.stat().st_size

    def text(self, mark: object) -> str:
        """Whole lines since then."""
        assert isinstance(mark, int)
        with self.log.open("rb") as log:
            log.seek(mark)
            return log.read().decode(errors="replace")

    def entries(self, mark: object) -> list[Json]:
        """JSON lines since then."""
        out = []
        for line in self.text(mark).split("\n")[:-1]:
            if line.startswith("{"):
                try:
                    out.append(json.loads(line))
                except ValueError:
                    continue  # cut by a full disk
        return out

    def tagged(self) -> list[int]:
        """By the faults' folder in environment or arguments: all stand-ins have it."""
        mark, out = f"{self.faults}/".encode(), []
        for pid in procfs.pids():
            for file in ("environ", "cmdline"):
                try:
                    if mark in Path(f"/proc/{pid}/{file}").read_bytes():
                        out.append(pid)
                        break
                except OSError:
                    continue
        return out

    def close(self) -> None:
        """SIGTERM stops everything in order; what is left is killed."""
        if self.daemon_pid():
            assert self.process is not None
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        left = [*self.tagged(), *self.haproxy_pids(), self.gate_pid()]
        for pid in left:
            try:
                if pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.session.close()
        self.gpu.close()
        time.sleep(0.1)
        if self.disk:
            for folder in (self.run, self.state, self.logs, self.etc):
                subprocess.run(["umount", "-l", str(folder)], check=False)
        shutil.rmtree(self.home, ignore_errors=True)
