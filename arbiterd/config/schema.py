"""The shape of the file, for pydantic: types, defaults, ranges. What needs two keys is in check.py.

A validator raises InvalidValue: what is wrong, and what would be right.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from arbiterd.errors import InvalidValue
from arbiterd.model.settings import FOR_EVER_S
from arbiterd.quantities import parse_duration, parse_size

_DNS_NAME = re.compile(r"([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_ORIGIN = re.compile(r"[a-z*][a-z0-9+.*-]*://[]a-z0-9_.:*[-]+")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def _unit_value(value: object, example: str, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str):
        raise InvalidValue(f"{value!r} has no unit", f"write a {what} in quotes, like {example}")
    return value


def _size(value: object) -> int:
    return parse_size(_unit_value(value, '"512MiB"', "size"))


def _duration(value: object) -> float:
    return parse_duration(_unit_value(value, '"10s"', "duration"))


def _keep_alive(value: object) -> float:
    """As Ollama takes it (envconfig.KeepAlive): a duration, whole seconds, negative: for ever."""
    text = (
        str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    )
    if re.fullmatch(r"-?\d+", text):
        return FOR_EVER_S if text.startswith("-") else float(text)
    if text.startswith("-"):
        parse_duration(text[1:])
        return FOR_EVER_S
    if not text:
        raise InvalidValue(
            f"{value!r} is no duration", 'write "10m", seconds like 600, or -1 for ever'
        )
    return parse_duration(text)


def _whole(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, str) and not value.strip().isdigit()):
        raise InvalidValue(f"{value!r} is no whole number", "write one, like 8")
    return value


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidValue(f"{text[:60]!r} is no list in JSON", 'write ["NAME"]') from None


def _words(value: object) -> object:
    """From the environment a list arrives as JSON text."""
    if isinstance(value, str):
        if value.startswith("["):
            return _json(value)
        raise InvalidValue(f"{value!r} is no list", f'write ["{value}"]')
    return value


def _headroom(value: object) -> int | None:
    return None if value == "auto" else _size(value)


def _listen(value: object) -> str:
    text = str(value)
    host, _, port = text.rpartition(":")
    if isinstance(value, str) and host and port.isdigit() and 0 < int(port) < 65536:
        return text
    raise InvalidValue(f"{value!r} is no address", 'write "HOST:PORT", like "127.0.0.1:9480"')


def _address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(str(value)))
    except ValueError:
        right = 'write "127.0.0.1", or "0.0.0.0" for every network'
        raise InvalidValue(f"{value!r} is no IP address", right) from None


def _host_name(value: str) -> str:
    """``name``, ``*.name`` or ``*``; a DNS name as it is sent: lower case, IDNA."""
    text = value.strip().lower().rstrip(".")
    wild, text = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if wild + text == "*":
        return "*"
    with suppress(UnicodeError):
        text = text.encode("idna").decode()
        if _DNS_NAME.fullmatch(text) or _is_address(text.strip("[]")):
            return wild + text
    bare = re.sub(r"^[a-z]+://|[:/].*$", "", value.strip())
    like = bare if _DNS_NAME.fullmatch(bare.lower()) else "llm.example.com"
    raise InvalidValue(f"{value!r} is no host name", f'write the name alone, like "{like}"')


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        right = 'write one like "192.0.2.10" or "10.0.0.0/24"'
        raise InvalidValue(f"invalid address or network {text!r}", right) from None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _origin(value: str) -> str:
    """``scheme://host[:port]``, any part of it ``*``."""
    text = value.strip().rstrip("/").lower()
    if text == "*" or _ORIGIN.fullmatch(text):
        return text
    bare = re.sub(r"^[a-z]+://|/.*$", "", text)
    like = bare if _ORIGIN.fullmatch(f"https://{bare}") else "app.example.com"
    raise InvalidValue(f"{value!r} is no origin", f'write scheme and name, like "https://{like}"')


def _absolute(value: object) -> str:
    if isinstance(value, str) and value.startswith("/"):
        return value
    raise InvalidValue(f"{value!r} is no absolute path", "write one that begins with /")


def _absolute_or_none(value: object) -> str:
    return "" if value == "" else _absolute(value)


Size = Annotated[int, BeforeValidator(_size)]
Duration = Annotated[float, BeforeValidator(_duration)]
KeepAlive = Annotated[float, BeforeValidator(_keep_alive)]
_MOST = 2**31 - 1  # what the engines' own options hold
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=_MOST)]
Whole = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=_MOST)]
Port = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=65535)]
PortOrOff = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=65535)]
Words = Annotated[list[str], BeforeValidator(_words)]
Networks = Annotated[Words, AfterValidator(lambda given: [_network(one) for one in given])]
HostNames = Annotated[Words, AfterValidator(lambda given: [_host_name(one) for one in given])]
Origins = Annotated[Words, AfterValidator(lambda given: [_origin(one) for one in given])]
Folder = Annotated[str, BeforeValidator(_absolute)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ArbiterTable(_Table):
    """``[arbiter]``."""

    listen: Annotated[str, BeforeValidator(_listen)] = "127.0.0.1:9480"
    expose: Literal["own", "full"] = "own"
    token_file: Annotated[str, BeforeValidator(_absolute_or_none)] = ""
    poll: Duration = 0.25
    headroom: Annotated[int | None, BeforeValidator(_headroom)] = None
    launcher: Literal["auto", "systemd", "direct"] = "auto"
    state_dir: Folder = "/var/lib/gpu-arbiter"
    runtime_dir: Folder = "/run/gpu-arbiter"
    log: Literal["auto", "journal", "json", "pretty"] = "auto"
    dry_run: bool = False
    local_users: Literal["untrusted", "trusted"] = "untrusted"


class GatewayTable(_Table):
    """``[gateway]``."""

    enabled: bool = True
    bind: Annotated[str, BeforeValidator(_address)] = "127.0.0.1"
    llm_port: PortOrOff = 8080
    advertise: str = ""
    trust_priority: bool = False
    request_timeout: Duration = 900.0
    certificate: Annotated[str, BeforeValidator(_absolute_or_none)] = ""
    key_file: Annotated[str, BeforeValidator(_absolute_or_none)] = ""
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
    canary: Annotated[str, BeforeValidator(_absolute)] = ""


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
