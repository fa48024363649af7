"""Does a model fit its cap? Ollama's formula (also the load gate's) and TensorFlow Serving's. Pure.

Ollama: weights x 1.03 + KV cache (context x slots, f16) + 0.95 GiB for context, graph and buffers
(design, section 4) + what Ollama reckons for a larger batch. vLLM's is in vllm.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from arbiterd.engines.base import LaunchContext
from arbiterd.engines.tensorflow_serving import fraction
from arbiterd.fit.kv_cache import ollama_kv_bytes
from arbiterd.fit.types import Fit, KvLayers, ModelFacts, NoFacts, Term, Verdict
from arbiterd.quantities import GIB, MIB, format_size

WEIGHTS_FACTOR = 1.03
FIXED_BYTES = int(0.95 * GIB)  # with a batch of 512 tokens
# Of a model whose shape is not told: as much as an 8B with 8 KV heads has, 128 KiB a token in f16.
UNKNOWN_SHAPE = (KvLayers(32, 2048),)
# What Ollama adds for the graph of a larger batch, and when (server/sched.go generationBatchForContext,
# generationBatchSurcharge, generationBatchFits): (more tokens than this in all slots, the batch, bytes, per
# cent of the device's free memory that weights and cache may take at most).
_BATCHES = ((32768, 2048, 2 * GIB, 60), (4096, 1024, 768 * MIB, 75))
_BATCH = 512
_FREE_PERCENT = 80  # batch included
_CONTEXT_STEP = 1024
_CONTEXT_MAX = 1 << 22


@dataclass(frozen=True, slots=True)
class Shape:
    """``weights_bytes``: size on disk; ``layers``: what caches how much per token; ``trained``: tokens
    the model was made for, beyond which Ollama gives no context, 0 unknown; ``embeds``: it generates
    nothing, so Ollama gives it one slot and the batch of its own.
    """

    weights_bytes: int
    layers: tuple[KvLayers, ...]
    trained: int = 0
    embeds: bool = False


def predicted_bytes(shape: Shape, context_length: int, parallel: int, device_bytes: int = 0) -> int:
    """Bytes on the device, context of CUDA included.

    ``device_bytes``: the most that can be free for Ollama, 0 unknown: then its largest batch is taken.
    """
    terms = _ollama_terms(shape, context_length, parallel, device_bytes)
    return sum(term.size_bytes for term in terms)


def context_that_fits(shape: Shape, room_bytes: int, parallel: int, device_bytes: int = 0) -> int:
    """The longest context that fits, in steps of 1024; 0: not even the weights do. Where the next
    step of the batch makes it too much, a longer one that would fit again is not looked for.
    """
    low, high = 0, _CONTEXT_MAX // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if predicted_bytes(shape, middle * _CONTEXT_STEP, parallel, device_bytes) <= room_bytes:
            low = middle
        else:
            high = middle - 1
    return low * _CONTEXT_STEP


def no_fit(none: NoFacts) -> Fit:
    """Of a model without facts nothing can be said."""
    right = f"prefetch it with: {none.prefetch}" if none.prefetch else ""
    return Fit(none.name, Verdict.CANNOT_TELL, none.reason, right)


def memory_text(size_bytes: int) -> str:
    """A cap to write into the file, rounded up: 'memory = "13.3GiB"'."""
    return f'memory = "{ceil(size_bytes / GIB * 10) / 10:.1f}GiB"'


def ollama_fit(context: LaunchContext, facts: ModelFacts) -> Fit:
    """One model of the allow-list, alone, under the cap: what the load gate will say to it."""
    own, cap = context.backend.ollama, context.cap_bytes
    shape = Shape(
        facts.weight_bytes, facts.layers or UNKNOWN_SHAPE, facts.context, embeds=facts.embeds
    )
    device = sum(one.capacity_bytes for one in context.devices)
    terms = _ollama_terms(shape, own.context_length, own.parallel, device, facts.weights_text)
    predicted = sum(term.size_bytes for term in terms)
    notes = list(facts.notes)
    if not facts.layers:
        notes.append("its header does not tell the shape: 128 KiB of KV cache a token are assumed")
    if facts.stateful_layers:
        notes.append(f"states of {facts.stateful_layers} layers without a cache are not counted")
    room = f"the cap {format_size(cap)}"
    if predicted <= cap:
        left = f"{format_size(cap - predicted)} left"
        return Fit(
            facts.name, Verdict.FITS, left, "", terms, predicted, cap, room, notes=tuple(notes)
        )
    longest = context_that_fits(shape, cap, own.parallel, device)
    choices = [f"context_length = {longest}"] if longest else []
    choices.append(memory_text(predicted))
    return Fit(
        facts.name,
        Verdict.DOES_NOT_FIT,
        f"{format_size(predicted - cap)} too much: the load gate would refuse it",
        " or ".join(choices),
        terms,
        predicted,
        cap,
        room,
        certain=facts.weight_bytes > cap,
        notes=tuple(notes),
    )


def tensorflow_fit(context: LaunchContext, models: Sequence[ModelFacts]) -> Fit:
    """All models of one server together: their variables share the pool. What a request needs beside
    them depends on its batch and cannot be known from the files.
    """
    total = min(device.capacity_bytes for device in context.devices)
    pool = int(fraction(context) * total)
    outside = context.cap_bytes - pool
    terms = tuple(Term(one.name, one.weight_bytes, one.weights_text) for one in models)
    predicted = sum(term.size_bytes for term in terms)
    name = ", ".join(one.name for one in models)
    room = f"its pool of {format_size(pool)} ({fraction(context):.3f} of {format_size(total)})"
    notes = tuple(note for one in models for note in one.notes)
    if predicted <= pool:
        left = (
            f"{format_size(pool - predicted)} left for the tensors of requests, which no file tells"
        )
        return Fit(name, Verdict.FITS, left, "", terms, predicted, pool, room, notes=notes)
    return Fit(
        name,
        Verdict.DOES_NOT_FIT,
        f"{format_size(predicted - pool)} too much before the first request",
        f"{memory_text(predicted + outside)} at least, tensors of requests on top",
        terms,
        predicted,
        pool,
        room,
        certain=predicted > context.cap_bytes,
        notes=notes,
    )


def _ollama_terms(
    shape: Shape, context_length: int, parallel: int, device_bytes: int, weights_text: str = ""
) -> tuple[Term, ...]:
    """Weights, KV cache, the rest."""
    slots = 1 if shape.embeds else max(1, parallel)
    context = min(context_length, shape.trained) if shape.trained else context_length
    batch, more = _batch(shape, context * slots, slots, device_bytes)
    kv = ollama_kv_bytes(shape.layers, context, slots, batch=batch)
    text = f"{context} tokens x {slots} slot(s) x {layers_text(shape.layers)} x 2 B, f16"
    whole = f"{format_size(shape.weights_bytes)} x {WEIGHTS_FACTOR:g}"
    if weights_text:
        whole += f", {weights_text}"
    rest = "flat"
    if more:
        rest = f"{format_size(FIXED_BYTES)} + {format_size(more)} for Ollama's batch of {batch}"
    return (
        Term("weights", int(shape.weights_bytes * WEIGHTS_FACTOR), whole),
        Term("KV cache", kv, text),
        Term("context, graph, buffers", FIXED_BYTES + more, rest),
    )


def _batch(shape: Shape, tokens: int, slots: int, device_bytes: int) -> tuple[int, int]:
    """(tokens of a batch as Ollama chooses it, bytes that it adds for it)."""
    if shape.embeds:
        return min(2048, tokens), 0  # DefaultEmbeddingNumBatch: there are no logits to keep
    kv = ollama_kv_bytes(shape.layers, tokens // slots, slots)
    for above, batch, more, percent in _BATCHES:
        held = shape.weights_bytes + kv
        fits = held * 100 <= device_bytes * percent
        fits = fits and (held + more) * 100 <= device_bytes * _FREE_PERCENT
        if tokens > above and (fits or not device_bytes):
            return batch, more
    return _BATCH, 0


def layers_text(layers: Sequence[KvLayers]) -> str:
    """'36 layers x 512 values', windows named; a sum is in brackets."""
    text = " + ".join(
        f"{one.count} layers x {one.values} values"
        + (f" in a window of {one.window}" if one.window else "")
        for one in layers
    )
    return f"({text})" if len(layers) > 1 else text
