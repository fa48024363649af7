"""Each backend's models against its cap, and the wall that holds the cap: for check and plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arbiterd.core.backend.planning import launch_spec
from arbiterd.engines import engine_of
from arbiterd.engines.base import LaunchContext, Wall
from arbiterd.fit.ollama import no_fit, ollama_fit, tensorflow_fit
from arbiterd.fit.types import Fit, ModelFacts, NoFacts, Verdict
from arbiterd.fit.vllm import vllm_fit
from arbiterd.model.backend import Placement
from arbiterd.model.devices import Device
from arbiterd.model.settings import Kind
from arbiterd.quantities import format_size


def fits(context: LaunchContext, models: Sequence[ModelFacts | NoFacts]) -> tuple[Fit, ...]:
    """One answer per model (TensorFlow's share a pool: one for all that are known)."""
    out = [no_fit(one) for one in models if isinstance(one, NoFacts)]
    known = [one for one in models if isinstance(one, ModelFacts)]
    if not context.devices:
        text = "on the CPU: host memory is not weighed"
        return tuple(Fit(one.name, Verdict.CANNOT_TELL, text) for one in known) + tuple(out)
    kind = context.backend.kind
    if kind is Kind.VLLM:
        argv = launch_spec(context).argv
        found = [vllm_fit(context, argv, one) for one in known]
    elif kind is Kind.OLLAMA:
        found = [ollama_fit(context, one) for one in known]
    else:
        found = [tensorflow_fit(context, known)] if known else []
    return (*found, *out)


def walls(context: LaunchContext) -> tuple[Wall, ...]:
    """What holds this cap, strongest first."""
    own = engine_of(context.backend.kind).wall(context)
    slices = [device for device in context.devices if device.parent_uuid]
    if not slices:
        return (own,)
    alone = not context.others_caps_bytes
    names = ", ".join(f"{one.uuid} of {format_size(one.capacity_bytes)}" for one in slices)
    holds = "" if alone else ", shared with another backend: between them the next line holds"
    return (Wall("hardware", f"MIG slice {names} (hardware){holds}"), own)


def slice_users(
    devices: Sequence[Device], placements: Mapping[str, Placement]
) -> list[tuple[Device, tuple[str, ...]]]:
    """Every MIG slice of the host, and who is placed on it."""
    return [
        (one, tuple(n for n, p in placements.items() if one.uuid in p.devices))
        for one in devices
        if one.parent_uuid
    ]
