"""The configuration that init writes: short, commented, fitted to what was found. Pure.

What it writes must pass `arbiterctl check` on the same host: entries that could not are written as
comments with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.model.devices import Device
from arbiterd.quantities import GIB, format_size
from arbiterd.survey import draft_entries
from arbiterd.survey.draft_entries import Entry
from arbiterd.survey.facts import EngineName, Survey

ORDER: tuple[EngineName, ...] = ("tensorflow", "vllm", "ollama")
WEIGHTS: Mapping[EngineName, int] = {"tensorflow": 20, "vllm": 55, "ollama": 20}
VLLM_LEAST_BYTES = 2 * GIB  # below that its CUDA context and spikes leave nothing (engines/vllm.py)
COLUMN = 11
LEAST_BYTES = GIB  # a device that leaves less beside the headroom holds no engine at all
Share = tuple[Device | None, int | None]  # device and percent; None: unknown, or all there is
Shares = Mapping[EngineName, Share]
Entries = Mapping[EngineName, Entry]


@dataclass(frozen=True, slots=True)
class Draft:
    """The text, and which engines run by it."""

    text: str
    engines: tuple[EngineName, ...]


def draft(survey: Survey, *, images_run: bool) -> Draft:
    """The configuration for this host. ``images_run``: this version can run `image =`."""
    usable = [one for one in survey.devices if not one.mig_enabled and _room(one) >= LEAST_BYTES]
    entries: Entries = draft_entries.entries(survey, images_run=images_run)
    live = tuple(name for name in ORDER if name in entries and not entries[name].why_not)
    if survey.devices and not usable:
        live = ()  # nothing can run there: cards in MIG mode without a slice, or slices below the headroom
    mode_a = _mode_a(live, usable)
    if "vllm" in mode_a and _too_small(mode_a["vllm"]):
        small = Entry(entries["vllm"].body, why_not=_small_words(usable))
        entries = {**entries, "vllm": small}
        live = tuple(name for name in live if name != "vllm")
        mode_a = _mode_a(live, usable)
    entries = _with_models(survey, entries, mode_a)
    parts = [_head(survey), _backends(entries), _mode("A", mode_a, _words_a(mode_a, survey))]
    mode_b, why = _mode_b(live, usable)
    parts.append(_mode("B", mode_b, why) if mode_b else f"# No [modes.B]: {why}.\n")
    parts.append(_tail(entries))
    return Draft("\n".join(part for part in parts if part), live)


def _room(device: Device) -> int:
    return device.capacity_bytes - headroom_bytes(None, device)


def _head(survey: Survey) -> str:
    lines = [
        "# gpu-arbiter: who may use how much of the GPU. Written by `arbiterctl init`; yours to edit.",
        "# After an edit: arbiterctl check && arbiterctl plan && systemctl reload gpu-arbiter",
    ]
    if survey.nvml:
        why = survey.nvml.removeprefix("the GPUs cannot be read: ")  # as the inventory has it
        lines.append(f"# The GPUs could not be read: {_one_line(why)}")
    for one in survey.devices:
        if not one.parent_uuid:
            mig = ", in MIG mode" if one.mig_enabled else ""
            size = format_size(one.capacity_bytes)
            lines.append(f"# GPU {one.index}: {_one_line(one.name)}, {size}{mig}")
    return "\n".join([*lines, "", 'mode = "A"', ""])


def _backends(entries: Entries) -> str:
    lines = ["[backends]"]
    for name in ORDER:
        entry = entries.get(name)
        if entry is None:
            lines.append(f"# {name}: not found on this host")
            continue
        lines += [f"# {name}: {_one_line(text)}" for text in (*entry.notes, entry.why_not) if text]
        lines.append(f"{'# ' if entry.why_not else ''}{name:<{COLUMN}}= {{ {entry.body} }}")
    return "\n".join([*lines, ""])


def _with_models(survey: Survey, entries: Entries, shares: Shares) -> Entries:
    """Ollama's allow-list, once its cap is known."""
    if "ollama" not in entries:
        return entries
    cap = _cap_of(shares["ollama"]) if "ollama" in shares else None
    return {**entries, "ollama": draft_entries.with_models(survey, entries["ollama"], cap)}


