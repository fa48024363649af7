"""The stand-in vLLM's routes (0.32, as recorded; see tests/conformance/vllm.json)."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

from arbiterd.sim.engines import vllm_answers as answers
from arbiterd.sim.engines.vllm_answers import BUSY, SHUT_DOWN, Shape, error
from arbiterd.sim.engines.vllm_bodies import Refused, check, check_lengths, parse, prompt_of
from arbiterd.sim.engines.vllm_http import Http, Left
from arbiterd.sim.engines.vllm_sleep import SleepRoutes
from arbiterd.sim.engines.vllm_state import PAUSED

_LOOK_S = 0.03  # how often a waiting answer looks whether its client is still there
_DEAD = "The server had an error while processing your request."
Message = dict[str, Any]


class Api(SleepRoutes, Http):
    """vLLM's routes."""

    looked = 0.0
    open_routes: ClassVar[dict[tuple[str, str], str]] = {
        ("GET", "/health"): "health",
        ("GET", "/ping"): "health",
        ("POST", "/ping"): "health",
        ("GET", "/load"): "load",
        ("GET", "/version"): "version",
        ("GET", "/docs"): "docs",
        ("GET", "/openapi.json"): "openapi",
        ("GET", "/v1/models"): "models",
        ("GET", "/metrics"): "metrics",
        ("POST", "/v1/completions"): "completions",
        ("POST", "/v1/chat/completions"): "chat",
        ("POST", "/v1/responses"): "create_response",
        ("POST", "/v1/messages"): "create_message",
        ("POST", "/invocations"): "invocations",
        ("POST", "/tokenize"): "tokenize",
        ("POST", "/detokenize"): "detokenize",
    }
    dev_routes: ClassVar[dict[tuple[str, str], str]] = {
        ("POST", "/pause"): "pause",
        ("POST", "/resume"): "resume",
        ("POST", "/sleep"): "sleep",
        ("POST", "/wake_up"): "wake",
        ("GET", "/is_sleeping"): "is_sleeping",
        ("GET", "/server_info"): "server_info",
        ("POST", "/reset_prefix_cache"): "reset_prefix_cache",
    }

    # -- what needs no engine ------------------------------------------------------------------
    def health(self) -> None:
        """200 even when hung; 503 once the engine is known to be dead."""
        forced = self.state.faults.get("health_status")
        self.reply(int(forced) if forced else 503 if self.state.dead else 200)

    def load(self) -> None:
        self.reply(200, {"server_load": 0})

    def version(self) -> None:
        self.reply(200, {"version": self.state.version})

    def docs(self) -> None:
        self.reply(
            200,
            "<title>FastAPI - Swagger UI</title><div id=swagger-ui>",
            "text/html; charset=utf-8",
        )

    def openapi(self) -> None:
        paths: dict[str, dict[str, Any]] = {}
        for method, path in {**self.open_routes, **self.dev_routes}:
            paths.setdefault(path, {})[method.lower()] = {}
        info = {"title": "FastAPI", "version": "0.1.0"}
        self.reply(200, {"openapi": "3.1.0", "info": info, "paths": paths, "components": {}})

    def server_info(self) -> None:
        config = f"model='{self.state.options.model}'"
        self.reply(200, {"vllm_config": config, "vllm_env": {}, "system_env": {}})

    def reset_prefix_cache(self) -> None:
        self.reply(200, {"success": True})

    def models(self) -> None:
        """The served names in their order, then the LoRA modules with their parent."""
        state, most = self.state, self.state.options.max_model_len
        rows = [answers.card(one, state.options.model, None, most) for one in state.models]
        rows += [
            answers.card(name, path, base or state.models[0], None)
            for name, (path, base) in state.loras.items()
        ]
        self.reply(200, {"object": "list", "data": rows})

    def metrics(self) -> None:
        kind = "text/plain; version=1.0.0; charset=utf-8"
        self.reply(200, str(self.state.faults.get("metrics", "")) or self.state.metrics(), kind)

    def tokenize(self) -> None:
        self._answer(self._tokenize)

    def _tokenize(self) -> None:
        body = self._body()
        words = prompt_of(body, chat="messages" in body).split()
        tokens = [len(word) for word in words]
        most = self.state.options.max_model_len
        found = {"count": len(tokens), "max_model_len": most, "tokens": tokens, "token_strs": None}
        self.reply(200, found)

    def detokenize(self) -> None:
        self._answer(lambda: self.reply(200, {"prompt": "x" * len(self._body().get("tokens", ""))}))

    # -- what generates ------------------------------------------------------------------------
    def completions(self) -> None:
        self._answer(lambda: self._generate(chat=False))

    def chat(self) -> None:
        self._answer(lambda: self._generate(chat=True))

    def invocations(self) -> None:
        """A chat or a completion, by its body."""
        self._answer(lambda: self._generate(chat="messages" in self._body()))

    def create_response(self) -> None:
        self._answer(lambda: self._other(answers.response))

    def create_message(self) -> None:
        def made(model: str, text: str, prompt: int, count: int, _: Any) -> dict[str, Any]:
            return answers.message(model, text, prompt, count)

        self._answer(lambda: self._other(made))

    def _answer(self, work: Any) -> None:
        """Run ``work``; a refusal in it is the answer, a client that left gets none."""
        self.state.answers(+1)
        try:
            work()
        except Refused as refused:
            # What nobody expects is answered outside of the middleware that adds Vary.
            self.reply(refused.status, refused.value, vary=refused.status != 500)
        except Left:
            self.close_connection = True
        finally:
            self.state.answers(-1)

    def _body(self) -> dict[str, Any]:
        return parse(self.headers.get("Content-Type") or "", self.raw)

    def _model(self, body: dict[str, Any]) -> str:
        """The name to answer with: the first, or the LoRA's that was asked for."""
        asked, state = body.get("model"), self.state
        if asked in state.loras:
            return str(asked)
        if asked and asked not in state.models:
            names = ", ".join(state.models)
            text = f"The model `{asked}` does not exist. Valid aliases: {names}."
            raise Refused(404, error(text, "NotFoundError", 404, "model"))
        return state.models[0]

    def _generate(self, *, chat: bool) -> None:
        body = self._body()
        check(body, chat=chat)
        model = self._model(body)
        prompt = prompt_of(body, chat=chat)
        asked = body.get("max_completion_tokens") if chat else None
        asked = asked if asked is not None else body.get("max_tokens")
        most = self.state.options.max_model_len
        check_lengths(prompt, asked, most)
        if self.state.draining:
            raise Refused(500, error(SHUT_DOWN, "InternalServerError", 500))
        count = int(body.get("n") or 1)
        if self.state.full(count):
            self.state.rejected += 1
            raise Refused(503, error(BUSY, "Service Unavailable", 503))
        shape = Shape(model, chat=chat)
        size = max(1, len(prompt.split()))
        # Without max_tokens a chat goes on to the end of the context, a completion for 16 tokens.
        default = max(1, (most or 4096) - size) if chat else 16
        tokens = self._tokens(int(asked or default), size, count)
        if body.get("stream"):
            used = bool((body.get("stream_options") or {}).get("include_usage"))
            self._stream(tokens, shape, size, usage=used)
            return
        text, made, finish = _gather(tokens)
        self.reply(200, shape.whole(text, finish, size, made))

    def _other(self, shape: Any) -> None:
        """Of another API, whole answers only."""
        body = self._body()
        model = self._model(body)
        most = body.get("max_output_tokens") or body.get("max_tokens")
        prompt = str(body.get("input") or body.get("messages") or "")
        size = max(1, len(prompt.split()))
        text, made, _ = _gather(self._tokens(int(most or 16), size, 1))
        self.reply(200, shape(model, text, size, made, most))

    def _tokens(self, tokens: int, size: int, count: int) -> Iterator[Message]:
        """What the core says of one request, to its end.

        Raises:
            Refused: the queue is full, it is paused, shutting down or dead.
            Left: the client has gone.
        """
        state = self.state
        if not state.admit(count):
            raise Refused(503, error(BUSY, "Service Unavailable", 503))
        try:
            if not state.pausing.enter(self.client_left):
                raise Refused(503, error(PAUSED, "ServiceUnavailableError", 503))
            try:
                yield from self._ask(tokens, size)
            finally:
                state.pausing.leave()
        finally:
            state.leave(count)

    def _ask(self, tokens: int, size: int) -> Iterator[Message]:
        state = self.state
        number, out = state.ask(op="generate", max_tokens=tokens, prompt_tokens=size)
        try:
            while True:
                message = self._next(out)
                if "dead" in message:
                    raise Refused(500, error(_DEAD, "InternalServerError", 500))
                yield message
                if "done" in message:
                    return
        finally:
            state.end(number)

    def _next(self, out: queue.Queue[Message]) -> Message:
        """The core's next word; the client is looked at meanwhile, also when words come fast."""
        while True:
            if time.monotonic() - self.looked >= _LOOK_S:
                self.looked = time.monotonic()
                if self.client_left():
                    raise Left
            with suppress(queue.Empty):
                message = out.get(timeout=_LOOK_S)
                if not self.state.cut:
                    return message

    def _stream(self, tokens: Iterator[Message], shape: Shape, size: int, *, usage: bool) -> None:
        """Headers at once: what comes to light later is an event of a stream that says 200."""
        self.begin_events()
        made = 0
        try:
            for message in tokens:
                if "token" in message:
                    if shape.chat and not made:
                        self.event(shape.first())
                    made += 1
                    finish = "length" if message["last"] else None
                    self.event(shape.token(message["token"], finish, last=not usage))
                elif "aborted" in message and not message["queued"]:
                    self.event(shape.token("", "abort", last=not usage))
            if usage and made:
                self.event(shape.used(size, made))
        except Refused as refused:
            self.event(refused.value)
        self.end_events()


def _gather(tokens: Iterator[Message]) -> tuple[str, int, str]:
    """(text, how many tokens, why it ended)."""
    words: list[str] = []
    finish = "length"
    for message in tokens:
        if "token" in message:
            words.append(message["token"])
        if "aborted" in message:
            finish = "abort"
    return "".join(words), len(words), finish
