"""Ollama: ``ollama serve``, one llama-server child per loaded model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from arbiterd.engines import owned_env
from arbiterd.engines.base import (
    UNREADABLE,
    Cause,
    CauseClass,
    CommandProblem,
    Defaults,
    Engine,
    LaunchContext,
    Routes,
    Wall,
)
from arbiterd.engines.devices import device_env, parse_version
from arbiterd.engines.failure_patterns import classify, word
from arbiterd.engines.ollama_models import BY_FIT, About, about
from arbiterd.engines.run_line import container_problem
from arbiterd.engines.shell_line import shell_problem
from arbiterd.model.health import HttpProbe, HttpReply, LoadedModel, Verdict
from arbiterd.model.launch import Exit, LaunchSpec
from arbiterd.model.settings import FOR_EVER_S, BackendSettings, Kind
from arbiterd.quantities import MIB, format_size

FIT_TARGET_SINCE = (0, 30)  # OLLAMA_GPU_OVERHEAD no longer takes part in placement (ollama #16031)

# Ollama 0.33 server/routes.go: every route that schedules a model
EMBED_ROUTES = ("/api/embed", "/api/embeddings", "/v1/embeddings")
LOAD_ROUTES = (
    "/api/chat",
    "/api/generate",
    *EMBED_ROUTES,
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/audio/transcriptions",
)

# server/routes.go, allowedHostsMiddleware: a loopback Ollama answers 403, with an empty body, to a Host
# that it does not know; this one it always knows.
DOOR_HOST = "localhost"

ABOUT_TIMEOUT_S = 5.0
UNLOAD_TIMEOUT_S = 6.0  # its scheduler may hold its lock for 5 s while a runner ends

_BENIGN = re.compile(r"retrying without pipeline parallelism")
_WORDS = (
    word(
        r"cudaMalloc failed: out of memory|reported out-of-memory during startup",
        CauseClass.OOM_START,
        "out of GPU memory while loading a model",
    ),
    word(
        r"runtime OOM detected|CUDA error: out of memory",
        CauseClass.OOM_RUNTIME,
        "a runner ran out of GPU memory",
    ),
    word(r"model requires more system memory", CauseClass.HOST_RAM, "not enough host memory"),
    word(
        r"model runner has unexpectedly stopped|llama(?:-server process| runner process)"
        r" has terminated",
        CauseClass.ENGINE_DEAD,
        "a runner died",
    ),
)


def margin_bytes(context: LaunchContext) -> int:
    """What Ollama shall leave free on the device: max(headroom, T - others' caps - C)."""
    total = min(device.capacity_bytes for device in context.devices)
    return max(context.headroom_bytes, total - context.others_caps_bytes - context.cap_bytes)


def margin_env(context: LaunchContext) -> tuple[str, str]:
    """The margin in the unit of its version: MiB for llama.cpp's fit, bytes before 0.30."""
    version = parse_version(context.version)
    margin = margin_bytes(context)
    if version is not None and version < FIT_TARGET_SINCE:
        return "OLLAMA_GPU_OVERHEAD", str(margin)
    return "LLAMA_ARG_FIT_TARGET", str(-(-margin // MIB))


class OllamaEngine(Engine):
    """The ollama kind."""

    kind = Kind.OLLAMA
    start_rank = 2
    defaults = Defaults("ollama", ("ollama", "serve"), 11434, start_timeout_s=120.0)
    canary_timeout_s = 20.0  # one token, but a partly offloaded model takes seconds for it
    door_host = DOOR_HOST

    def check_command(self, backend: BackendSettings) -> tuple[CommandProblem, ...]:
        """Containers and shells: Ollama takes its limits by environment."""
        problem = container_problem(backend.command) or shell_problem(
            backend.command, tuple, owned_env.owned(backend)
        )
        return (problem,) if problem else ()

    def launch(self, context: LaunchContext) -> LaunchSpec:
        """All limits are environment; OLLAMA_VULKAN=0, or a hidden GPU comes back through Vulkan
        (ollama #16592).
        """
        backend, own = context.backend, context.backend.ollama
        shown = f"[{context.host}]" if ":" in context.host else context.host
        env = {
            **device_env(backend, context.devices, uuid_works=True),
            "OLLAMA_HOST": f"{shown}:{context.port}",
            "OLLAMA_VULKAN": "0",
            "OLLAMA_MAX_LOADED_MODELS": str(own.max_loaded_models),
            "OLLAMA_NUM_PARALLEL": str(own.parallel),
            "OLLAMA_CONTEXT_LENGTH": str(own.context_length),
            "OLLAMA_KEEP_ALIVE": _keep_alive(own.keep_alive_s),
            "OLLAMA_MAX_QUEUE": str(max(1, backend.max_queue)),
            "OLLAMA_SCHED_SPREAD": "false",
        }
        if context.devices:
            name, value = margin_env(context)
            env[name] = value
        return LaunchSpec(
            backend=backend.name,
            argv=backend.command or ("ollama", "serve"),
            env=env,
            base={"OLLAMA_NO_CLOUD": "1"},  # a model's name may name ollama.com's machines
            intent=context.intent,
            stop_grace_s=15.0,
            oom_continue=True,
        )

    def knobs(self, context: LaunchContext) -> tuple[tuple[str, str], ...]:
        """The margin with its arithmetic."""
        if not context.devices:
            return (("CUDA_VISIBLE_DEVICES", '"" (CPU only)'),)
        name, value = margin_env(context)
        total = min(device.capacity_bytes for device in context.devices)
        text = (
            f"{value} = max({format_size(context.headroom_bytes)} headroom, {format_size(total)}"
            f" - {format_size(context.others_caps_bytes)} others"
            f" - {format_size(context.cap_bytes)} cap): a margin, its ceiling holds by watching"
        )
        return ((name, text),)

    def wall(self, context: LaunchContext) -> Wall:
        """No ceiling of its own; without the gateway there is no load gate either."""
        if not context.devices:
            return Wall("none", "on the CPU: no GPU memory to hold")
        if context.port == context.backend.port:
            return Wall("watching", "by watching: without the gateway there is no load gate")
        return Wall("watching", "the load gate admits no load over the cap; else by watching")

    def served_models(self, backend: BackendSettings) -> tuple[str, ...]:
        """The allow-list."""
        return backend.models

    def routes(self, backend: BackendSettings) -> Routes:
        """Whatever may load goes through the load gate; what changes the library is local."""
        del backend
        return Routes(
            "openai_below_v1",
            exact=("/", "/api/ps", "/api/show"),
            health=("/api/version",),
            loads=LOAD_ROUTES,
            listed=("/api/tags", "/v1/models"),
            local=("/api/create", "/api/delete", "/api/push", "/api/copy", "/api/pull"),
        )

    def ready_probes(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """/api/version: it answers at once, with nothing loaded."""
        del backend
        return (HttpProbe("GET", "/api/version"),)

    def judge_ready(self, backend: BackendSettings, replies: Sequence[HttpReply]) -> Verdict:
        """200 is alive; whether it computes is the canary's to say."""
        del backend
        reply = replies[0]
        return Verdict(ok=reply.status == 200, detail="" if reply.status == 200 else _plain(reply))

    def canary(self, backend: BackendSettings, loaded: Sequence[LoadedModel]) -> HttpProbe | None:
        """One token, or one vector, of a resident model. Without keep_alive its runner keeps its own;
        num_gpu -1 fits any runner; the context is the one that it has (needsReload in ollama
        server/sched.go). None while nothing is loaded.
        """
        if not loaded:
            return None
        model = loaded[0]
        options = {"num_ctx": model.context or backend.ollama.context_length, "num_gpu": BY_FIT}
        if model.embeds:
            path, asked = "/api/embed", {"input": "1"}
        else:
            path, asked = "/api/generate", {"prompt": "1"}
            options["num_predict"] = 1
        body = {"model": model.name, "stream": False, "options": options, **asked}
        return HttpProbe("POST", path, json.dumps(body), self.canary_timeout_s)

    def judge_canary(self, backend: BackendSettings, reply: HttpReply) -> Verdict:
        """200, or its own queue-full answer, or a model that is only good for embeddings (400)."""
        del backend
        ok = reply.status in (200, 400, 404) or (reply.status == 503 and "busy" in reply.body)
        return Verdict(ok=ok, detail="" if ok else _plain(reply))

    def loaded_probe(self, backend: BackendSettings) -> HttpProbe | None:
        """/api/ps; may block up to 5 s during an unload."""
        del backend
        return HttpProbe("GET", "/api/ps", timeout_s=6.0)

    def read_loaded(self, reply: HttpReply, wall: float) -> tuple[LoadedModel, ...] | None:
        """Resident models; size_vram < size means layers on the CPU."""
        if reply.status != 200:
            return None
        try:
            rows = json.loads(reply.body)["models"] or []
            return tuple(
                LoadedModel(
                    name=str(row["name"]),
                    size_bytes=_size(row.get("size", 0)),
                    vram_bytes=_size(row.get("size_vram", 0)),
                    expires_in_s=_expires(str(row.get("expires_at", "")), wall),
                    digest=str(row.get("digest", "")),
                    context=_size(row.get("context_length") or 0),
                )
                for row in rows
            )
        except UNREADABLE:
            return None

    def library_probe(self, backend: BackendSettings) -> HttpProbe | None:
        """/api/tags; it loads nothing."""
        del backend
        return HttpProbe("GET", "/api/tags", timeout_s=ABOUT_TIMEOUT_S)

    def warm_model(self, backend: BackendSettings) -> str:
        """The first of the allow-list."""
        return backend.models[0] if backend.models else ""

    def about_probe(self, backend: BackendSettings, model: str) -> HttpProbe | None:
        """/api/show; it loads nothing."""
        del backend
        return HttpProbe("POST", "/api/show", json.dumps({"model": model}), ABOUT_TIMEOUT_S)

    def read_about(self, model: LoadedModel, reply: HttpReply) -> LoadedModel:
        """Whether it is for embeddings only, and whose runner it can share."""
        found = _about(reply.body)
        return replace(model, embeds=found.embeds, runner=found.runner)

    def load_probe(
        self,
        backend: BackendSettings,
        model: str,
        keep_alive_s: float,
        timeout_s: float,
        about: str,
    ) -> HttpProbe | None:
        """Load only: no prompt, with the options that the load gate writes into every body. A client
        that goes away aborts the load, so the timeout is long.
        """
        keep: int | str = -1 if keep_alive_s < 0 else f"{round(keep_alive_s)}s"
        found = _about(about)
        body = json.dumps(found.load_body(model, backend.ollama.context_length, keep))
        return HttpProbe("POST", found.load_path, body, timeout_s)

    def unload_requests(self, backend: BackendSettings, model: str) -> tuple[HttpProbe, ...]:
        """keep_alive 0: asynchronous, interrupts nothing, re-armed by a request that comes meanwhile."""
        del backend
        body = json.dumps({"model": model, "keep_alive": 0, "stream": False})
        return (HttpProbe("POST", "/api/generate", body, UNLOAD_TIMEOUT_S),)

    def classify(self, lines: Sequence[str], exit_: Exit | None, *, was_ready: bool) -> Cause:
        """Its dying words."""
        del was_ready
        return classify(lines, exit_, _WORDS, benign=_BENIGN)


def _keep_alive(seconds: float) -> str:
    return "-1" if seconds >= FOR_EVER_S else f"{round(seconds)}s"


def _about(body: str) -> About:
    try:
        found = json.loads(body)
    except UNREADABLE:
        return About()
    return about(found) if isinstance(found, dict) else About()


def _size(given: object) -> int:
    """Bytes.

    Raises:
        ValueError: no whole number of 0 or more that 63 bits hold.

    """
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 1 << 63:
        msg = f"{given!r} is no size"
        raise ValueError(msg)
    return given


def _expires(text: str, wall: float) -> float | None:
    """Seconds until an RFC 3339 time (nanoseconds cut to microseconds), None when unreadable."""
    cut = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        return datetime.fromisoformat(cut).timestamp() - wall
    except UNREADABLE:
        return None


def _plain(reply: HttpReply) -> str:
    return reply.error or f"HTTP {reply.status}"
