"""The shape of the file, for pydantic: types, defaults, ranges. What needs two keys is in check.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from arbiterd.config.value_types import (
    Address,
    Count,
    Duration,
    Folder,
    Headroom,
    HostNames,
    KeepAlive,
    Listen,
    Networks,
    Origins,
    PathOrNone,
    Port,
    PortOrOff,
    Size,
    Whole,
    Words,
)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ArbiterTable(_Table):
    """``[arbiter]``."""

    listen: Listen = "127.0.0.1:9480"
    expose: Literal["own", "full"] = "own"
    token_file: PathOrNone = ""
    poll: Duration = 0.25
    headroom: Headroom = None
    launcher: Literal["auto", "systemd", "direct"] = "auto"
    state_dir: Folder = "/var/lib/gpu-arbiter"
    runtime_dir: Folder = "/run/gpu-arbiter"
    log: Literal["auto", "journal", "json", "pretty"] = "auto"
    dry_run: bool = False
    local_users: Literal["untrusted", "trusted"] = "untrusted"


class GatewayTable(_Table):
    """``[gateway]``."""

    enabled: bool = True
    bind: Address = "127.0.0.1"
    llm_port: PortOrOff = 8080
    advertise: str = ""
    trust_priority: bool = False
    request_timeout: Duration = 900.0
    certificate: PathOrNone = ""
    key_file: PathOrNone = ""
    hosts: HostNames = []
    cors: Origins = []
    trusted_proxies: Networks = []
    max_body: Annotated[Size, Field(ge=1024)] = 32 * 1024**2


class ForeignTable(_Table):
    """``[foreign]``."""

    allow: Size = 512 * 1024**2


class FailoverTable(_Table):
    """``[[failover]]``. ``from`` is a word of Python, hence the alias."""

    model: str
    from_: str = Field(alias="from")
    to: str
    source: str = ""


class DegradeTable(_Table):
    """``[[degrade]]``."""

    from_: str = Field(alias="from")
    advice: str
    to: Words


class BatchingTable(_Table):
    """``batching`` of TensorFlow Serving: the fields of its BatchingParameters."""

    max_batch_size: Count | None = None
    batch_timeout_micros: Whole | None = None
    max_enqueued_batches: Count | None = None
    num_batch_threads: Count | None = None
    thread_pool_name: str | None = None
    enable_large_batch_splitting: bool | None = None
    max_execution_batch_size: Count | None = None
    allowed_batch_sizes: list[Count] = []
    pad_variable_length_inputs: bool | None = None


class SandboxTable(_Table):
    """``sandbox``: what the sandbox of a backend's unit leaves out, or allows beside its own."""

    without: Words = []
    write: Words = []
    devices: Words = []
    syscalls: Words = []
    families: Words = []
    capabilities: Words = []


class BackendTable(_Table):
    """Keys of every kind. None: the default of the kind (see DEFAULTS)."""

    kind: str = ""
    command: Words | None = None
    image: str = ""
    container: Literal["", "docker", "podman"] = ""
    volumes: Words = []
    port: Port | None = None
    engine_port: Port | None = None
    restart_delay: Duration = 1.0
    restart_delay_max: Duration = 60.0
    user: str = ""
    priority: Whole | None = None
    models: Any = None
    max_in_flight: Count = 8
    max_queue: Whole = 32
    queue_timeout: Duration = 10.0
    request_timeout: Duration | None = None
    start_timeout: Duration | None = None
    drain_timeout: Duration = 30.0
    stuck_after: Duration | None = None
    on_oom: Literal["lower", "cpu", "stop"] = "lower"
    device_id: Literal["auto", "index", "uuid"] = "auto"
    version: str = ""
    env: dict[str, str] = {}
    env_file: str = ""
    secrets: Words = []
    allow_admin_paths: Words = []
    sandbox: Any = None  # a SandboxTable: read on its own, as each of its keys is told by itself
    device_wall: bool = False


class VllmTable(BackendTable):
    """A vLLM backend."""

    max_model_len: Count | None = None
    max_num_seqs: Count | None = None
    sleep: bool = False


class OllamaTable(BackendTable):
    """An Ollama backend."""

    max_loaded_models: Count = 1
    parallel: Count = 1
    keep_alive: KeepAlive = 600.0
    context_length: Count = 8192


class TensorflowTable(BackendTable):
    """A TensorFlow Serving backend."""

    grpc_port: Port | None = None
    memory_growth: bool = False
    batching: Any = None  # a BatchingTable, or the path of the operator's own file
    canary: Folder = ""


class GenericTable(BackendTable):
    """Any other server."""

    health: str = ""


class FileSettings(BaseSettings):
    """The whole file. Backends and modes are free tables here: their keys depend on kind and mode."""

    model_config = SettingsConfigDict(
        extra="forbid", env_prefix="GPU_ARBITER_", env_nested_delimiter="__"
    )

    mode: str
    arbiter: ArbiterTable = ArbiterTable()
    gateway: GatewayTable = GatewayTable()
    foreign: ForeignTable = ForeignTable()
    backends: dict[str, dict[str, Any]]
    modes: dict[str, dict[str, Any]]
    failover: list[FailoverTable] = []
    degrade: list[DegradeTable] = []


KIND_TABLES: Mapping[str, type[BackendTable]] = {
    "vllm": VllmTable,
    "ollama": OllamaTable,
    "tensorflow-serving": TensorflowTable,
    "generic": GenericTable,
}
KIND_BY_NAME = {"vllm": "vllm", "ollama": "ollama", "tensorflow": "tensorflow-serving"}


def key_names(table: type[BaseModel]) -> tuple[str, ...]:
    """Keys of a table as the file writes them."""
    return tuple(field.alias or name for name, field in table.model_fields.items())
