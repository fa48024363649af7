"""The ladder in /metrics: signals, brakes, reclaims, learned caps, OOMs (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from arbiterd.core.memory.learn import MITIGATION
from arbiterd.model.backend import BackendView
from arbiterd.model.devices import GpuState
from arbiterd.model.pressure import BrakesView, PressureView, Rung
from arbiterd.model.published import Published
from arbiterd.report.metrics.counters import DISRUPTIVE_KINDS, OUTCOMES, Counts

_NAME = "gpu_arbiter"
_GPU = ["gpu", "index"]
_RECLAIMS = (Rung.TRIM, Rung.SLEEP, Rung.RESTART, Rung.STOP)

Value = Callable[[PressureView], float | None]
_SIGNALS: tuple[tuple[str, str, Value], ...] = (
    ("solvency_bytes", "Capacity less what everybody may still take", lambda d: d.solvency_bytes),
    ("tight_below_bytes", "Solvency under which it becomes tight", lambda d: d.tight_below),
    ("critical_below_bytes", "Free memory under which it is critical", lambda d: d.critical_below),
    ("excess_bytes", "Held beyond what is granted", lambda d: d.excess_bytes),
    ("excess_slope_bytes_per_second", "How fast the excess grows", lambda d: d.slope),
    (
        "time_to_full_seconds",
        "Until the excess has eaten the free rest",
        lambda d: d.time_to_full_s,
    ),
    ("foreign_over_bytes", "Foreign memory beyond its allowance", lambda d: d.foreign_over_bytes),
    ("releasing_bytes", "Of the dead, on their way back", lambda d: d.releasing_bytes),
    ("reclaim_lead_seconds", "How long a reclaim is expected to take", lambda d: d.lead_s),
    ("loads_held", "1 while no model may be loaded", lambda d: float(bool(d.loads_held))),
    ("disruptive_recent", "Interventions within the window", lambda d: d.disruptive),
    ("disruptive_limit", "Interventions allowed in the window", lambda d: d.disruptive_max),
)


def pressure_metrics(published: Published, counts: Counts) -> Iterator[Metric]:
    """Gauges of the snapshot, counters since the start. What is not known is absent."""
    yield from _signals(published)
    yield from _trouble(published)
    yield _in_flight(published)
    yield from _brakes(published)
    yield from _reclaims(published, counts)
    yield from _ooms(published, counts)


def _labels(published: Published, uuid: str) -> list[str]:
    seen = published.observation.devices.get(uuid)
    return [uuid, str(seen.device.index) if seen else ""]


def _signals(published: Published) -> Iterator[Metric]:
    for name, text, value in _SIGNALS:
        gauge = GaugeMetricFamily(f"{_NAME}_gpu_{name}", text, labels=_GPU)
        for uuid, view in published.decision.devices.items():
            found = value(view.detail) if view.detail is not None else None
            if found is not None:
                gauge.add_metric(_labels(published, uuid), found)
        yield gauge


def _trouble(published: Published) -> Iterator[Metric]:
    fault = GaugeMetricFamily(
        f"{_NAME}_gpu_fault", "1 while nothing is started there: it needs a reset", labels=_GPU
    )
    unreadable = GaugeMetricFamily(
        f"{_NAME}_gpu_unreadable", "1 while its memory cannot be read", labels=_GPU
    )
    for uuid, seen in published.observation.devices.items():
        view = published.decision.devices.get(uuid)
        said = view is not None and view.detail is not None and bool(view.detail.fault)
        fault.add_metric(_labels(published, uuid), float(said or seen.state is GpuState.FAULT))
        unreadable.add_metric(_labels(published, uuid), float(seen.state is not GpuState.OK))
    yield from (fault, unreadable)


def _in_flight(published: Published) -> Metric:
    gauge = GaugeMetricFamily(
        f"{_NAME}_gpu_reclaim_in_flight", "1 for the rung under way", labels=[*_GPU, "rung"]
    )
    for uuid, view in published.decision.devices.items():
        now = view.detail.reclaim if view.detail is not None else None
        for rung in _RECLAIMS:
            on = now is not None and now.rung is rung
            gauge.add_metric([*_labels(published, uuid), rung.value], float(on))
    return gauge


def _brakes(published: Published) -> Iterator[Metric]:
    names = ["backend"]
    held = GaugeMetricFamily(f"{_NAME}_backend_held", "1: new requests are held", labels=names)
    limit = GaugeMetricFamily(
        f"{_NAME}_backend_throttle_limit", "Requests in flight while throttled", labels=names
    )
    frozen = GaugeMetricFamily(f"{_NAME}_backend_frozen", "1 for a moment", labels=names)
    lowered = GaugeMetricFamily(
        f"{_NAME}_backend_learned_bytes", "Taken off its configured cap", labels=names
    )
    for view in published.decision.backends.values():
        mine = _brakes_of(published, view)
        held.add_metric([view.name], float(any(one.hold for one in mine)))
        frozen.add_metric([view.name], float(any(one.frozen for one in mine)))
        if view.throttled is not None:
            limit.add_metric([view.name], view.throttled)
        lowered.add_metric([view.name], view.learned_bytes)
    yield from (held, limit, frozen, lowered)


def _brakes_of(published: Published, view: BackendView) -> list[BrakesView]:
    return [
        device.detail.brakes[view.name]
        for device in published.decision.devices.values()
        if device.detail is not None and view.name in device.detail.brakes
    ]


def _reclaims(published: Published, counts: Counts) -> Iterator[Metric]:
    """Every series from 0 on: increase() does not see a first 1 that comes out of nothing."""
    total = CounterMetricFamily(
        f"{_NAME}_reclaims", "Reclaims that have ended", labels=[*_GPU, "rung", "outcome"]
    )
    freed = CounterMetricFamily(
        f"{_NAME}_reclaimed_bytes", "Bytes seen back from reclaims", labels=[*_GPU, "rung"]
    )
    disruptive = CounterMetricFamily(
        f"{_NAME}_disruptive_actions", "Sleeps, restarts, stops, killed runners of the ladder",
        labels=[*_GPU, "action"],
    )  # fmt: skip
    for uuid in published.decision.devices:
        labels = _labels(published, uuid)
        for rung in _RECLAIMS:
            for outcome in OUTCOMES:
                count = counts.reclaims[uuid, rung.value, outcome]
                total.add_metric([*labels, rung.value, outcome], count)
            freed.add_metric([*labels, rung.value], counts.reclaimed[uuid, rung.value])
        for kind in DISRUPTIVE_KINDS:
            disruptive.add_metric([*labels, kind], counts.disruptive[uuid, kind])
    yield from (total, freed, disruptive)


def _ooms(published: Published, counts: Counts) -> Iterator[Metric]:
    ooms = CounterMetricFamily(
        f"{_NAME}_ooms", "Out of memory, by class", labels=["backend", "class"]
    )
    freezes = CounterMetricFamily(f"{_NAME}_freezes", "Frozen for a moment", labels=["backend"])
    throttles = CounterMetricFamily(
        f"{_NAME}_throttles", "Its limit of requests was lowered", labels=["backend"]
    )
    classes = [one.value for one in MITIGATION]
    for name in published.decision.backends:
        for kind in classes:
            ooms.add_metric([name, kind], counts.ooms[name, kind])
        freezes.add_metric([name], counts.freezes[name])
        throttles.add_metric([name], counts.throttles[name])
    yield from (ooms, freezes, throttles)
