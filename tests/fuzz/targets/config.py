"""The configuration: its text, its values, the environment, and the files that it names."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import strategies as st

from arbiterd.config import load
from arbiterd.config.load import Loaded
from arbiterd.config.vllm_config import read as read_vllm_config
from arbiterd.errors import ConfigRefused
from arbiterd.files import env_text
from arbiterd.gateway import render
from arbiterd.gateway.layout import layout
from arbiterd.gateway.paths import paths
from arbiterd.quantities import format_duration, format_size, parse_duration, parse_size
from arbiterd.secrets.values import found_in
from tests.fuzz import shapes
from tests.fuzz.files import file, folder
from tests.fuzz.target import Target

WHOLE = """\
mode = "A"
[arbiter]
listen = "127.0.0.1:9480"
poll = "250ms"
headroom = "auto"
launcher = "direct"
log = "json"
dry_run = false
[gateway]
llm_port = 8080
bind = "127.0.0.1"
request_timeout = "15m"
hosts = ["llm.example.com", "*.lan"]
cors = ["https://app.example.com"]
max_body = "16MiB"
trust_priority = true
[foreign]
allow = "512MiB"
[backends.tensorflow]
command = ["tensorflow_model_server"]
models = { resnet50 = "/srv/models/resnet50" }
port = 8501
grpc_port = 8500
user = "tf"
env = { TF_CPP_MIN_LOG_LEVEL = "1" }
[backends.vllm]
command = ["vllm", "serve", "Qwen/Qwen2.5-3B-Instruct", "--max-num-seqs", "64"]
priority = 30
drain_timeout = "30s"
start_timeout = "10m"
max_in_flight = 8
max_queue = 32
queue_timeout = "10s"
restart_delay = "1s"
sleep = true
[backends.ollama]
models = ["qwen2.5:3b"]
keep_alive = "5m"
[[failover]]
model = "Qwen/Qwen2.5-3B-Instruct"
from = "vllm"
to = "ollama"
source = "qwen2.5:3b"
[[degrade]]
from = "tensorflow"
advice = "llm-only"
to = ["vllm", "ollama"]
[modes.A]
tensorflow = { gpu = 0, memory = "20%" }
vllm = { gpu = 0, memory = "12GiB" }
ollama = { gpu = 0, memory = "20%" }
[modes.B]
tensorflow = { gpu = "cpu" }
vllm = { gpu = [0, 1], memory = "75%" }
ollama = { gpu = "GPU-0c0ffee0-0000-0000-0000-000000000000", memory = "20%", max_in_flight = 2 }
"""
SHORT = """\
mode = "A"
[backends]
vllm = { command = ["vllm", "serve", "m"] }
[modes.A]
vllm = { gpu = 0, memory = "55%" }
"""
VARIABLES = """\
# a comment
HF_TOKEN="hf_x\\"y"
OLLAMA_ORIGINS='https://a.example' # not a comment
A=1 \\
 B
"""
VLLM_CONFIG = "model: m\nmax-model-len: 8192\nlora-modules: [a=b]\nenforce-eager: true\n"


def _promised(loaded: Loaded) -> None:
    """What is accepted can be used: HAProxy's text, one line a directive, and both files of the gate."""
    for problem in loaded.warnings:
        assert "\n" not in str(problem)
    where = paths(loaded.settings.arbiter.runtime_dir, systemd=False)
    if loaded.settings.gateway.enabled:
        made = layout(loaded.settings, here=("host", "host.example.com"))
        text = render.render(made, where, systemd=False)
        assert "\x00" not in text


def _refused(refused: ConfigRefused) -> None:
    assert refused.problems, "refused without a reason"
    for problem in refused.problems:
        assert "\n" not in str(problem)
        assert problem.wrong
        assert problem.line >= 0


def _load(data: bytes, environ: dict[str, str]) -> None:
    path = file("config", "gpu-arbiter.toml", data)
    try:
        _promised(load(path, environ))
    except ConfigRefused as refused:
        _refused(refused)


