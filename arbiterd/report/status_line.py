"""STATUS=: what ``systemctl status`` shows of the daemon, in one line."""

from __future__ import annotations

from arbiterd.model.published import Published
from arbiterd.report.api.switch import line


def status_line(published: Published) -> str:
    """One line for systemctl status."""
    views = published.decision.backends.values()
    parts = [f"{view.name} {view.phase.value}" for view in views]
    text = f"mode {published.settings.mode}: " + (", ".join(parts) or "no backends")
    open_ = sum(1 for one in published.decision.incidents if one.closed_at is None)
    if published.decision.switch is not None:
        text = f"{line(published.decision.switch)}; {text}"
    if open_:
        text += f"; {open_} open incident(s)"
    loop = published.loop
    if loop.config_refused:
        text += f"; config refused: {loop.config_refused[0]}"
    elif loop.config_pending:
        text += "; config changed, not applied: systemctl reload gpu-arbiter"
    if published.decision.blind and published.observation.nvml:
        text += f"; blind: {published.observation.nvml}"
    return text
