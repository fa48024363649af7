"""Does it fit? Tables of published models, and laws of the arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiterd.core.backend.planning import launch_spec
from arbiterd.engines.base import LaunchContext
from arbiterd.engines.vllm import overhead_bytes, spike_bytes, utilisation
from arbiterd.fit.files.hf_config import read_config
from arbiterd.fit.from_ollama_api import shape_of
from arbiterd.fit.kv_cache import gguf_layers, ollama_kv_bytes, vllm_kv_bytes
from arbiterd.fit.ollama import (
    FIXED_BYTES,
    Shape,
    context_that_fits,
    ollama_fit,
    predicted_bytes,
    tensorflow_fit,
)
from arbiterd.fit.types import Fit, KvLayers, ModelFacts, NoFacts, Verdict
from arbiterd.fit.verdict import fits, walls
from arbiterd.fit.vllm import cap_for, human_int, vllm_fit
from arbiterd.model.devices import Device
from arbiterd.model.engine_options import OllamaOptions, VllmOptions
from arbiterd.model.settings import Kind
from arbiterd.quantities import GIB, MIB
from tests.core.world import backend
from tests.support.weights import (
    DEEPSEEK_LITE,
    GEMMA_4B,
    LLAMA_8B,
    LLAMA_8B_VALUES,
    QWEN_3B,
    QWEN_3B_GGUF,
    QWEN_3B_VALUES,
)

CARD = Device(
    "GPU-a", 0, "NVIDIA GeForce RTX 4090", "01", 24082 * MIB + 482 * MIB, reserved_bytes=482 * MIB
)


def _context(kind: Kind, cap: int, *devices: Device, others: int = 0, **over: Any) -> LaunchContext:
    return LaunchContext(
        backend=backend(kind.value, kind, **over),
        devices=devices or (CARD,),
        cap_bytes=cap,
        headroom_bytes=963 * MIB,
        others_caps_bytes=others,
        host="127.0.0.1",
        port=18000,
        grpc_port=18500,
        files_dir="/run/x",
        intent="i",
    )


def _facts(config: dict[str, Any], values: int, **over: Any) -> ModelFacts:
    shape = read_config(config, Path("config.json"))
    made = {
        "weight_bytes": 2 * values,
        "weights_text": "bf16",
        "layers": shape.layers,
        "stateful_layers": shape.stateful_layers,
        "context": shape.context,
        "vocab": shape.vocab,
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
    }
    return ModelFacts(name="M", **{**made, **over})


def _vllm(facts: ModelFacts, cap: int, *flags: str, **over: Any) -> Fit:
    command = ("vllm", "serve", "M", *flags)
    context = _context(Kind.VLLM, cap, command=command, **over)
    return vllm_fit(context, launch_spec(context).argv, facts)


# Bytes of KV cache per token in 16 bits, as published for these models.
@pytest.mark.parametrize(
    ("config", "per_token", "length"),
    [
        (QWEN_3B, 36 * 2 * (128 + 128) * 2, 32768),
        (LLAMA_8B, 131_072, 131_072),  # llama3's rope is stretched already
        (DEEPSEEK_LITE, 27 * (512 + 64) * 2, 163_840),  # the latent vector, once for all heads
    ],
)
def test_a_token_takes_what_the_shape_says(
    config: dict[str, Any], per_token: int, length: int
) -> None:
    """Layers x (keys + values) x 2 bytes."""
    shape = read_config(config, Path("config.json"))
    assert vllm_kv_bytes(shape.layers, 1600, 2.0) == 1600 * per_token
    assert shape.context == length


# What start-up logs of vLLM said: GiB left for the KV cache, tokens (blocks of 16).
@pytest.mark.parametrize(
    ("layers", "gib", "tokens"),
    [
        (KvLayers(28, 2 * 256, 2), 2.36, 5519 * 16),  # Qwen2.5-1.5B, T4
        (KvLayers(32, 8 * 256, 8), 4.60, 2356 * 16),  # Llama 3.1 8B, L4
    ],
)
def test_published_logs_of_vllm_agree(layers: KvLayers, gib: float, tokens: int) -> None:
    """Within the two decimals that the log has."""
    assert vllm_kv_bytes((layers,), tokens, 2.0) == pytest.approx(gib * GIB, abs=0.006 * GIB)


def test_ranks_split_heads_but_never_a_latent_vector() -> None:
    """One KV head is the least a rank holds; DeepSeek's latent is whole on each."""
    llama = read_config(LLAMA_8B, Path("c")).layers
    assert vllm_kv_bytes(llama, 16, 2.0, ranks=4) * 4 == vllm_kv_bytes(llama, 16, 2.0)
    assert vllm_kv_bytes(llama, 16, 2.0, ranks=16) == vllm_kv_bytes(llama, 16, 2.0, ranks=8)
    latent = read_config(DEEPSEEK_LITE, Path("c")).layers
    assert vllm_kv_bytes(latent, 16, 2.0, ranks=8) == vllm_kv_bytes(latent, 16, 2.0)
    assert vllm_kv_bytes(llama, 16, 1.0) * 2 == vllm_kv_bytes(llama, 16, 2.0)


