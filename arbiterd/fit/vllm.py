"""Does a model fit vLLM's budget U x T? Pure.

Weights and KV cache follow from the files. Activations and CUDA graphs are estimates, named as such:
published start-up logs of 0.7 to 0.9 with 256 sequences give 1.19 to 1.26 GiB for Llama 8B and 1.39
to 1.42 GiB for Qwen2.5 of any size, which is 39 to 41 bytes per sequence and word of the vocabulary
(the sampler's warm-up); CUDA graphs took 0.11 to 0.73 GiB. Encoders of images and sound are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from arbiterd.engines.base import LaunchContext
from arbiterd.engines.flags import given, value_of
from arbiterd.engines.vllm import SPIKE_FRACTION, SPIKE_MIN, overhead_bytes, utilisation
from arbiterd.fit.kv_cache import MAX_CONTEXT, VLLM_BLOCK, vllm_kv_bytes
from arbiterd.fit.ollama import layers_text, memory_text
from arbiterd.fit.types import Fit, ModelFacts, Term, Verdict
from arbiterd.quantities import GIB, MIB, format_size

SAMPLER_BYTES = 40  # per sequence and word of the vocabulary
ACTIVATIONS_UNKNOWN = int(1.4 * GIB)
GRAPHS_BYTES = 512 * MIB
LARGE_GPU = 70 * GIB  # vLLM's defaults differ from here on (engine/arg_utils.py)
_STEP = 256
_HUMAN = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_SCALE = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}
# Flags after which the files tell an upper bound only, or nothing: (flag, what it does).
_SMALLER = (
    ("quantization", "quantises while loading"),
    ("cpu-offload-gb", "keeps a part of the weights in host memory"),
    ("hf-overrides", "changes the model's configuration"),
    ("load-format", "chooses other files"),
)
_PLAIN = ("auto", "safetensors", "0")
_MORE = (
    ("enable-lora", "adapters"),
    ("speculative-config", "the draft model"),
    ("config", "what its --config file says"),
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the command line asks for. ``max_len`` 0: the longest that fits (auto)."""

    ranks: int
    stages: int
    max_len: int
    max_len_text: str
    seqs: int
    batched: int
    value_bytes: float
    eager: bool

    def kv(self, facts: ModelFacts, tokens: int) -> int:
        return vllm_kv_bytes(
            facts.layers,
            tokens,
            self.value_bytes,
            ranks=self.ranks,
            stages=self.stages,
            batched=self.batched,
        )

    def longest(self, facts: ModelFacts, room: int, most: int) -> int:
        """The largest request that fits, tokens; 0: none."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.kv(facts, middle) <= room else (low, middle - 1)
        return low


def human_int(text: str) -> int | None:
    """vLLM's '8192', '8k' (8000), '8K' (8192); None for anything else."""
    match = _HUMAN.fullmatch(text.strip())
    return int(float(match[1]) * _SCALE[match[2]]) if match else None


def vllm_fit(context: LaunchContext, argv: Sequence[str], facts: ModelFacts) -> Fit:
    """One device's share: weights / ranks + activations + CUDA graphs + the KV cache of one request of
    max_model_len, against U x T. ``argv`` is the rendered command line.
    """
    total = min(device.capacity_bytes for device in context.devices)
    budget = int(utilisation(context) * total)
    plan = _plan(context, argv, facts, total)
    terms = _terms(plan, facts)
    room = f"its budget {format_size(budget)} ({utilisation(context):.3f} of {format_size(total)})"
    notes = _notes(argv, facts)
    fixed = sum(term.size_bytes for term in terms)
    weights = terms[0].size_bytes
    if not facts.layers:
        kv = Term("KV cache", 0, "the shape is unknown")
    else:
        text = layers_text(facts.layers)
        split = f", over {plan.ranks} ranks" if plan.ranks > 1 else ""
        length = plan.max_len or VLLM_BLOCK
        said = f"one request: {length} tokens ({plan.max_len_text}) x {text}"
        kv = Term(
            "KV cache",
            plan.kv(facts, length),
            f"{said} x {plan.value_bytes:g} B{split}",
        )
    every = (*terms, kv)
    need = fixed + kv.size_bytes
    verdict, reason = _verdict(plan, facts, weights, kv.size_bytes, need, budget, argv)
    right = "" if verdict is Verdict.FITS else _right(context, plan, facts, fixed, need, total)
    sure = not _unsure(argv, facts)
    return Fit(
        facts.name,
        verdict,
        reason,
        right,
        every,
        need,
        budget,
        room,
        certain=verdict is Verdict.DOES_NOT_FIT and sure and weights > context.cap_bytes,
        tight=bool(facts.layers) and weights + kv.size_bytes <= budget < need,
        notes=notes,
    )


def _plan(context: LaunchContext, argv: Sequence[str], facts: ModelFacts, total: int) -> _Plan:
    def number(*names: str, default: int) -> int:
        for name in names:
            found = human_int(value_of(argv, name) or "")
            if found is not None and 0 < found <= MAX_CONTEXT:
                return found
        return default

    large = total >= LARGE_GPU
    asked = value_of(argv, "max-model-len")
    if asked is not None:
        max_len, text = human_int(asked) or 0, "max_model_len"
        if not max_len:
            text = "max_model_len is auto: the longest that fits"
    else:
        known = "the model's own length"
        max_len, text = (
            facts.context,
            known if facts.context else "its length is unknown: one block",
        )
    kind = value_of(argv, "kv-cache-dtype") or "auto"
    value_bytes = facts.kv_value_bytes
    if kind.startswith(("fp8", "int8")):
        value_bytes = 1.0
    elif kind in ("bfloat16", "float16", "half"):
        value_bytes = 2.0
    a100 = "A100" in context.devices[0].name
    return _Plan(
        ranks=number("tensor-parallel-size", "tp", default=1),
        stages=number("pipeline-parallel-size", "pp", default=1),
        max_len=min(max_len, MAX_CONTEXT),
        max_len_text=text,
        seqs=number("max-num-seqs", default=1024 if large and not a100 else 256),
        batched=number("max-num-batched-tokens", default=8192 if large else 2048),
        value_bytes=value_bytes,
        eager=given(argv, "enforce-eager"),
    )


