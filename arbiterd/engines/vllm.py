"""vLLM: ``vllm serve MODEL`` or ``python -m vllm.entrypoints.openai.api_server --model MODEL``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import floor

from arbiterd.engines.base import (
    UNREADABLE,
    CauseClass,
    CommandProblem,
    Defaults,
    Engine,
    LaunchContext,
    Routes,
    Wall,
)
from arbiterd.engines.base import Cause as CauseOf
from arbiterd.engines.devices import device_env, parse_version
from arbiterd.engines.failure_patterns import classify, word
from arbiterd.engines.metrics_text import sample_sum
from arbiterd.engines.vllm_command import sized
from arbiterd.engines.vllm_rules import check, named, served, spoken
from arbiterd.model.health import HttpProbe, HttpReply, LoadedModel, Progress, Verdict
from arbiterd.model.launch import Exit, LaunchSpec
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.quantities import MIB, format_size

# What lies outside --gpu-memory-utilization: CUDA context, cuBLAS handles, NCCL (facts/engines.md).
OVERHEAD_CONSUMER = 600 * MIB
OVERHEAD_DATACENTRE = 800 * MIB
OVERHEAD_PER_RANK = 400 * MIB
SPIKE_MIN = 256 * MIB
SPIKE_FRACTION = 0.02
SLEEP_TIMEOUT_S = 120.0  # weights go through pinned host memory: tens of GB at a few GB/s
# uvicorn ends idle connections after 5 s, the door's kept ones are idle for 3 s at most (gateway/rules.py)
KEEP_ALIVE_S = 60.0
QUEUE_LIMIT_SINCE = (0, 30)  # --max-num-queued-reqs: present in 0.30, absent in 0.28
UUID_SINCE = (0, 25)  # a GPU uuid in CUDA_VISIBLE_DEVICES kills 0.21 (vllm #51677)
_CONSUMER = re.compile(r"GeForce|RTX \d{4}(?! Ada)|TITAN", re.IGNORECASE)

_WORDS = (
    word(
        r"Free memory on device .* on startup is less than desired GPU memory utilization",
        CauseClass.NOT_ENOUGH_FREE,
        "not enough free memory at start",
    ),
    word(
        r"Error in memory profiling\. Initial free memory",
        CauseClass.INIT_RACE,
        "another process gave memory back while it profiled; tried again unchanged",
    ),
    word(
        r"To serve at least one request with the model's max seq len \((\d+)\)"
        r".*?estimated maximum model length is (\d+)",
        CauseClass.BUDGET_TOO_SMALL,
        "its cap holds no request of {0} tokens; set max_model_len = {1} or raise memory",
        retry=False,
    ),
    word(
        r"To serve at least one request with the model's max seq len \((\d+)\)",
        CauseClass.BUDGET_TOO_SMALL,
        "its cap holds no request of {0} tokens; lower max_model_len or raise memory",
        retry=False,
    ),
    word(
        r"No available memory for the cache blocks",
        CauseClass.BUDGET_TOO_SMALL,
        "its cap leaves nothing for the KV cache; raise memory or take a smaller model",
    ),
    word(
        r"Failed to load model - not enough GPU memory|CUDA out of memory occurred when warming up",
        CauseClass.OOM_START,
        "out of GPU memory while starting",
    ),
    word(
        r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory\. Tried to allocate",
        CauseClass.OOM_RUNTIME,
        "out of GPU memory",
    ),
    word(
        r"Call to (sleep|wake_up) method failed", CauseClass.ENGINE_DEAD, "{0} failed; restart it"
    ),
    word(
        r"invalid literal for int\(\) with base 10: '(?:GPU|MIG)-|NVMLError_NotFound",
        CauseClass.CONFIG,
        'this version cannot take a GPU uuid; set device_id = "index"',
        retry=False,
    ),
    word(
        r"unrecognized arguments: (.*)",
        CauseClass.CONFIG,
        "it does not know the arguments {0}",
        retry=False,
    ),
    word(
        r"Timed out waiting for engine core processes",
        CauseClass.OTHER,
        "the engine core did not start in time; raise start_timeout",
    ),
    word(
        r"EngineDeadError|EngineCore encountered (?:a fatal error|an issue)"
        r"|engine core exited unexpectedly|Worker proc .* died unexpectedly",
        CauseClass.ENGINE_DEAD,
        "its engine core died",
    ),
)
_WRAPPERS = (
    word(
        r"Engine core initialization failed|EngineCore failed to start"
        r"|WorkerProc initialization failed",
        CauseClass.OTHER,
        "the engine core did not start",
    ),
)

_ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/rerank",
    "/v1/score",
    "/v2/rerank",
    "/rerank",
    "/score",
    "/pooling",
    "/classify",
    "/tokenize",
    "/detokenize",
    "/version",
)


def overhead_bytes(context: LaunchContext) -> int:
    """O: what vLLM holds outside its budget; learned, or the prior of its card."""
    if context.overhead_bytes is not None:
        return context.overhead_bytes
    consumer = bool(_CONSUMER.search(context.devices[0].name))
    prior = OVERHEAD_CONSUMER if consumer else OVERHEAD_DATACENTRE
    return prior + OVERHEAD_PER_RANK * (len(context.devices) - 1)


def spike_bytes(cap: int) -> int:
    """S: room for allocator spikes, max(256 MiB, 2 % of the cap)."""
    return max(SPIKE_MIN, int(cap * SPIKE_FRACTION))


def utilisation(context: LaunchContext) -> float:
    """U = floor((C - O - S) / T) to three places: U·T + O + S never exceeds the cap."""
    total = min(device.capacity_bytes for device in context.devices)
    room = context.cap_bytes - overhead_bytes(context) - spike_bytes(context.cap_bytes)
    return max(0.0, floor(room * 1000 / total) / 1000)


class VllmEngine(Engine):
    """The vLLM kind."""

    kind = Kind.VLLM
    start_rank = 1
    defaults = Defaults("vllm", port=8000, priority=30, start_timeout_s=1200.0, stuck_after_s=30.0)
    drains_itself = True

    def check_command(self, backend: BackendSettings) -> tuple[CommandProblem, ...]:
        """Owned flags, shells, containers, and a command that names no model."""
        return check(backend)

    def launch(self, context: LaunchContext) -> LaunchSpec:
        """The command, then the arbiter's flags."""
        backend = context.backend
        command = spoken(backend)
        argv = [*named(backend), "--host", context.host, "--port", str(context.port)]
        if context.devices:
            argv += ["--gpu-memory-utilization", f"{utilisation(context):.3f}"]
            if len(context.devices) > 1 and not sized(command):
                argv += ["--tensor-parallel-size", str(len(context.devices))]
        argv += ["--shutdown-timeout", str(round(backend.drain_timeout_s))]
        version = parse_version(context.version)
        behind_door = context.port != backend.port
        if not behind_door and (version is None or version >= QUEUE_LIMIT_SINCE):
            # It bounds all that is in flight, running requests included (facts/engines.md, 3.1). A
            # door bounds both by itself, live; a second bound would only refuse what it lets in.
            most = max(1, backend.max_in_flight + backend.max_queue)
            argv += ["--max-num-queued-reqs", str(most)]
        if backend.vllm.max_model_len is not None:
            argv += ["--max-model-len", str(backend.vllm.max_model_len)]
        if backend.vllm.max_num_seqs is not None:
            argv += ["--max-num-seqs", str(backend.vllm.max_num_seqs)]
        env = dict(device_env(backend, context.devices, uuid_works=_uuid_works(version)))
        env["VLLM_ENGINE_READY_TIMEOUT_S"] = str(round(backend.start_timeout_s))
        if backend.vllm.sleep:
            argv.append("--enable-sleep-mode")
            env["VLLM_SERVER_DEV_MODE"] = "1"
        return LaunchSpec(
            backend=backend.name,
            argv=tuple(argv),
            env=env,
            base={
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": f"{KEEP_ALIVE_S:.0f}",
            },
            intent=context.intent,
            stop_grace_s=backend.drain_timeout_s + 15.0,
        )

    def knobs(self, context: LaunchContext) -> tuple[tuple[str, str], ...]:
        """Utilisation with its arithmetic."""
        if not context.devices:
            return (("CUDA_VISIBLE_DEVICES", '"" (CPU only)'),)
        total = min(device.capacity_bytes for device in context.devices)
        text = (
            f"{utilisation(context):.3f} = floor(({format_size(context.cap_bytes)} cap"
            f" - {format_size(overhead_bytes(context))} context"
            f" - {format_size(spike_bytes(context.cap_bytes))} spikes) / {format_size(total)})"
        )
        return (("--gpu-memory-utilization", text),)

    def wall(self, context: LaunchContext) -> Wall:
        """A planning figure: it sizes its KV cache by it and never checks again."""
        if not context.devices:
            return Wall("none", "on the CPU: no GPU memory to hold")
        return Wall(
            "watching", "vLLM plans within --gpu-memory-utilization; that it does, by watching"
        )

    def served_models(self, backend: BackendSettings) -> tuple[str, ...]:
        """What the operator calls the model, else its own name; then what failover adds, then LoRAs."""
        return (*served(backend), *backend.vllm.lora_names)

    def routes(self, backend: BackendSettings) -> Routes:
        """OpenAI's inference routes; nothing of its development and pause routes."""
        del backend
        return Routes("openai", exact=_ROUTES, health=("/health",), metrics="/metrics")

    def ready_probes(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """/health: refused until ready, so the first 200 means ready. Liveness only afterwards."""
        del backend
        return (HttpProbe("GET", "/health"),)

    def judge_ready(self, backend: BackendSettings, replies: Sequence[HttpReply]) -> Verdict:
        """200 is alive, and so is 401: it answers and wants a key (a proxy or a later version may guard
        /health, too). 503 means the client has seen the engine die.
        """
        del backend
        reply = replies[0]
        if reply.status in (200, 401):
            return Verdict(ok=True)
        detail = "its engine is dead (503)" if reply.status == 503 else _plain(reply)
        return Verdict(ok=False, detail=detail)

    def canary(self, backend: BackendSettings, loaded: Sequence[LoadedModel]) -> HttpProbe | None:
        """One token."""
        del loaded
        models = self.served_models(backend)
        if not models:
            return None
        body = {"model": models[0], "prompt": "1", "max_tokens": 1, "temperature": 0}
        return HttpProbe("POST", "/v1/completions", json.dumps(body), self.canary_timeout_s)

    def keys(self, backend: BackendSettings, variables: Mapping[str, str]) -> tuple[str, ...]:
        """--api-key (several may follow, a ``--config`` may have it), else VLLM_API_KEY
        (vllm/entrypoints/openai/api_server.py).
        """
        given = spoken(backend).values("api-key")
        one = variables.get("VLLM_API_KEY", "")
        return tuple(key for key in (given or (one,)) if key)

    def judge_canary(self, backend: BackendSettings, reply: HttpReply) -> Verdict:
        """A token, or any refusal that is the engine's own (busy, paused), proves it thinks."""
        del backend
        if reply.status == 401:  # the key is not known: told by its HTTP layer, not by its engine
            return Verdict(ok=True, detail="it demands a key that is not known", proves=False)
        if reply.status in (200, 400, 404, 429):
            return Verdict(ok=True)
        if reply.status == 503 and ("busy" in reply.body or "paused" in reply.body):
            return Verdict(ok=True)
        return Verdict(ok=False, detail=_plain(reply))

    def progress_probe(self, backend: BackendSettings) -> HttpProbe | None:
        """Its Prometheus page."""
        del backend
        return HttpProbe("GET", "/metrics")

    def read_progress(self, reply: HttpReply) -> Progress | None:
        """Tokens and finished requests only move while it makes progress. num_requests_running
        alone is not to be trusted: it read 0 in a wedge (vllm #46811).
        """
        if reply.status != 200:
            return None
        body = reply.body
        running = sample_sum(body, "vllm:num_requests_running")
        if running is None:
            return None
        work = sum(
            sample_sum(body, name) or 0.0
            for name in (
                "vllm:generation_tokens_total",
                "vllm:prompt_tokens_total",
                "vllm:request_success_total",
            )
        )
        waiting = sample_sum(body, "vllm:num_requests_waiting") or 0.0
        return Progress(int(running), int(waiting), work)

    def served_probe(self, backend: BackendSettings) -> HttpProbe | None:
        """/v1/models: LoRA adapters come and go at run time (/v1/load_lora_adapter)."""
        del backend
        return HttpProbe("GET", "/v1/models")

    def read_served(self, reply: HttpReply) -> tuple[str, ...] | None:
        """The ids, in vLLM's order."""
        if reply.status != 200:
            return None
        try:
            rows = json.loads(reply.body)["data"]
            return tuple(str(row["id"]) for row in rows)
        except UNREADABLE:
            return None

    def sleep_requests(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """Pause first, or requests that come while it sleeps hang; then level 1. A version without
        /pause answers 404, which only counts for the last request.
        """
        if not backend.vllm.sleep:
            return ()
        return (
            HttpProbe("POST", "/pause?mode=wait", timeout_s=backend.drain_timeout_s + 5.0),
            HttpProbe("POST", "/sleep?level=1", timeout_s=SLEEP_TIMEOUT_S),
        )

    def wake_requests(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """All tags; it resumes the paused scheduler as well."""
        if not backend.vllm.sleep:
            return ()
        return (HttpProbe("POST", "/wake_up", timeout_s=SLEEP_TIMEOUT_S),)

    def grows(self, backend: BackendSettings) -> bool:
        """Its KV cache is reserved at start: shedding requests lowers nothing (facts/engines.md)."""
        del backend
        return False

    def classify(self, lines: Sequence[str], exit_: Exit | None, *, was_ready: bool) -> CauseOf:
        """Root causes first; the 'initialization failed' wrapper only without one."""
        found = classify(lines, exit_, _WORDS, wrappers=_WRAPPERS)
        if found.cause is CauseClass.OOM_RUNTIME and not was_ready:
            return CauseOf(CauseClass.OOM_START, found.line, "out of GPU memory while starting")
        if was_ready and exit_ is not None and exit_.code == 0 and not found.line:
            summary = "ended with exit code 0, as vLLM does when its engine core has died"
            return CauseOf(CauseClass.ENGINE_DEAD, "", summary)
        return found


def _uuid_works(version: tuple[int, ...] | None) -> bool:
    return version is None or version >= UUID_SINCE


def _plain(reply: HttpReply) -> str:
    return reply.error or f"HTTP {reply.status}"
