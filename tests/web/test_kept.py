"""Answers that are rendered once for all who ask: documents, a scrape, the page's stream."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from aiohttp.test_utils import make_mocked_request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from arbiterd.model.events import Event, EventName, Severity
from arbiterd.model.published import Published
from arbiterd.report.metrics import exposition
from arbiterd.report.metrics.counters import Counts
from arbiterd.secrets.redact import Redactor
from arbiterd.web.guard import OUTSIDER
from arbiterd.web.read import Read
from tests.core.world import World, settings
from tests.support import PATIENCE_S
from tests.web.site import Site, published


def test_metrics_are_what_prometheus_client_writes() -> None:
    """Also with labels that need escaping, and in histograms."""

    class Families(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from exposition.families(seen, counts)
            odd = HistogramMetricFamily("odd", "One of them", labels=["b", "a"])
            odd.add_metric(['"\\\n', "x"], [("0.5", 1.0), ("+Inf", 2e9)], 0.25)
            yield odd

    seen, counts = published(World(settings()).up()), Counts()
    counts.add([Event(EventName.READY, Severity.INFO, "x", backend='v"l\\lm')])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    ours = "".join(map(exposition.text, Families().collect()))
    assert ours == generate_latest(registry).decode()


def test_a_scrape_is_rendered_once_a_tick_with_the_age_of_now(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many scrape, by whichever door; the next tick is rendered anew."""
    made: list[Published] = []
    families = exposition.families

    def counted(seen: Published, counts: Counts) -> Iterator[Metric]:
        made.append(seen)
        return families(seen, counts)

    monkeypatch.setattr(exposition, "families", counted)
    texts = [site.get("/metrics")[2], site.get("/metrics")[2], site.admin("/metrics", "GET")[2]]
    assert len(made) == 1
    assert all("gpu_arbiter_tick_age_seconds 0.0" in text for text in texts)
    site.holder.put(published(World(settings()).up()))
    site.get("/metrics")
    assert len(made) == 2


def test_a_stream_has_what_the_page_shows_and_gives_way_at_the_end(site: Site) -> None:
    """The same as the three documents; a stop ends it at once."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE_S) as one:
        one.sendall(b"GET /v1/stream HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        with one.makefile("rb") as file:
            assert b"200" in file.readline()
            while file.readline().strip():
                pass
            lines = [json.loads(file.readline()) for _ in range(2)]
            began = time.monotonic()
            site.server.close()
            file.read()
    assert time.monotonic() - began < PATIENCE_S
    for line in lines:
        assert line["status"]["mode"] == "A"
        assert {one["name"] for one in line["status"]["backends"]} == {
            "tensorflow",
            "vllm",
            "ollama",
        }
        assert line["incidents"] == []
        assert line["caps"] == []


def test_all_viewers_of_a_second_get_the_same_bytes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rendered once; an outsider's line is another."""
    monkeypatch.setattr("arbiterd.web.read.time", SimpleNamespace(monotonic=lambda: 7.5))
    read, seen = Read(site.holder, Redactor()), {}
    for who, hidden in (("a", False), ("b", False), ("c", True)):
        request = make_mocked_request("GET", "/v1/stream")
        request[OUTSIDER] = hidden
        seen[who] = read.page_line(request)
    assert seen["a"] is seen["b"]
    assert seen["c"] is not seen["a"]


def test_more_pages_than_may_look_on_are_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open stream cannot make room for other requests."""
    monkeypatch.setattr("arbiterd.web.page_stream.MOST", 0)
    code, headers, body = site.get("/v1/stream")
    assert (code, headers["Retry-After"]) == (429, "5")
    assert body["error"]["code"] == "busy"


def test_a_secret_that_is_learned_is_hidden_in_what_was_kept(site: Site) -> None:
    """Kept answers are those of before it was known."""
    read = Read(site.holder, redactor := Redactor())
    request = make_mocked_request("GET", "/v1/status")
    before = asyncio.run(read.status(request)).body
    redactor.learn(["tensorflow"])
    after = asyncio.run(read.status(request)).body
    assert isinstance(before, bytes)
    assert isinstance(after, bytes)
    assert b"tensorflow" in before
    assert b"tensorflow" not in after
