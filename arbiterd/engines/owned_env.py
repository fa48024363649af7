"""The environment variables that the arbiter decides, per engine kind, and the keys to write instead.

Devices, hosts, ports, caps, parallelism, placement. In ``env`` they are an error, as their flags are;
in env_file a warning by name: at launch the arbiter's value counts, or none (docs/configuration.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from arbiterd.model.settings import BackendSettings, Kind

Instead = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class OwnedVariable:
    """``instead``: from a value to what to write."""

    name: str
    instead: Instead


def _key(key: str) -> Instead:
    """A key of ours that takes the same number."""
    return lambda value: f"write {key} = {value}" if value.isdigit() else f"set {key}"


def _leave(why: str) -> Instead:
    return lambda _: f"take it out: {why}"


def _gpu(value: str) -> str:
    names = [part.strip() for part in value.split(",") if part.strip()]
    if not names or value in ("all", "none", "void", "-1", "NoDevFiles"):
        return 'name the GPU in the mode, like gpu = 0, or gpu = "cpu"'
    written = [one if one.isdigit() else json.dumps(one) for one in names]
    one = written[0] if len(written) == 1 else f"[{', '.join(written)}]"
    return f"write gpu = {one} in the mode"


def _host(value: str) -> str:
    text = re.sub(r"^\w+://", "", value.strip()).split("/", 1)[0]
    host, _, port = text.rpartition(":") if re.search(r":\d+$", text) else (text, "", "")
    out = f"write port = {port}" if port else "set port"
    if host.strip("[]") not in ("", "127.0.0.1", "localhost", "::1"):
        bind = host.strip("[]") if re.fullmatch(r"[\d.]+|\[?[\da-fA-F:]+\]?", host) else "0.0.0.0"  # nosec B104 # compared with
        out += f' and [gateway] bind = "{bind}"'
    return out


def _keep(value: str) -> str:
    return f"write keep_alive = {json.dumps(value)}" if value else "set keep_alive"


def _growth(value: str) -> str:
    if not value:
        return "set memory_growth"
    return "write memory_growth = true" if value.lower() in ("true", "1") else "take it out"


def _ready(value: str) -> str:
    return f'write start_timeout = "{value}s"' if value.isdigit() else "set start_timeout"


_MEMORY = _leave("memory in the mode decides")
_DEVICES = (
    OwnedVariable("CUDA_VISIBLE_DEVICES", _gpu),
    OwnedVariable("NVIDIA_VISIBLE_DEVICES", _gpu),
    OwnedVariable("CUDA_DEVICE_ORDER", _leave("GPUs are counted in PCI bus order")),
)
_OWNED: Final[Mapping[Kind, tuple[OwnedVariable, ...]]] = {
    Kind.OLLAMA: (
        *_DEVICES,
        OwnedVariable("OLLAMA_HOST", _host),
        OwnedVariable("OLLAMA_VULKAN", _leave("a hidden GPU would come back through Vulkan")),
        OwnedVariable("OLLAMA_MAX_LOADED_MODELS", _key("max_loaded_models")),
        OwnedVariable("OLLAMA_NUM_PARALLEL", _key("parallel")),
        OwnedVariable("OLLAMA_CONTEXT_LENGTH", _key("context_length")),
        OwnedVariable("OLLAMA_KEEP_ALIVE", _keep),
        OwnedVariable("OLLAMA_MAX_QUEUE", _key("max_queue")),
        OwnedVariable("OLLAMA_SCHED_SPREAD", _leave("gpu = [0, 1] in the mode names the GPUs")),
        OwnedVariable("OLLAMA_GPU_OVERHEAD", _MEMORY),
        OwnedVariable("LLAMA_ARG_FIT", _MEMORY),
        OwnedVariable("LLAMA_ARG_FIT_TARGET", _MEMORY),
    ),
    Kind.VLLM: (*_DEVICES, OwnedVariable("VLLM_ENGINE_READY_TIMEOUT_S", _ready)),
    Kind.TENSORFLOW: (
        *_DEVICES,
        OwnedVariable("TF_FORCE_GPU_ALLOW_GROWTH", _growth),
        OwnedVariable("TF_FORCE_UNIFIED_MEMORY", _leave("it lets TensorFlow exceed its cap")),
    ),
}
_DEV_MODE = OwnedVariable("VLLM_SERVER_DEV_MODE", _leave("sleep = true sets it"))


def owned(backend: BackendSettings) -> Mapping[str, OwnedVariable]:
    """By name, what the arbiter decides for this backend."""
    more = (_DEV_MODE,) if backend.vllm.sleep else ()
    return {one.name: one for one in (*_OWNED.get(backend.kind, _DEVICES), *more)}
