"""check and plan weigh the models that are on this disk, and name walls and MIG slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arbiterd.sim.gpu import SimGpu
from tests.cli.test_cli import _ctl
from tests.config.test_good_files import FIFTEEN
from tests.support.weights import (
    LLAMA_8B,
    LLAMA_8B_VALUES,
    QWEN_3B,
    QWEN_3B_GGUF,
    QWEN_3B_VALUES,
    hub_model,
    ollama_model,
    saved_model,
)

REPO = "Qwen/Qwen2.5-3B-Instruct"
VLLM = f'vllm       = {{ command = ["/opt/vllm/bin/vllm", "serve", "{REPO}"] }}'
OLLAMA = 'ollama     = { models = ["qwen2.5:3b"] }'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The fifteen lines, each engine's models in a folder of this test."""
    text = FIFTEEN.replace(VLLM, VLLM.replace(" }", f', env = {{ HF_HOME = "{tmp_path}/hf" }} }}'))
    text = text.replace(
        OLLAMA, OLLAMA.replace(" }", f', env = {{ OLLAMA_MODELS = "{tmp_path}/ollama" }} }}')
    ).replace("/srv/models", f"{tmp_path}/tf")
    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(f'{text}\n[arbiter]\nstate_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}"\n')
    return path


def _models(tmp_path: Path, config: dict[str, Any] = QWEN_3B, values: int = QWEN_3B_VALUES) -> None:
    hub_model(tmp_path / "hf" / "hub", REPO, config, values)
    ollama_model(tmp_path / "ollama", "qwen2.5:3b", QWEN_3B_GGUF, 1_929_903_264)
    saved_model(tmp_path / "tf" / "resnet50", 102_000_000, 1)


def test_plan_shows_the_arithmetic_of_every_model(
    config: Path, gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """Weights, KV cache, estimates, the room, what is left; the wall of each cap."""
    _models(tmp_path)
    done = _ctl("--config", str(config), "plan", **sim_env)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        f"model {REPO}: fits: 4.39 GiB of KV cache: 127898 tokens, 3.9 requests of 32768 at once",
        "5.75 GiB  weights (2 safetensors file(s), 16 bits)",
        "1.12 GiB  KV cache (one request: 32768 tokens (the model's own length) x 36 layers x 512 values x 2 B)",
        "1.45 GiB  activations (estimate: 256 sequences x 151936 words x 40 B)",
        "of its budget 12.09 GiB (0.514 of 23.52 GiB)",
        "model qwen2.5:3b: fits: 892 MiB left",
        "1.85 GiB  weights (1.80 GiB x 1.03, 1 layer(s) of 1.80 GiB)",
        "model resnet50: fits: ",
        "wall: TensorFlow's own allocator (--per_process_gpu_memory_fraction); its context by watching",
        "wall: vLLM plans within --gpu-memory-utilization; that it does, by watching",
        "wall: the load gate admits no load over the cap; else by watching",
    ):
        assert line in done.stdout, line
    found = json.loads(_ctl("--config", str(config), "plan", "--json", **sim_env).stdout)
    rows = {row["name"]: row for row in found["backends"]}
    (model,) = rows["vllm"]["models"]
    assert model["verdict"] == "fits"
    assert model["predicted_bytes"] == sum(term["bytes"] for term in model["terms"])
    assert rows["tensorflow"]["walls"] == [
        {
            "kind": "engine",
            "text": "TensorFlow's own allocator (--per_process_gpu_memory_fraction); "
            "its context by watching",
        }
    ]
    del gpu


