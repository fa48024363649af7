"""What other settings mean for what runs: by backend keep, restart, start or stop, why, and how long.

One implementation for the switch itself, for ``arbiterctl mode --dry-run`` and for ``plan``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from arbiterd.core.backend.backend_state import BackendState, DrainCause, ending
from arbiterd.core.limits import FIRST_START_GUESS_S, FIRST_STOP_GUESS_S
from arbiterd.core.mode.intent import ARBITER_ONLY, intent
from arbiterd.model.backend import Phase
from arbiterd.model.keys import without_unit
from arbiterd.model.settings import BackendSettings, Settings, Share
from arbiterd.model.switch import Change
from arbiterd.quantities import format_size

# Why the configuration alone lets a backend be drained: taken back when the layout before comes back.
_RESTING = (Phase.STOPPED, Phase.BACKOFF, Phase.FAILED, Phase.WAITING)
_SECRET = ("env", "env_file", "command")  # argv and env may carry what must not be shown


def same(one: Settings, other: Settings) -> bool:
    """Whether both come from the same text and name the same mode."""
    return one.source.sha256 == other.source.sha256 and one.mode == other.mode


def plan(
    settings: Settings,
    backends: Mapping[str, BackendState],
    unsettled: frozenset[str] = frozenset(),
) -> dict[str, Change]:
    """What these settings mean for every backend, by its intent.

    ``unsettled``: backends that a switch has touched and that failed, so that a backend of the wanted
    intent is not up although it should be.
    """
    out = {}
    for name, wanted in settings.active.backends.items():
        backend = backends.get(name)
        new = intent(wanted, settings.active.shares[name])
        resting = backend is None or backend.phase in _RESTING
        if backend is None or (resting and not backend.run.intent):
            out[name] = Change.START
        elif backend.run.intent != new or (name in unsettled and (resting or _leaving(backend))):
            out[name] = Change.START if resting else Change.RESTART
        else:
            out[name] = Change.KEEP
    for name, backend in backends.items():
        if name not in out and backend.phase is not Phase.STOPPED:
            out[name] = Change.STOP
    return out


def revocable(backend: BackendState) -> bool:
    """Drained for its configuration's sake alone and not told to stop yet: it may simply go on."""
    return (
        ending(backend)
        and backend.drain in (DrainCause.CHANGED, DrainCause.UNWANTED)
        and not (backend.wish.parked or backend.wish.restart)
    )


def _leaving(backend: BackendState) -> bool:
    return backend.phase is Phase.STOPPING or (ending(backend) and not revocable(backend))


def estimate(
    settings: Settings,
    times: Mapping[str, tuple[float | None, float | None]],
    changes: Mapping[str, Change],
) -> float:
    """Seconds, from the engines' last stops and starts: one after the other on a device, side by side
    on different ones; who is not named any more may hold up any of them. ``times``: (start, stop) of
    each, where known.
    """
    by_device: dict[str, float] = {}
    leaving = 0.0
    for name, change in changes.items():
        start, stop = times.get(name, (None, None))
        share = settings.active.shares.get(name)
        took = 0.0
        if change in (Change.STOP, Change.RESTART):
            took += stop or FIRST_STOP_GUESS_S
        if change in (Change.START, Change.RESTART):
            took += start or FIRST_START_GUESS_S
        if share is None:
            leaving += took
        else:
            device = str(share.gpus)
            by_device[device] = by_device.get(device, 0.0) + took
    return leaving + max(by_device.values(), default=0.0)


def reason(name: str, change: Change, before: Settings | None, after: Settings) -> str:
    """Why, in words: which keys differ. ``before`` None: the layout in force is not known."""
    match change:
        case Change.KEEP:
            return "nothing that concerns it differs"
        case Change.STOP:
            return f"mode {after.mode} does not name it"
        case Change.START:
            if before is not None and name not in before.active.backends:
                return f"mode {before.mode} does not name it"
            return "it does not run"
        case Change.RESTART:
            if before is None or name not in before.active.backends:
                return "its configuration differs from what it was started with"
            found = differences(
                (before.active.backends[name], before.active.shares[name]),
                (after.active.backends[name], after.active.shares[name]),
            )
            return ", ".join(found) or "its configuration differs from what it was started with"


def differences(
    old: tuple[BackendSettings, Share], new: tuple[BackendSettings, Share]
) -> tuple[str, ...]:
    """The keys of the file that differ and that an engine notices; values where they are no secrets."""
    out = []
    if _gpu(old[1]) != _gpu(new[1]):
        out.append(f"gpu {_gpu(old[1])} → {_gpu(new[1])}")
    if _memory(old[1]) != _memory(new[1]):
        out.append(f"memory {_memory(old[1])} → {_memory(new[1])}")
    return (*out, *_keys(old[0], new[0]))


def _keys(old: object, new: object) -> list[str]:
    out: list[str] = []
    for one in fields(old):  # type: ignore[arg-type]
        before, after = getattr(old, one.name), getattr(new, one.name, None)
        if one.name in ARBITER_ONLY or before == after:
            continue
        key = without_unit(one.name)
        if is_dataclass(before) and is_dataclass(after):
            out += _keys(before, after)
        elif isinstance(before, Mapping) and isinstance(after, Mapping):
            names = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
            out += [f"{key}.{name}" for name in names]
        elif one.name in _SECRET:
            out.append(key)
        else:
            out.append(f"{key} {_shown(before)} → {_shown(after)}")
    return out


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(str(one) for one in value) + "]"
    return "-" if value in (None, "") else str(value)


def _gpu(share: Share) -> str:
    if share.cpu:
        return "cpu"
    return ", ".join(ref.value for ref in share.gpus) or "the only one"


def _memory(share: Share) -> str:
    if share.fraction is not None:
        return f"{share.fraction * 100:g}%"
    return format_size(share.size_bytes) if share.size_bytes is not None else "all"
