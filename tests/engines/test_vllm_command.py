"""vLLM's command line read as its own parser (0.32.0) reads it."""

from __future__ import annotations

import shlex

import pytest

from arbiterd.engines.owned_env import owned
from arbiterd.engines.shell_line import shell_problem
from arbiterd.engines.vllm_command import Parallel, full_name, model_of, parallel, read, sized
from arbiterd.model.settings import BackendSettings, Kind


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


@pytest.mark.parametrize(
    ("line", "model"),
    [
        ("vllm serve M --dtype half", "M"),
        ("vllm serve --dtype half --max-model-len 8192 M", "M"),
        ("vllm serve --enforce-eager M", "M"),
        ("vllm serve --no-enable-prefix-caching M", "M"),
        ("vllm serve --dtype=half M", "M"),
        ("vllm serve -tp 2 M --port 1", "M"),
        ("vllm serve --trust_remote_code M", "M"),
        ("vllm serve --served-model-name a b", ""),
        ("vllm serve --model M", "M"),
        ("uv run --with vllm vllm serve M", "M"),
        ("/opt/v/bin/python -m vllm.entrypoints.openai.api_server --model M", "M"),
        ("/opt/v/bin/python -m vllm.entrypoints.cli.main serve M", "M"),
        ("numactl --cpunodebind=0 vllm serve M", "M"),
        ("vllm serve", ""),
    ],
)
def test_the_model_is_found_wherever_it_stands(line: str, model: str) -> None:
    """Before or after options, which take a value, several or none."""
    assert model_of(_words(line)) == model


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("--gpu-memory-util", "gpu-memory-utilization"),
        ("--kv-cache-memory=20G", "kv-cache-memory-bytes"),
        ("--gpu_memory_utilization", "gpu-memory-utilization"),
        ("-tp=2", "tensor-parallel-size"),
        ("-dpl", "data-parallel-size-local"),
        ("--enable", "enable"),  # ambiguous: vLLM itself refuses it
        ("--compilation-config.pass_config", "compilation-config"),
        ("-1", ""),
        ("word", ""),
    ],
)
def test_an_option_has_one_name(word: str, name: str) -> None:
    """Short, cut short, with underscores, with its value."""
    assert full_name(word) == name


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [
        ("-tp 2", 2),
        ("-tp=2 -pp=2", 4),
        ("--tensor_parallel_size 2 --pipeline-parallel-size=2", 4),
        ("--tensor-parallel 4", 4),
        ("-dp 2 -tp 2", 4),
        ("-tp 2 -tp 1", 1),
        ("-dp 8 -dpl 2", 2),
        ("-dp 8 --data-parallel-rank 1 -tp 2", 2),
        ("-dp 4 --data-parallel-external-lb", 1),
        ("-dp 8 -dpl 4 --data-parallel-address 10.0.0.1", 4),
        ("-tp 2 -dcp 2 -ep", 2),
        ("-tp 2 -pcp 2", 2),
        ("--nnodes 1 -tp 2", 2),
    ],
)
def test_sizes_multiply_to_the_gpus_of_this_host(flags: str, gpus: int) -> None:
    """Tensor x pipeline x data (local); context and expert parallelism split the same ranks."""
    command = read(_words(f"vllm serve M {flags}"))
    found = parallel(command)
    assert found is not None
    assert found.gpus == gpus
    assert sized(command)


@pytest.mark.parametrize(
    "flags",
    [
        "--nnodes 2 -tp 8",
        "--node-rank 1 -tp 8",
        "-r 1 -tp 8",
        "--distributed-executor-backend ray -tp 16",
        "--distributed-executor-backend=external_launcher -tp 2",
        "--data-parallel-backend=ray -dp 4",
        "-dp 4 --data-parallel-address 10.0.0.1",
        "-dp 4 --headless --data-parallel-start-rank 2",
        "-dp 4 -dpl 0",
        "-tp two",
    ],
)
def test_what_spans_several_hosts_is_not_judged(flags: str) -> None:
    """Nor is a size that is no number: vLLM says that."""
    assert parallel(read(_words(f"vllm serve M {flags}"))) is None


def test_nothing_given_is_one_gpu_and_ours_to_size() -> None:
    """We add --tensor-parallel-size only here."""
    command = read(_words("vllm serve M --decode-context-parallel-size 2"))
    assert parallel(command) == Parallel()
    assert not sized(command)


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (
            ["bash", "-lc", "source /v/bin/activate && exec vllm serve M"],
            ['command = ["/v/bin/vllm", "serve", "M"]'],
        ),
        (["sh", "-c", "vllm serve M -tp 2"], ['command = ["vllm", "serve", "M", "-tp", "2"]']),
        (
            ["/bin/bash", "-l", "-c", "export HF_HOME=/hf; HF_TOKEN=hf_x vllm serve M"],
            ['"serve", "M"]', 'env = { HF_HOME = "/hf" }', "put HF_TOKEN into env_file"],
        ),
        (
            ["bash", "-ec", "cd /srv && . v/bin/activate && vllm serve 'a b'\n"],
            ['command = ["v/bin/vllm", "serve", "a b"]', "there is no key for cd /srv"],
        ),
        (["bash", "-o", "pipefail", "-c", "vllm serve M"], ['command = ["vllm", "serve", "M"]']),
        (
            ["bash", "-c", "CUDA_VISIBLE_DEVICES=1 vllm serve M 2>&1 | tee --api-key hf_x log"],
            [
                'command = ["vllm", "serve", "M"];',
                "for CUDA_VISIBLE_DEVICES: write gpu = 1 in the mode",
            ],
        ),
        (
            ["sh", "-c", "exec vllm serve M -tp 2 > /var/log/v.log 2>&1"],
            ['command = ["vllm", "serve", "M", "-tp", "2"]; there is no key for > /var/log/v.log'],
        ),
        (["bash", "-c", "if x; then 'y"], ["/FULL/PATH/OF/PROGRAM"]),
    ],
)
def test_a_shell_is_refused_with_the_form_to_write(command: list[str], parts: list[str]) -> None:
    """Activation gives the program's folder, variables become env, what is lost is named."""
    found = shell_problem(
        command, tuple, owned(BackendSettings("vllm", Kind.VLLM, (), 8000, 18000))
    )
    assert found is not None
    for part in parts:
        assert part in found.right
    assert "hf_x" not in found.right


def test_a_script_as_program_is_no_shell_line() -> None:
    """A wrapper file stays as it is."""
    assert shell_problem(["bash", "/srv/start.sh"], tuple) is None
    assert shell_problem(["vllm", "serve", "bash"], tuple) is None
