"""GET /v1/route: where to send a request now, failover and degradation considered.

Asked before every inference by other machines: it reads the published snapshot and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from arbiterd.engines import engine_of
from arbiterd.engines.ollama_names import same_model
from arbiterd.model.backend import BackendView
from arbiterd.model.gateway import Admit
from arbiterd.model.published import Published
from arbiterd.model.settings import BackendSettings, Failover, Kind
from arbiterd.report.api import common


@dataclass(frozen=True, slots=True)
class Answer:
    """200 with a backend, 503 with ``retry_after_s``, or 404 without any candidate."""

    status: int
    backend: str = ""
    url: str = ""
    model: str = ""
    reason: str = ""
    advice: str = ""
    retry_after_s: int = 0

    def body(self) -> dict[str, object]:
        """The JSON answer."""
        if self.status == 200:
            return {
                "backend": self.backend,
                "url": self.url,
                "model": self.model,
                "reason": self.reason,
                "advice": self.advice,
            }
        code = "unavailable" if self.status == 503 else "not_found"
        out: dict[str, object] = {"error": {"code": code, "message": self.reason}}
        if self.status == 503:
            out |= {"advice": self.advice, "retry_after_s": self.retry_after_s}
        return out


def by_model(published: Published, model: str, asked_host: str) -> Answer:
    """Who answers for this model."""
    backends = published.settings.active.backends
    told = published.decision.gateway.adapters.get(model)
    owners = [name for name, one in backends.items() if name == told or _serves(one, model)]
    rules = [
        rule
        for rule in published.settings.failover
        if _same(backends.get(rule.from_backend), rule.model, model)
        or (rule.source and same_model(rule.source, model))
    ]
    if not owners and not any(r.from_backend in backends for r in rules if r.model == model):
        return Answer(404, reason=f"no backend of mode {published.settings.mode} has {model!r}")
    return _choose(published, owners, rules, model, asked_host)


def by_backend(published: Published, name: str, asked_host: str) -> Answer:
    """This backend, or who stands in for it."""
    backends = published.settings.active.backends
    if name not in backends and name not in published.decision.backends:
        known = ", ".join(backends) or "none"
        return Answer(404, reason=f"there is no backend {name!r}; there is {known}")
    rules = [rule for rule in published.settings.failover if rule.from_backend == name]
    return _choose(published, [name], rules, "", asked_host)


def _serves(backend: BackendSettings, model: str) -> bool:
    names = engine_of(backend.kind).served_models(backend)
    names = tuple(
        one for one in names if one not in backend.served_also
    )  # a substitute is no owner
    # An empty allow-list of Ollama admits any model; which ones are there only Ollama knows.
    return any(_same(backend, name, model) for name in names)


def _same(backend: BackendSettings | None, name: str, model: str) -> bool:
    """Whether this backend takes both names for one model: Ollama by its own rules, others by bytes."""
    ollama = backend is not None and backend.kind is Kind.OLLAMA
    return same_model(name, model) if ollama else name == model


def _choose(
    published: Published,
    owners: list[str],
    rules: list[Failover],
    model: str,
    asked_host: str,
) -> Answer:
    views = published.decision.backends
    doors = published.decision.gateway
    away = {n for n, one in doors.backends.items() if one.admit is Admit.AWAY}
    for name in _freest_first(published, owners):
        view = views.get(name)
        if view is not None and view.accepting and (name not in away or not model):
            return _yes(published, view, _model_for(published, name, model), "", "", asked_host)
    why = _why(views, owners)
    for rule in rules:
        if owners and rule.from_backend not in owners:
            continue
        target = views.get(rule.to_backend)
        able = doors.failover.get((rule.from_backend, rule.model)) == rule.to_backend
        if target is not None and target.accepting and able:
            text = f"{why}; {rule.to_backend} has the same model"
            name_there = rule.source or rule.model
            return _yes(published, target, name_there, text, "failover", asked_host)
    return _degrade(published, owners, why, asked_host)


def _freest_first(published: Published, owners: list[str]) -> list[str]:
    """As the unified door chooses: by free slots, the file's order among equals."""
    backends, views = published.settings.active.backends, published.decision.backends

    def free(name: str) -> int:
        view, one = views.get(name), backends.get(name)
        if view is None or one is None:
            return 0
        most = one.max_in_flight if view.throttled is None else view.throttled
        return most - view.in_flight - view.queued

    return sorted(owners, key=lambda name: -free(name))


def _degrade(published: Published, owners: list[str], why: str, asked_host: str) -> Answer:
    views = published.decision.backends
    advice = ""
    for rule in published.settings.degrade:
        if rule.from_backend not in owners:
            continue
        advice = rule.advice
        for name in rule.to_backends:
            view = views.get(name)
            if view is not None and view.accepting:
                model = _model_for(published, name, "")
                return _yes(published, view, model, why, rule.advice, asked_host)
    waits = [view.retry_after_s for name in owners if (view := views.get(name)) is not None]
    retry = max(1, min([one for one in waits if one] or [30]))
    return Answer(503, reason=why or "nobody takes it now", advice=advice, retry_after_s=retry)


def _yes(
    published: Published, view: BackendView, model: str, reason: str, advice: str, asked_host: str
) -> Answer:
    url = common.door(published.settings, published.settings.active.backends[view.name], asked_host)
    return Answer(200, view.name, url, model, reason, advice)


def _model_for(published: Published, name: str, model: str) -> str:
    """The name under which this backend knows the model; its first one when none was asked for."""
    backend = published.settings.active.backends[name]
    names = engine_of(backend.kind).served_models(backend)
    if not model:
        return names[0] if names else ""
    return next((one for one in names if _same(backend, one, model)), model)


def _why(views: object, owners: list[str]) -> str:
    if not isinstance(views, dict) or not owners:
        return ""
    parts = []
    for name in owners:
        view = views.get(name)
        parts.append(f"{name} {view.phase.value}: {view.reason}" if view else f"{name} is stopped")
    return "; ".join(parts)
