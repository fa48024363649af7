"""Ollama for the suite: the stand-in, and a real one with tiny models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from arbiterd.sim.engines.ollama_models import MODELS_ENV, Blob
from tests.conformance import gguf
from tests.conformance.cases import FOLDER
from tests.conformance.engine import Server, Worker, argv_of, children
from tests.conformance.wire import Answer, Exchange
from tests.support import PATIENCE_S, free_port, wait_until

MODELS = FOLDER / "models/ollama.json"
_PATH = "/usr/bin:/bin"


def ask(port: int, method: str, path: str, body: Any = None) -> Answer:
    """One request of the suite's own."""
    exchange = Exchange(port)
    step = {"method": method, "path": path} | ({} if body is None else {"body": body})
    answer = exchange.ask(step, 60)
    exchange.close()
    return answer


class _Ollama:
    """What both have in common."""

    name = "ollama"
    real = False
    patience = 1.0

    def __init__(self, program: list[str]) -> None:
        self._program = program
        self.blobs: dict[str, str] = {}  # digest: the model that it is called by

    def command(self, argv: tuple[str, ...], port: int) -> list[str]:
        """``serve``."""
        return [*self._program, "serve", *argv]

    def cli(self, argv: tuple[str, ...]) -> list[str]:
        """Any other word."""
        return [*self._program, *argv]

    def environ(self, wanted: Mapping[str, str | None], port: int, home: Path) -> dict[str, str]:
        """What every recorded server had, and what the case wants."""
        env: dict[str, str | None] = {
            "PATH": _PATH,
            "HOME": str(home),
            "OLLAMA_HOST": f"127.0.0.1:{port}",
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_VULKAN": "0",
            "CUDA_VISIBLE_DEVICES": "",
            "LLAMA_ARG_THREADS": "1",
            **wanted,
        }
        return {
            name: value.replace("<port>", str(port)).replace("<dir>", str(home))
            for name, value in env.items()
            if value is not None
        }

    def ready(self, port: int) -> bool:
        """It listens and answers."""
        with suppress(OSError):
            return ask(port, "GET", "/api/version").status == 200
        return False

    def workers(self, server_pid: int) -> list[Worker]:
        """Its llama-server processes."""
        found = []
        for pid in children(server_pid):
            words = self._words(argv_of(pid))
            if "--model" in words:
                digest = words[words.index("--model") + 1].rpartition("sha256-")[2]
                model = self.blobs.get(digest, digest)
                found.append(Worker(pid, model, tuple(_masked(words, model))))
        return found

    def _words(self, argv: list[str]) -> list[str]:
        """A runner's argv without the program, [] for other processes."""
        return argv[1:] if argv and Path(argv[0]).name == "llama-server" else []

    def clean(self, server: Server) -> None:
        """Nothing loaded, no name more than at the start."""

        def empty() -> bool:
            listed = json.loads(ask(server.port, "GET", "/api/ps").body)["models"]
            known = (
                json.loads(ask(server.port, "GET", "/api/tags").body)["models"] if listed else []
            )
            for row in listed:  # by any name of it: the one it was loaded by may be gone
                for name in {one["name"] for one in known if one["digest"] == row["digest"]}:
                    body = {"model": name, "keep_alive": 0}
                    ask(server.port, "POST", "/api/generate", body)
            return not listed and not server.workers()

        wait_until(empty, 60, "all models to be unloaded")
        ask(server.port, "DELETE", "/api/delete", {"model": "alias/x"})


def _masked(words: list[str], model: str) -> list[str]:
    made = list(words)
    made[made.index("--model") + 1] = f"<blob of {model}>"
    made[made.index("--port") + 1] = "<port>"
    return made


