"""What each engine is started with: argv, environment, files, for a cap and a device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.backend.planning import launch_spec
from arbiterd.engines import engine_of
from arbiterd.engines.base import LaunchContext
from arbiterd.engines.flags import shown
from arbiterd.engines.owned_env import owned
from arbiterd.model.devices import Device
from arbiterd.model.engine_options import Batching, TensorflowOptions, VllmOptions
from arbiterd.model.launch import LaunchSpec
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.quantities import GIB, MIB
from tests.core.world import backend

CARD = Device("GPU-aaa", 1, "NVIDIA GeForce RTX 4090", "01", 24 * GIB, 400 * MIB)
SLICE = replace(CARD, uuid="MIG-bbb", parent_uuid="GPU-aaa", total_bytes=20 * GIB, reserved_bytes=0)


def _spec(kind: Kind, *devices: Device, version: str = "", **over: object) -> LaunchSpec:
    return engine_of(kind).launch(
        _context(backend(kind.value, kind, **over), *devices, version=version)
    )


def _context(one: BackendSettings, *devices: Device, version: str = "") -> LaunchContext:
    return LaunchContext(
        backend=one,
        devices=devices,
        cap_bytes=12 * GIB if devices else 0,
        headroom_bytes=963 * MIB,
        others_caps_bytes=9 * GIB,
        host="127.0.0.1",
        port=18000,
        grpc_port=18500,
        files_dir="/run/x/backends/b",
        intent="i",
        version=version,
    )


def _flag(spec: LaunchSpec, name: str) -> str:
    return spec.argv[spec.argv.index(name) + 1]


def test_vllm_gets_its_share_as_utilisation() -> None:
    """(12 GiB - 600 MiB context - 256 MiB spikes) of 23.61 GiB, rounded down."""
    spec = _spec(Kind.VLLM, CARD)
    assert _flag(spec, "--gpu-memory-utilization") == "0.472"
    assert _flag(spec, "--host") == "127.0.0.1"
    assert _flag(spec, "--port") == "18000"
    assert _flag(spec, "--shutdown-timeout") == "30"
    assert spec.stop_grace_s == 45.0
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "GPU-aaa"
    assert spec.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert int(spec.env["VLLM_ENGINE_READY_TIMEOUT_S"]) == 60


def test_vllm_before_0_25_is_given_an_index_and_no_queue_limit() -> None:
    """A uuid kills 0.21 (vllm #51677); --max-num-queued-reqs came with 0.30."""
    spec = _spec(Kind.VLLM, CARD, version="0.21.0")
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "1"
    assert "--max-num-queued-reqs" not in spec.argv


def test_vllm_bounds_its_requests_itself_only_where_no_door_does() -> None:
    """--max-num-queued-reqs counts running requests as well: max_in_flight + max_queue."""
    behind = _spec(Kind.VLLM, CARD, port=8000, max_in_flight=8, max_queue=32)
    assert "--max-num-queued-reqs" not in behind.argv
    bare = _spec(Kind.VLLM, CARD, port=18000, max_in_flight=8, max_queue=32)
    assert _flag(bare, "--max-num-queued-reqs") == "40"


def test_vllm_on_two_cards_is_tensor_parallel() -> None:
    """A list of GPUs; the context overhead grows with the ranks."""
    other = replace(CARD, uuid="GPU-ccc", index=2)
    spec = _spec(Kind.VLLM, CARD, other)
    assert _flag(spec, "--tensor-parallel-size") == "2"
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "GPU-aaa,GPU-ccc"
    assert float(_flag(spec, "--gpu-memory-utilization")) < 0.472


@pytest.mark.parametrize(
    "flags", [("-tp", "2"), ("--pipeline-parallel-size=2",), ("-dp", "2"), ("-dpl=2",)]
)
def test_vllm_is_given_no_parallelism_where_the_command_has_some(flags: tuple[str, ...]) -> None:
    """Of whichever kind."""
    other = replace(CARD, uuid="GPU-ccc", index=2)
    spec = _spec(Kind.VLLM, CARD, other, command=("vllm", "serve", "M", *flags))
    assert "--tensor-parallel-size" not in spec.argv


def test_vllm_answers_to_all_its_names_the_operators_first() -> None:
    """The model moves to the front: vLLM refuses --served-model-name with flags before the model."""
    command = ("vllm", "serve", "--dtype", "half", "--served-model-name", "a", "b", "--", "M")
    own = VllmOptions(served_names=("a", "b"))
    spec = _spec(Kind.VLLM, CARD, command=command, vllm=own, served_also=("c",))
    at = spec.argv.index("--served-model-name")
    assert spec.argv[at + 1 : at + 4] == ("a", "b", "c")
    assert spec.argv[:3] == ("vllm", "serve", "M")
    assert spec.argv.count("--served-model-name") == 1


def test_a_plain_command_is_left_as_it_is() -> None:
    """No names are added to a model that goes by its own."""
    spec = _spec(Kind.VLLM, CARD, command=("vllm", "serve", "M"))
    assert "--served-model-name" not in spec.argv


@pytest.mark.parametrize("kind", list(Kind))
def test_what_the_arbiter_decides_is_in_the_environment_or_unset(kind: Kind) -> None:
    """The operator's env never beats it, and what is not set stays unset whatever env_file says."""
    one = backend(kind.value, kind, env={"CUDA_VISIBLE_DEVICES": "7", "MINE": "1"})
    spec = launch_spec(_context(one, CARD))
    decided = owned(one).keys()
    assert decided <= spec.env.keys() | set(spec.unset)
    assert not set(spec.unset) & spec.env.keys()
    assert spec.env["CUDA_VISIBLE_DEVICES"] != "7"
    assert spec.env["MINE"] == "1"
    engine = {name for name in spec.env if name != "MINE"}
    assert engine <= decided, f"set by the engine's file, not owned: {engine - decided}"


def test_ollama_asks_no_cloud_unless_told_otherwise() -> None:
    """A default: env and env_file come after it."""
    spec = launch_spec(_context(backend("ollama", Kind.OLLAMA), CARD))
    assert spec.base["OLLAMA_NO_CLOUD"] == "1"
    assert "OLLAMA_NO_CLOUD" not in {*spec.env, *spec.unset}
    told = backend("ollama", Kind.OLLAMA, env={"OLLAMA_NO_CLOUD": "0"})
    assert launch_spec(_context(told, CARD)).env["OLLAMA_NO_CLOUD"] == "0"


def test_a_container_is_given_the_same_environment() -> None:
    """Defaults and what is decided by name; nothing that stays unset."""
    one = backend("ollama", Kind.OLLAMA, image="ollama/ollama:0.33.0", env={"MINE": "1"})
    spec = launch_spec(replace(_context(one, CARD), container="docker"))
    assert {"--env=OLLAMA_NO_CLOUD", "--env=OLLAMA_HOST", "--env=MINE"} <= set(spec.argv)
    assert "OLLAMA_NO_CLOUD" in spec.base
    assert "NVIDIA_VISIBLE_DEVICES" in spec.unset
    assert not any("GPU_OVERHEAD" in word for word in spec.argv)


def test_vllms_keys_become_flags() -> None:
    """max_model_len, max_num_seqs, sleep."""
    spec = _spec(Kind.VLLM, CARD, vllm=VllmOptions(8192, 4, sleep=True))
    assert (_flag(spec, "--max-model-len"), _flag(spec, "--max-num-seqs")) == ("8192", "4")
    assert "--enable-sleep-mode" in spec.argv
    assert spec.env["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_mig_slice_is_named_by_its_uuid_whatever_is_asked() -> None:
    """It has no index of its own."""
    spec = _spec(Kind.TENSORFLOW, SLICE, device_id="index")
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "MIG-bbb"


@pytest.mark.parametrize("kind", list(Kind))
def test_on_the_cpu_every_gpu_is_hidden(kind: Kind) -> None:
    """And no memory knob is rendered."""
    spec = _spec(kind)
    assert spec.env["CUDA_VISIBLE_DEVICES"] == ""
    assert not any("memory" in word for word in spec.argv)


def test_tensorflow_gets_a_fraction_and_its_models_as_a_file() -> None:
    """(12 GiB - 600 MiB) of 23.61 GiB; retries are the arbiter's business."""
    spec = _spec(Kind.TENSORFLOW, CARD, model_paths={"resnet50": "/srv/m"})
    assert "--per_process_gpu_memory_fraction=0.483" in spec.argv
    assert "--rest_api_port=18000" in spec.argv
    assert "--port=18500" in spec.argv
    assert "--max_num_load_retries=0" in spec.argv
    models = next(one for one in spec.files if one.name == "models.config")
    assert 'name: "resnet50" base_path: "/srv/m"' in models.content
    assert "TF_FORCE_GPU_ALLOW_GROWTH" not in spec.env


def test_tensorflows_growth_and_batching_are_keys() -> None:
    """Off unless given."""
    options = TensorflowOptions(memory_growth=True, batching=Batching(32, 100))
    spec = _spec(Kind.TENSORFLOW, CARD, tensorflow=options)
    assert spec.env["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert "--enable_batching=true" in spec.argv
    assert any("max_batch_size { value: 32 }" in one.content for one in spec.files)


def test_tensorflow_is_shut_in_because_its_grpc_port_cannot_bind_loopback() -> None:
    """The unit gets IPAddressAllow=localhost."""
    assert _spec(Kind.TENSORFLOW, CARD).loopback_only


def test_ollama_is_limited_by_environment_in_the_unit_of_its_version() -> None:
    """MiB for llama.cpp's fit since 0.30, bytes before; Vulkan off, one model, context fixed."""
    new = _spec(Kind.OLLAMA, CARD, version="0.33.0")
    free = 24 * GIB - 400 * MIB - 9 * GIB - 12 * GIB
    assert new.env["LLAMA_ARG_FIT_TARGET"] == str(-(-free // MIB))
    assert new.env["OLLAMA_VULKAN"] == "0"
    assert new.env["OLLAMA_MAX_LOADED_MODELS"] == "1"
    assert new.env["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert new.env["OLLAMA_HOST"] == "127.0.0.1:18000"
    assert new.oom_continue
    old = _spec(Kind.OLLAMA, CARD, version="0.11.4")
    assert old.env["OLLAMA_GPU_OVERHEAD"] == str(free)
    assert "LLAMA_ARG_FIT_TARGET" not in old.env


def test_a_generic_command_has_placeholders() -> None:
    """{port} {cap_bytes} {cap_mib} {gpu_fraction}."""
    command = ("srv", "--p={port}", "{cap_bytes}", "{cap_mib}", "{gpu_fraction}")
    spec = _spec(Kind.GENERIC, CARD, command=command)
    assert spec.argv == ("srv", "--p=18000", str(12 * GIB), str(12 * 1024), "0.508")


def test_words_for_people_have_no_secret() -> None:
    """Every value after such a flag, and of such a variable; sizes in tokens and file names stay."""
    words = "vllm serve M --api-key a b --max-num-batched-tokens 9 --hf-token=c -e HF_TOKEN=d --ssl-keyfile k"
    hidden = "vllm serve M --api-key ... ... --max-num-batched-tokens 9 --hf-token=... -e HF_TOKEN=... --ssl-keyfile k"
    assert shown(words.split()) == hidden.split()