def test_what_is_not_here_yet_is_a_note(
    config: Path, gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """check says how to fetch it and stays good; nothing on stderr about it."""
    done = _ctl("check", str(config), **sim_env)
    assert done.returncode == 0, done.stderr
    assert (
        f"note: vllm: model {REPO}: cannot tell: not here yet: it is not in {tmp_path}/hf/hub yet; "
        "prefetch it with: " in done.stdout
    )
    assert f"hf download {REPO} --cache-dir {tmp_path}/hf/hub" in done.stdout
    assert "ollama pull qwen2.5:3b" in done.stdout
    assert "not here yet" not in done.stderr
    found = json.loads(_ctl("check", str(config), "--json", **sim_env).stdout)
    assert found["ok"] is True
    assert {one["verdict"] for one in found["models"]} == {"cannot tell"}
    del gpu


def test_weights_over_the_cap_are_an_error_at_their_line(
    config: Path, gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """Llama 3.1 8B in 55 % of a 4090: the arithmetic, and what would be right."""
    _models(tmp_path, LLAMA_8B, LLAMA_8B_VALUES)
    done = _ctl("check", str(config), **sim_env)
    assert done.returncode == 78
    (line,) = [x for x in done.stderr.splitlines() if x.startswith(f"{config}:10:")]
    assert f"{config}:10: modes.A.vllm.memory: {REPO}: weights 14.96 GiB + activations" in line
    assert (
        "of its budget 12.09 GiB (0.514 of 23.52 GiB): weights alone are 2.87 GiB too much" in line
    )
    assert line.endswith("; write a quantised or smaller model, or more GPUs (a list)")
    del gpu


def test_too_long_a_context_is_a_warning_with_the_length_that_fits(
    config: Path, gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """Exit 0; what it proposes is taken."""
    _models(tmp_path)
    share = 'vllm       = { gpu = 0, memory = "55%" }'
    text = config.read_text()
    config.write_text(
        text.replace(share, 'vllm = { gpu = 0, memory = "40%", max_model_len = 131072 }')
    )
    done = _ctl("check", str(config), **sim_env)
    assert done.returncode == 0
    (line,) = [x for x in done.stderr.splitlines() if "modes.A.vllm.memory" in x]
    assert line.startswith(f"warning: {config}:10: modes.A.vllm.memory: {REPO}: ")
    length = line.rpartition("write max_model_len = ")[2].split()[0]
    config.write_text(
        text.replace(share, f'vllm = {{ gpu = 0, memory = "40%", max_model_len = {length} }}')
    )
    again = _ctl("check", str(config), **sim_env)
    assert "modes.A.vllm.memory" not in again.stderr
    del gpu


def test_a_model_over_ollamas_cap_says_what_the_gate_will(
    config: Path, gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """The same formula: a smaller context or more memory."""
    _models(tmp_path)
    config.write_text(config.read_text().replace('{ gpu = 0, memory = "20%" }\n\n', '"13%"\n\n'))
    done = _ctl("check", str(config), **sim_env)
    assert done.returncode == 0, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if "modes.A.ollama.memory" in x]
    assert "the load gate would refuse it; write context_length = 4096 or " in line
    assert 'memory = "3.9GiB"' in line
    del gpu


def test_mig_slices_are_listed_and_chosen_by_uuid(
    config: Path, sim_lib: Path, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """With size and user; the parent, an unknown slice and two at once are refused with the list."""
    gpu = SimGpu.create(tmp_path / "gpu", sim_lib, ("a100-40g",))
    try:
        gpu.set_mig(0, ["3g.20gb", "2g.10gb", "1g.5gb"])
        first, second, third = gpu.mig_uuids(0)
        head = config.read_text().split("[modes.A]")[0]
        tail = f'[arbiter]\nstate_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}"\n'

        def write(vllm: str, mode: str = "A") -> None:
            config.write_text(
                f"{head}[modes.A]\nvllm = {{ gpu = {vllm} }}\n"
                f'ollama = {{ gpu = "{second}", memory = "50%" }}\n{tail}'
            )

        write(f'"{first}"')
        done = _ctl("--config", str(config), "plan", **sim_env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"MIG slice {first} of GPU 0" in done.stdout
        assert "19.62 GiB, vllm" in done.stdout
        assert "4.75 GiB, nobody in this mode" in done.stdout
        assert f"wall: MIG slice {first} of 19.62 GiB (hardware)" in done.stdout
        found = json.loads(_ctl("--config", str(config), "plan", "--json", **sim_env).stdout)
        assert [(row["uuid"], row["backends"]) for row in found["mig_slices"]] == [
            (first, ["vllm"]),
            (second, ["ollama"]),
            (third, []),
        ]
        assert found["backends"][0]["env"]["CUDA_VISIBLE_DEVICES"] == first
        listed = (
            f"{first} (a MIG slice of GPU 0, 19.62 GiB), {second} (a MIG slice of GPU 0, 9.75 GiB)"
        )
        for wrong, said in (
            ("0", "is in MIG mode and takes no backend itself; its slices: " + listed),
            ('"MIG-00000000-0000-0000-0000-000000000000"', "on this host; there is " + listed),
            (f'["{first}", "{third}"]', "a process can use one MIG slice only"),
        ):
            write(wrong)
            refused = _ctl("check", str(config), **sim_env)
            assert refused.returncode == 78, refused.stdout
            assert said in refused.stderr.replace("; write", ""), refused.stderr
    finally:
        gpu.close()
