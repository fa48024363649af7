"""Units as people publish them, made into entries: nothing is dropped in silence, nothing invented."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.config import check_devices, load
from arbiterd.survey.draft import draft
from arbiterd.survey.draft_entries import DEFAULT_MODEL
from arbiterd.survey.facts import CachedModel, Survey, UnitFacts, Venv
from tests.survey.test_draft import RTX

VLLM = UnitFacts(
    "vllm.service",
    active="active",
    enabled="enabled",
    user="llm",
    group="llm",
    command=(
        *("/opt/vllm/bin/vllm", "serve", "Qwen/Qwen2.5-7B-Instruct-AWQ", "--host", "0.0.0.0"),
        *("--port", "8005", "--served-model-name", "qwen", "qwen-7b", "--gpu-memory-utilization"),
        *(
            "0.85",
            "--max-model-len",
            "8192",
            "--enable-lora",
            "--lora-modules",
            "sql=/srv/lora/sql",
        ),
        *("chat=/srv/lora/chat", "--api-key", "${VLLM_API_KEY}"),
    ),
    secret=("VLLM_API_KEY",),
    environment=(
        ("HF_HOME", "/srv/hf"),
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("CUDA_VISIBLE_DEVICES", "1"),
        ("HF_TOKEN", "hf_hush"),
        ("PATH", "/opt/vllm/bin:/usr/bin"),
    ),
    environment_files=(("/etc/vllm.env", False),),
    directives=(
        ("Type", "simple"),
        ("User", "llm"),
        ("Group", "llm"),
        ("WorkingDirectory", "/srv/llm"),
        ("Environment", "HF_HOME=/srv/hf"),
        ("EnvironmentFile", "/etc/vllm.env"),
        ("ExecStartPre", "/usr/bin/sleep 10"),
        ("ExecStart", "/opt/vllm/bin/vllm serve ..."),
        ("Restart", "on-failure"),
        ("LimitNOFILE", "65536"),
        ("MemoryMax", "48G"),
    ),
)
# what would be found beside it: nothing of it may take the unit's place
BESIDE = Survey(
    devices=(RTX,),
    venvs=(Venv("/opt/other", "/opt/other/bin/vllm", "0.40.0", "root"),),
    cached=(CachedModel("org/cached", "root"),),
)


def _made(tmp_path: Path, *units: UnitFacts) -> tuple[str, dict[str, object]]:
    """The draft and its backends, after `check` has accepted the file."""
    text = draft(replace(BESIDE, units=units), images_run=False).text
    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(text)
    loaded = load(path, {})
    found = [one for one in check_devices(loaded, (RTX,)) if one.severity == "error"]
    assert not found, text
    return text, tomllib.loads(text)["backends"]


def test_a_published_vllm_unit_keeps_all_that_has_a_key(tmp_path: Path) -> None:
    """User, environment, file, port, served names, LoRA; the rest is listed, secrets without values."""
    text, backends = _made(tmp_path, VLLM)
    assert backends["vllm"] == {
        "command": [
            *("/opt/vllm/bin/vllm", "serve", "Qwen/Qwen2.5-7B-Instruct-AWQ"),
            *("--served-model-name", "qwen", "qwen-7b", "--max-model-len", "8192", "--enable-lora"),
            *("--lora-modules", "sql=/srv/lora/sql", "chat=/srv/lora/chat"),
        ],
        "user": "llm",
        "env": {"HF_HOME": "/srv/hf", "HTTPS_PROXY": "http://proxy:3128"},
        "env_file": "/etc/vllm.env",
        "port": 8005,
    }
    listed = [line for line in text.splitlines() if "not carried over: " in line]
    for wanted in (
        '--host 0.0.0.0: the doors open on [gateway] bind = "0.0.0.0"',
        "--gpu-memory-utilization 0.85 (set by the arbiter)",
        "--api-key: a secret; env_file is the place",
        "CUDA_VISIBLE_DEVICES=1: write gpu = 1 in the mode",
        "HF_TOKEN: a secret; env_file is the place",
        "PATH=/opt/vllm/bin:/usr/bin: the PATH of every engine counts",
        "Group=llm",
        "WorkingDirectory=/srv/llm",
        "ExecStartPre=/usr/bin/sleep ...",
        "LimitNOFILE=65536",
        "MemoryMax=48G",
        "Type=, Restart= (decided by the arbiter)",
    ):
        assert any(line.endswith(f"not carried over: {wanted}") for line in listed), (wanted, text)
    assert "hush" not in text
    assert "# vllm: from vllm.service" in text


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("/bin/bash", "-lc", "source /opt/v/bin/activate && vllm serve org/unit --port 8000"), "bash cannot be the command"),
        (("/bin/sh", "-c", "exec /srv/run.sh"), "sh cannot be the command"),
        (("/usr/local/bin/start-vllm.sh",), "the command names no model"),
        (("/usr/bin/docker", "run", "--rm", "vllm/vllm-openai", "--model", "org/unit"), "docker"),
    ],
)  # fmt: skip
def test_a_unit_that_cannot_be_read_is_a_comment_with_the_reason(
    tmp_path: Path, command: tuple[str, ...], why: str
) -> None:
    """No model and no program of init's own choice stands in its place."""
    text, backends = _made(tmp_path, replace(VLLM, command=command, secret=()))
    assert "vllm" not in backends
    assert "vllm.service cannot be carried over: " in text
    assert why in text
    assert "# vllm       = { command = " in text
    assert DEFAULT_MODEL not in text
    assert "org/cached" not in text


