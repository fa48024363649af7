"""Units as people publish them, made into entries: nothing is dropped in silence, nothing invented."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.config import check_devices, load
from arbiterd.config.vllm_config import config_of
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.survey.carried import _BYPASS, _INSTEAD
from arbiterd.survey.draft import draft
from arbiterd.survey.draft_entries import DEFAULT_MODEL
from arbiterd.survey.facts import CachedModel, Survey, UnitFacts, Venv, VllmRun, engine_of_unit
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
        f"PATH=/opt/vllm/bin:/usr/bin: {_BYPASS}",
        f"Group=llm{_INSTEAD['Group']}",
        f"WorkingDirectory=/srv/llm{_INSTEAD['WorkingDirectory']}",
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


@pytest.mark.parametrize(
    "command",
    [
        (
            "/usr/bin/docker",
            "run",
            "-e",
            "HF_TOKEN=hush",
            "vllm/vllm-openai",
            "--model",
            "org/unit",
        ),
        ("/bin/bash", "-lc", "export HF_TOKEN=hush && vllm serve org/unit --api-key hush"),
        ("/bin/bash", "-lc", "curl http://me:hush@proxy && vllm serve org/unit"),
        ("/usr/bin/env", "HF_TOKEN=hush", "/opt/vllm/bin/vllm", "serve", "org/unit"),
        ("/opt/vllm/bin/vllm", "serve", "org/unit", "--api-key", "hush", "--hf-token=hush"),
        ("/opt/run.sh", "--api-key=hush", "--hf-token", "hush"),
    ],
)
def test_no_secret_of_a_unit_is_printed(tmp_path: Path, command: tuple[str, ...]) -> None:
    """In an entry, in a comment, as a second unit; a proxy's password is one, too."""
    env = (("HTTPS_PROXY", "http://me:hush@proxy:3128"), ("TOKENIZERS_PARALLELISM", "false"))
    unit = replace(VLLM, command=command, secret=(), environment=env)
    assert "hush" not in _made(tmp_path, unit)[0]
    text, backends = _made(tmp_path, VLLM, replace(unit, name="b.service", active="inactive"))
    assert "hush" not in text
    assert "b.service runs this engine, too" in text or "run.sh" in command[0]
    assert "vllm" in backends


def test_variables_of_env_in_front_of_the_program_are_keys(tmp_path: Path) -> None:
    """`/usr/bin/env A=b vllm serve`: owned ones and secrets are judged as those of Environment=."""
    command = (
        *(
            "/usr/bin/env",
            "VLLM_USE_V1=1",
            "CUDA_VISIBLE_DEVICES=1",
            "TOKENIZERS_PARALLELISM=false",
        ),
        *("/opt/vllm/bin/vllm", "serve", "org/unit"),
    )
    text, backends = _made(tmp_path, UnitFacts("vllm.service", active="active", command=command))
    assert backends["vllm"] == {
        "command": ["/opt/vllm/bin/vllm", "serve", "org/unit"],
        "user": "root",
        "env": {"VLLM_USE_V1": "1", "TOKENIZERS_PARALLELISM": "false"},
    }
    assert "CUDA_VISIBLE_DEVICES=1: write gpu = 1 in the mode" in text


