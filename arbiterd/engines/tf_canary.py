"""A request that TensorFlow Serving's session must answer: zeros of the model's own signature.

An empty ``instances`` never reaches the session: the JSON check refuses it (tensorflow/serving,
util/json_tensor.cc, "No values in"), so it proved a live parser and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from arbiterd.engines.base import UNREADABLE
from arbiterd.model.health import HttpProbe, HttpReply
from arbiterd.model.settings import BackendSettings

MAX_BYTES = 1024 * 1024
TRIAL_S = 5.0
_ZEROS = {
    **dict.fromkeys(("DT_FLOAT", "DT_DOUBLE", "DT_HALF", "DT_BFLOAT16"), "0.0"),
    **dict.fromkeys((f"DT_{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)), "0"),
    "DT_BOOL": "false",
    "DT_STRING": '""',
}
_DEFAULT = "serving_default"
_METHODS = tuple(f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))


class NoCanary(Exception):
    """Why there is no body for this model, in one sentence."""


class TensorflowTrials:
    """How a canary of a TensorFlow model is made. No I/O: sense asks and reads."""

    def models(self, backend: BackendSettings) -> tuple[str, ...]:
        """The models to try, by name."""
        return tuple(backend.model_paths) or backend.models

    def file(self, backend: BackendSettings, model: str) -> str:
        """The operator's own body for this model, "" for none. It speaks for the first one."""
        return backend.canary if model == self.models(backend)[0] else ""

    def signature(self, model: str) -> HttpProbe:
        """Where the model's signature stands."""
        return HttpProbe("GET", f"/v1/models/{model}/metadata")

    def body(self, reply: HttpReply) -> str:
        """Zeros of that signature, in the column format.

        Raises:
            NoCanary: no signature, a type without a zero, or more than MAX_BYTES.

        """
        if reply.status != 200:
            msg = f"its metadata cannot be read: {reply.error or f'HTTP {reply.status}'}"
            raise NoCanary(msg)
        try:
            found = json.loads(reply.body)["metadata"]["signature_def"]["signature_def"]
            name = _chosen(found)
            inputs = {key: _zero(key, one) for key, one in sorted(found[name]["inputs"].items())}
        except UNREADABLE:
            msg = "its metadata names no signature with inputs"
            raise NoCanary(msg) from None
        fields = ",".join(f"{json.dumps(key)}:{text}" for key, text in inputs.items())
        made = f'{{"signature_name":{json.dumps(name)},"inputs":{{{fields}}}}}'
        _small(len(made))
        return made

    def probe(self, model: str, body: str, timeout_s: float) -> HttpProbe:
        """The request itself."""
        return HttpProbe("POST", f"/v1/models/{model}:predict", body, timeout_s)


def _chosen(found: Mapping[str, Any]) -> str:
    """The default signature, else the only one that serves."""
    if _DEFAULT in found:
        return _DEFAULT
    serving = [key for key, one in found.items() if one.get("method_name") in _METHODS]
    if len(serving) != 1:
        msg = f"it has no signature {_DEFAULT!r}, and {len(serving)} others"
        raise NoCanary(msg)
    return serving[0]


def _zero(key: str, tensor: Mapping[str, Any]) -> str:
    """One input as JSON text: unknown dimensions are 1, a tensor of unknown rank is a vector of one."""
    kind = str(tensor["dtype"])
    if kind not in _ZEROS:
        msg = f"its input {key!r} is {kind}, which JSON has no zero for"
        raise NoCanary(msg)
    shape = tensor.get("tensor_shape") or {}
    rows = [] if shape.get("unknown_rank") else shape.get("dim") or []
    dims = [1] if shape.get("unknown_rank") else [int(row["size"]) for row in rows]
    text = _ZEROS[kind]
    for size in reversed(dims):
        count = 1 if size < 0 else size
        _small(count * (len(text) + 1))
        text = "[" + ",".join([text] * count) + "]"
    return text


def _small(size: int) -> None:
    if size > MAX_BYTES:
        msg = "zeros of its signature are more than 1 MiB; write canary = a file of your own"
        raise NoCanary(msg)