def test_the_module_form_is_carried_over_as_it_is(tmp_path: Path) -> None:
    """`python -m vllm.entrypoints.openai.api_server`, its model in a variable of a drop-in."""
    command = (
        *("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", "org/unit", "--port=8000", "--tensor-parallel-size", "1"),
    )
    _, backends = _made(tmp_path, replace(VLLM, command=command, secret=()))
    assert backends["vllm"]["command"] == [  # type: ignore[index]
        *(
            "/opt/vllm/bin/python",
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            "org/unit",
        ),
        *("--tensor-parallel-size", "1"),
    ]
    assert "port" not in backends["vllm"]  # type: ignore[operator]


def test_a_variable_that_cannot_be_read_makes_a_comment(tmp_path: Path) -> None:
    """Its file is named: as root it can be read."""
    unit = replace(VLLM, missing=("MODEL",), command=("/opt/vllm/bin/vllm", "serve", "${MODEL}"))
    text, backends = _made(tmp_path, unit)
    assert "vllm" not in backends
    assert "$MODEL of its command stands in /etc/vllm.env, which cannot be read" in text


def test_a_second_unit_of_the_same_engine_is_named(tmp_path: Path) -> None:
    """One entry is written for the running one; the other stays to be done by hand."""
    other = replace(
        VLLM, name="vllm-b.service", active="inactive", command=("/v/bin/vllm", "serve", "org/b")
    )
    text, _ = _made(tmp_path, other, VLLM)
    assert "# vllm: from vllm.service" in text
    assert (
        "vllm-b.service runs this engine, too, and is not carried over: /v/bin/vllm serve org/b"
        in text
    )


def test_tensorflow_and_ollama_units_too(tmp_path: Path) -> None:
    """Ports, model, memory fraction; environment, OLLAMA_HOST's port."""
    serving = UnitFacts(
        "tf-serving.service",
        active="active",
        command=(
            *("/usr/bin/tensorflow_model_server", "--port=8600", "--rest_api_port=8601"),
            *(
                "--model_name=resnet",
                "--model_base_path=/srv/resnet",
                "--file_system_poll_wait_seconds=5",
            ),
            "--per_process_gpu_memory_fraction=0.3",
        ),
        environment=(("TF_CPP_MIN_LOG_LEVEL", "1"),),
    )
    ollama = UnitFacts(
        "ollama.service",
        active="active",
        user="ollama",
        command=("/usr/local/bin/ollama", "serve"),
        environment=(
            ("OLLAMA_HOST", "0.0.0.0:11500"),
            ("OLLAMA_MODELS", "/srv/ollama"),
            ("OLLAMA_NUM_PARALLEL", "4"),
        ),
    )
    text, backends = _made(tmp_path, serving, ollama)
    assert backends["tensorflow"] == {
        "command": ["/usr/bin/tensorflow_model_server", "--file_system_poll_wait_seconds=5"],
        "user": "root",
        "env": {"TF_CPP_MIN_LOG_LEVEL": "1"},
        "port": 8601,
        "grpc_port": 8600,
        "models": {"resnet": "/srv/resnet"},
    }
    assert "not carried over: --per_process_gpu_memory_fraction=0.3 (set by the arbiter)" in text
    assert backends["ollama"] == {
        "command": ["/usr/local/bin/ollama", "serve"],
        "user": "ollama",
        "env": {"OLLAMA_MODELS": "/srv/ollama"},
        "port": 11500,
    }
    assert "not carried over: OLLAMA_NUM_PARALLEL=4: write parallel = 4" in text
    assert "`arbiterctl takeover ollama` disables it" in text
