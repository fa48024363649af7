"""GET /metrics: the published snapshot as Prometheus gauges and counters (docs/metrics.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from arbiterd.engines import engine_of
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState, Pressure
from arbiterd.model.published import Published
from arbiterd.model.reading import Known
from arbiterd.report.api import common
from arbiterd.report.metrics.counters import Counts
from arbiterd.report.metrics.gateway import gateway_metrics
from arbiterd.report.metrics.pressure import pressure_metrics

PREFIX = "gpu_arbiter"
GPU = ["gpu", "index"]


_SERIES = 16384  # of 64 backends on 16 GPUs there are 3,300
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def families(published: Published, counts: Counts) -> Iterator[Metric]:
    """Every family of docs/metrics.md but the age of the tick, from what was published last."""
    yield from _loop(published)
    yield from _gpus(published)
    yield from _ledger(published)
    yield from _backends(published)
    yield from pressure_metrics(published, counts)
    yield from gateway_metrics(published)
    yield _incidents(published)
    total = CounterMetricFamily(
        f"{PREFIX}_events", "Journal events since the start", labels=["event", "backend"]
    )
    for (event, backend), count in sorted(counts.events.items()):
        total.add_metric([event, backend], count)
    yield total


def age(published: Published) -> Metric:
    """The one family that changes while nothing is published."""
    gauge = _gauge("tick_age_seconds", "Since the last tick ended", [])
    gauge.add_metric([], max(0.0, time.monotonic() - published.loop.finished_at))
    return gauge


def render(published: Published, counts: Counts) -> str:
    """The text of one scrape."""
    return "".join(map(text, (*families(published, counts), age(published))))


def text(family: Metric) -> str:
    """One family as the text format has it.

    As prometheus_client.generate_latest writes it, in a third of its time: what stands before a value is
    the same in every scrape, and remembered.
    """
    name = f"{family.name}_total" if family.type == "counter" else family.name
    lines = [f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n"]
    for sample in family.samples:
        series = _series(sample.name, tuple(sample.labels.items()))
        lines.append(f"{series} {floatToGoString(sample.value)}\n")  # type: ignore[no-untyped-call]
    return "".join(lines)


@lru_cache(_SERIES)
def _series(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    shown = ",".join(f'{key}="{value.translate(_ESCAPES)}"' for key, value in sorted(labels))
    return f"{name}{{{shown}}}" if shown else name


def _gauge(name: str, about: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", about, labels=labels)


def _loop(published: Published) -> Iterator[Metric]:
    info = _gauge("info", "Version, mode and launcher; always 1", ["version", "mode", "launcher"])
    info.add_metric([published.version, published.settings.mode, published.loop.launcher], 1)
    yield info
    ticks = CounterMetricFamily(f"{PREFIX}_ticks", "Finished ticks of the control loop")
    ticks.add_metric([], published.loop.tick)
    yield ticks
    stalls = CounterMetricFamily(f"{PREFIX}_loop_stalls", "Times the loop was held up itself")
    stalls.add_metric([], published.loop.stalls)
    yield stalls
    held = CounterMetricFamily(f"{PREFIX}_loop_stalled_seconds", "Seconds of these")
    held.add_metric([], published.loop.stalled_s)
    yield held
    late = CounterMetricFamily(f"{PREFIX}_tick_late_seconds", "By how much ticks began late")
    late.add_metric([], published.loop.late_s)
    yield late
    missed = CounterMetricFamily(f"{PREFIX}_ticks_missed", "Ticks late by a whole poll or more")
    missed.add_metric([], published.loop.missed)
    yield missed
    values = (
        ("tick_seconds", "Duration of the last tick", published.loop.last_tick_ms / 1000),
        ("blind", "1 while any GPU cannot be read", float(published.decision.blind)),
        ("dry_run", "1 in a dry run", float(published.settings.arbiter.dry_run)),
        ("config_pending", "1: the file was edited, not applied", _one(published, "pending")),
        ("switching", "1 while a mode switch or a rollback is under way", _switching(published)),
        ("config_refused", "1: the file is refused", _one(published, "refused")),
    )
    for name, about, value in values:
        gauge = _gauge(name, about, [])
        gauge.add_metric([], value)
        yield gauge


def _one(published: Published, what: str) -> float:
    loop = published.loop
    return float(loop.config_pending if what == "pending" else bool(loop.config_refused))


def _switching(published: Published) -> float:
    return float(published.decision.switch is not None)


def _gpus(published: Published) -> Iterator[Metric]:
    memory = _gauge("gpu_memory_bytes", "NVML's memory, by kind", [*GPU, "kind"])
    state = _gauge("gpu_state", "1 for the state the GPU is in", [*GPU, "state"])
    pressure = _gauge("gpu_pressure", "1 for the pressure band", [*GPU, "pressure"])
    for uuid, seen in published.observation.devices.items():
        labels = [uuid, str(seen.device.index)]
        memory.add_metric([*labels, "total"], seen.device.total_bytes)
        memory.add_metric([*labels, "reserved"], seen.device.reserved_bytes)
        if isinstance(seen.memory, Known):
            memory.add_metric([*labels, "used"], seen.memory.value.used_bytes)
            memory.add_metric([*labels, "free"], seen.memory.value.free_bytes)
        for one in GpuState:
            state.add_metric([*labels, one.value], float(one is seen.state))
        view = published.decision.devices.get(uuid)
        band = view.pressure if view else Pressure.UNKNOWN
        for two in Pressure:
            pressure.add_metric([*labels, two.value], float(two is band))
    yield from (memory, state, pressure)


def _ledger(published: Published) -> Iterator[Metric]:
    cap = _gauge("ledger_cap_bytes", "Cap of a holder on a GPU", [*GPU, "holder"])
    booked = _gauge("ledger_booked_bytes", "Bytes nobody else may count on", [*GPU, "holder"])
    used = _gauge("ledger_used_bytes", "Bytes held; rows add up to used", [*GPU, "holder"])
    for uuid, view in published.decision.devices.items():
        seen = published.observation.devices.get(uuid)
        labels = [uuid, str(seen.device.index) if seen else ""]
        for row in view.rows:
            pairs = ((cap, row.cap_bytes), (booked, row.booked_bytes), (used, row.used_bytes))
            for gauge, value in pairs:
                if value is not None:
                    gauge.add_metric([*labels, row.holder], value)
    yield from (cap, booked, used)


def _backends(published: Published) -> Iterator[Metric]:
    views = published.decision.backends.values()
    phase = _gauge("backend_phase", "1 for the phase it is in", ["backend", "phase"])
    for view in views:
        for one in Phase:
            phase.add_metric([view.name, one.value], float(one is view.phase))
    yield phase
    names = ["backend"]
    plain = (
        ("backend_accepting", "1 while it takes new work", lambda v: float(v.accepting)),
        ("backend_retry_after_seconds", "What a refused client is told", lambda v: v.retry_after_s),
        ("backend_cap_bytes", "Its cap per device", lambda v: v.cap_bytes),
        ("backend_used_bytes", "GPU memory it holds; absent: not known", lambda v: v.used_bytes),
        ("backend_in_flight", "Requests running, as it says", lambda v: v.in_flight),
        ("backend_queued", "Requests waiting, as it says", lambda v: v.queued),
    )
    for name, about, value in plain:
        gauge = _gauge(name, about, names)
        for view in views:
            known = value(view)
            if known is not None:  # absent, not 0: its device cannot be read
                gauge.add_metric([view.name], known)
        yield gauge
    restarts = CounterMetricFamily(
        f"{PREFIX}_backend_restarts", "Restarts since the daemon knows it", labels=names
    )
    for view in views:
        restarts.add_metric([view.name], view.restarts)
    yield restarts
    yield _models(published)
    yield _latency(published)


def _models(published: Published) -> Metric:
    gauge = _gauge(
        "backend_model_info", "1 for each model name it answers to", ["backend", "model"]
    )
    for name, one in published.settings.active.backends.items():
        adapters = [m for m, b in published.decision.gateway.adapters.items() if b == name]
        for model in dict.fromkeys((*engine_of(one.kind).served_models(one), *adapters)):
            gauge.add_metric([name, model], 1.0)
    return gauge


def _latency(published: Published) -> Metric:
    gauge = _gauge("backend_health_latency_seconds", "Of the last health check", ["backend"])
    for name, health in published.observation.health.items():
        if isinstance(health.alive, Known):
            gauge.add_metric([name], health.alive.value.latency_ms / 1000)
    return gauge


def _incidents(published: Published) -> Metric:
    gauge = _gauge("incidents_open", "Open incidents", ["event", "backend", "severity"])
    counts: dict[tuple[str, str, str], int] = {}
    for one in common.open_incidents(published):
        key = (one.event.value, one.backend, one.severity.value)
        counts[key] = counts.get(key, 0) + 1
    for labels, count in counts.items():
        gauge.add_metric(list(labels), count)
    return gauge
