"""The API over real sockets, from a published snapshot; answers held against the schema."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.errors import ArbiterError, Problem
from arbiterd.model.actions import Verb
from arbiterd.model.events import Event, EventName, Severity
from arbiterd.model.settings import Degrade, Failover
from arbiterd.report.api import route
from arbiterd.report.metrics import exposition
from arbiterd.report.metrics.counters import Counts
from arbiterd.settings.reload import ReloadAnswer
from arbiterd.web.admin import Admin
from arbiterd.web.openapi import document
from arbiterd.web.server import WebServer
from arbiterd.web.snapshot import Holder
from tests.core.world import World, settings
from tests.support import free_port
from tests.web.site import Site, fits, published

PATHS = [
    ("/livez", "/livez"),
    ("/readyz", "/readyz"),
    ("/v1/status", "/v1/status"),
    ("/v1/gpus", "/v1/gpus"),
    ("/v1/backends", "/v1/backends"),
    ("/v1/backends/vllm", "/v1/backends/{name}"),
    ("/v1/backends/vllm/ready", "/v1/backends/{name}/ready"),
    ("/v1/route?model=M", "/v1/route"),
    ("/v1/incidents", "/v1/incidents"),
    ("/v1/caps", "/v1/caps"),
]


@pytest.mark.parametrize(("path", "documented"), PATHS, ids=[p[0] for p in PATHS])
def test_every_answer_fits_its_schema(site: Site, path: str, documented: str) -> None:
    """What /openapi.json promises is what comes."""
    status, headers, body = site.get(path)
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    operation = document()["paths"][documented]["get"]
    fits(body, operation["responses"]["200"]["content"]["application/json"]["schema"])


def test_the_schema_names_every_path(site: Site) -> None:
    """And the server serves every path it names."""
    _, _, body = site.get("/openapi.json")
    assert set(body["paths"]) == {p[1] for p in PATHS} | {"/metrics", "/v1/stream"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/v1/status", 405, "method_not_allowed"),
        ("DELETE", "/v1/backends/vllm", 405, "method_not_allowed"),
        ("GET", "/v1/backends/nobody", 404, "not_found"),
        ("GET", "/v1/backends/nobody/ready", 404, "not_found"),
        ("GET", "/v1/route", 422, "bad_parameter"),
        ("GET", "/v1/route?model=a&backend=b", 422, "bad_parameter"),
        ("GET", "/v1/route?model=nobody", 404, "not_found"),
        ("GET", "/v1/incidents?limit=x", 422, "bad_parameter"),
        ("GET", "/v1/incidents?limit=0", 422, "bad_parameter"),
        ("GET", "/v1/incidents?since=yesterday", 422, "bad_parameter"),
        ("POST", "/v1/admin/stop-all", 404, "not_found"),
        ("POST", "/v1/admin/reload", 404, "not_found"),
    ],
)
def test_errors_are_json_and_never_a_traceback(
    site: Site, method: str, path: str, status: int, code: str
) -> None:
    """Nothing that changes state is reachable over TCP."""
    got, _, body = site.get(path, method)
    assert got == status
    assert body["error"]["code"] == code
    assert body["error"]["message"]
    assert site.asked == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_ready_is_asked_by_load_balancers_in_three_ways(site: Site, method: str) -> None:
    """200, or 503 with Retry-After."""
    assert site.get("/v1/backends/vllm/ready", method)[0] == 200
    world = World(settings())
    world.tick(1)
    site.holder.put(published(world))
    status, headers, _ = site.get("/v1/backends/vllm/ready", method)
    assert status == 503
    assert 1 <= int(headers["Retry-After"]) <= 120
    status, headers, _ = site.get("/readyz", "GET")
    assert status == 503
    assert headers["Retry-After"]


def test_livez_is_about_the_loop_only(site: Site) -> None:
    """A loop that has not finished a tick for long is not alive, whatever engines do."""
    published = site.holder.get()
    assert published is not None
    late = replace(published, loop=replace(published.loop, finished_at=time.monotonic() - 60))
    site.holder.put(late)
    status, _, body = site.get("/livez")
    assert status == 503
    assert "60" in body["error"]["message"]


def test_the_ledger_adds_up_in_the_status(site: Site) -> None:
    """used rows = memory.used; the headroom has a cap and no used."""
    _, _, body = site.get("/v1/status")
    for gpu in body["gpus"]:
        assert sum(r["used"] for r in gpu["ledger"] if "used" in r) == gpu["memory"]["used"]
        assert {"holder": "headroom"}.items() <= gpu["ledger"][-3].items()


def test_urls_are_those_the_asker_can_reach(site: Site) -> None:
    """The address the request came in on, or gateway.advertise; https where the doors speak TLS."""
    _, _, body = site.get("/v1/backends/vllm")
    assert body["url"] == "http://127.0.0.1:8000"
    published = site.holder.get()
    assert published is not None
    told = replace(
        published.settings, gateway=replace(published.settings.gateway, advertise="gpu30.lan")
    )
    site.holder.put(replace(published, settings=told))
    assert site.get("/v1/backends/vllm")[2]["url"] == "http://gpu30.lan:8000"
    spoken = replace(told, gateway=replace(told.gateway, certificate="/etc/door.pem"))
    site.holder.put(replace(published, settings=spoken))
    assert site.get("/v1/backends/vllm")[2]["url"] == "https://gpu30.lan:8000"


def test_the_page_and_its_files_are_served_with_a_policy(site: Site) -> None:
    """No inline script, nothing from elsewhere."""
    for path, kind in (
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
    ):
        status, headers, body = site.get(path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "http://" not in body.replace("http://www.w3.org", "")


def test_metrics_are_prometheus_text(site: Site) -> None:
    """Parsed by the client library's own parser; no NaN, units in the names."""
    from prometheus_client.parser import text_string_to_metric_families

    status, headers, body = site.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {one.name: one for one in text_string_to_metric_families(body)}
    assert families["gpu_arbiter_backend_accepting"].samples[0].value == 1.0
    told = families["gpu_arbiter_backend_model_info"].samples
    assert told
    assert all(one.labels["model"] and one.labels["backend"] for one in told)
    used = {s.labels["holder"]: s.value for s in families["gpu_arbiter_ledger_used_bytes"].samples}
    assert used["vllm"] > 0
    assert "nan" not in body.lower()
    assert "gpu_arbiter_events" in families


