"""A stand-in for ``ollama serve`` (0.33): it holds no memory itself, its runners do.

Placement is a margin, not a ceiling: a model gets what is free less LLAMA_ARG_FIT_TARGET (MiB), the
rest of its layers goes to the CPU silently and shows only as size_vram < size.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from arbiterd.sim.engines.common import CONTEXT_BYTES, Card, Faults, Handler, Link, Server, say
from arbiterd.units import MIB, parse_duration

VERSION = "0.33.0"
MIN_VRAM = 457 * MIB
FOR_EVER_S = 10 * 365 * 86400.0
LIBRARY = {  # name: (weights in bytes, KV bytes per token of context)
    "qwen2.5:3b": (1_929_912_432, 36 * 1024),
    "qwen2.5:7b": (4_683_087_332, 56 * 1024),
    "llama3.2:1b": (1_321_098_329, 32 * 1024),
    "llama3.1:8b": (4_920_753_328, 128 * 1024),
}
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(slots=True)
class Runner:
    """One llama-server process."""

    model: str
    size: int
    vram: int
    process: subprocess.Popen[bytes]
    link: Link
    expires_at: float = 0.0
    outputs: dict[int, queue.Queue[dict[str, Any]]] = field(default_factory=dict)
    ready: threading.Event = field(default_factory=threading.Event)
    dead: bool = False

    def listen(self) -> None:
        """Hand the runner's messages to whoever waits for them."""
        for message in self.link:
            if "ready" in message:
                self.ready.set()
            elif message["id"] in self.outputs:
                self.outputs[message["id"]].put(message)
        self.dead = True
        self.ready.set()
        for out in list(self.outputs.values()):
            out.put({"dead": True})


class State:
    """Loaded models, the scheduler's part."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.card = Card()
        self.lock = threading.RLock()
        self.runners: dict[str, Runner] = {}
        self.names = dict.fromkeys(LIBRARY, "")
        self.numbers = itertools.count(1)
        self.limit = max(1, int(os.environ.get("OLLAMA_MAX_LOADED_MODELS") or 3))
        self.keep_s = keep_alive(os.environ.get("OLLAMA_KEEP_ALIVE") or "5m")
        threading.Thread(target=self._expire, daemon=True).start()

    def version(self) -> str:
        """The version it claims."""
        return str(self.faults.get("version", VERSION))

    def known(self, name: str) -> str:
        """The library's name of a model or alias, "" for an unknown one."""
        full = name if ":" in name else f"{name}:latest"
        if full not in self.names:
            return ""
        return self.names[full] or full

    def get(self, name: str, options: dict[str, Any]) -> Runner:
        """A loaded runner; loads, evicting the least recently used ones.

        Raises:
            RuntimeError: with Ollama's own text.
        """
        with self.lock:
            found = self.runners.get(name)
            if found is not None and not found.dead:
                return found
            self.runners.pop(name, None)
            while len(self.runners) >= self.limit:
                self.unload(next(iter(self.runners)))
            runner = self._load(name, options)
            self.runners[name] = runner
        runner.ready.wait()
        if runner.dead:
            code = runner.process.wait()
            with self.lock:
                self.runners.pop(name, None)
            msg = f"llama-server process has terminated: exit status {code}: cudaMalloc failed: out of memory"
            raise RuntimeError(msg)
        return runner

    def _load(self, name: str, options: dict[str, Any]) -> Runner:
        weights, per_token = LIBRARY[name]
        weights = int(self.faults.get("weights_bytes", weights))
        context = int(options.get("num_ctx") or os.environ.get("OLLAMA_CONTEXT_LENGTH") or 4096)
        parallel = int(os.environ.get("OLLAMA_NUM_PARALLEL") or 1)
        size = weights + per_token * context * parallel + 200 * MIB
        vram = self._fit(size, options)
        plan = {"vram_bytes": vram, "load_s": float(self.faults.get("load_s", 0.4))}
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "arbiterd.sim.engines.llama_server",
                str(theirs.fileno()),
                json.dumps(plan),
            ],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        say(f"starting llama-server pid={process.pid} model={name} size={size} vram={vram}")
        runner = Runner(name, size, vram, process, Link(ours))
        threading.Thread(target=runner.listen, daemon=True).start()
        return runner

    def _fit(self, size: int, options: dict[str, Any]) -> int:
        """Bytes that go to the GPU: all, a part, or none."""
        if not self.card.present or options.get("num_gpu") == 0:
            return 0
        if options.get("num_gpu"):
            return size  # -ngl bypasses the fit
        free, _ = self.card.sizes()
        old = self.version() < "0.30"
        margin = (
            int(os.environ.get("OLLAMA_GPU_OVERHEAD") or 0)
            if old
            else (int(os.environ.get("LLAMA_ARG_FIT_TARGET") or 1024) * MIB)
        )
        room = free - margin - CONTEXT_BYTES
        if room >= size:
            return size
        return room if room >= MIN_VRAM else 0

    def unload(self, name: str) -> None:
        """End a runner; its memory returns when the process is gone."""
        with self.lock:
            runner = self.runners.pop(name, None)
        if runner is not None:
            runner.process.kill()
            runner.process.wait()

    def touch(self, runner: Runner, keep: object) -> None:
        """(Re)arm the keep-alive; 0 unloads."""
        seconds = self.keep_s if keep is None else keep_alive(keep)
        runner.expires_at = time.time() + seconds
        if seconds == 0:
            threading.Thread(target=self.unload, args=(runner.model,), daemon=True).start()

    def _expire(self) -> None:
        while True:
            time.sleep(0.1)
            with self.lock:
                due = [
                    name for name, one in self.runners.items() if 0 < one.expires_at < time.time()
                ]
            for name in due:
                self.unload(name)

    def stop(self, *_: object) -> None:
        """SIGTERM: requests are cut, runners killed, exit 0."""
        for runner in list(self.runners.values()):
            runner.process.kill()
        os._exit(0)


