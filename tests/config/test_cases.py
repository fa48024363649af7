"""Configurations as people write them (cases/), each with all of what the check says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.config import Loaded, load
from arbiterd.engines import engine_of
from arbiterd.errors import ConfigRefused, Problem

CASES = Path(__file__).parent / "cases"
OURS = "the arbiter"
Said = tuple[int, str, str, str]  # line, key, part of what is wrong, part of what would be right

# What refuses the file, at which line, and the line to write.
ERRORS: dict[str, list[Said]] = {
    "parallel-tp2-one-gpu": [
        (8, "modes.A.vllm.gpu", "tensor 2 x pipeline 1 x data 1 = 2 GPUs, the mode names 1 GPU", "write gpu = [0, 1]"),
    ],
    "vllm-config-yaml-only-config": [
        (6, "backends.vllm.command", "vllm.yaml line 2: host is set by the arbiter", "gateway.bind"),
        (6, "backends.vllm.command", "vllm.yaml line 3: port is set by the arbiter", "set port"),
        (6, "backends.vllm.command", "vllm.yaml line 4: gpu-memory-utilization is set", "memory in the mode"),
        (6, "backends.vllm.command", "vllm.yaml line 5: kv-cache-memory-bytes is set", "memory in the mode"),
    ],
    "served-model-name-failover-self": [
        (8, "failover.0.model", "vllm serves '/models/qwen2.5-7b-awq'", 'model = "/models/qwen2.5-7b-awq"'),
        (10, "failover.0.to", "cannot stand in for itself", "another backend"),
    ],
    "command-forms-bash-lc": [
        (6, "backends.vllm.command", "bash cannot be the command", 'write command = ["/opt/vllm/bin/vllm", "serve", "Qwen/Qwen2.5-7B-Instruct"]'),
    ],
    "command-forms-util-short": [
        (6, "backends.vllm.command", "--gpu-memory-utilization is set by the arbiter", 'command = ["uv", "run", "--with", "vllm", "vllm", "serve", "Qwen/Qwen2.5-7B-Instruct"]'),
        (6, "backends.vllm.command", "--kv-cache-memory-bytes is set by the arbiter", "memory in the mode"),
    ],
    "ollama-env-env": [
        (7, "backends.ollama.env.OLLAMA_HOST", OURS, 'port = 11434 and [gateway] bind = "0.0.0.0"'),
        (7, "backends.ollama.env.OLLAMA_KEEP_ALIVE", OURS, 'keep_alive = "-1"'),
        (7, "backends.ollama.env.OLLAMA_NUM_PARALLEL", OURS, "parallel = 4"),
        (7, "backends.ollama.env.OLLAMA_MAX_LOADED_MODELS", OURS, "max_loaded_models = 3"),
        (7, "backends.ollama.env.OLLAMA_CONTEXT_LENGTH", OURS, "context_length = 32768"),
        (7, "backends.ollama.env.CUDA_VISIBLE_DEVICES", OURS, "gpu = 1 in the mode"),
    ],
    "tf-batching": [
        (6, "backends.tensorflow.command", "--enable_batching is set", "batching = { ... }"),
        (6, "backends.tensorflow.command", "--batching_parameters_file is set", 'batching = "/srv/batching.config"'),
        (6, "backends.tensorflow.command", "--monitoring_config_file is set", "leave it out"),
    ],
    "values-fraction": [(9, "modes.A.ollama.memory", "0.55 has no unit", '"55%"')],
    "values-g12": [(9, "modes.A.ollama.memory", "'12G' is neither percentage nor size", "12GiB")],
    "values-nokind": [(5, "backends.vllm-embed", "has no kind", 'kind = "vllm"')],
    "values-sameport": [(7, "backends.vllm2", "port 8000 is used by backends.vllm.port too", "another port")],
    "values-tritonport": [(11, "backends.triton.port", "port 8000 is used by backends.vllm.port too", "another port")],
}  # fmt: skip
ERRORS["vllm-config-yaml-with-model"] = ERRORS["vllm-config-yaml-only-config"]
ERRORS["values-sameport"] = [
    (7, "backends.vllm2.port", "port 8000 is used by backends.vllm.port too", "another port")
]

# What is doubtful, the file stands.
WARNINGS: dict[str, list[Said]] = {
    "command-forms-tls": [
        (6, "backends.vllm.command", "--ssl-keyfile, --ssl-certfile: vLLM speaks TLS", "[gateway] certificate"),
        (6, "backends.vllm.command", "--uds", "take it out"),
    ],
    "command-forms-util-short": [
        (6, "backends.vllm.command", "/proc/PID/cmdline", "VLLM_API_KEY=THE VALUE into /etc/gpu-arbiter.env"),
    ],
    "values-apikey": [
        (6, "backends.vllm.command", "/proc/PID/cmdline", 'env_file = "/etc/gpu-arbiter.env"'),
    ],
}  # fmt: skip


def _text(name: str) -> str:
    return (CASES / f"{name}.toml").read_text().replace("CASES", str(CASES))


def _load(tmp_path: Path, text: str) -> tuple[Loaded | None, tuple[Problem, ...]]:
    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(text)
    try:
        loaded = load(path, {})
    except ConfigRefused as refused:
        return None, (*refused.problems, *refused.warnings)
    return loaded, loaded.warnings


def _told(found: tuple[Problem, ...], severity: str, wanted: list[Said]) -> None:
    """Exactly these problems, whatever their order."""
    left = [one for one in found if one.severity == severity]
    for line, key, wrong, right in wanted:
        mine = [p for p in left if p.key == key and wrong in p.wrong and right in p.right]
        assert mine, (key, wrong, right, [str(p) for p in left])
        assert mine[0].line == line, str(mine[0])
        left.remove(mine[0])
    assert not left, [str(p) for p in left]


@pytest.mark.parametrize("name", sorted(one.stem for one in CASES.glob("*.toml")))
def test_each_case_is_judged_as_it_should_be(tmp_path: Path, name: str) -> None:
    """Every error and every warning at its line with what would be right, and no other."""
    loaded, found = _load(tmp_path, _text(name))
    _told(found, "error", ERRORS.get(name, []))
    _told(found, "warning", WARNINGS.get(name, []))
    assert (loaded is None) == (name in ERRORS)
    assert "sk-" not in " ".join(map(str, found)), "a key must not reach the journal"


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("served-model-name-served", ("qwen2.5-7b", "gpt-4o-mini")),
        ("served-model-name-models-key", ("qwen2.5-7b", "/models/qwen2.5-7b-awq", "sql-lora")),
        ("command-forms-flags-first", ("Qwen/Qwen2.5-7B-Instruct",)),
        ("tf-name-base", ("resnet50",)),
    ],
)
def test_a_case_is_known_by_its_models(tmp_path: Path, name: str, models: tuple[str, ...]) -> None:
    """The operator's names in their order, then the model's own, then LoRA adapters."""
    loaded, _ = _load(tmp_path, _text(name))
    assert loaded is not None
    (backend,) = loaded.settings.active.backends.values()
    assert engine_of(backend.kind).served_models(backend) == models


def test_a_config_file_of_vllm_gives_its_model_and_names(tmp_path: Path) -> None:
    """Without the keys that are ours it is accepted: its model, its names, its sizes count."""
    yaml = tmp_path / "v.yaml"
    yaml.write_text("model: Org/M\nserved-model-name: [a, b]\ntensor_parallel_size: 2\n")
    text = _text("vllm-config-yaml-only-config").replace(str(CASES / "vllm.yaml"), str(yaml))
    loaded, found = _load(tmp_path, text.replace("gpu = 0", "gpu = [0, 1]"))
    assert loaded is not None, found
    backend = loaded.settings.active.backends["vllm"]
    assert engine_of(backend.kind).served_models(backend) == ("a", "b")
    loaded, found = _load(tmp_path, text)
    assert "the mode names 1 GPU" in str(found[0])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        ("- a\n", "holds no mapping of options"),
        ("model: [\n", "cannot be read:"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, content: str | None, why: str
) -> None:
    """An error where the model would stand in it, else a warning."""
    yaml = tmp_path / "v.yaml"
    if content is not None:
        yaml.write_text(content)
    for name, severity in (("only-config", "error"), ("with-model", "warning")):
        text = _text(f"vllm-config-yaml-{name}").replace(str(CASES / "vllm.yaml"), str(yaml))
        _, found = _load(tmp_path, text)
        assert [p.severity for p in found] == [severity], [str(p) for p in found]
        assert why in found[0].wrong


def test_env_file_may_not_decide_what_is_the_arbiters(tmp_path: Path) -> None:
    """A warning by name; no value of the file is ever shown."""
    secrets = tmp_path / "secrets"
    secrets.write_text("OLLAMA_HOST=0.0.0.0:777\nCUDA_VISIBLE_DEVICES=5\nHF_TOKEN=hf_x\n")
    text = _text("values-keep-1").replace("keep_alive", f'env_file = "{secrets}"\nkeep_alive')
    loaded, found = _load(tmp_path, text)
    assert loaded is not None
    words = " ".join(map(str, found))
    assert len(found) == 2
    assert "sets OLLAMA_HOST" in words
    assert "sets CUDA_VISIBLE_DEVICES" in words
    assert "777" not in words
    assert "hf_x" not in words
