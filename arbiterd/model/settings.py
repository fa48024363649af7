"""The configuration as frozen values: parsed once (arbiterd.config), read everywhere.

A field with a Key is a setting, and this its one definition: type, default and meaning (model.keys).
Field names carry their unit: ``_bytes``, ``_s`` (seconds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from arbiterd.model.engine_options import OllamaOptions, TensorflowOptions, VllmOptions
from arbiterd.model.keys import (
    ARBITER_ONLY,
    Count,
    Duration,
    File,
    FileOrNone,
    Form,
    Inline,
    Key,
    Port,
    Size,
    Whole,
    Words,
)
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
    """Table ``[arbiter]``. ``headroom_bytes`` None means auto: 4 %, at least 512 MiB, at most 2 GiB."""

    listen: Annotated[str, Form.LISTEN, Key("status API, metrics, page; read only")] = (
        "127.0.0.1:9480"
    )
    expose: Annotated[
        Literal["own", "full"],
        Key("own | full: over a network, other users' pids, names and commands are left out"),
    ] = "own"
    token_file: Annotated[
        FileOrNone,
        Key(
            "file with a token of 16 characters or more, root's (0600 or 0640): API and page ask for it"
        ),
    ] = ""
    poll_s: Annotated[
        Duration,
        Key("of memory readings, 50ms to 5s; process lists every 2 s, and when free memory jumps"),
    ] = 0.25
    headroom_bytes: Annotated[
        int | None,
        Form.SIZE_OR_AUTO,
        Key("per GPU, never handed out; auto: 4 % of capacity, 512MiB to 2GiB", shown='"auto"'),
    ] = None
    launcher: Annotated[
        Literal["auto", "systemd", "direct"],
        Key("systemd | direct; auto: systemd if PID 1 is systemd and we are root"),
    ] = "auto"
    state_dir: Annotated[File, Key("what is kept over a restart")] = "/var/lib/gpu-arbiter"
    runtime_dir: Annotated[File, Key("sockets and what is kept until the next boot")] = (
        "/run/gpu-arbiter"
    )
    log: Annotated[
        Literal["auto", "journal", "json", "pretty"],
        Key(
            "journal | json | pretty; auto: journal under systemd, pretty on a terminal, else json"
        ),
    ] = "auto"
    dry_run: Annotated[bool, Key("decide and log, touch nothing")] = False
    local_users: Annotated[
        Literal["untrusted", "trusted"],
        Key(
            "trusted: nobody else has an account here; no rule closes the engine ports, and sleep is "
            "allowed (security.md)"
        ),
    ] = "untrusted"

    @property
    def listen_host(self) -> str:
        """The address without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def listen_port(self) -> int:
        """The port."""
        return int(self.listen.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Table ``[gateway]``."""

    enabled: Annotated[
        bool,
        Key(
            "false: engines take their public ports on bind, nothing is shed; a change needs stop, start"
        ),
    ] = True
    bind: Annotated[
        str,
        Form.ADDRESS,
        Key(
            "where the public ports open: the LAN only by this line; engines are at 127.0.0.1, port + 10000"
        ),
    ] = "127.0.0.1"
    llm_port: Annotated[
        int,
        Form.PORT_OR_OFF,
        Key("one entry for every LLM, by the model that the body names; 0: off"),
    ] = 8080
    advertise: Annotated[
        str, Key("host written into every URL; default: the address that the request came in on")
    ] = ""
    trust_priority: Annotated[
        bool, Key("honour X-Priority: high from clients: ahead of the others in the queue")
    ] = False
    request_timeout_s: Annotated[Duration, Key("per backend, too")] = 900.0
    certificate: Annotated[
        FileOrNone, Key("a PEM file with certificate, chain and private key: the doors speak TLS")
    ] = ""
    key_file: Annotated[
        FileOrNone,
        Key(
            "keys, one a line, that every door asks for (Authorization: Bearer KEY, or X-Api-Key); "
            "vLLM is sent its own"
        ),
    ] = ""
    hosts: Annotated[
        tuple[str, ...],
        Form.HOST_NAMES,
        Key(
            "further names that Ollama's and the unified door answer to: "
            '"llm.example.com", "*.example.com", "*"'
        ),
    ] = ()
    cors: Annotated[
        tuple[str, ...],
        Form.ORIGINS,
        Key(
            'origins whose pages may use these doors: "https://app.example.com", "https://*.lan", "*"'
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Form.NETWORKS,
        Key(
            'routers that many clients share (no count of connections): "192.0.2.10", "10.0.0.0/24"'
        ),
    ] = ()
    max_body_bytes: Annotated[
        Size, Key("of a body that the load gate has to read; larger: 413", least=1024)
    ] = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ForeignSettings:
    """Table ``[foreign]``."""

    allow_bytes: Annotated[Size, Key("per GPU: memory of unmanaged processes that is ignored")] = (
        512 * 1024**2
    )


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BackendSettings:
    """One ``[backends.NAME]`` table, the active mode's overrides already applied.

    ``models``: names; ``model_paths``: TensorFlow's name = path (empty when the command brings its
    own model_config_file). ``served_also``: names that [[failover]] makes a vLLM answer to.
    ``image`` empty means a plain command. ``digest``: of a trace, what core.intent made of it before its
    secrets were taken out; "" otherwise.
    """

    name: str
    kind: Annotated[
        Kind,
        Form.TEXT,
        Key("vllm | ollama | tensorflow-serving | generic", shown='"vllm"', default=""),
    ]
    command: Annotated[
        Words,
        Key(
            "generic: placeholders {port} {cap_bytes} {cap_mib} {gpu_fraction}",
            shown='["..."]',
            default=None,
        ),
    ]
    port: Annotated[Port, Key("where clients come in", shown="8000", default=None)]
    engine_port: Annotated[
        Port,
        Key("the engine's own, on 127.0.0.1; default port + 10000", shown="18000", default=None),
    ]
    grpc_port: Annotated[
        Port, Key("where gRPC clients come in", shown="8500", default=None, only=Kind.TENSORFLOW)
    ] = 0
    engine_grpc_port: int = 0
    image: Annotated[str, Key("run it in a container; docs/containers.md")] = ""
    container: Annotated[
        Literal["", "docker", "podman"],
        Key("docker | podman; found out: docker where its daemon answers, else podman"),
    ] = ""
    volumes: Annotated[
        Words, Key('of the container: "/FOLDER:/TARGET[:ro]" or "NAME:/TARGET"')
    ] = ()
    health: Annotated[
        str, ARBITER_ONLY, Key("needed there", shown='"/path"', only=Kind.GENERIC)
    ] = ""
    restart_delay_s: Annotated[
        Duration, ARBITER_ONLY, Key("after the first failure, doubling to restart_delay_max")
    ] = 1.0
    restart_delay_max_s: Annotated[Duration, ARBITER_ONLY, Key("the longest one")] = 60.0
    user: Annotated[
        str,
        Key(
            "systemd: gpu-engines; direct: the daemon's own; image: its own. root must be written out"
        ),
    ] = ""
    priority: Annotated[
        Whole,
        ARBITER_ONLY,
        Key("who gives memory back first: the lowest", shown="30", default=None),
    ] = 10
    models: Annotated[
        tuple[str, ...],
        Form.READ_APART,
        Key(
            "tensorflow: name = path, or names of its own model_config_file; ollama: the only ones that "
            "may load, the first is kept warm; vllm: names it answers to",
            shown="[]",
            default=None,
        ),
    ] = ()
    model_paths: Mapping[str, str] = field(default_factory=dict)
    max_in_flight: Annotated[Count, ARBITER_ONLY, Key("requests that the engine has at a time")] = 8
    max_queue: Annotated[
        Whole,
        ARBITER_ONLY,
        Key("also OLLAMA_MAX_QUEUE; with max_in_flight a vLLM's own bound where it has no door"),
    ] = 32
    queue_timeout_s: Annotated[Duration, ARBITER_ONLY, Key("then 503")] = 10.0
    request_timeout_s: Annotated[
        Duration,
        ARBITER_ONLY,
        Key("default: that of [gateway]", shown='"15min"', default=None),
    ] = 900.0
    start_timeout_s: Annotated[
        Duration,
        Key(
            "progress extends it, at most threefold (progress: docs/security.md)",
            shown='"20min"',
            default=None,
        ),
    ] = 1200.0
    drain_timeout_s: Annotated[
        Duration, ARBITER_ONLY, Key("how long running requests may take to end")
    ] = 30.0
    stuck_after_s: Annotated[
        Duration,
        ARBITER_ONLY,
        Key("without progress at work: it is restarted", shown='"60s"', default=None),
    ] = 60.0
    on_oom: Annotated[
        Literal["lower", "cpu", "stop"],
        ARBITER_ONLY,
        Key("lower | cpu (Ollama) | stop: what a repeated OOM of its own leads to: overflow.md"),
    ] = "lower"
    device_id: Annotated[
        Literal["auto", "index", "uuid"],
        Key("how CUDA_VISIBLE_DEVICES is written: index | uuid"),
    ] = "auto"
    version: Annotated[str, Key("engine version when it cannot be found out")] = ""
    env: Annotated[Mapping[str, str], Key("variables of the engine")] = field(default_factory=dict)
    env_file: Annotated[str, Key("secrets: never in argv, status, journal")] = ""
    secrets: Annotated[
        Words,
        ARBITER_ONLY,
        Key(
            "variables and options whose values are hidden, beside those whose names tell it (security.md)"
        ),
    ] = ()
    canary: Annotated[
        File,
        ARBITER_ONLY,
        Key(
            "a :predict body of the first model, at most 1 MiB; default: zeros of its signature",
            shown='"/path/request.json"',
            only=Kind.TENSORFLOW,
        ),
    ] = ""
    allow_admin_paths: Annotated[
        Words,
        ARBITER_ONLY,
        Key('further routes of its door: "/metrics", or all below: "/v1/responses/*"'),
    ] = ()
    served_also: tuple[str, ...] = ()
    sandbox: Annotated[
        SandboxSettings,
        Form.READ_APART,
        Key("what the sandbox of its unit leaves out or allows: below", shown="{}", default=None),
    ] = SandboxSettings()
    device_wall: Annotated[bool, Key("true: its unit may open the GPUs of its placement only")] = (
        False
    )
    vllm: Annotated[VllmOptions, Inline(Kind.VLLM)] = VllmOptions()
    ollama: Annotated[OllamaOptions, Inline(Kind.OLLAMA)] = OllamaOptions()
    tensorflow: Annotated[TensorflowOptions, Inline(Kind.TENSORFLOW)] = TensorflowOptions()
    digest: Annotated[str, ARBITER_ONLY] = ""


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

    model: Annotated[str, Key(shown='"Qwen/Qwen2.5-3B-Instruct"')]
    from_backend: Annotated[str, Key(name="from", shown='"vllm"')]
    to_backend: Annotated[str, Key(name="to", shown='"ollama"')]
    source: Annotated[
        str, Key("Ollama's own name for it, then allowed to load", shown='"qwen2.5:3b"')
    ] = ""


@dataclass(frozen=True, slots=True)
class Degrade:
    """One ``[[degrade]]``: advice given by /v1/route when ``from_backend`` is out."""

    from_backend: Annotated[str, Key(name="from", shown='"tensorflow"')]
    advice: Annotated[str, Key(shown='"llm-only"')]
    to_backends: Annotated[Words, Key(name="to", shown='["vllm", "ollama"]')]


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