def test_every_metric_is_documented(site: Site) -> None:
    """docs/metrics.md lists each name that is served."""
    _, _, body = site.get("/metrics")
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    for line in body.splitlines():
        if line.startswith("# TYPE "):
            assert f"`{line.split()[2]}`" in text, line


def test_admin_verbs_reach_the_daemon_with_the_peers_name(site: Site) -> None:
    """202 and an id; a backend nobody has is 404 with the reason."""
    status, _, body = site.admin("/v1/admin/backends/vllm/drain")
    assert status == 202
    assert body["id"].startswith("req-")
    assert (site.asked[0].verb, site.asked[0].backend) == (Verb.DRAIN, "vllm")
    assert site.asked[0].by.startswith(f"uid {os.geteuid()} (")
    assert site.admin("/v1/admin/stop-all")[0] == 202
    status, _, body = site.admin("/v1/admin/backends/nobody/restart")
    assert status == 404
    assert (
        "mode A has no backend 'nobody'; it has tensorflow, vllm, ollama"
        in body["error"]["message"]
    )
    assert site.admin("/v1/admin/backends/vllm/fly")[0] == 404


def test_a_refused_reload_carries_every_problem(site: Site) -> None:
    """409 with the list; an accepted one names the mode."""
    taken = site.admin("/v1/admin/reload")[2]
    assert (taken["accepted"], taken["mode"], taken["warnings"]) == (True, "A", [])
    assert taken["loaded_at"].startswith("1970-01-01T")
    problems = tuple(Problem("/f", n, "k", "wrong", "right") for n in (1, 2))
    site.answer = ReloadAnswer(accepted=False, mode="A", problems=problems)
    status, _, body = site.admin("/v1/admin/reload")
    assert status == 409
    assert [p["text"] for p in body["problems"]] == [
        "/f:1: k: wrong; right",
        "/f:2: k: wrong; right",
    ]