def test_windowed_layers_stop_growing() -> None:
    """Gemma 3: 29 of 34 layers look back 1024 tokens."""
    shape = read_config(GEMMA_4B, Path("c"))
    assert sorted((one.count, one.window) for one in shape.layers) == [(5, 0), (29, 1024)]
    assert shape.media
    far, near = (vllm_kv_bytes(shape.layers, n, 2.0) for n in (131_072, 65_536))
    assert far - near == 5 * 2048 * 65_536 * 2


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"layer_types": ["full_attention", "linear_attention"] * 18}, (18, 18)),
        ({"full_attention_interval": 4}, (9, 27)),
        ({"attn_layer_period": 6, "attn_layer_offset": 2}, (6, 30)),
        ({"hybrid_override_pattern": "M-*-" * 9}, (9, 9)),
        ({"layers_block_type": ["mamba"] * 30 + ["attention"] * 6}, (6, 30)),
    ],
)
def test_only_layers_with_a_cache_count(extra: dict[str, Any], expected: tuple[int, int]) -> None:
    """Hybrids: (layers with a cache, layers with a state of fixed size)."""
    shape = read_config({**QWEN_3B, **extra}, Path("c"))
    assert (sum(one.count for one in shape.layers), shape.stateful_layers) == expected


def test_qwen_3b_fits_the_default_share() -> None:
    """55 % of a 4090: 12.09 GiB - 5.75 weights - 1.45 activations - 0.5 graphs leave 4.39 GiB."""
    fit = _vllm(_facts(QWEN_3B, QWEN_3B_VALUES), int(CARD.capacity_bytes * 0.55))
    assert fit.verdict is Verdict.FITS
    sizes = {term.name: term.size_bytes for term in fit.terms}
    assert sizes["weights"] == 6_171_877_376
    assert sizes["KV cache"] == 32768 * 36_864
    assert sizes["activations"] == 256 * 151_936 * 40
    assert fit.predicted_bytes == sum(sizes.values())
    assert fit.room_bytes == int(0.514 * CARD.capacity_bytes)
    left = fit.room_bytes - fit.predicted_bytes + sizes["KV cache"]
    assert f"{left * 32768 // sizes['KV cache']} tokens" in fit.reason
    assert "3.9 requests of 32768 at once" in fit.reason


def test_weights_over_the_cap_are_certain() -> None:
    """Llama 3.1 8B has 14.96 GiB; 12.93 hold it under no circumstances, 15.5 hold it without room."""
    facts = _facts(LLAMA_8B, LLAMA_8B_VALUES)
    small = _vllm(facts, int(CARD.capacity_bytes * 0.55))
    assert (small.verdict, small.certain) == (Verdict.DOES_NOT_FIT, True)
    assert "weights alone are" in small.reason
    larger = _vllm(facts, int(15.5 * GIB))
    assert (larger.verdict, larger.certain) == (Verdict.DOES_NOT_FIT, False)


def test_what_would_be_right_is_right() -> None:
    """The proposed length and the proposed cap both fit."""
    facts, cap = _facts(QWEN_3B, QWEN_3B_VALUES), int(CARD.capacity_bytes * 0.40)
    fit = _vllm(facts, cap, vllm=VllmOptions(max_model_len=131_072))
    assert fit.verdict is Verdict.DOES_NOT_FIT
    length, _, memory = fit.right.partition(" or ")
    shorter = int(length.removeprefix("max_model_len = "))
    again, over = (
        _vllm(facts, cap, vllm=VllmOptions(max_model_len=n)) for n in (shorter, shorter + 256)
    )
    assert (again.verdict, over.verdict) == (Verdict.FITS, Verdict.CANNOT_TELL)
    larger = float(memory.removeprefix('memory = "').removesuffix('GiB"'))
    raised = _vllm(facts, int(larger * GIB), vllm=VllmOptions(max_model_len=131_072))
    assert raised.verdict is Verdict.FITS
    assert larger * GIB - fit.predicted_bytes < 1.2 * GIB if fit.predicted_bytes else False


