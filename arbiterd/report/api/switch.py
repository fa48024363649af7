"""A switch under way, and what came of the last one: for status, STATUS= and people."""

from __future__ import annotations

from arbiterd.model.switch import Change, SwitchResult, SwitchView
from arbiterd.quantities import format_duration
from arbiterd.report.api import common

Json = dict[str, object]


def line(view: SwitchView) -> str:
    """One line: 'switching A → B: vllm draining (2 of 3 done), about 40 s'."""
    what = f"switching {view.from_mode} → {view.to_mode}"
    if view.rolling_back:
        what = f"rolling back to mode {view.to_mode}"
    touched = [step for step in view.steps if step.change is not Change.KEEP]
    done = sum(1 for step in touched if step.done)
    doing = ", ".join(f"{step.backend} {step.phase}" for step in touched if not step.done)
    left = f", about {format_duration(view.left_s)}" if view.left_s else ""
    text = f"{what}: {doing or 'nothing left'} ({done} of {len(touched)} done){left}"
    return text + (f"; then mode {view.queued}" if view.queued else "")


def view_json(view: SwitchView | None) -> Json | None:
    """The ``switch`` of /v1/status."""
    if view is None:
        return None
    return {
        "from": view.from_mode,
        "to": view.to_mode,
        "began": common.iso(view.began),
        "estimated_s": round(view.estimated_s, 1),
        "left_s": round(view.left_s, 1),
        "steps": [
            {
                "backend": step.backend,
                "change": step.change.value,
                "done": step.done,
                "phase": step.phase,
                "doing": step.doing,
            }
            for step in view.steps
        ],
        "rolling_back": view.rolling_back,
        "queued": view.queued,
        "line": line(view),
    }


def result_json(last: SwitchResult | None) -> Json | None:
    """The ``last_switch`` of /v1/status."""
    if last is None:
        return None
    return {
        "from": last.from_mode,
        "to": last.to_mode,
        "loaded_at": common.iso(last.loaded_at),
        "ended": common.iso(last.ended),
        "took_s": round(last.took_s, 2),
        "outcome": last.outcome.value,
        "reason": last.reason,
    }