def keep_alive(given: object) -> float:
    """Seconds: '10m', '-1', 300; negative is for ever."""
    if isinstance(given, int | float):
        return FOR_EVER_S if given < 0 else float(given)
    text = str(given)
    if text.lstrip("-").isdigit():
        return keep_alive(int(text))
    if text.startswith("-"):
        return FOR_EVER_S
    return parse_duration(text.replace("m", "min") if text.endswith("m") else text)


class Api(Handler):
    """Ollama's routes."""

    state: State
    routes: ClassVar[dict[tuple[str, str], str]] = {
        ("GET", "/"): "root",
        ("GET", "/api/version"): "version",
        ("GET", "/api/tags"): "tags",
        ("GET", "/api/ps"): "ps",
        ("POST", "/api/generate"): "generate",
        ("POST", "/api/chat"): "chat",
        ("POST", "/api/copy"): "copy",
        ("GET", "/v1/models"): "models",
        ("POST", "/v1/completions"): "v1",
        ("POST", "/v1/chat/completions"): "v1",
    }

    def root(self) -> None:
        self.reply(200, "Ollama is running", "text/plain")

    def version(self) -> None:
        forced = self.state.faults.get("health_status")
        self.reply(int(forced) if forced else 200, {"version": self.state.version()})

    def tags(self) -> None:
        self.reply(200, {"models": [{"name": name, "model": name} for name in self.state.names]})

    def models(self) -> None:
        rows = [{"id": name, "object": "model"} for name in self.state.names]
        self.reply(200, {"object": "list", "data": rows})

    def ps(self) -> None:
        with self.state.lock:
            runners = [one for one in self.state.runners.values() if one.ready.is_set()]
        rows = [
            {
                "name": one.model,
                "model": one.model,
                "size": one.size,
                "size_vram": one.vram,
                "expires_at": _iso(one.expires_at),
            }
            for one in runners
        ]
        self.reply(200, {"models": rows})

    def copy(self) -> None:
        body = self.body()
        source = self.state.known(str(body.get("source")))
        if not source:
            self.reply(404, {"error": f"model '{body.get('source')}' not found"})
            return
        target = str(body.get("destination"))
        self.state.names[target if ":" in target else f"{target}:latest"] = source
        self.reply(200)

    def generate(self) -> None:
        body = self.body()
        self._serve(body, load_only=not body.get("prompt"), chat=False)

    def chat(self) -> None:
        body = self.body()
        self._serve(body, load_only=not body.get("messages"), chat=True)

    def _serve(self, body: dict[str, Any], *, load_only: bool, chat: bool) -> None:
        name = self.state.known(str(body.get("model", "")))
        if not name:
            self.reply(404, {"error": f"model '{body.get('model')}' not found"})
            return
        keep = body.get("keep_alive")
        if load_only and keep in (0, "0", "0s"):
            self.state.unload(name)
            self.reply(200, {"model": name, "done": True, "done_reason": "unload"})
            return
        options = body.get("options") or {}
        try:
            runner = self.state.get(name, options)
        except RuntimeError as error:
            say(str(error))
            self.reply(500, {"error": str(error)})
            return
        self.state.touch(runner, keep)
        if load_only:
            self.reply(200, {"model": name, "response": "", "done": True, "done_reason": "load"})
            return
        tokens = int(options.get("num_predict") or 16)
        self._tokens(runner, tokens, stream=body.get("stream", True), chat=chat)
        self.state.touch(runner, keep)

    def _ask(self, runner: Runner, tokens: int) -> tuple[int, queue.Queue[dict[str, Any]]]:
        number = next(self.state.numbers)
        out: queue.Queue[dict[str, Any]] = queue.Queue()
        runner.outputs[number] = out
        if runner.dead:
            out.put({"dead": True})
        runner.link.send(id=number, tokens=tokens)
        return number, out

    def _tokens(self, runner: Runner, tokens: int, *, stream: bool, chat: bool) -> None:
        number, out = self._ask(runner, tokens)
        words: list[str] = []
        try:
            if stream:
                self.begin_stream("application/x-ndjson")
            while True:
                message = out.get()
                if "dead" in message:
                    self._died(stream=stream)
                    return
                word = message.get("token", "")
                words.append(word)
                if stream:
                    self.chunk(
                        json.dumps(_part(runner.model, word, chat=chat, done="done" in message))
                        + "\n"
                    )
                if "done" in message:
                    break
        finally:
            runner.outputs.pop(number, None)
        if stream:
            self.chunk("")
        else:
            self.reply(200, _part(runner.model, "".join(words), chat=chat, done=True))

    def _died(self, *, stream: bool) -> None:
        text = (
            "model runner has unexpectedly stopped, this may be due to resource limitations or an "
            "internal error, check ollama server logs for details"
        )
        say(text)
        if stream:
            self.chunk(json.dumps({"error": text}) + "\n")
            self.chunk("")
        else:
            self.reply(500, {"error": text})

    def v1(self) -> None:
        body = self.body()
        name = self.state.known(str(body.get("model", "")))
        if not name:
            error = {"message": f"model '{body.get('model')}' not found", "type": "api_error"}
            self.reply(404, {"error": error})
            return
        try:
            runner = self.state.get(name, {})
        except RuntimeError as failed:
            self.reply(500, {"error": {"message": str(failed), "type": "api_error"}})
            return
        self.state.touch(runner, None)
        number, out = self._ask(runner, int(body.get("max_tokens") or 16))
        words = []
        while "done" not in (message := out.get()):
            if "dead" in message:
                self._died(stream=False)
                return
            words.append(message["token"])
        runner.outputs.pop(number, None)
        text = "".join(words)
        choice = {"index": 0, "text": text, "message": {"role": "assistant", "content": text}}
        self.reply(
            200,
            {
                "id": "cmpl-sim",
                "model": body["model"],
                "choices": [{**choice, "finish_reason": "stop"}],
            },
        )


def _part(model: str, text: str, *, chat: bool, done: bool) -> dict[str, Any]:
    content = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
    return {"model": model, **content, "done": done}


def _iso(epoch_s: float) -> str:
    if not epoch_s:
        return _NEVER
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch_s)).isoformat()


def main() -> int:
    """Serve."""
    if "--version" in sys.argv:
        print(f"ollama version is {VERSION}")
        return 0
    if sys.argv[1:] != ["serve"]:
        say(f'Error: unknown command {" ".join(sys.argv[1:])!r} for "ollama"')
        return 1
    Faults().at_start()
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    try:
        server = Server((host.strip("[]"), int(port)), Api, listen=True)
    except OSError:
        say(f"Error: listen tcp {host}:{port}: bind: address already in use")
        return 1
    state = Api.state = State()
    signal.signal(signal.SIGTERM, state.stop)
    signal.signal(signal.SIGINT, state.stop)
    say(f"Listening on {host}:{port} (version {state.version()})")
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