def read_text(data: bytes) -> None:
    """The file as bytes; its secrets are looked for in what is refused, too."""
    _load(data, {})
    found_in(data.decode(errors="replace"), {})


def read_environment(data: bytes) -> None:
    """NAME=VALUE lines as GPU_ARBITER_ variables over a good file."""
    environ = {}
    for line in data.decode("utf-8", "replace").replace("\x00", "").split("\n"):
        name, _, value = line.partition("=")
        if name:
            environ[f"GPU_ARBITER_{name}"] = value
    _load(WHOLE.encode(), environ)


def _toml(value: Any) -> str:
    """A value as TOML, if it may be one; an odd one as TOML's nearest."""
    if isinstance(value, shapes.Raw):
        return str(value) or '""'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if value is None:
        return "1979-05-27T07:32:00Z"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**4000:
        return hex(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _document(value: Any) -> bytes:
    """A table as a file: its tables as sections, so that lines of keys have to be found in both forms."""
    if not isinstance(value, dict):
        return _toml(value).encode("utf-8", "surrogatepass")
    plain = [f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items() if not isinstance(v, dict)]
    for key, one in value.items():
        if isinstance(one, dict):
            plain.append(f"[{_toml(str(key))}]")
            plain += [f"{_toml(str(k))} = {_toml(v)}" for k, v in one.items()]
    return "\n".join(plain).encode("utf-8", "surrogatepass")


def read_variables(data: bytes) -> None:
    """A file of variables: what is read is written and read again as the same."""
    found = env_text.parse(data.decode("utf-8", "replace"))
    assert all(env_text.usable(name, value) for name, value in found.items())
    again = env_text.parse(env_text.render(found))
    assert again == found, (found, again)


def read_vllm(data: bytes) -> None:
    """vLLM's ``--config``, YAML of the engine's user."""
    read_vllm_config(str(file("vllm", "config.yaml", data)))


def read_units(data: bytes) -> None:
    """Sizes and durations."""
    text = data.decode("utf-8", "replace")
    for parse, show in ((parse_size, format_size), (parse_duration, format_duration)):
        try:
            found = parse(text)
        except ValueError:
            continue
        assert found >= 0
        show(found)


folder("config")
_ENV_NAMES = ("MODE", "ARBITER__POLL", "ARBITER__LISTEN", "BACKENDS__VLLM__PORT", "GATEWAY__CORS", "BACKENDS",
              "ARBITER", "FAILOVER", "MODES__A__VLLM__GPU", "BACKENDS__VLLM__COMMAND", "BACKENDS__X", "FOO__BAR",
              "BACKENDS__VLLM", "GATEWAY__HOSTS", "ARBITER__", "__", "MODES", "MODES__A", "DEGRADE__0__TO")  # fmt: skip
_environment = st.lists(
    st.tuples(st.sampled_from(_ENV_NAMES), shapes.ODD.map(shapes.write)), max_size=4
).map(
    lambda rows: b"\n".join(
        name.encode() + b"=" + value.replace(b"\n", b" ") for name, value in rows
    )
)
TARGETS = (
    Target("config text", read_text, shapes.texts(WHOLE, SHORT), seeds=(WHOLE.encode(), SHORT.encode()), bound_s=2.0),
    Target("config values", read_text, shapes.damaged((tomllib.loads(WHOLE), tomllib.loads(SHORT))).map(_document), coverage=False, bound_s=2.0),
    Target("config environment", read_environment, _environment, coverage=False, bound_s=2.0),
    Target("env file", read_variables, shapes.texts(VARIABLES), seeds=(VARIABLES.encode(),)),
    Target("vLLM config file", read_vllm, shapes.texts(VLLM_CONFIG), seeds=(VLLM_CONFIG.encode(),), raises=()),
    Target("sizes and durations", read_units, shapes.texts("512MiB", "1h30m", "1.5 GiB"), seeds=(b"512MiB", b"2h 30min")),
)  # fmt: skip