def test_estimates_alone_never_condemn() -> None:
    """Weights and cache fit, activations would not: tight, not wrong."""
    fit = _vllm(_facts(QWEN_3B, QWEN_3B_VALUES), int(CARD.capacity_bytes * 0.36))
    assert (fit.verdict, fit.tight, fit.certain) == (Verdict.CANNOT_TELL, True, False)
    assert fit.reason.startswith("tight: ")
    assert "max_model_len" in fit.right or "memory" in fit.right


@pytest.mark.parametrize(
    "flags",
    [
        ("--quantization", "fp8"),
        ("--cpu-offload-gb", "8"),
        ("--hf-overrides", "{}"),
        ("--data-parallel-size=2",),
    ],
)
def test_flags_that_shrink_the_weights_make_it_unknown(flags: tuple[str, ...]) -> None:
    """What the files say is an upper bound then."""
    fit = _vllm(_facts(LLAMA_8B, LLAMA_8B_VALUES), 12 * GIB, *flags)
    assert (fit.verdict, fit.certain) == (Verdict.CANNOT_TELL, False)
    assert flags[0].split("=")[0] in fit.reason


def test_flags_of_the_command_are_read() -> None:
    """--kv-cache-dtype fp8 halves the cache, --enforce-eager spares the graphs, K is 1024."""
    facts, cap = _facts(QWEN_3B, QWEN_3B_VALUES), 14 * GIB
    fit = _vllm(facts, cap, "--kv-cache-dtype", "fp8", "--enforce-eager", "--max-model-len", "16K")
    sizes = {term.name: term.size_bytes for term in fit.terms}
    assert sizes["KV cache"] == 16384 * 18_432
    assert sizes["CUDA graphs"] == 0
    auto = _vllm(facts, cap, "--max-model-len", "auto")
    assert auto.verdict is Verdict.FITS
    assert "requests of" in auto.reason
    lora = _vllm(facts, cap, "--enable-lora")
    assert lora.notes == ("not counted: adapters (--enable-lora)",)


@pytest.mark.parametrize(
    ("text", "number"),
    [("8192", 8192), ("8k", 8000), ("8K", 8192), ("1.5k", 1500), ("auto", None), ("-1", None)],
)
def test_vllms_lengths_have_suffixes(text: str, number: int | None) -> None:
    """Small letters decimal, capitals binary."""
    assert human_int(text) == number


def test_two_cards_share_the_weights() -> None:
    """Tensor parallel: half of the weights and of the heads on each."""
    facts = _facts(LLAMA_8B, LLAMA_8B_VALUES)
    other = Device("GPU-b", 1, CARD.name, "02", CARD.total_bytes, CARD.reserved_bytes)
    context = _context(Kind.VLLM, 20 * GIB, CARD, other)
    fit = vllm_fit(context, launch_spec(context).argv, facts)
    sizes = {term.name: term.size_bytes for term in fit.terms}
    assert sizes["weights"] == LLAMA_8B_VALUES
    assert sizes["KV cache"] == 131_072 * 65_536


@given(st.integers(1, 22 * GIB))
def test_the_proposed_cap_is_the_inverse_of_the_utilisation(need: int) -> None:
    """Its budget holds what was asked for, and one MiB per thousandth less would not be proposed."""
    context = _context(Kind.VLLM, 1)
    cap = cap_for(context, need, CARD.capacity_bytes)
    made = _context(Kind.VLLM, cap)
    assert int(utilisation(made) * CARD.capacity_bytes) >= need - 1
    assert cap - need <= overhead_bytes(made) + spike_bytes(cap) + CARD.capacity_bytes // 500