def test_the_admin_socket_serves_the_read_api_too_and_is_closed_to_others(site: Site) -> None:
    """0660 from the first moment."""
    assert site.admin("/v1/status", "GET")[0] == 200
    assert stat.S_IMODE(os.stat(site.socket_path).st_mode) == 0o660


def test_a_taken_port_is_an_error_and_can_be_tried_again(tmp_path: Path) -> None:
    """The socket is open meanwhile."""
    port = free_port()
    admin = Admin(submit=lambda _r: None, reload=lambda: ReloadAnswer(accepted=True, mode="A"))
    server = WebServer(
        Holder(), host="127.0.0.1", port=port, socket_path=tmp_path / "s", admin=admin
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ArbiterError, match=f"127.0.0.1:{port}.*in use"):
            server.start()
        assert (tmp_path / "s").exists()
    server.start()
    server.close()
    assert not (tmp_path / "s").exists()


def test_many_readers_at_once_are_served(site: Site) -> None:
    """Eight threads, each its own connection."""
    statuses: list[int] = []

    def read() -> None:
        statuses.extend(site.get("/v1/status")[0] for _ in range(20))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 160


# -- routing, from snapshots ------------------------------------------------------------------
def _with_rules(world: World) -> World:
    world.settings = replace(
        world.settings,
        failover=(Failover("M", "vllm", "ollama", "qwen2.5:3b"),),
        degrade=(Degrade("tensorflow", "llm-only", ("vllm", "ollama")),),
    )
    return world


def test_a_model_goes_to_its_owner_then_to_its_substitute_then_nowhere() -> None:
    """200 vllm, 200 ollama with Ollama's own name, 503 with Retry-After."""
    world = _with_rules(World(settings())).up()
    assert route.by_model(published(world), "M", "h").backend == "vllm"
    world.ask(Verb.DRAIN, "vllm")
    world.tick(2)
    second = route.by_model(published(world), "M", "h")
    assert (second.backend, second.model, second.advice) == ("ollama", "qwen2.5:3b", "failover")
    assert "vllm draining" in second.reason
    world.ask(Verb.DRAIN, "ollama")
    world.tick(2)
    third = route.by_model(published(world), "M", "h")
    assert third.status == 503
    assert third.retry_after_s >= 1


def test_ollamas_names_are_matched_with_and_without_tag() -> None:
    """'qwen2.5:3b' only so; a bare name is ':latest'."""
    world = World(settings()).up()
    assert route.by_model(published(world), "qwen2.5:3b", "h").backend == "ollama"
    assert route.by_model(published(world), "qwen2.5", "h").status == 404


def test_tensorflow_out_means_llms_only() -> None:
    """The user's rule."""
    world = _with_rules(World(settings())).up()
    world.ask(Verb.DRAIN, "tensorflow")
    world.tick(2)
    found = route.by_backend(published(world), "tensorflow", "h")
    assert (found.status, found.backend, found.advice) == (200, "vllm", "llm-only")
    assert route.by_backend(published(world), "nobody", "h").status == 404


def test_metrics_of_a_blind_host_have_no_invented_numbers() -> None:
    """Unknown memory is absent, not zero."""
    world = World(settings()).up()
    world.blind = "hung"
    world.tick(4)
    counts = Counts()
    counts.add([Event(EventName.READY, Severity.INFO, "x", backend="vllm")] * 2)
    text = exposition.render(published(world), counts)
    assert 'kind="used"' not in text
    assert "gpu_arbiter_gpu_solvency_bytes{" not in text
    assert 'gpu_arbiter_gpu_unreadable{gpu="GPU-0",index="0"} 1.0' in text
    assert "gpu_arbiter_blind 1.0" in text
    assert 'gpu_arbiter_events_total{backend="vllm",event="ready"} 2.0' in text
