"""A real Ollama for tests: where its program is, a store of tiny models, its runners as processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

from tests.support import free_port, tiny_gguf, wait_until
from tests.support.host import Host

Json = dict[str, Any]
CONTEXT = 512
# Name → seed of its weights, "create" keys. The same seed is the same blob.
MODELS: Mapping[str, tuple[int, Json]] = {
    "tiny-a": (1, {}),
    "tiny-b": (2, {}),
    "tiny-h": (1, {"parameters": {"temperature": 0.5}}),
    "tiny-c": (3, {"parameters": {"num_ctx": 128}}),
    "tiny-g": (4, {"parameters": {"num_gpu": 3}}),
    "tiny-e": (5, {}),
}


def program() -> str:
    """$OLLAMA, else the one on PATH, "" when there is none."""
    return os.environ.get("OLLAMA") or shutil.which("ollama") or ""


def environ(home: Path, port: int = 0) -> dict[str, str]:
    """For its program: files under ``home``, no GPU, one thread per runner."""
    out = {
        "HOME": str(home),
        "OLLAMA_MODELS": str(home / "ollama-models"),
        "OLLAMA_NO_CLOUD": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "LLAMA_ARG_THREADS": "1",
    }
    return {**out, "OLLAMA_HOST": f"127.0.0.1:{port}"} if port else out


def make_store(home: Path) -> None:
    """Every model of MODELS, made by the program itself on a port of its own."""
    port = free_port()
    with (home / "make.log").open("wb") as log:
        server = subprocess.Popen(
            [program(), "serve"],
            env={**os.environ, **environ(home, port)},
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(f"{url}/api/version"), 60, "ollama serve")
            for name, (seed, keys) in MODELS.items():
                file = home / f"{name}.gguf"
                tiny_gguf.write(file, seed=seed, pooling=name == "tiny-e")
                raw = file.read_bytes()
                digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
                _ok(post(f"{url}/api/blobs/{digest}", data=raw))
                body = {"model": name, "files": {file.name: digest}, "stream": False, **keys}
                _ok(post(f"{url}/api/create", json=body))
        finally:
            server.terminate()
            server.wait(20)


def write_config(host: Host, models: tuple[str, ...], gpu: str, **keys: str) -> None:
    """One backend, the real Ollama, with these models and ``gpu``; ``keys`` as TOML."""
    env = {k: v for k, v in environ(host.home).items() if k != "CUDA_VISIBLE_DEVICES"}
    env["GPU_SIM_FAULTS"] = f"{host.home}/none"
    more = "\n".join(f"{key} = {value}" for key, value in keys.items())
    backend = f"""
[backends.ollama]
command = ["{program()}", "serve"]
port = {host.ports["ollama"]}
models = [{", ".join(f'"{one}"' for one in models)}]
context_length = {CONTEXT}
keep_alive = "60s"
drain_timeout = "2s"
restart_delay = "200ms"
env = {{ {", ".join(f'{k} = "{v}"' for k, v in env.items())} }}
{more}
"""
    host.write(f"[modes.A]\nollama = {{ {gpu} }}", only=(), backends=backend)


def runners(host: Host) -> dict[int, tuple[str, ...]]:
    """Pid → argv of every llama-server of this host."""
    out = {}
    for pid in host.tagged():
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
            alive = "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        if alive and argv and Path(argv[0]).name == "llama-server" and "--model" in argv:
            out[pid] = tuple(argv)
    return out


def of_model(host: Host, name: str) -> dict[int, tuple[str, ...]]:
    """The runners whose blob is this model's."""
    store = host.home / "ollama-models" / "manifests" / "registry.ollama.ai" / "library"
    layers = json.loads((store / name / "latest").read_text())["layers"]
    (digest,) = (one["digest"] for one in layers if one["mediaType"].endswith("image.model"))
    mark = str(digest).removeprefix("sha256:")
    return {pid: argv for pid, argv in runners(host).items() if any(mark in a for a in argv)}


def requests_to_engine(host: Host, path: str) -> int:
    """Access lines of its log for this path so far."""
    log = host.home / "run" / "logs" / "ollama.log"
    lines = log.read_text(errors="replace").splitlines()
    return sum(1 for line in lines if line.startswith("[GIN]") and f'"{path}"' in line)


def post(url: str, **keys: Any) -> requests.Response:
    """POST without the environment's proxies."""
    return _send("POST", url, **keys)


def get(url: str, **keys: Any) -> requests.Response:
    """GET without the environment's proxies."""
    return _send("GET", url, **keys)


def _send(method: str, url: str, **keys: Any) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, **{"timeout": 60, **keys})


def _ok(reply: requests.Response) -> None:
    assert reply.status_code in (200, 201), reply.text


def answers(url: str) -> bool:
    """Whether it says 200."""
    try:
        return get(url, timeout=2).status_code == 200
    except requests.ConnectionError:
        return False


def listed(host: Host) -> dict[str, float]:
    """Name → seconds until it leaves, of /api/ps through the door."""
    rows = get(host.door("ollama", "/api/ps")).json()["models"]
    now = time.time()
    out = {}
    for row in rows:
        text = str(row["expires_at"])[:19] + "+00:00"
        out[str(row["name"])] = datetime.fromisoformat(text).timestamp() - now
    return out
