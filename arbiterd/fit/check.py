"""Do the models of every mode fit their caps? Reads the headers of their files, loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from arbiterd.config.load import Loaded
from arbiterd.config.parse import Report
from arbiterd.core.backend.planning import launch_context
from arbiterd.core.memory.placement import place
from arbiterd.engines.vllm import utilisation
from arbiterd.errors import Problem
from arbiterd.fit.files import models_of
from arbiterd.fit.types import Fit, ModelFacts, NoFacts, Verdict
from arbiterd.fit.verdict import fits
from arbiterd.model.devices import Device
from arbiterd.model.settings import BackendSettings, Kind, Settings
from arbiterd.quantities import format_size


@dataclass(frozen=True, slots=True)
class ModelFit:
    """One model of one backend of one mode."""

    mode: str
    backend: str
    fit: Fit


def mode_fits(settings: Settings, devices: Sequence[Device]) -> tuple[ModelFit, ...]:
    """Every model of the active mode whose backend can be placed."""
    return tuple(
        ModelFit(settings.mode, name, fit)
        for name in settings.active.shares
        for fit in backend_fits(settings, name, devices)
    )


def backend_fits(settings: Settings, name: str, devices: Sequence[Device]) -> tuple[Fit, ...]:
    """Every model of one backend; () when it cannot be placed."""
    return _fits(settings, name, devices, {})


def check_fit(
    loaded: Loaded, devices: Sequence[Device]
) -> tuple[tuple[Problem, ...], tuple[ModelFit, ...]]:
    """(problems, all answers of the active mode). What does not fit is a warning; in the active mode
    it is an error when it is certain: the weights alone exceed the cap.
    """
    settings = loaded.settings
    report = Report(loaded.report.file, loaded.report.lines, loaded.report.from_env)
    seen: dict[str, tuple[ModelFacts | NoFacts, ...]] = {}
    active: list[ModelFit] = []
    for mode in settings.modes.values():
        one = replace(settings, mode=mode.name)
        for name in mode.shares:
            for fit in _fits(one, name, devices, seen):
                if mode.name == settings.mode:
                    active.append(ModelFit(mode.name, name, fit))
                _report(fit, mode.name, name, report, active=mode.name == settings.mode)
    return (*report.errors, *report.warnings), tuple(active)


def _fits(
    settings: Settings,
    name: str,
    devices: Sequence[Device],
    seen: dict[str, tuple[ModelFacts | NoFacts, ...]],
) -> tuple[Fit, ...]:
    placements = place(settings.active, devices, settings.arbiter.headroom_bytes)
    backend = settings.active.backends[name]
    if placements[name].problem:
        return ()
    context = launch_context(settings, name, placements, {one.uuid: one for one in devices})
    if context.devices and backend.kind is Kind.VLLM and utilisation(context) <= 0:
        return ()  # said already: the cap does not even hold its context
    key = _key(backend)
    if key not in seen:
        seen[key] = models_of(settings, backend)
    return fits(context, seen[key])


def _key(backend: BackendSettings) -> str:
    """What decides where its models lie and how they are read."""
    parts = (
        backend.kind,
        backend.command,
        backend.models,
        sorted(backend.model_paths.items()),
        backend.user,
        sorted(backend.env.items()),
        backend.port,
    )
    return repr((backend.name, parts))


def _report(fit: Fit, mode: str, name: str, report: Report, *, active: bool) -> None:
    if fit.verdict is not Verdict.DOES_NOT_FIT and not fit.tight:
        return
    severity: Literal["error", "warning"] = "error" if fit.certain and active else "warning"
    sums = " + ".join(f"{t.name} {format_size(t.size_bytes)}" for t in fit.terms)
    wrong = (
        f"{fit.model}: {sums} = {format_size(fit.predicted_bytes or 0)} of {fit.room_text}: "
        f"{fit.reason}"
    )
    report.add(("modes", mode, name, "memory"), wrong, f"write {fit.right}", severity)
