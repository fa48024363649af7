"""A stand-in for ``vllm serve MODEL``: the API server; the memory is its EngineCore's.

Port bound at once, listening only when ready. SIGTERM drains for --shutdown-timeout. When the core
dies the server ends with exit code 0, as the real one does (vllm #48966).
"""

from __future__ import annotations

import argparse
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
from contextlib import suppress
from typing import Any, ClassVar

from arbiterd.sim.engines.common import Faults, Link, Server, say
from arbiterd.sim.engines.vllm_sleep import PAUSED, Pausing, SleepRoutes

VERSION = "0.33.0"
WATCHDOG_S = 1.0  # the real one looks every 5 s


class State:
    """The API server's side of the engine."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.models = options.served_model_name or [options.model]
        self.faults = Faults()
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.outputs: dict[int, queue.Queue[dict[str, Any]]] = {}
        self.running: set[int] = set()
        self.prompt_tokens = self.generation_tokens = self.finished = self.preemptions = 0
        self.rejected = 0
        self.dead = self.draining = False
        self.pausing = Pausing()
        self.generating: set[int] = set()
        self.ready = threading.Event()
        self.failed = False
        self.core, self.link = self._spawn()
        threading.Thread(target=self._listen, daemon=True).start()

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Link]:
        """No parent-death signal, no shared fate: an orphaned core keeps its memory (vllm #55510)."""
        ours, theirs = socket.socketpair()
        wanted = (
            "model",
            "gpu_memory_utilization",
            "max_model_len",
            "max_num_seqs",
            "enforce_eager",
        )
        options = {name: getattr(self.options, name) for name in wanted}
        core = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "arbiterd.sim.engines.vllm_core",
                str(theirs.fileno()),
                json.dumps(options),
            ],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        return core, Link(ours)

    def _listen(self) -> None:
        for message in self.link:
            if "ready" in message:
                self.ready.set()
            elif "failed" in message:
                self.failed = True
                self.ready.set()
            else:
                self._count(message)
                with self.lock:
                    out = self.outputs.get(message["id"])
                if out is not None:
                    out.put(message)
        self.dead = True
        self.ready.set()
        with self.lock:
            for out in self.outputs.values():
                out.put({"dead": True})

    def _count(self, message: dict[str, Any]) -> None:
        with self.lock:
            if "started" in message:
                self.running.add(message["id"])
                self.prompt_tokens += message["prompt_tokens"]
            elif "token" in message:
                self.generation_tokens += 1
            elif "done" in message:
                self.finished += message["id"] in self.running
                self.running.discard(message["id"])

    def ask(self, **message: Any) -> tuple[int, queue.Queue[dict[str, Any]]]:
        """Send to the core; answers come through the queue."""
        number = next(self.numbers)
        out: queue.Queue[dict[str, Any]] = queue.Queue()
        with self.lock:
            self.outputs[number] = out
            if message["op"] == "generate":
                self.generating.add(number)
        self.link.send(id=number, **message)
        if self.dead:
            out.put({"dead": True})
        return number, out

    def end(self, number: int) -> None:
        """Forget a request; the core stops making tokens for it."""
        with self.lock:
            self.outputs.pop(number, None)
            self.generating.discard(number)
            self.running.discard(number)
        self.link.send(op="cancel", id=number)

    def abort(self) -> None:
        """End every running request: 200 and finish_reason 'abort' for its client."""
        with self.lock:
            for number in self.generating:
                self.outputs[number].put({"done": True, "aborted": True})

    def busy(self) -> bool:
        """More waiting than --max-num-queued-reqs allows."""
        with self.lock:
            waiting = len(self.generating) - len(self.running)
        limit = self.options.max_num_queued_reqs
        return limit is not None and waiting >= limit

    def metrics(self) -> str:
        """Prometheus text."""
        with self.lock:
            running = len(self.running)
            waiting = len(self.generating) - running + self.pausing.hanging
        label = f'{{model_name="{self.models[0]}",engine="0"}}'
        done = f'{{model_name="{self.models[0]}",engine="0",finished_reason="length"}}'
        rows = [
            ("num_requests_running", label, running),
            ("num_requests_waiting", label, max(0, waiting)),
            ("kv_cache_usage_perc", label, min(1.0, running / 16)),
            ("prompt_tokens_total", label, self.prompt_tokens),
            ("generation_tokens_total", label, self.generation_tokens),
            ("request_success_total", done, self.finished),
            ("num_preemptions_total", label, self.preemptions),
            ("admission_rejections_total", label, self.rejected),
        ]
        rows += self.pausing.rows(self.models[0])
        return "".join(f"vllm:{name}{labels} {value}\n" for name, labels, value in rows)