def _mode(name: str, shares: Shares, words: str) -> str:
    lines = [f"[modes.{name}]{'':<{COLUMN}}# {words}"]
    for engine, (device, percent) in shares.items():
        gpu = f'"{device.uuid}"' if device and device.parent_uuid else device.index if device else 0
        memory = f', memory = "{percent}%"' if percent is not None else ""
        lines.append(f"{engine:<{COLUMN}}= {{ gpu = {gpu}{memory} }}")
    return "\n".join([*lines, ""])


def _words_a(shares: Shares, survey: Survey) -> str:
    if not shares:
        sliced = bool(survey.devices) and all(one.mig_enabled for one in survey.devices)
        return (
            "no slice yet: nvidia-smi mig -cgi ... -C, then init again" if sliced else "no engine"
        )
    if not survey.devices:
        return "a guess: check the caps once the GPUs can be read"
    if len(shares) == 1:
        return "it has the GPU to itself: its cap is the capacity less the headroom"
    device = next(iter(shares.values()))[0]
    head = format_size(headroom_bytes(None, device)) if device else ""
    return f"all share one GPU; what the caps leave ({head} at least) is never handed out"


def _mode_a(live: Sequence[EngineName], usable: Sequence[Device]) -> Shares:
    """All on the largest device (the lowest index on ties)."""
    device = max(usable, key=lambda one: (one.capacity_bytes, -one.index), default=None)
    return _share_out(live, device)


def _mode_b(live: Sequence[EngineName], usable: Sequence[Device]) -> tuple[Shares, str]:
    """Dedicated devices: each its own when there are enough, else the two LLMs share the largest.
    Without one: (nothing, why).
    """
    if len(live) < 2:
        return {}, "one engine needs no keeping apart" if live else "there is no engine yet"
    if len(usable) < 2:
        return {}, "it needs a second GPU, or MIG slices"
    large = sorted(usable, key=lambda one: (-one.capacity_bytes, one.index))
    if len(large) >= len(live):
        by_need = sorted(live, key=lambda name: -WEIGHTS[name])
        alone = dict(zip(by_need, large, strict=False))
        if "vllm" in live and _too_small((alone["vllm"], 100)):
            return {}, "no second device is large enough"
        return {name: (alone[name], None) for name in live}, "each on a device of its own"
    llms = [name for name in live if name != "tensorflow"]
    shared = _share_out(llms, large[0])
    if "vllm" in shared and _too_small(shared["vllm"]):
        return {}, "no second device is large enough"
    return {"tensorflow": (large[1], None), **shared}, "TensorFlow Serving apart from the LLMs"


def _share_out(live: Sequence[EngineName], device: Device | None) -> Shares:
    """Weights made into whole percents that leave the headroom; one alone needs no number."""
    if len(live) == 1:
        return {live[0]: (device, None)}
    whole = sum(WEIGHTS[name] for name in live)
    free = 95.0
    if device is not None:
        head = headroom_bytes(None, device)
        free = max(0.0, 100.0 * (device.capacity_bytes - head) / device.capacity_bytes)
    return {name: (device, max(1, int(free * WEIGHTS[name] / whole))) for name in live}


def _cap_of(share: Share) -> int | None:
    device, percent = share
    if device is None:
        return None
    if percent is None:
        return device.capacity_bytes - headroom_bytes(None, device)
    return device.capacity_bytes * percent // 100


def _too_small(share: Share) -> bool:
    cap = _cap_of(share)
    return cap is not None and cap < VLLM_LEAST_BYTES


def _small_words(usable: Sequence[Device]) -> str:
    largest = max(one.capacity_bytes for one in usable)
    return f"its share of {format_size(largest)} is too small for any model; left out"


def _tail(entries: Entries) -> str:
    both = all(name in entries and not entries[name].why_not for name in ("vllm", "ollama"))
    also = "Where vLLM and Ollama have the same model: [[failover]]. " if both else ""
    return f"# {also}Every other key: docs/configuration.md\n"


def _one_line(text: str) -> str:
    """Nothing from outside may end a comment's line."""
    return "".join(c if c.isprintable() else " " for c in text)
