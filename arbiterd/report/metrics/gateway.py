"""The doors in /metrics: latency, status and refusals per backend under fixed names (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from arbiterd.model.gateway import BUCKETS_S, Admit
from arbiterd.model.published import Published
from arbiterd.model.reading import Known

_NAME = "gpu_arbiter_gateway"


def gateway_metrics(published: Published) -> Iterator[Metric]:
    """Nothing while the gateway is off."""
    seen = published.observation.gateway
    if not seen.enabled:
        return
    up = GaugeMetricFamily(f"{_NAME}_up", "1 while the doors are open")
    up.add_metric([], float(not seen.problem))
    yield up
    gate = GaugeMetricFamily(f"{_NAME}_gate_up", "1 while the load gate answers")
    gate.add_metric([], float(not seen.gate_problem))
    yield gate
    admit = GaugeMetricFamily(
        f"{_NAME}_admit", "1 for what the doors do with new requests", labels=["backend", "admit"]
    )
    for name, wish in published.decision.gateway.backends.items():
        for one in Admit:
            admit.add_metric([name, one.value], float(one is wish.admit))
    yield admit
    yield from _traffic(published)
    yield from _requests(published)


def _traffic(published: Published) -> Iterator[Metric]:
    label = ["backend"]
    gauges = {
        "in_flight": GaugeMetricFamily(
            f"{_NAME}_in_flight", "Requests at the engine", labels=label
        ),
        "queued": GaugeMetricFamily(
            f"{_NAME}_queued", "Requests waiting at the door", labels=label
        ),
        "limit": GaugeMetricFamily(f"{_NAME}_limit", "In-flight limit in force", labels=label),
        "engine_up": GaugeMetricFamily(
            f"{_NAME}_engine_up", "1 while the engine's port takes connections", labels=label
        ),
    }
    errors = CounterMetricFamily(
        f"{_NAME}_connect_errors", "Connections to the engine that failed", labels=label
    )
    sent = CounterMetricFamily(f"{_NAME}_bytes_out", "Bytes answered to clients", labels=label)
    for name, reading in published.observation.gateway.traffic.items():
        if isinstance(reading, Known):
            for key, gauge in gauges.items():
                gauge.add_metric([name], float(getattr(reading.value, key)))
            errors.add_metric([name], reading.value.connect_errors)
            sent.add_metric([name], reading.value.bytes_out)
    yield from (*gauges.values(), errors, sent)


def _requests(published: Published) -> Iterator[Metric]:
    codes = CounterMetricFamily(
        f"{_NAME}_responses", "Answers by status, refusals included", labels=["backend", "code"]
    )
    refused = CounterMetricFamily(
        f"{_NAME}_refused", "Refused at the door, by reason", labels=["backend", "reason"]
    )
    total = HistogramMetricFamily(
        f"{_NAME}_request_seconds", "From a request's arrival to its last byte", labels=["backend"]
    )
    first = HistogramMetricFamily(
        f"{_NAME}_first_byte_seconds",
        "From a request's arrival to the first byte",
        labels=["backend"],
    )
    for name, one in published.observation.gateway.requests.items():
        for code, count in sorted(one.codes.items()):
            codes.add_metric([name, code], count)
        for reason, count in sorted(one.refused.items()):
            refused.add_metric([name, reason], count)
        total.add_metric([name], _buckets(one.total), one.total_sum_s)
        first.add_metric([name], _buckets(one.first_byte), one.first_byte_sum_s)
    yield from (codes, refused, total, first)


def _buckets(counts: tuple[int, ...]) -> list[tuple[str, float]]:
    edges = [*(str(edge) for edge in BUCKETS_S), "+Inf"]
    return [(edge, float(count)) for edge, count in zip(edges, counts, strict=True)]
