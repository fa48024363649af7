"""The ladder in the API: numbers and words, counters, learned caps, and what operators may ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.decide import decide
from arbiterd.model.actions import Verb
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import Mode
from arbiterd.quantities import GIB, MIB
from arbiterd.web.openapi import document
from tests.core.world import OLLAMA, VLLM, World, only, settings, share
from tests.web.site import Site, fits, published


def _leaking() -> World:
    """Two engines, one of which grows over its cap until it is restarted."""
    world = World(only("tensorflow", "vllm")).up()
    for _ in range(100):
        world.engines["vllm"].held += 100 * MIB
        world.tick()
        assert world.decision is not None
        detail = world.decision.devices["GPU-0"].detail
        if detail is not None and detail.reclaim is not None:
            return world
    raise AssertionError


def test_the_ladder_in_trouble_fits_its_schema_and_tells_all(site: Site) -> None:
    """Holders, candidates, brakes and the reclaim in flight, in numbers and in words."""
    site.holder.put(published(_leaking()))
    status, _, body = site.get("/v1/gpus")
    assert status == 200
    schema = document()["components"]["schemas"]["Gpu"]
    gpu = body["gpus"][0]
    fits(gpu, schema)
    ladder = gpu["ladder"]
    assert gpu["pressure"] == "critical"
    assert gpu["time_to_full_s"] == ladder["time_to_full_s"] > 0
    assert ladder["holders"][0]["name"] == "vllm"
    assert ladder["holders"][0]["growing"] is True
    chosen = [one for one in ladder["candidates"] if one["chosen"]]
    assert [(one["backend"], one["rung"]) for one in chosen] == [("vllm", "restart")]
    assert (ladder["reclaim"]["rung"], ladder["reclaim"]["target"]) == ("restart", "vllm")
    assert ladder["disruptive"] == 1
    assert ladder["why"][0] == f"critical: {ladder['reason']}"
    backend = site.get("/v1/backends/vllm")[2]
    assert backend["braked"] == ladder["braked"]["vllm"] != ""
    assert backend["learned_bytes"] == 0


def test_counters_are_counted_from_events_and_begin_at_zero(site: Site) -> None:
    """One restart of the ladder from its order to its end: disruptive, then worked, with its bytes."""
    from prometheus_client.parser import text_string_to_metric_families

    def value(name: str, **labels: str) -> float:
        _, _, body = site.get("/metrics")
        families = text_string_to_metric_families(body)
        samples = [s for family in families for s in family.samples if s.name == name]
        found = [s.value for s in samples if labels.items() <= s.labels.items()]
        assert found, (name, labels)
        return sum(found)

    world = World(only("tensorflow", "vllm")).up()
    site.holder.put(published(world))
    assert value("gpu_arbiter_reclaims_total", rung="restart", outcome="worked") == 0
    assert value("gpu_arbiter_ooms_total", backend="vllm", **{"class": "device_full"}) == 0
    leaks = 0
    for _ in range(140):
        if leaks < 100 and "vllm" in world.engines and world.told(EventName.RECLAIM) == 0:
            world.engines["vllm"].held += 100 * MIB
            leaks += 1
        world.tick()
        site.holder.put(published(world))
        if world.told(EventName.RECLAIM) == 1:
            assert value("gpu_arbiter_disruptive_actions_total", action="restart") == 1
            assert value("gpu_arbiter_gpu_reclaim_in_flight", rung="restart") == 1
        if world.told(EventName.RECLAIM) == 2:
            break
    assert value("gpu_arbiter_reclaims_total", rung="restart", outcome="worked") == 1
    assert value("gpu_arbiter_reclaims_total", rung="restart", outcome="without_effect") == 0
    assert value("gpu_arbiter_reclaimed_bytes_total", rung="restart") > 13 * GIB
    assert value("gpu_arbiter_gpu_disruptive_recent") == 1


def test_learned_caps_are_listed_with_the_cap_in_force(site: Site) -> None:
    """Of this mode and of others; what applies now is said."""
    world = World(settings()).up()
    here = LearnedCap("A", "vllm", "GPU-0", "M", "", 662 * MIB, 662 * MIB, 2, 1e9, "full")
    gone = replace(here, mode="Z", at=2e9)
    world.state = replace(world.state, learned={one.key: one for one in (here, gone)})
    world.ask(Verb.RESTART, "vllm")  # a learned cap is in force from the next start
    world.until("vllm", Phase.STARTING)
    world.until("vllm", Phase.READY)
    site.holder.put(published(world))
    status, _, body = site.get("/v1/caps")
    assert status == 200
    for cap in body["caps"]:
        fits(cap, document()["components"]["schemas"]["Cap"])
    other, mine = body["caps"]
    assert (other["mode"], other["configured_bytes"], other["applies"]) == ("Z", None, False)
    assert mine["applies"] is True
    assert mine["cap_bytes"] == mine["configured_bytes"] - 662 * MIB
    backend = site.get("/v1/backends/vllm")[2]
    assert (backend["cap_bytes"], backend["learned_bytes"]) == (mine["cap_bytes"], 662 * MIB)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("vllm/sleep", 409, "vllm cannot sleep: only vLLM does, with sleep = true"),
        ("tensorflow/sleep", 409, "tensorflow cannot sleep"),
        ("nobody/sleep", 404, "mode A has no backend 'nobody'; it has tensorflow, vllm, ollama"),
        ("vllm/wake", 409, "vllm is not asleep: it is ready"),
        ("nobody/wake", 404, "mode A has no backend 'nobody'"),
        ("vllm/reset-cap", 409, "nothing is learned about vllm: its configured cap is in force"),
        ("nobody/reset-cap", 404, "there is no backend 'nobody' in any mode; there is ollama"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    site: Site, path: str, status: int, words: str
) -> None:
    """With core's sentence, not in the journal only."""
    got, _, body = site.admin(f"/v1/admin/backends/{path}")
    assert got == status
    assert body["error"]["code"] == {404: "not_found", 409: "conflict"}[status]
    assert words in body["error"]["message"]


