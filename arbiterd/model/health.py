"""What probes say of an engine. Results carry their time; a stale one is Unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from arbiterd.model.reading import Reading


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """One request to an engine. ``body`` None: no body; else JSON text. ``timeout_s``: whole."""

    method: str
    path: str
    body: str | None = None
    timeout_s: float = 2.0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """An answer, or none: ``status`` 0 and ``error`` says why ('refused', 'timeout', ...)."""

    status: int
    body: str
    latency_ms: float
    error: str = ""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """An engine's judgement of a reply. ``degraded``: serving, but not as asked (CPU fallback).
    ``proves``: False for an answer that came from before the engine itself, such as a 401 of its HTTP
    layer: nothing is wrong, and nothing is known of its work.
    """

    ok: bool
    detail: str = ""
    degraded: str = ""
    proves: bool = True


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One finished probe. ``seq`` grows by one with each result, so that it is counted once."""

    seq: int
    verdict: Verdict
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Progress:
    """The engine's own counters: requests running and waiting, and ``work``, a sum that only moves
    while it makes progress (tokens generated, requests finished).
    """

    running: int
    waiting: int
    work: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A canary that was tried once. ``ended``: monotonic seconds. ``detail``: why it is none."""

    model: str
    ok: bool
    detail: str
    ended: float


@dataclass(frozen=True, slots=True)
class RunnerDeath:
    """A child of an engine that died. ``how``: 'signal: killed', 'exit status 1'. ``cause``: a class
    of engines.base.CauseClass, or 'killed' where nobody says why. ``line``: the output that told it.
    """

    how: str
    cause: str
    line: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model resident in an engine (Ollama's /api/ps). ``vram_bytes`` < ``size_bytes``: split.

    ``expires_in_s``: below 0 while requests overlap. ``context``: its tokens of context, 0 when not
    told. ``embeds``: it is good for embeddings only. ``runner``: equal for all models that its runner
    serves as it is, "" when not known; ``also``: the warm model's name where it is one of them.
    """

    name: str
    size_bytes: int
    vram_bytes: int
    expires_in_s: float | None = None
    digest: str = ""
    context: int = 0
    embeds: bool = False
    runner: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HealthObservation:
    """All probes of one backend. ``alive`` is its health URL; ``canary`` a real, tiny piece of work
    sent only when idle; ``progress`` its counters; ``loaded`` resident models (Ollama only).
    ``door``: the health URL once more, on a client's way (HAProxy, the load gate); None: no doors.
    ``trial``: the last canary that was tried.
    ``served``: names of models that the engine lists itself, adapters included; None: not asked.
    ``warm_bytes``: what its first model takes on the card, by the load gate's reckoning; None: not known.
    """

    backend: str
    alive: Reading[ProbeResult]
    canary: Reading[ProbeResult]
    progress: Reading[Progress]
    loaded: Reading[tuple[LoadedModel, ...]]
    door: Reading[ProbeResult] | None = None
    trial: Trial | None = None
    served: Reading[tuple[str, ...]] | None = None
    warm_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """What core wants probed from now on. ``fast``: four times a second (starting, suspect, drained), else
    once. ``canary_due``: send a canary now (the probe keeps at most one in flight).
    ``fence``: results of another invocation are dropped. ``trial``: the model whose canary is to be
    tried now; ``canaries``: those whose canary was kept.
    """

    backend: str
    url: str
    fence: str
    fast: bool
    canary_due: bool
    trial: str = ""
    canaries: tuple[str, ...] = ()