def test_ollamas_formula_is_the_load_gates() -> None:
    """weights x 1.03 + KV for context x slots + the rest, by the header or by /api/show alike."""
    layers = gguf_layers(QWEN_3B_GGUF)
    shape = shape_of(1_929_912_432, {"model_info": QWEN_3B_GGUF})
    assert shape == Shape(1_929_912_432, layers, 32768)
    expected = int(1_929_912_432 * 1.03) + 8192 * 2 * 36_864 + FIXED_BYTES + 768 * MIB
    assert predicted_bytes(shape, 8192, 2, CARD.capacity_bytes) == expected
    facts = ModelFacts("qwen2.5:3b", 1_929_912_432, "1 layer", layers=layers, context=32768)
    options = OllamaOptions(parallel=2)
    fit = ollama_fit(_context(Kind.OLLAMA, 5 * GIB, ollama=options), facts)
    assert (fit.verdict, fit.predicted_bytes) == (Verdict.FITS, expected)
    assert fit.terms[2].text == "973 MiB + 768 MiB for Ollama's batch of 1024"
    small = ollama_fit(_context(Kind.OLLAMA, 3 * GIB, ollama=options), facts)
    assert small.verdict is Verdict.DOES_NOT_FIT
    longest = context_that_fits(shape, 3 * GIB, 2)
    assert f"context_length = {longest} or memory = " in small.right
    assert predicted_bytes(shape, longest, 2) <= 3 * GIB < predicted_bytes(shape, longest + 1024, 2)
    tiny = ollama_fit(_context(Kind.OLLAMA, GIB, ollama=options), facts)
    assert tiny.certain
    assert "context_length" not in tiny.right


# Ollama's server/sched.go: more than 4096 tokens in all slots make the batch 1024, more than 32768 2048.
@pytest.mark.parametrize(
    ("context", "parallel", "more"),
    [
        (4096, 1, 0),
        (4097, 1, 768 * MIB),
        (2048, 2, 0),
        (2048, 3, 768 * MIB),
        (32768, 1, 768 * MIB),
        (8192, 4, 768 * MIB),
        (8193, 4, 2 * GIB),
        (65536, 1, 2 * GIB),
    ],
)
def test_the_fixed_bytes_grow_with_ollamas_batch(context: int, parallel: int, more: int) -> None:
    """Beside the cache nothing else of the prediction moves."""
    shape = Shape(GIB, (KvLayers(2, 64),))
    cache = 2 * 64 * 2 * context * parallel
    expected = int(GIB * 1.03) + cache + FIXED_BYTES + more
    assert predicted_bytes(shape, context, parallel) == expected


@pytest.mark.parametrize(
    ("weights", "context", "more"),
    [
        (15 * GIB, 8192, 768 * MIB),
        (17 * GIB, 8192, 768 * MIB),
        (18 * GIB + GIB // 2, 8192, 0),  # more than 75 % of 24 GiB
        (14 * GIB, 65536, 2 * GIB),
        (15 * GIB, 65536, 768 * MIB),  # more than 60 %: the next lower batch
        (19 * GIB, 65536, 0),
    ],
)
def test_ollama_takes_a_smaller_batch_where_the_card_is_nearly_full(
    weights: int, context: int, more: int
) -> None:
    """Weights and cache against what can be free at most: its whole card of 24 GiB."""
    shape = Shape(weights, (KvLayers(1, 1),))
    rest = predicted_bytes(shape, context, 1, 24 * GIB) - int(weights * 1.03) - 2 * context
    assert rest == FIXED_BYTES + more


def test_ollama_gives_no_more_than_a_model_was_made_for() -> None:
    """Context beyond the trained one costs nothing; an embedding model has one slot, whatever is set."""
    shape = shape_of(GIB, {"model_info": QWEN_3B_GGUF, "capabilities": ["completion", "tools"]})
    assert predicted_bytes(shape, 131_072, 1) == predicted_bytes(shape, 32768, 1)
    vectors = shape_of(GIB, {"model_info": QWEN_3B_GGUF, "capabilities": ["embedding"]})
    assert vectors.embeds
    flat = int(GIB * 1.03) + FIXED_BYTES
    assert predicted_bytes(vectors, 8192, 4) == flat + 8192 * 36_864


def test_a_header_without_a_shape_is_taken_as_an_8b() -> None:
    """128 KiB a token, and it is said."""
    facts = ModelFacts("m", GIB, "x")
    fit = ollama_fit(_context(Kind.OLLAMA, 8 * GIB), facts)
    assert fit.terms[1].size_bytes == 8192 * 128 * 1024
    assert "128 KiB" in fit.notes[0]
    assert shape_of(GIB, {}) == shape_of(GIB, {"model_info": {"general.architecture": "x"}})


def test_gguf_shapes_of_other_kinds() -> None:
    """Per-layer heads (hybrids have zeros), Gemma 3's windows, a pattern that is told."""
    base = {
        "general.architecture": "x",
        "x.block_count": 4,
        "x.attention.head_count": 8,
        "x.attention.key_length": 64,
        "x.attention.value_length": 64,
    }
    assert gguf_layers({**base, "x.attention.head_count_kv": [0, 2, 0, 2]}) == (
        KvLayers(2, 256, 2),
    )
    told = {**base, "x.attention.sliding_window": 512}
    assert gguf_layers({**told, "x.attention.sliding_window_pattern": [True, False] * 2}) == (
        KvLayers(2, 1024, 8, 512),
        KvLayers(2, 1024, 8),
    )
    assert gguf_layers(told) == (KvLayers(4, 1024, 8),), "an unknown pattern: the larger"
    windowed = KvLayers(1, 1024, 8, 512)
    assert ollama_kv_bytes((windowed,), 8192, 1) == 1024 * 1024 * 2, "window + one batch, padded"
    assert ollama_kv_bytes((windowed,), 300, 1) == 300 * 1024 * 2
    larger = ollama_kv_bytes((windowed,), 8192, 1, batch=2048)
    assert larger == (512 + 2048) * 1024 * 2, "the window and Ollama's batch"


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "general.architecture",
                "x.block_count",
                "x.attention.head_count",
                "x.attention.head_count_kv",
                "x.attention.key_length",
                "x.attention.sliding_window",
                "x.attention.sliding_window_pattern",
                "x.embedding_length",
                "x.full_attention_interval",
            ]
        ),
        st.none()
        | st.just("x")
        | st.integers(-5, 1 << 70)
        | st.floats()
        | st.lists(st.integers(-5, 1 << 70) | st.booleans() | st.none(), max_size=5),
    )
)
def test_no_header_makes_the_arithmetic_fail(info: dict[str, Any]) -> None:
    """Whatever the numbers: bounded, never an error, never negative."""
    shape = shape_of(1, {"model_info": info})
    assert 0 < predicted_bytes(shape, 8192, 1) < 1 << 70


