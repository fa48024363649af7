"""TensorFlow Serving for the suite: the stand-in, and a real ``tensorflow_model_server`` where PATH or
TENSORFLOW_MODEL_SERVER has one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import requests

from tests.conformance.engine import Server, Worker
from tests.conformance.half_plus_two import write
from tests.support import PATIENCE_S, free_port

ROOT = Path(__file__).resolve().parents[2]
REAL = os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which("tensorflow_model_server") or ""
_MODELS = """\
model_config_list {{
  config {{
    name: 'half'
    base_path: '{folder}'
    model_platform: 'tensorflow'
    model_version_policy {{ specific {{ versions: 123 versions: 124 }} }}
    version_labels {{ key: 'stable' value: 123 }}
  }}
}}
"""
_MONITORING = 'prometheus_config { enable: true, path: "/monitoring/x" }\n'
_BATCHING = """\
max_batch_size { value: 8 }
batch_timeout_micros { value: 1000 }
num_batch_threads { value: 2 }
allowed_batch_sizes: 4
allowed_batch_sizes: 8
"""


class TensorflowServing:
    """One of the two."""

    name = "tensorflow"

    def __init__(self, *, real: bool) -> None:
        self.real = real
        self.patience = 1.0
        self._homes: dict[int, Path] = {}
        self._last = Path("/nonexistent")

    def command(self, argv: tuple[str, ...], port: int) -> list[str]:
        """Both ports; gRPC's is any."""
        words = self._words(argv, self._homes[port])
        return [*self._program(), f"--rest_api_port={port}", f"--port={free_port()}", *words]

    def cli(self, argv: tuple[str, ...]) -> list[str]:
        """The program alone."""
        return [*self._program(), *self._words(argv, self._last)]

    def _program(self) -> list[str]:
        return [REAL] if self.real else [sys.executable, "-m", "arbiterd.sim.engines.tensorflow"]

    def _words(self, argv: tuple[str, ...], home: Path) -> list[str]:
        places = {
            "<models>": f"--model_config_file={home}/models.config",
            "<monitoring>": f"--monitoring_config_file={home}/monitoring.config",
            "<half>": f"{home}/half",
            "<batching>": f"{home}/batching.config",
            "<nowhere>": f"{home}/nowhere",
            "<port>": str(free_port()),
        }
        made = []
        for word in argv:
            for mark, value in places.items():
                word = word.replace(mark, value)  # noqa: PLW2901 - one after the other
            made.append(word)
        return made

    def environ(self, wanted: Mapping[str, str | None], port: int, home: Path) -> dict[str, str]:
        """Files and two versions of the model in its home; no GPU."""
        self._homes[port] = self._last = home
        for version in ("00000123", "124"):
            write(home / "half" / version)
        (home / "models.config").write_text(_MODELS.format(folder=home / "half"))
        (home / "monitoring.config").write_text(_MONITORING)
        (home / "batching.config").write_text(_BATCHING)
        (home / "faults.json").write_text('{"load_s": 0.02, "predict_s": 0}')
        base = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GPU_SIM_FAULTS": str(home / "faults.json"),
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
        }
        return {**base, **{name: value for name, value in wanted.items() if value is not None}}

    def ready(self, port: int) -> bool:
        """Refused until every model is loaded."""
        with requests.Session() as session:
            session.trust_env = False
            try:
                url = f"http://127.0.0.1:{port}/v1/models"
                return session.get(url, timeout=PATIENCE_S).status_code == 400
            except requests.RequestException:
                return False

    def workers(self, server_pid: int) -> list[Worker]:
        """None: it is one process."""
        del server_pid
        return []

    def clean(self, server: Server) -> None:
        """Nothing stays of a request but its count."""
