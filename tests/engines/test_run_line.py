"""A `docker run` line as a command: refused, and the whole image form printed instead."""

from __future__ import annotations

import shlex
import tomllib

import pytest

from arbiterd.engines.run_line import container_problem

LINES = [
    (
        "sudo -E docker run --gpus all vllm/vllm-openai:v0.30.0 --api-key sk-x --model Qwen/Q",
        {
            "image": "vllm/vllm-openai:v0.30.0",
            "container": "docker",
            "command": ["--model", "Qwen/Q"],
            "env_file": "/etc/gpu-arbiter.env",
        },
        "; put VLLM_API_KEY into env_file",
    ),
    (
        (
            "docker run --runtime nvidia --gpus all -v /srv/hf:/root/.cache/huggingface:Z"
            " --env HUGGING_FACE_HUB_TOKEN=hf_x -p 8001:8000 --ipc=host vllm/vllm-openai:v0.30.0"
            " --model Qwen/Q"
        ),
        {
            "image": "vllm/vllm-openai:v0.30.0",
            "container": "docker",
            "command": ["--model", "Qwen/Q"],
            "env_file": "/etc/gpu-arbiter.env",
            "volumes": ["/srv/hf:/root/.cache/huggingface"],
            "port": 8001,
        },
        "; put HUGGING_FACE_HUB_TOKEN into env_file",
    ),
    (
        (
            "sudo docker run -t --rm -p 127.0.0.1:9501:8501 -p 9500:8500/tcp -v /srv/m:/models/half:ro"
            " -e MODEL_NAME=half tensorflow/serving"
        ),
        {
            "image": "tensorflow/serving",
            "container": "docker",
            "models": {"half": "/srv/m"},
            "port": 9501,
            "grpc_port": 9500,
        },
        "",
    ),
    (
        (
            "/usr/bin/docker run -itd --gpus=all -vollama:/root/.ollama -p11434:11434 --name ollama"
            " -u1000:1000 -e'A=say \"hi\"' ollama/ollama"
        ),
        {
            "image": "ollama/ollama",
            "container": "docker",
            "env": {"A": 'say "hi"'},
            "volumes": ["ollama:/root/.ollama"],
            "user": "1000:1000",
        },
        "",
    ),
    (
        "podman run --env-file /etc/x.env --cpus 4 -v ~/m:/m --tmpfs=/t img:1",
        {"image": "img:1", "container": "podman", "env_file": "/etc/x.env"},
        "; there is no key for --cpus 4, --volume ~/m:/m, --tmpfs /t",
    ),
    ("docker compose up", {"image": "NAME:TAG", "container": "docker"}, ""),
]


@pytest.mark.parametrize(("line", "form", "remark"), LINES)
def test_the_form_printed_is_toml_that_says_the_same(
    line: str, form: dict[str, object], remark: str
) -> None:
    """Ready to paste between the braces; secrets are never repeated."""
    found = container_problem(shlex.split(line))
    assert found is not None
    assert found.right.startswith("write ")
    text, sign, rest = found.right.removeprefix("write ").partition("; ")
    assert sign + rest == remark
    assert tomllib.loads(f"x = {{ {text} }}")["x"] == form
    assert "hf_x" not in found.right


def test_other_commands_are_none_of_its_business() -> None:
    """A program that only has docker in its path."""
    assert container_problem(("vllm", "serve", "docker")) is None
    assert container_problem(("/opt/docker/bin/vllm", "serve")) is None
    assert container_problem(()) is None
