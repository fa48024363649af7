"""The seam between the arbiter and an engine kind.

An engine file only *describes*: argv and environment for a cap and a device, what to ask and how to
judge the answer, what its dying words mean. It does no I/O, so core, the planner and the probes
can all use it. Adding an engine: one file here and its line in ``engines.ENGINES``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from arbiterd.model.devices import Device
from arbiterd.model.health import HttpProbe, HttpReply, LoadedModel, Progress, Verdict
from arbiterd.model.launch import Exit, LaunchSpec
from arbiterd.model.settings import BackendSettings, Kind


@dataclass(frozen=True, slots=True)
class CommandProblem:
    """A flag in ``command`` that the arbiter sets itself, or a command of the wrong form.

    ``corrected`` is the command line without it, ready to paste, () when there is none. A warning
    does not refuse the file.
    """

    wrong: str
    right: str
    corrected: tuple[str, ...] = ()
    severity: Literal["error", "warning"] = "error"


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """What an engine needs to render its own knobs. Bytes are per device.

    ``devices`` empty: CPU. ``others_caps_bytes``: caps of the other backends on the same device.
    ``host``/``port``/``grpc_port``: where the engine itself must listen. ``version`` "" when it
    cannot be found out. ``files_dir``: absolute folder of this backend's rendered files.
    ``overhead_bytes``: learned context overhead, None until learned.
    ``container``: the client that runs its image, 'docker' or 'podman'.
    """

    backend: BackendSettings
    devices: tuple[Device, ...]
    cap_bytes: int
    headroom_bytes: int
    others_caps_bytes: int
    host: str
    port: int
    grpc_port: int
    files_dir: str
    intent: str
    version: str = ""
    overhead_bytes: int | None = None
    container: str = ""


# What reading an engine's answer may raise, whatever is in it: NaN and 1e400 as a count, nesting without
# end, a list where an object was. Such an answer tells nothing; it ends no probe.
UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)


class CauseClass(StrEnum):
    """What an exit, or a failed start, was about (design, section 5)."""

    NOT_ENOUGH_FREE = "not_enough_free"
    INIT_RACE = "init_race"
    BUDGET_TOO_SMALL = "budget_too_small"
    OOM_START = "oom_start"
    OOM_RUNTIME = "oom_runtime"
    POOL_FULL = "pool_full"
    ENGINE_DEAD = "engine_dead"
    CONFIG = "config"
    PORT_IN_USE = "port_in_use"
    DRIVER = "driver"
    GPU_FAULT = "gpu_fault"
    CONTEXT_POISONED = "context_poisoned"
    HOST_RAM = "host_ram"
    DEVICE_FULL = "device_full"
    NEIGHBOUR = "neighbour"
    OVER_CAP = "over_cap"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Cause:
    """The class of a failure, the line that told it, and one sentence for people.

    ``retry`` False: trying again unchanged cannot help (a bad flag, a model that is not there).
    """

    cause: CauseClass
    line: str
    summary: str
    retry: bool = True


@dataclass(frozen=True, slots=True)
class Routes:
    """What an engine's door lets through; everything else is 403 (contract, section 3).

    ``api``: the shape of its errors: OpenAI's, ``{"error": "text"}``, or OpenAI's below /v1 only.
    ``exact`` and ``patterns`` (anchored POSIX regular expressions): inference routes. ``health``:
    documented health URLs, answered from the arbiter's state. ``loads``: a body that may load a
    model: through the load gate. ``listed``: lists of models, filtered by the load gate. ``local``:
    changing routes, let through from this machine only. ``grpc``: paths of the gRPC door.
    ``metrics``: its Prometheus page. ``everything``: a server we know nothing about.
    """

    api: Literal["openai", "plain", "openai_below_v1"]
    exact: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    grpc: tuple[str, ...] = ()
    metrics: str = ""
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Wall:
    """What keeps an engine within its cap, and a sentence for people (docs/walls.md).

    ``kind``: "hardware" (nothing passes), "engine" (its own allocator refuses), "watching" (it plans
    or promises to keep within; the arbiter looks), "none" (no GPU).
    """

    kind: Literal["hardware", "engine", "watching", "none"]
    text: str


class Trials(Protocol):
    """Canaries that are found out by trying, one per model."""

    def models(self, backend: BackendSettings) -> tuple[str, ...]:
        """The models to try, by name."""

    def file(self, backend: BackendSettings, model: str) -> str:
        """The operator's own body for this model, "" for none."""

    def signature(self, model: str) -> HttpProbe:
        """Where the model's signature stands."""

    def body(self, reply: HttpReply) -> str:
        """The body made of that signature. Raises NoCanary."""

    def probe(self, model: str, body: str, timeout_s: float) -> HttpProbe:
        """The request itself."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a backend of this kind has where the file says nothing.

    ``backend_name``: the name that needs no ``kind`` beside it, and the word that its program's name has.
    ``port`` 0: the file has to name one. ``request_timeout_s`` None: that of the gateway.
    """

    backend_name: str = ""
    command: tuple[str, ...] = ()
    port: int = 0
    grpc_port: int = 0
    priority: int = 10
    start_timeout_s: float = 300.0
    stuck_after_s: float = 60.0
    request_timeout_s: float | None = None


