"""What the stand-in TensorFlow Serving holds: its models, its pool, what it has counted."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from arbiterd.sim.engines.common import Card, Faults
from arbiterd.sim.engines.growth import Grower
from arbiterd.sim.engines.tensorflow_json import Invalid

OOM_TEXT = (
    "OOM when allocating tensor with shape[64,1024,1024] and type float on "
    "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc"
)


def _signature(inputs: dict[str, Any]) -> dict[str, Any]:
    """A signature as /metadata tells it; ``inputs``: name to data type and shape (None: any rank)."""

    def row(name: str, dtype: str, shape: list[int] | None) -> dict[str, Any]:
        dims = [{"size": str(one), "name": ""} for one in shape or ()]
        known = {"dim": dims, "unknown_rank": shape is None}
        return {"dtype": dtype, "tensor_shape": known, "name": f"{name}:0"}

    return {
        "inputs": {name: row(name, one["dtype"], one["shape"]) for name, one in inputs.items()},
        "outputs": {"y": row("y", "DT_FLOAT", [-1, 1])},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


class Model:
    """A served model: its versions (oldest first), labels, and the signatures of the newest.

    It is half plus two, unless ``signature.json`` in its folder names other inputs:
    ``{"NAME": {"dtype": "DT_FLOAT", "shape": [-1, 3]}}``.
    """

    def __init__(self, folder: Path, versions: list[int], labels: dict[str, int]) -> None:
        self.versions, self.labels = versions, labels
        inputs: dict[str, Any] = {"x": {"dtype": "DT_FLOAT", "shape": [-1, 1]}}
        with suppress(OSError):
            inputs = json.loads((folder / "signature.json").read_text())
        self.signatures = {"serving_default": _signature(inputs)}


class State:
    """Models and counters."""

    oom_text = OOM_TEXT

    def __init__(self) -> None:
        self.faults = Faults()
        self.card = Card()
        self.models: dict[str, Model] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.metrics_path = ""
        self.cors = False
        self.lock = threading.Lock()
        self.pool: Grower | None = None  # with memory growth

    def refuses(self) -> bool:
        """A predict finds no room: by fault, or because the growing pool cannot grow."""
        full = self.pool is not None and self.pool.full
        return self.faults.take("oom_next_request") or full

    def servable(self, name: str, version: int | None, label: str | None) -> tuple[Model, int]:
        """A model and the version that answers.

        Raises:
            KeyError: there is none; the request as the real one writes it.
            Invalid: there is no such label.
        """
        model = self.models.get(name)
        if label is not None:
            if model is None or label not in model.labels:
                raise Invalid(f"Unrecognized servable version label: {label}")
            version = model.labels[label]
        if version is None:
            if model is None:
                raise KeyError(f"Latest({name})")
            return model, model.versions[-1]
        if model is None or version not in model.versions:
            raise KeyError(f"Specific({name}, {version})")
        return model, version

    def count(self, name: str, code: str) -> None:
        """One request, by model and status: those for a status and refused ones as well."""
        with self.lock:
            self.counts[name, code] += 1

    def metrics(self) -> str:
        """The page (util/prometheus_exporter.cc)."""
        name = ":tensorflow:serving:request_count"
        with self.lock:
            rows = [
                f'{name}{{model_name="{model}",status="{code}"}} {count}\n'
                for (model, code), count in sorted(self.counts.items())
            ]
        return "".join([f"# TYPE {name} counter\n", *rows])
