"""Any server: ``health = "/path"`` answers 2xx when it serves. Its cap holds by watching only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

from arbiterd.engines.base import (
    Cause,
    CauseClass,
    CommandProblem,
    Engine,
    LaunchContext,
    Routes,
    Wall,
)
from arbiterd.engines.devices import device_env
from arbiterd.engines.failure_patterns import classify, word
from arbiterd.engines.flags import value_of
from arbiterd.engines.run_line import container_problem
from arbiterd.model.health import HttpProbe, HttpReply, Verdict
from arbiterd.model.launch import Exit, LaunchSpec
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.quantities import MIB

_WORDS = (
    word(
        r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|cudaMalloc failed: out of memory"
        r"|CUDA_ERROR_OUT_OF_MEMORY",
        CauseClass.OOM_RUNTIME,
        "out of GPU memory",
    ),
    word(
        r"unrecognized arguments: (.*)",
        CauseClass.CONFIG,
        "it does not know the arguments {0}",
        retry=False,
    ),
)


OPENAI_ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/rerank",
)


class GenericEngine(Engine):
    """The generic kind."""

    kind = Kind.GENERIC
    start_rank = 3

    def check_command(self, backend: BackendSettings) -> tuple[CommandProblem, ...]:
        """Containers, and a key that everybody can read: there are no flags of ours."""
        problem = container_problem(backend.command)
        if problem:
            return (problem,)
        key = value_of(backend.command, "api-key")
        if key is None or key.startswith("-"):
            return ()
        wrong = "the value of --api-key can be read by every user of this host in /proc/PID/cmdline"
        right = "give it by the server's own variable in env_file, or by a file"
        return (CommandProblem(wrong, right, severity="warning"),)

    def launch(self, context: LaunchContext) -> LaunchSpec:
        """Fill the placeholders {port} {cap_bytes} {cap_mib} {gpu_fraction}."""
        values = {
            "{port}": str(context.port),
            "{cap_bytes}": str(context.cap_bytes),
            "{cap_mib}": str(context.cap_bytes // MIB),
            "{gpu_fraction}": f"{_fraction(context):.3f}",
        }
        argv = []
        for part in context.backend.command:
            filled = part
            for key, value in values.items():
                filled = filled.replace(key, value)
            argv.append(filled)
        return LaunchSpec(
            backend=context.backend.name,
            argv=tuple(argv),
            env=dict(device_env(context.backend, context.devices, uuid_works=True)),
            intent=context.intent,
            stop_grace_s=context.backend.drain_timeout_s + 5.0,
        )

    def knobs(self, context: LaunchContext) -> tuple[tuple[str, str], ...]:
        """What the placeholders become."""
        return (
            ("{cap_mib}", str(context.cap_bytes // MIB)),
            ("{gpu_fraction}", f"{_fraction(context):.3f} (held by watching)"),
        )

    def wall(self, context: LaunchContext) -> Wall:
        """None of its own is known."""
        if not context.devices:
            return Wall("none", "on the CPU: no GPU memory to hold")
        return Wall("watching", "by watching: nothing is known of its allocator")

    def served_models(self, backend: BackendSettings) -> tuple[str, ...]:
        """What the file says."""
        return backend.models

    def routes(self, backend: BackendSettings) -> Routes:
        """Nothing is known of it: every route passes; below the unified port OpenAI's usual ones."""
        del backend
        return Routes("openai_below_v1", exact=OPENAI_ROUTES, metrics="/metrics", everything=True)

    def ready_probes(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """The health path of the file."""
        return (HttpProbe("GET", backend.health or "/health"),)

    def judge_ready(self, backend: BackendSettings, replies: Sequence[HttpReply]) -> Verdict:
        """Any 2xx, and 401: it answers and wants a key."""
        del backend
        reply = replies[0]
        if 200 <= reply.status < 300 or reply.status == 401:
            return Verdict(ok=True)
        return Verdict(ok=False, detail=reply.error or f"HTTP {reply.status}")

    def keys(self, backend: BackendSettings, variables: Mapping[str, str]) -> tuple[str, ...]:
        """--api-key, as llama.cpp, SGLang and others take it, else the one variable named *API_KEY."""
        given = value_of(backend.command, "api-key")
        named = [text for name, text in variables.items() if name.endswith("API_KEY") and text]
        return (given,) if given else tuple(named) if len(named) == 1 else ()

    def classify(self, lines: Sequence[str], exit_: Exit | None, *, was_ready: bool) -> Cause:
        """CUDA's own words."""
        found = classify(lines, exit_, _WORDS)
        if found.cause is CauseClass.OOM_RUNTIME and not was_ready:
            return Cause(CauseClass.OOM_START, found.line, "out of GPU memory while starting")
        return found


def _fraction(context: LaunchContext) -> float:
    if not context.devices:
        return 0.0
    total = min(device.capacity_bytes for device in context.devices)
    return min(1.0, floor(context.cap_bytes * 1000 / total) / 1000)