class Engine(ABC):
    """One engine kind. What a kind does not have it leaves out: the defaults say no.

    ``kind``: the kind this file speaks for. ``defaults``: of its keys in the file.
    ``start_rank``: order of starts on one device: TensorFlow 0, vLLM 1, Ollama 2, generic 3
    (design, 4).
    ``canary_timeout_s``: how long the canary may take before it counts as failed.
    ``trials``: how its canaries are made and tried before it is ready (TensorFlow): they are then
    sent on suspicion only, and its progress is what its door counts. None: ``canary`` and its
    counters.
    ``door_host``: the host that its door writes into Host, "" where the client's own is passed on.
    ``refuses_when_full``: whether a 429 means: its own pool is full, and it goes on (TensorFlow
    Serving).
    ``drains_itself``: whether it goes on after SIGTERM until its requests have ended (vLLM): once
    its door has drained it, there is nothing left to wait for.
    """

    kind: Kind
    start_rank: int
    defaults: Defaults = Defaults()
    canary_timeout_s: float = 5.0
    trials: Trials | None = None
    door_host: str = ""
    refuses_when_full: bool = False
    drains_itself: bool = False

    @abstractmethod
    def check_command(self, backend: BackendSettings) -> tuple[CommandProblem, ...]:
        """Every flag of ours, or malformed command, in ``backend.command``."""

    @abstractmethod
    def launch(self, context: LaunchContext) -> LaunchSpec:
        """Render argv, environment and files for this cap and these devices."""

    @abstractmethod
    def knobs(self, context: LaunchContext) -> tuple[tuple[str, str], ...]:
        """The engine's own knobs with the arithmetic, for ``arbiterctl plan``:
        (("--gpu-memory-utilization", "0.514 = floor((13.19 GiB - 600 MiB - 270 MiB) / 23.52 GiB)"),).
        """

    @abstractmethod
    def wall(self, context: LaunchContext) -> Wall:
        """What of this engine holds its cap, MIG apart."""

    @abstractmethod
    def served_models(self, backend: BackendSettings) -> tuple[str, ...]:
        """Names of the models this backend answers for."""

    @abstractmethod
    def routes(self, backend: BackendSettings) -> Routes:
        """What its doors let through."""

    @abstractmethod
    def ready_probes(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """The requests whose good answers mean: ready; the liveness round afterwards. One, or one
        per model (TensorFlow).
        """

    @abstractmethod
    def judge_ready(self, backend: BackendSettings, replies: Sequence[HttpReply]) -> Verdict:
        """Judge one round, in the order of ``ready_probes``."""

    def canary(self, backend: BackendSettings, loaded: Sequence[LoadedModel]) -> HttpProbe | None:
        """The smallest piece of real work on the first of these models, which are resident (it must
        never cause a load), None when there is none.
        """
        del backend, loaded
        return None

    def keys(self, backend: BackendSettings, variables: Mapping[str, str]) -> tuple[str, ...]:
        """The keys that it demands of its clients, from its command and its environment; () for none.
        ``variables``: what ``env`` and env_file give it.
        """
        del backend, variables
        return ()

    def judge_canary(self, backend: BackendSettings, reply: HttpReply) -> Verdict:
        """Judge a canary reply: any answer that proves the engine computed, also an error of ours
        (a 400 from TensorFlow's input check is no proof of the GPU, but of a live executor).
        """
        return self.judge_ready(backend, (reply,))

    def progress_probe(self, backend: BackendSettings) -> HttpProbe | None:
        """Where the engine's own counters are, None when it has none."""
        del backend
        return None

    def read_progress(self, reply: HttpReply) -> Progress | None:
        """Read the counters, None when the reply has none."""
        del reply
        return None

    def loaded_probe(self, backend: BackendSettings) -> HttpProbe | None:
        """Where the list of resident models is (Ollama), else None."""
        del backend
        return None

    def read_loaded(self, reply: HttpReply, wall: float) -> tuple[LoadedModel, ...] | None:
        """Read resident models, None when the reply has none. ``wall`` is epoch seconds."""
        del reply, wall
        return None

    def served_probe(self, backend: BackendSettings) -> HttpProbe | None:
        """Where the engine lists the models that it answers to, adapters included; None: settings
        tell all of them.
        """
        del backend
        return None

    def read_served(self, reply: HttpReply) -> tuple[str, ...] | None:
        """Read that list, None when the reply has none."""
        del reply
        return None

    def warm_model(self, backend: BackendSettings) -> str:
        """The model to load after ready and keep warm, "" for none."""
        del backend
        return ""

    def about_probe(self, backend: BackendSettings, model: str) -> HttpProbe | None:
        """Where an engine tells what a model is like, None when it does not."""
        del backend, model
        return None

    def read_about(self, model: LoadedModel, reply: HttpReply) -> LoadedModel:
        """The model with what ``about_probe`` tells of it."""
        del reply
        return model

    def load_probe(
        self,
        backend: BackendSettings,
        model: str,
        keep_alive_s: float,
        timeout_s: float,
        about: str,
    ) -> HttpProbe | None:
        """The request that loads ``model`` and keeps it ``keep_alive_s`` (negative: for ever).
        ``about``: the body of what ``about_probe`` was answered, "" for nothing.
        """
        del backend, model, keep_alive_s, timeout_s, about
        return None

    def unload_requests(self, backend: BackendSettings, model: str) -> tuple[HttpProbe, ...]:
        """The requests that make it give ``model`` back, () when it cannot."""
        del backend, model
        return ()

    def sleep_requests(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """Pause, then sleep, () when it cannot (vLLM with ``sleep = true`` only)."""
        del backend
        return ()

    def wake_requests(self, backend: BackendSettings) -> tuple[HttpProbe, ...]:
        """Wake, then go on, () when it cannot."""
        del backend
        return ()

    def library_probe(self, backend: BackendSettings) -> HttpProbe | None:
        """What it has on disk, with sizes; None where that is not asked."""
        del backend
        return None

    def grows(self, backend: BackendSettings) -> bool:
        """Whether new requests can make it take more device memory: an engine with a fixed pool
        does not, so that holding its requests frees nothing.
        """
        del backend
        return True

    @abstractmethod
    def classify(self, lines: Sequence[str], exit_: Exit | None, *, was_ready: bool) -> Cause:
        """Class of a failure from the engine's last lines (oldest first); first match wins."""
