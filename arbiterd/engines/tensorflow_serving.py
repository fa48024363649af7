"""TensorFlow Serving: ``tensorflow_model_server``, REST and gRPC."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import floor

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
from arbiterd.engines.batching import memory, render
from arbiterd.engines.devices import device_env
from arbiterd.engines.failure_patterns import classify, word
from arbiterd.engines.flags import OwnedFlag, problems, value_of, without
from arbiterd.engines.run_line import container_problem
from arbiterd.engines.serving_flags import unknown
from arbiterd.engines.shell_line import shell_problem
from arbiterd.engines.tf_canary import TensorflowTrials
from arbiterd.files import strict_json
from arbiterd.model.health import HttpProbe, HttpReply, Verdict
from arbiterd.model.launch import Exit, FileSpec, LaunchSpec
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.quantities import MIB, format_size

# Context, cuDNN and cuBLAS lie outside the fraction: +234 MiB on a T4 (serving #1668), 300-600 MiB
# on newer cards; the upper end of what was measured there.
OVERHEAD = 600 * MIB
METRICS_PATH = "/monitoring/prometheus/metrics"

_OWNED = (
    OwnedFlag("port", "set grpc_port"),
    OwnedFlag("rest-api-port", "set port"),
    OwnedFlag("per-process-gpu-memory-fraction", "set memory in the mode"),
    OwnedFlag("batching-parameters-file", 'set batching = { ... }, or batching = "/PATH"'),
    OwnedFlag("enable-batching", "set batching = { ... }", takes_value=False),
    OwnedFlag("monitoring-config-file", "leave it out"),
)
_CONFIG_FILE = OwnedFlag("model-config-file", "models gives the paths already")

_BENIGN = re.compile(r"The caller indicates that this is not a failure")
_WORDS = (
    word(
        r"Check failed: c->in_use\(\)|std::bad_alloc|Could not create cudnn handle",
        CauseClass.OOM_RUNTIME,
        "it crashed for want of GPU memory",
    ),
    word(
        r"OOM when allocating tensor|ran out of memory trying to allocate",
        CauseClass.POOL_FULL,
        "its own pool is full: smaller batches, or a larger cap",
    ),
    word(
        r"model\(s\) did not become available",
        CauseClass.CONFIG,
        "a model could not be loaded; look at its folder",
        retry=False,
    ),
    word(
        r"Failed to BuildAndStart gRPC server|Failed to start HTTP Server",
        CauseClass.PORT_IN_USE,
        "its port is taken",
    ),
    word(
        r"Could not find any versions of model|Servable not found for request",
        CauseClass.CONFIG,
        "a model is not there",
        retry=False,
    ),
    word(
        r"failed to allocate .*CUDA_ERROR_OUT_OF_MEMORY",
        CauseClass.OOM_START,
        "its pool could not be taken whole",
    ),
)


def fraction(context: LaunchContext) -> float:
    """F = floor((C - O) / T) to three places, between 0.001 and 1. Over 1 TF turns to unified
    memory and oversubscribes silently; 0 means 'take everything'.
    """
    total = min(device.capacity_bytes for device in context.devices)
    overhead = OVERHEAD if context.overhead_bytes is None else context.overhead_bytes
    return min(1.0, max(0.001, floor((context.cap_bytes - overhead) * 1000 / total) / 1000))


class TensorflowServingEngine(Engine):
    """The tensorflow-serving kind."""

    kind = Kind.TENSORFLOW
    start_rank = 0
    defaults = Defaults(
        "tensorflow",
        ("tensorflow_model_server",),
        port=8501,
        grpc_port=8500,
        priority=20,
        request_timeout_s=30.0,
    )
    canary_timeout_s = 10.0
    trials = TensorflowTrials()
    refuses_when_full = True

    def check_command(self, backend: BackendSettings) -> tuple[CommandProblem, ...]:
        """Owned flags; model_config_file is ours only when ``models`` gives the paths."""
        owned = (*_OWNED, _CONFIG_FILE) if backend.model_paths else _OWNED
        form = container_problem(backend.command) or shell_problem(
            backend.command, lambda words: without(words, owned), owned_env.owned(backend)
        )
        if form is not None:
            return (form,)
        batching = value_of(backend.command, "batching-parameters-file")
        found = tuple(
            replace(one, right=one.right.replace("/PATH", batching)) if batching else one
            for one in problems(backend.command, owned)
        )
        ours = frozenset(flag.name for flag in owned)
        return (*found, *unknown(backend.command, ours), *_doors(backend))

    def launch(self, context: LaunchContext) -> LaunchSpec:
        """Flags, and the files they name."""
        backend, folder = context.backend, context.files_dir
        argv = [*backend.command, f"--port={context.grpc_port}", f"--rest_api_port={context.port}"]
        files = [FileSpec("monitoring.config", _monitoring())]
        if context.devices:
            argv.append(f"--per_process_gpu_memory_fraction={fraction(context):.3f}")
        if backend.model_paths:
            files.append(FileSpec("models.config", _models(backend)))
            argv += [
                f"--model_config_file={folder}/models.config",
                "--model_config_file_poll_wait_seconds=5",
            ]
        batching = backend.tensorflow.batching
        if batching is not None:
            files.append(FileSpec("batching.config", render(batching)))
            argv += [
                "--enable_batching=true",
                f"--batching_parameters_file={folder}/batching.config",
            ]
        argv.append(f"--monitoring_config_file={folder}/monitoring.config")
        if value_of(argv, "max-num-load-retries") is None:
            argv.append("--max_num_load_retries=0")  # the arbiter owns retries
        env = dict(device_env(backend, context.devices, uuid_works=True))
        if backend.tensorflow.memory_growth:
            env["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        return LaunchSpec(
            backend=backend.name,
            argv=tuple(argv),
            env=env,
            intent=context.intent,
            files=tuple(files),
            stop_grace_s=10.0,  # no handler, no drain (serving #1853): it dies at once
            loopback_only=context.host.startswith("127."),
        )

    def knobs(self, context: LaunchContext) -> tuple[tuple[str, str], ...]:
        """The fraction with its arithmetic."""
        if not context.devices:
            return (("CUDA_VISIBLE_DEVICES", '"" (CPU only)'),)
        total = min(device.capacity_bytes for device in context.devices)
        overhead = OVERHEAD if context.overhead_bytes is None else context.overhead_bytes
        text = (
            f"{fraction(context):.3f} = floor(({format_size(context.cap_bytes)} cap"
            f" - {format_size(overhead)} context) / {format_size(total)})"
        )
        batching = context.backend.tensorflow.batching
        more = (("--batching_parameters_file", memory(batching)),) if batching else ()
        return (("--per_process_gpu_memory_fraction", text), *more)

    def wall(self, context: LaunchContext) -> Wall:
        """Its allocator takes no more than the fraction; the CUDA context is outside."""
        if not context.devices:
            return Wall("none", "on the CPU: no GPU memory to hold")
        text = "TensorFlow's own allocator (--per_process_gpu_memory_fraction); its context by watching"
        if value_of(context.backend.command, "platform-config-file") is not None:
            text = "by watching: --platform_config_file makes it ignore its fraction"
            return Wall("watching", text)
        return Wall("engine", text)

    def served_models(self, backend: BackendSettings) -> tuple[str, ...]:
        """Names of its models; of a command with --model_base_path the one that it names."""
        names = tuple(backend.model_paths) or backend.models
        if not names and value_of(backend.command, "model-base-path"):
            return (value_of(backend.command, "model-name") or "default",)
        return names

    def routes(self, backend: BackendSettings) -> Routes:
        """Predictions, status and metadata; a reload of its configuration is ours to do."""
        version = "(/versions/[0-9]+|/labels/[^/:]+)?"
        own = tuple(
            f"/v1/models/{name}/status"
            for name in self.served_models(backend)
            if re.fullmatch(r"[\w.-]+", name)
        )
        return Routes(
            "plain",
            patterns=(f"^/v1/models/[^/:]+{version}(:(predict|classify|regress)|/metadata)?$",),
            health=("/v1/models", *own),
            metrics=METRICS_PATH,
            grpc=(
                "/tensorflow.serving.PredictionService/",
                "/tensorflow.serving.ModelService/GetModelStatus",
                "/grpc.health.v1.Health/",
            ),
        )

    def ready_probes(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """One status request per model. GET /v1/models always answers 400 (facts/engines.md)."""
        names = self.served_models(backend)
        return tuple(HttpProbe("GET", f"/v1/models/{name}") for name in names) or (
            HttpProbe("GET", "/v1/models"),
        )

    def judge_ready(self, backend: BackendSettings, replies: Sequence[HttpReply]) -> Verdict:
        """Every model has one AVAILABLE version whose error code is OK; 200 alone says nothing."""
        names = self.served_models(backend)
        if not names:
            ok = replies[0].status == 400
            return Verdict(ok=ok, detail="" if ok else _plain(replies[0]))
        bad = [
            f"{name}: {why}"
            for name, reply in zip(names, replies, strict=True)
            if (why := _model_trouble(reply))
        ]
        return Verdict(ok=not bad, detail="; ".join(bad))

    def judge_canary(self, backend: BackendSettings, reply: HttpReply) -> Verdict:
        """Only a time-out counts against it: any answer, also "full", is an answer."""
        del backend
        return Verdict(ok=not reply.timed_out, detail=reply.error)

    def grows(self, backend: BackendSettings) -> bool:
        """Only with memory_growth: else the whole pool is taken at the first load."""
        return backend.tensorflow.memory_growth

    def classify(self, lines: Sequence[str], exit_: Exit | None, *, was_ready: bool) -> Cause:
        """Its dying words; the benign allocator line is skipped."""
        del was_ready
        return classify(lines, exit_, _WORDS, benign=_BENIGN)


def _doors(backend: BackendSettings) -> tuple[CommandProblem, ...]:
    """TLS at the engine: its gRPC door and probes speak none."""
    if value_of(backend.command, "ssl-config-file") is None:
        return ()
    wrong = "--ssl_config_file: its gRPC port speaks TLS, its door does not"
    right = 'take it out; [gateway] certificate = "/PATH.pem" makes the doors speak TLS'
    return (CommandProblem(wrong, right, severity="warning"),)


def _monitoring() -> str:
    return f'prometheus_config {{ enable: true, path: "{METRICS_PATH}" }}\n'


def _models(backend: BackendSettings) -> str:
    rows = "".join(
        f'  config {{ name: "{_quote(name)}" base_path: "{_quote(path)}"'
        ' model_platform: "tensorflow" }\n'
        for name, path in backend.model_paths.items()
    )
    return f"model_config_list {{\n{rows}}}\n"


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _model_trouble(reply: HttpReply) -> str:
    """Why a model does not serve, "" when it does."""
    if reply.status != 200:
        return _plain(reply)
    try:
        versions = strict_json.loads(reply.body)["model_version_status"]
        states = [(one["state"], one.get("status", {}).get("error_code", "OK")) for one in versions]
    except UNREADABLE:
        return "an answer that is no model status"
    if any(state == "AVAILABLE" and code == "OK" for state, code in states):
        return ""
    return ", ".join(f"{state} ({code})" for state, code in states) or "no version"


def _plain(reply: HttpReply) -> str:
    return reply.error or f"HTTP {reply.status}"