@pytest.mark.parametrize(
    "command",
    [
        ("/opt/ollama/start.sh",),
        ("/usr/bin/ollama_exporter", "--port", "9000"),
        ("/usr/bin/sg", "render", "-c", "/usr/bin/ollama serve"),
        ("/usr/bin/ollama", "run", "llama3"),
    ],
)
def test_an_ollama_unit_that_may_start_anything_is_a_comment(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    """A script, an exporter, a client of Ollama: none is a server to start in its place."""
    text, backends = _made(tmp_path, UnitFacts("ollama.service", active="active", command=command))
    assert "ollama" not in backends
    assert "ollama.service cannot be carried over: its command is not seen to start Ollama" in text


def test_vllms_own_config_file_is_read(tmp_path: Path) -> None:
    """Its model counts; a key of the arbiter's in it, or a file that cannot be read, is said."""
    path = tmp_path / "vllm.yaml"
    path.write_text("model: org/unit\nmax-model-len: 4096\n")
    command = ("/opt/vllm/bin/vllm", "serve", "--config", str(path))

    def made() -> tuple[str, dict[str, object]]:
        config = config_of(BackendSettings("x", Kind.VLLM, command, 1, 1))
        unit = UnitFacts("vllm.service", active="active", command=command, config=config)
        return _made(tmp_path, unit)

    assert made()[1]["vllm"] == {"command": list(command), "user": "root"}
    path.write_text("model: org/unit\nport: 8005\n")
    text, backends = made()
    assert "vllm" not in backends
    assert f"take port (line 2) out of {path}: set port" in text
    path.unlink()
    assert f"--config {path}: cannot be read: No such file or directory" in made()[0]


def test_a_variable_that_a_file_sets_too_is_left_to_the_file(tmp_path: Path) -> None:
    """As under systemd, where EnvironmentFile= wins; an entry's `env` would win over its env_file."""
    unit = replace(VLLM, in_files=frozenset({"HF_HOME"}))
    text, backends = _made(tmp_path, unit)
    assert backends["vllm"]["env"] == {"HTTPS_PROXY": "http://proxy:3128"}  # type: ignore[index]
    assert "HF_HOME of Environment=: the value in /etc/vllm.env counts" in text


def test_tensorflows_image_and_batching_are_said(tmp_path: Path) -> None:
    """The `image` line to write; the key that takes the batching file."""
    docker = UnitFacts(
        "tf-serving.service",
        active="active",
        command=(
            *("/usr/bin/docker", "run", "-v", "/srv/half:/models/half", "-e", "MODEL_NAME=half"),
            "tensorflow/serving:2",
        ),
    )
    assert 'image = "tensorflow/serving:2"' in _made(tmp_path, docker)[0]
    plain = replace(
        docker,
        command=(
            *("/usr/bin/tensorflow_model_server", "--model_base_path=/srv/m"),
            *("--enable_batching=true", "--batching_parameters_file=/etc/batch.txt"),
        ),
    )
    text = _made(tmp_path, plain)[0]
    assert '--batching_parameters_file=/etc/batch.txt: write batching = "/etc/batch.txt"' in text


def test_a_vllm_process_that_cannot_be_read_is_a_comment(tmp_path: Path) -> None:
    """Seen at work without a unit, its model in a file: no other model stands in its place."""
    run = VllmRun(("vllm", "serve", "--config", "model.yaml"), "pid 7")
    text = draft(replace(BESIDE, vllm_runs=(run,)), images_run=False).text
    assert "# vllm: as pid 7 runs it" in text
    assert "# vllm       = { command = " in text
    assert "org/cached" not in text


@pytest.mark.parametrize(
    ("name", "command", "engine"),
    [
        ("tf-serving.service", ("/opt/start.sh",), "tensorflow"),
        ("tf_serving.service", ("/opt/start.sh",), "tensorflow"),
        ("llm.service", ("/opt/bin/uv", "run", "vllm", "serve", "org/m"), "vllm"),
        ("llm.service", ("/bin/bash", "-lc", "exec vllm serve org/m"), "vllm"),
        ("chat.service", ("/bin/sh", "-c", "/usr/bin/ollama serve"), "ollama"),
        ("open-webui.service", ("/usr/bin/open-webui", "serve"), None),
    ],
)
def test_an_engine_is_known_behind_a_wrapper(
    name: str, command: tuple[str, ...], engine: str | None
) -> None:
    """By what its command starts, whatever the unit is called; else by its name."""
    assert engine_of_unit(UnitFacts(name, command=command)) == engine
