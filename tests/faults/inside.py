"""The stage in a systemd box, from within: this module runs in the box, started by ``boxes.py``.

systemd starts the daemon, HAProxy and the load gate there, and starts them again; the journal is
journald's. Everything else is as under the direct launcher.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from arbiterd.linux import procfs
from arbiterd.model.devices import ProcessRef
from arbiterd.sim.gpu import SimGpu
from tests.faults.stage import Json, Missing, Stage, until, with_words

UNIT = "gpu-arbiter.service"
SIM = Path("/sim")
NAMES = ("vllm", "ollama")
SYNC_S = 2.0  # journald writes by itself soon enough for most looks


def shell(line: str, timeout_s: float = 120.0) -> str:
    """A shell line that must succeed; returns its output.

    Raises:
        Missing: it fails.

    """
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=timeout_s, check=False)  # fmt: skip
    if done.returncode != 0:
        msg = f"{line}: {done.returncode} {done.stdout[-300:]}{done.stderr[-600:]}"
        raise Missing(msg)
    return done.stdout.strip()


def show(unit: str, name: str) -> str:
    """A property of a unit."""
    return shell(f"systemctl show -P {name} {unit}")


class BoxStage(Stage):
    """The installed daemon on two simulated GPUs, with vLLM and Ollama."""

    def __init__(self, config: str) -> None:
        super().__init__()
        self.names = NAMES
        self.run, self.state = Path("/run/gpu-arbiter"), Path("/var/lib/gpu-arbiter")
        self.config, self.faults = Path("/etc/gpu-arbiter.toml"), SIM
        self.listen = 9480
        self.ports = {"vllm": 8000, "ollama": 11434, "llm": 8080}
        self.good = config
        self._main: ProcessRef | None = None
        self._synced = 0.0
        self._fresh()
        self.gpu = SimGpu.attach(SIM / "gpu", SIM / "lib")
        shell(f"systemctl start {UNIT}")
        until(lambda: self.get("/livez").status_code == 200, "the API")

    def _fresh(self) -> None:
        subprocess.run(
            ["systemctl", "stop", UNIT, "gpu-arbiter.slice"], check=False, capture_output=True
        )
        subprocess.run(["systemctl", "reset-failed"], check=False, capture_output=True)
        for one in SIM.glob("*.json"):
            one.unlink()
        for folder in (self.run, self.state):
            for one in folder.glob("*") if folder.exists() else ():
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        (SIM / "gpu").unlink(missing_ok=True)
        SimGpu.create(SIM / "gpu", SIM / "lib", ("rtx4090-24g", "rtx4090-24g")).close()
        (SIM / "gpu").chmod(0o666)
        self.config.write_text(self.good)

    def daemon_pid(self) -> int:
        """Of the unit; asked again once the last one has died."""
        if self._main is None or not procfs.alive(self._main):
            self._main = procfs.ref(int(show(UNIT, "MainPID") or 0))
        return self._main.pid if self._main else 0

    def haproxy_pids(self) -> list[int]:
        """The master, then its workers."""
        return with_words("haproxy", "/run/gpu-arbiter/gateway/haproxy.cfg")

    def reader_pids(self) -> list[int]:
        """NVML's readers."""
        return with_words("arbiterd.sense.nvml_worker")

    def revive(self) -> None:
        """systemd does it."""
        until(lambda: self.get("/livez", 2).status_code == 200, "systemd to start the daemon again")

    def mark(self) -> float:
        """Wall time."""
        return time.time()

    def _journal(self, mark: object, *options: str) -> str:
        if time.monotonic() - self._synced > SYNC_S:
            subprocess.run(["journalctl", "--sync"], check=False, capture_output=True, timeout=30)
            self._synced = time.monotonic()
        since = f"--since=@{mark:.3f}"
        done = subprocess.run(["journalctl", "--no-pager", "-q", since, *options], capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
        return done.stdout

    def entries(self, mark: object) -> list[Json]:
        """The daemon's entries since then."""
        lines = self._journal(mark, "-o", "json", "-t", "gpu-arbiter").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def text(self, mark: object) -> str:
        """What the daemon's unit has printed."""
        return self._journal(mark, "-u", UNIT, "-u", "gpu-arbiter-gate", "-o", "cat")

    def tagged(self) -> list[int]:
        """Stand-ins by environment or arguments."""
        mark, out = b"/sim/", []
        for pid in procfs.pids():
            for file in ("environ", "cmdline"):
                try:
                    raw = Path(f"/proc/{pid}/{file}").read_bytes()
                except OSError:
                    continue
                if b"GPU_SIM_FAULTS=" + mark in raw or (b"sim.engines" in raw and mark in raw):
                    out.append(pid)
                    break
        return out

    def close(self) -> None:
        """Everything stops."""
        self.session.close()
        self.gpu.close()
        subprocess.run(
            ["systemctl", "stop", UNIT, "gpu-arbiter.slice"],
            check=False,
            capture_output=True,
            timeout=120,
        )


def main() -> None:
    """``python -m tests.faults.inside CONFIG ID...``, or ``CONFIG kills N SEED``: results as JSON lines."""
    from tests.faults.play import play
    from tests.faults.table import table

    config = Path(sys.argv[1]).read_text()
    if sys.argv[2] == "kills":
        from tests.faults.kills import kills

        results = kills(lambda: BoxStage(config), int(sys.argv[3]), int(sys.argv[4]), "box")
    else:
        wanted = set(sys.argv[2:])
        rows = [row for row in table() if row.id in wanted]
        results = play(rows, lambda: BoxStage(config))
    for result in results:
        print(json.dumps(asdict(result)), flush=True)
    os._exit(0)  # threads of faults may still wait


if __name__ == "__main__":
    main()