class Api(SleepRoutes):
    """vLLM's routes."""

    state: State
    routes: ClassVar[dict[tuple[str, str], str]] = {
        ("GET", "/health"): "health",
        ("GET", "/ping"): "health",
        ("POST", "/ping"): "health",
        ("GET", "/load"): "load",
        ("GET", "/version"): "version",
        ("GET", "/v1/models"): "models",
        ("GET", "/metrics"): "metrics",
        ("POST", "/v1/completions"): "completions",
        ("POST", "/v1/chat/completions"): "chat",
        ("POST", "/pause"): "pause",
        ("POST", "/resume"): "resume",
        ("POST", "/sleep"): "sleep",
        ("POST", "/wake_up"): "wake",
        ("GET", "/is_sleeping"): "is_sleeping",
    }

    def health(self) -> None:
        """200 even when hung; 503 once the engine is known to be dead."""
        forced = self.state.faults.get("health_status")
        self.reply(int(forced) if forced else 503 if self.state.dead else 200)

    def load(self) -> None:
        self.reply(200, {"server_load": 0})

    def version(self) -> None:
        self.reply(200, {"version": VERSION})

    def models(self) -> None:
        rows = [{"id": one, "object": "model", "owned_by": "vllm"} for one in self.state.models]
        self.reply(200, {"object": "list", "data": rows})

    def metrics(self) -> None:
        self.reply(200, self.state.metrics(), "text/plain; version=0.0.4")

    def completions(self) -> None:
        self._generate(chat=False)

    def chat(self) -> None:
        self._generate(chat=True)

    def _generate(self, *, chat: bool) -> None:
        body, state = self.body(), self.state
        model = body.get("model")
        if model not in state.models:
            text = f"The model `{model}` does not exist."
            self._error(404, text, "NotFoundError")
            return
        if state.busy():
            state.rejected += 1
            self._error(
                503, "The engine is currently busy. Please retry later.", "ServiceUnavailable"
            )
            return
        if not state.pausing.enter():
            self._error(503, PAUSED, "ServiceUnavailable")
            return
        try:
            self._run(body, chat=chat)
        finally:
            state.pausing.leave()

    def _run(self, body: dict[str, Any], *, chat: bool) -> None:
        state, model = self.state, body.get("model")
        prompt = str(body.get("prompt") or body.get("messages") or "")
        tokens = int(body.get("max_tokens") or 16)
        number, out = state.ask(
            op="generate", max_tokens=tokens, prompt_tokens=max(1, len(prompt.split()))
        )
        try:
            if body.get("stream"):
                self._stream(out, str(model), chat=chat)
            else:
                self._whole(out, str(model), prompt, chat=chat)
        finally:
            state.end(number)

    def _whole(
        self, out: queue.Queue[dict[str, Any]], model: str, prompt: str, *, chat: bool
    ) -> None:
        words: list[str] = []
        while True:
            message = out.get()
            if "dead" in message:
                self._error(
                    500,
                    "The server had an error while processing your request.",
                    "InternalServerError",
                )
                return
            if "token" in message:
                words.append(message["token"])
            if "done" in message:
                finish = "abort" if "aborted" in message else "length"
                break
        used = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(words)}
        self.reply(
            200,
            {
                **_head(model, chat=chat),
                "choices": [_choice("".join(words), finish, chat=chat)],
                "usage": used,
            },
        )

    def _stream(self, out: queue.Queue[dict[str, Any]], model: str, *, chat: bool) -> None:
        self.begin_stream("text/event-stream")
        while True:
            message = out.get()
            if "dead" in message:
                error = {"error": {"message": "EngineCore encountered an issue.", "code": 500}}
                self.chunk(f"data: {json.dumps(error)}\n\n")
                break
            if "token" in message:
                part = {
                    **_head(model, chat=chat),
                    "choices": [_choice(message["token"], None, chat=chat, delta=True)],
                }
                self.chunk(f"data: {json.dumps(part)}\n\n")
            if "done" in message:
                if "aborted" in message:
                    last = _choice("", "abort", chat=chat, delta=True)
                    self.chunk(
                        f"data: {json.dumps({**_head(model, chat=chat), 'choices': [last]})}\n\n"
                    )
                break
        self.chunk("data: [DONE]\n\n")
        self.chunk("")


def _head(model: str, *, chat: bool) -> dict[str, Any]:
    kind = "chat.completion" if chat else "text_completion"
    return {"id": "cmpl-sim", "object": kind, "created": int(time.time()), "model": model}


def _choice(text: str, finish: str | None, *, chat: bool, delta: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {"text": text}
    if chat:
        content = {"delta" if delta else "message": {"role": "assistant", "content": text}}
    return {"index": 0, **content, "finish_reason": finish}


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("serve", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", default=None)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    parser.add_argument("--kv-cache-memory-bytes")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--max-num-queued-reqs", type=int)
    parser.add_argument("--shutdown-timeout", type=float, default=0)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--enable-sleep-mode", action="store_true")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--load-format")
    parser.add_argument("--dtype")
    return parser.parse_args(argv)


def main() -> int:
    """Serve."""
    options = _options(sys.argv[1:])
    faults = Faults()
    faults.at_start()
    try:
        server = Server((options.host or "0.0.0.0", options.port), Api, listen=False)
    except OSError as error:
        say(f"OSError: [Errno {error.errno}] Address already in use")
        return 1
    state = Api.state = State(options)
    signal.signal(signal.SIGTERM, lambda *_: _stop(state, 0))
    signal.signal(signal.SIGINT, lambda *_: _stop(state, 0))
    state.ready.wait()
    if state.failed or state.dead:
        state.core.wait()
        say(
            "RuntimeError: Engine core initialization failed. See root cause above. "
            "Failed core proc(s): {'EngineCore': 1}"
        )
        return 1
    server.server_activate()
    print("INFO:     Application startup complete.", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not state.draining:
        if state.dead or state.core.poll() is not None:
            say("AsyncLLM output_handler failed: EngineDeadError: EngineCore encountered an issue.")
            state.dead = True
            time.sleep(WATCHDOG_S)
            return 0
        time.sleep(0.05)
    deadline = time.monotonic() + options.shutdown_timeout
    while state.outputs and time.monotonic() < deadline:
        time.sleep(0.02)
    _end_core(state)
    return 0


def _stop(state: State, _code: int) -> None:
    if not state.ready.is_set():
        _end_core(state)
        os._exit(0)
    state.draining = True


def _end_core(state: State) -> None:
    with suppress(ProcessLookupError):
        state.core.kill()
        state.core.wait()


if __name__ == "__main__":
    sys.exit(main())
