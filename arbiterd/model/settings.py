"""The configuration as frozen values: parsed once (arbiterd.config), read everywhere.

Field names carry their unit: ``_bytes``, ``_s`` (seconds), ``_ms``. Names and defaults are those of
the configuration file (docs/configuration.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from arbiterd.model.sandbox import SandboxSettings

FOR_EVER_S = (
    10 * 365 * 86400.0
)  # what a negative keep_alive comes to: a number that min() and round() take


class Kind(StrEnum):
    """Engine kinds. A backend is an instance of a kind."""

    VLLM = "vllm"
    OLLAMA = "ollama"
    TENSORFLOW = "tensorflow-serving"
    GENERIC = "generic"


@dataclass(frozen=True, slots=True)
class ArbiterSettings:
    """Table ``[arbiter]``. ``headroom_bytes`` None means auto: 4 %, at least 512 MiB, at most 2 GiB.

    ``expose``: whether readers over a network see other users' processes, too. ``token_file``: the
    token that API and page ask for, "" for none.
    ``local_users`` trusted: every account of this host may open the engines' own ports.
    """

    listen_host: str = "127.0.0.1"
    listen_port: int = 9480
    expose: Literal["own", "full"] = "own"
    token_file: str = ""
    poll_s: float = 0.25
    headroom_bytes: int | None = None
    launcher: Literal["auto", "systemd", "direct"] = "auto"
    state_dir: str = "/var/lib/gpu-arbiter"
    runtime_dir: str = "/run/gpu-arbiter"
    log: Literal["auto", "journal", "json", "pretty"] = "auto"
    dry_run: bool = False
    local_users: Literal["untrusted", "trusted"] = "untrusted"


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Table ``[gateway]``. ``certificate``: a PEM file with chain and key for the doors, ``key_file``: the
    keys that they ask for, one a line; "" for none.
    ``hosts``: further names that the doors answer to; ``cors``: origins of pages that may use them;
    ``trusted_proxies``: addresses and networks of routers, which many clients share;
    ``max_body_bytes``: of a body that has to be read to route it.
    """

    enabled: bool = True
    bind: str = "127.0.0.1"
    llm_port: int = 8080
    advertise: str = ""
    trust_priority: bool = False
    request_timeout_s: float = 900.0
    certificate: str = ""
    key_file: str = ""
    hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """vLLM's own keys. None: the flag is not ours, the command may carry it.

    ``served_names``: what clients call the model where the operator says so (--served-model-name,
    ``models``, or the short name of a snapshot path), the first is what vLLM answers with; () when
    the model goes by its own name. ``lora_names``: adapters of --lora-modules. ``config_words``: what
    a ``--config FILE`` in the command holds, as options.
    """

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    sleep: bool = False
    served_names: tuple[str, ...] = ()
    lora_names: tuple[str, ...] = ()
    config_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OllamaOptions:
    """Ollama's own keys."""

    max_loaded_models: int = 1
    parallel: int = 1
    keep_alive_s: float = 600.0
    context_length: int = 8192


@dataclass(frozen=True, slots=True)
class Batching:
    """TensorFlow Serving's BatchingParameters; None or (): TensorFlow's own default. Absent as a whole
    means that batching stays off. ``text``: the operator's own file as it was read, "" for a table.
    """

    max_batch_size: int | None = None
    max_enqueued_batches: int | None = None
    batch_timeout_micros: int | None = None
    num_batch_threads: int | None = None
    thread_pool_name: str | None = None
    enable_large_batch_splitting: bool | None = None
    max_execution_batch_size: int | None = None
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class TensorflowOptions:
    """TensorFlow Serving's own keys."""

    memory_growth: bool = False
    batching: Batching | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BackendSettings:
    """One ``[backends.NAME]`` table, the active mode's overrides already applied.

    ``models``: names; ``model_paths``: TensorFlow's name = path (empty when the command brings its
    own model_config_file). ``served_also``: names that [[failover]] makes a vLLM answer to.
    ``image`` empty means a plain command; ``volumes``: SOURCE:TARGET[:ro] for its container.
    ``user`` empty means gpu-engines under systemd, the daemon's own user under the direct launcher,
    for an image its own. ``secrets``: names of variables and options whose values nobody may read, beside
    those whose names tell it. ``digest``: of a trace, what core.intent made of it before its secrets were
    taken out; "" otherwise. ``device_wall``: its unit may open the devices of its placement only.
    """

    name: str
    kind: Kind
    command: tuple[str, ...]
    port: int
    engine_port: int
    grpc_port: int = 0
    engine_grpc_port: int = 0
    image: str = ""
    container: str = ""
    volumes: tuple[str, ...] = ()
    health: str = ""
    restart_delay_s: float = 1.0
    restart_delay_max_s: float = 60.0
    user: str = ""
    priority: int = 10
    models: tuple[str, ...] = ()
    model_paths: Mapping[str, str] = field(default_factory=dict)
    max_in_flight: int = 8
    max_queue: int = 32
    queue_timeout_s: float = 10.0
    request_timeout_s: float = 900.0
    start_timeout_s: float = 1200.0
    drain_timeout_s: float = 30.0
    stuck_after_s: float = 60.0
    on_oom: Literal["lower", "cpu", "stop"] = "lower"
    device_id: Literal["auto", "index", "uuid"] = "auto"
    version: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    env_file: str = ""
    secrets: tuple[str, ...] = ()
    canary: str = ""
    allow_admin_paths: tuple[str, ...] = ()
    served_also: tuple[str, ...] = ()
    sandbox: SandboxSettings = SandboxSettings()
    device_wall: bool = False
    vllm: VllmOptions = VllmOptions()
    ollama: OllamaOptions = OllamaOptions()
    tensorflow: TensorflowOptions = TensorflowOptions()
    digest: str = ""


@dataclass(frozen=True, slots=True)
class GpuRef:
    """How the file names a device: an index in PCI bus order, a GPU uuid or a MIG uuid."""

    kind: Literal["index", "uuid", "mig"]
    value: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Share:
    """What a mode grants one backend.

    ``gpus`` empty and ``cpu`` false: the host's only GPU. Of ``fraction`` (of capacity) and
    ``size_bytes`` at most one is set; neither means alone on the device: capacity - headroom.
    """

    backend: str
    gpus: tuple[GpuRef, ...] = ()
    cpu: bool = False
    fraction: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Mode:
    """One ``[modes.NAME]``: shares, and the backends with this mode's overrides applied."""

    name: str
    shares: Mapping[str, Share]
    backends: Mapping[str, BackendSettings]
    sharing: Literal["shared", "partitioned"] | None = None


@dataclass(frozen=True, slots=True)
class Failover:
    """One ``[[failover]]``: ``to`` answers for ``model`` when ``source_backend`` cannot."""

    model: str
    from_backend: str
    to_backend: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Degrade:
    """One ``[[degrade]]``: advice given by /v1/route when ``from_backend`` is out."""

    from_backend: str
    advice: str
    to_backends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings came from. ``loaded_at`` is wall time, epoch seconds, for display."""

    path: str
    sha256: str
    loaded_at: float
    mode_from_env: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole accepted configuration."""

    mode: str
    arbiter: ArbiterSettings
    gateway: GatewaySettings
    foreign_allow_bytes: int
    modes: Mapping[str, Mode]
    failover: tuple[Failover, ...]
    degrade: tuple[Degrade, ...]
    source: Source

    @property
    def active(self) -> Mode:
        """The mode in force."""
        return self.modes[self.mode]
