"""A stand-in for ``ollama serve`` (0.33): it holds no memory itself, its runners do.

Placement is a margin, not a ceiling: a model gets what is free less LLAMA_ARG_FIT_TARGET (MiB), the
rest of its layers goes to the CPU silently and shows only as size_vram < size.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from arbiterd.sim.engines.common import Faults, Handler, Server, say
from arbiterd.sim.engines.ollama_scheduler import LIBRARY, VERSION, Runner, State

_NEVER = "0001-01-01T00:00:00Z"


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
        ("POST", "/api/show"): "show",
        ("POST", "/api/embed"): "embed",
        ("POST", "/api/embeddings"): "embed",
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
        rows = []
        for name, source in self.state.names.items():
            size = LIBRARY[source or name][0]
            rows.append({"name": name, "model": name, "size": size, "digest": source or name})
        self.reply(200, {"models": rows})

    def show(self) -> None:
        """What the GGUF's header says, shaped so that the KV cache comes to the library's figure."""
        name = self.state.known(str(self.body().get("model", "")))
        if not name:
            self.reply(404, {"error": "model not found"})
            return
        layers = LIBRARY[name][1] // 1024
        info = {
            "general.architecture": "sim",
            "sim.block_count": layers,
            "sim.attention.head_count": 2,
            "sim.attention.head_count_kv": 2,
            "sim.attention.key_length": 128,
            "sim.attention.value_length": 128,
        }
        self.reply(
            200,
            {
                "model_info": info,
                "capabilities": ["completion"],
                "parameters": str(self.state.faults.get("parameters", "")),
            },
        )

    def embed(self) -> None:
        """A vector; loads like any other."""
        body = self.body()
        name = self.state.known(str(body.get("model", "")))
        if not name:
            self.reply(404, {"error": f"model '{body.get('model')}' not found"})
            return
        vector = {"model": name, "embeddings": [[0.1, 0.2]], "embedding": [0.1, 0.2]}
        try:
            with self.state.using(name, body.get("options") or {}, body.get("keep_alive")):
                self.reply(200, vector)
        except RuntimeError as error:
            self.reply(500, {"error": str(error)})

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
            with self.state.using(name, options, keep) as runner:
                if load_only:
                    done = {"model": name, "response": "", "done": True, "done_reason": "load"}
                    self.reply(200, done)
                    return
                tokens = int(options.get("num_predict") or 16)
                self._tokens(runner, tokens, stream=body.get("stream", True), chat=chat)
        except RuntimeError as error:
            say(str(error))
            self.reply(500, {"error": str(error)})

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
        """OpenAI's routes, whole or as SSE."""
        body = self.body()
        name = self.state.known(str(body.get("model", "")))
        if not name:
            error = {"message": f"model '{body.get('model')}' not found", "type": "api_error"}
            self.reply(404, {"error": error})
            return
        try:
            with self.state.using(name, {}, None) as runner:
                self._v1(runner, body)
        except RuntimeError as failed:
            self.reply(500, {"error": {"message": str(failed), "type": "api_error"}})

    def _v1(self, runner: Runner, body: dict[str, Any]) -> None:
        number, out = self._ask(runner, int(body.get("max_tokens") or 16))
        if body.get("stream"):
            self._sse(str(body["model"]), out)
            runner.outputs.pop(number, None)
            return
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

    def _sse(self, model: str, out: queue.Queue[dict[str, Any]]) -> None:
        self.begin_stream("text/event-stream")
        while True:
            message = out.get()
            if "dead" in message:
                self.chunk('data: {"error": {"message": "an error was encountered"}}\n\n')
                break
            word, end = message.get("token", ""), "done" in message
            choice = {"index": 0, "text": word, "delta": {"content": word}}
            choice["finish_reason"] = "stop" if end else None
            part = {
                "id": "cmpl-sim",
                "object": "chat.completion.chunk",
                "model": model,
                "created": 0,
            }
            self.chunk(f"data: {json.dumps({**part, 'choices': [choice]})}\n\n")
            if end:
                self.chunk("data: [DONE]\n\n")
                break
        self.chunk("")


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