def test_sleep_wake_and_reset_are_taken_when_they_can_be_done(site: Site) -> None:
    """202 with an id; a sleeper that starts is told to wait, one of another mode can be reset."""
    able = replace(VLLM, vllm=replace(VLLM.vllm, sleep=True))
    modes = {
        "A": Mode("A", {"vllm": share("vllm", 0.55)}, {"vllm": able}),
        "B": Mode("B", {"ollama": share("ollama", 0.2)}, {"ollama": OLLAMA}),
    }
    world = World(settings(modes))
    world.until("vllm", Phase.STARTING)
    site.holder.put(published(world))
    status, _, body = site.admin("/v1/admin/backends/vllm/sleep")
    assert status == 409
    assert (
        "only a ready backend can be put to sleep; vllm: it is starting"
        in (body["error"]["message"])
    )
    world.up()
    site.holder.put(published(world))
    assert site.admin("/v1/admin/backends/vllm/sleep")[0] == 202
    world.ask(Verb.SLEEP, "vllm")
    for _ in range(2):  # decided only: the imaginary host has no such action
        seen = world.observation()
        world.requests = []
        world.decision, world.state = decide(seen, world.state, world.settings)
    site.holder.put(published(world))
    assert world.phase("vllm") is Phase.SLEEPING
    assert site.admin("/v1/admin/backends/vllm/wake")[0] == 202
    assert site.admin("/v1/admin/backends/vllm/sleep")[0] == 409
    cap = LearnedCap("B", "ollama", "GPU-0", "qwen2.5:3b", "", MIB, MIB, 1, 1e9, "full")
    world = World(settings(modes)).up()
    world.state = replace(world.state, learned={cap.key: cap})
    world.tick()
    site.holder.put(published(world))
    assert site.admin("/v1/admin/backends/ollama/reset-cap")[0] == 202
    world.ask(Verb.RESET_CAP, "ollama")
    assert world.tick().learned == {}