class Real(_Ollama):
    """A real ``ollama``: $OLLAMA, else the one on PATH. Its models are made once by its own routes."""

    real = True

    def __init__(self, program: str) -> None:
        super().__init__([program])
        self._store: Path | None = None

    def environ(self, wanted: Mapping[str, str | None], port: int, home: Path) -> dict[str, str]:
        """With the models of the suite."""
        if self._store is None:
            self._store = Path(tempfile.mkdtemp(prefix="conformance-ollama-"))
            self._make(self._store)
        env = super().environ({"OLLAMA_MODELS": "<dir>/models", **wanted}, port, home)
        keys = self._store / ".ollama"  # else the first start tells of a new key
        if "HOME" in env and not (home / ".ollama").exists():
            shutil.copytree(keys, home / ".ollama")
        target = Path(env["OLLAMA_MODELS"])
        if (
            target.parent == home
            and target.name in {"models", "models-bad"}
            and not target.exists()
        ):
            shutil.copytree(self._store / "models", target)
            if target.name == "models-bad":
                self._spoil(target)
        return env

    def _make(self, folder: Path) -> None:
        """All models of models/ollama.json, by a server of their own."""
        port = free_port()
        env = super().environ({"OLLAMA_MODELS": "<dir>/models"}, port, folder)
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(self.command((), port), env=env, stdout=log, stderr=log)
        try:
            wait_until(lambda: self.ready(port), 60, "ollama to serve")
            models: dict[str, dict[str, Any]] = json.loads(MODELS.read_text())
            for name, about in models.items():
                body = {"model": name, "stream": False, "parameters": about.get("parameters", {})}
                source = about.get("blob")
                if source and "parameters" not in about:
                    _ok(ask(port, "POST", "/api/copy", {"source": source, "destination": name}))
                    continue
                if source:
                    body["from"] = source
                else:
                    body["files"] = {"tiny.gguf": f"sha256:{self._upload(port, folder, name)}"}
                _ok(ask(port, "POST", "/api/create", body))
                if not source:
                    self.blobs[_blob(folder / "models", name)] = name
        finally:
            server.terminate()
            server.wait(30)

    def _upload(self, port: int, folder: Path, name: str) -> str:
        """The model's file, each one another; returns its digest."""
        file = folder / "tiny.gguf"
        gguf.write(file, seed=name, pooling=name == "tiny-e")
        raw = file.read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        url = f"http://127.0.0.1:{port}/api/blobs/sha256:{digest}"
        with requests.Session() as session:
            session.trust_env = False
            reply = session.post(url, data=raw, timeout=PATIENCE_S)
        assert reply.status_code in {200, 201}, reply.text
        return digest

    def _spoil(self, models: Path) -> None:
        """tiny-b's file is cut short, tiny-d's is gone."""
        for digest, name in self.blobs.items():
            file = models / "blobs" / f"sha256-{digest}"
            if name == "tiny-b":
                file.write_bytes(file.read_bytes()[:200_000])
            elif name == "tiny-d":
                file.unlink()


def _blob(models: Path, name: str) -> str:
    """The digest of a model's file: Ollama may have written it anew."""
    manifest = models / "manifests/registry.ollama.ai/library" / name / "latest"
    layers = json.loads(manifest.read_text())["layers"]
    found = [one["digest"] for one in layers if one["mediaType"].endswith("image.model")]
    return str(found[0]).removeprefix("sha256:")


def _ok(answer: Answer) -> None:
    assert answer.status == 200, answer.body.decode()


def installed() -> str:
    """The real program, "" when there is none."""
    return os.environ.get("OLLAMA") or shutil.which("ollama") or ""


class StandIn(_Ollama):
    """``arbiterd.sim.engines.ollama`` without a card, as the recorded one had none."""

    # A stand-in that does not answer for so long does not answer: nothing in it takes seconds.
    patience = 0.25

    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "arbiterd.sim.engines.ollama"])
        models: dict[str, dict[str, Any]] = json.loads(MODELS.read_text())
        for name, about in models.items():
            if "blob" not in about:
                self.blobs[Blob(name, 0, 0).digest] = name

    def environ(self, wanted: Mapping[str, str | None], port: int, home: Path) -> dict[str, str]:
        """With the tiny models, quick loads and tokens, and a second for what takes ten there."""
        env = super().environ(wanted, port, home)
        bad = env.get("OLLAMA_MODELS", "").endswith("models-bad")
        env[MODELS_ENV] = str(FOLDER / ("models/ollama-bad.json" if bad else "models/ollama.json"))
        faults = home / "faults.json"
        faults.write_text(json.dumps({"load_s": 0.05, "token_s": 0.0003, "ping_s": 1.0}))
        env["GPU_SIM_FAULTS"] = str(faults)
        env["PYTHONPATH"] = str(FOLDER.parent.parent)
        if bad:
            Path(env["OLLAMA_MODELS"]).mkdir(exist_ok=True)
        return env

    def _words(self, argv: list[str]) -> list[str]:
        module = "arbiterd.sim.engines.llama_server"
        return argv[argv.index(module) + 1 :] if module in argv else []