def test_tensorflows_models_share_the_pool() -> None:
    """4.7 GiB cap: a pool of 4.11; more variables than the cap is certain."""
    cap = int(CARD.capacity_bytes * 0.2)
    one = ModelFacts("resnet", 100 * MIB, "variables of version 3")
    fit = tensorflow_fit(_context(Kind.TENSORFLOW, cap), [one, one])
    assert (fit.verdict, fit.predicted_bytes) == (Verdict.FITS, 200 * MIB)
    large = ModelFacts("big", int(4.4 * GIB), "variables")
    between = tensorflow_fit(_context(Kind.TENSORFLOW, cap), [large])
    assert (between.verdict, between.certain) == (Verdict.DOES_NOT_FIT, False)
    assert "tensors of requests on top" in between.right
    assert tensorflow_fit(_context(Kind.TENSORFLOW, 4 * GIB), [large]).certain


def test_nothing_known_is_never_an_error() -> None:
    """Not downloaded, generic, on the CPU."""
    none = NoFacts("M", "not here yet: it is not in /x yet", "hf download M")
    (fit,) = fits(_context(Kind.VLLM, GIB), (none,))
    assert (fit.verdict, fit.right) == (Verdict.CANNOT_TELL, "prefetch it with: hf download M")
    cpu = _context(Kind.OLLAMA, 0)
    facts = ModelFacts("m", GIB, "x")
    object.__setattr__(cpu, "devices", ())
    assert fits(cpu, (facts,))[0].reason == "on the CPU: host memory is not weighed"


def test_every_cap_has_its_wall() -> None:
    """An engine's own allocator, a plan, a gate, or watching; a MIG slice before all."""
    kinds = {kind: walls(_context(kind, GIB))[0] for kind in Kind}
    assert {kind: wall.kind for kind, wall in kinds.items()} == {
        Kind.TENSORFLOW: "engine",
        Kind.VLLM: "watching",
        Kind.OLLAMA: "watching",
        Kind.GENERIC: "watching",
    }
    assert "load gate" in kinds[Kind.OLLAMA].text
    assert "--per_process_gpu_memory_fraction" in kinds[Kind.TENSORFLOW].text
    part = Device("MIG-b", 0, "A100", "01", 20 * GIB, 0, parent_uuid="GPU-a")
    hard, soft = walls(_context(Kind.VLLM, GIB, part))
    assert hard.kind == "hardware"
    assert hard.text == "MIG slice MIG-b of 20.00 GiB (hardware)"
    assert soft.kind == "watching"
    shared = walls(_context(Kind.VLLM, GIB, part, others=GIB))[0]
    assert "shared with another backend" in shared.text
    blind = walls(_context(Kind.TENSORFLOW, GIB, command=("t", "--platform_config_file=/x")))[0]
    assert blind.kind == "watching"