def _terms(plan: _Plan, facts: ModelFacts) -> tuple[Term, ...]:
    devices = plan.ranks * plan.stages
    weights = facts.weight_bytes // devices
    text = facts.weights_text if devices == 1 else f"{facts.weights_text}, over {devices} devices"
    sampler = plan.seqs * facts.vocab * SAMPLER_BYTES
    wide = 4 * facts.hidden + 3 * facts.intermediate // plan.ranks
    forward = plan.batched * wide * facts.dtype_bytes
    if not facts.vocab:
        act = Term("activations", ACTIVATIONS_UNKNOWN, "estimate; the vocabulary is unknown")
    elif sampler >= forward:
        how = f"estimate: {plan.seqs} sequences x {facts.vocab} words x {SAMPLER_BYTES} B"
        act = Term("activations", sampler, how)
    else:
        act = Term("activations", forward, f"estimate: {plan.batched} tokens a step")
    graphs = 0 if plan.eager else GRAPHS_BYTES
    how = "none: --enforce-eager" if plan.eager else "estimate"
    return (Term("weights", weights, text), act, Term("CUDA graphs", graphs, how))


def _unsure(argv: Sequence[str], facts: ModelFacts) -> str:
    """Why the weights may come out smaller than the files say, "" when they cannot."""
    for flag, what in _SMALLER:
        known = flag == "quantization" and facts.quantised
        if given(argv, flag) and not known and value_of(argv, flag) not in _PLAIN:
            return f"--{flag} {what}"
    parallel = value_of(argv, "data-parallel-size") or value_of(argv, "dp")
    if parallel not in (None, "1"):
        return "--data-parallel-size spreads experts over more devices"
    return facts.at_most


def _verdict(
    plan: _Plan,
    facts: ModelFacts,
    weights: int,
    kv: int,
    need: int,
    budget: int,
    argv: Sequence[str],
) -> tuple[Verdict, str]:
    unsure = _unsure(argv, facts)
    sure = weights + kv
    if sure > budget:
        what = "weights alone are" if weights > budget else "weights + KV cache are"
        over = (weights if weights > budget else sure) - budget
        text = f"{what} {format_size(over)} too much"
        if unsure:
            return Verdict.CANNOT_TELL, f"{text} by the files, but {unsure}"
        return Verdict.DOES_NOT_FIT, text
    if not facts.layers:
        return Verdict.CANNOT_TELL, "the weights fit, the KV cache cannot be known"
    if need > budget:
        spare = format_size(budget - sure)
        text = f"tight: activations and CUDA graphs would have to do with {spare}"
        return Verdict.CANNOT_TELL, text
    left = budget - (need - kv)
    if not plan.max_len:
        tokens = plan.longest(facts, left, facts.context or MAX_CONTEXT)
        return Verdict.FITS, f"{format_size(left)} of KV cache: requests of {tokens} tokens"
    many = left / kv if kv else 0.0
    return (
        Verdict.FITS,
        (
            f"{format_size(left)} of KV cache: {floor(many * plan.max_len)} tokens, "
            f"{many:.1f} requests of {plan.max_len} at once"
        ),
    )


def _right(
    context: LaunchContext, plan: _Plan, facts: ModelFacts, fixed: int, need: int, total: int
) -> str:
    """A shorter length, a larger cap, or neither."""
    budget = int(utilisation(context) * total)
    choices = []
    if facts.layers and plan.max_len:
        longest = plan.longest(facts, budget - fixed, plan.max_len - 1)
        longest -= longest % _STEP if longest > _STEP else 0
        if longest >= VLLM_BLOCK:
            choices.append(f"max_model_len = {longest}")
    cap = cap_for(context, need, total)
    most = total - context.headroom_bytes - context.others_caps_bytes
    if cap <= most:
        choices.append(memory_text(cap))
    elif cap <= total - context.headroom_bytes:
        choices.append(f"{memory_text(cap)} with less for the others on this GPU")
    return " or ".join(choices) or "a quantised or smaller model, or more GPUs (a list)"


def cap_for(context: LaunchContext, need: int, total: int) -> int:
    """The smallest cap whose budget holds ``need``: the inverse of ``engines.vllm.utilisation``."""
    budget = ceil(need * 1000 / total) * total / 1000
    inner = budget + overhead_bytes(context)
    return ceil(max(inner + SPIKE_MIN, inner / (1 - SPIKE_FRACTION)))


def _notes(argv: Sequence[str], facts: ModelFacts) -> tuple[str, ...]:
    notes = list(facts.notes)
    notes += [f"not counted: {what} (--{flag})" for flag, what in _MORE if given(argv, flag)]
    if facts.stateful_layers:
        notes.append(f"not counted: states of {facts.stateful_layers} layers without a cache")
    return tuple(notes)
