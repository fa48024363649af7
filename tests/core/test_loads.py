"""Loads that clients cause: granted, held, refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.gateway import LoadAsk, LoadDone, LoadUndone, LoadVerdict
from arbiterd.model.launch import Exit
from arbiterd.model.settings import Mode, Settings
from arbiterd.quantities import GIB
from tests.core.world import OLLAMA, TICK_S, World, only, settings


def two_models() -> Settings:
    """Ollama may hold two at a time."""
    made = settings()
    own = replace(OLLAMA.ollama, max_loaded_models=2)
    ollama = replace(OLLAMA, models=("qwen2.5:3b", "llama3.2:1b"), ollama=own)
    mode = made.modes["A"]
    return replace(made, modes={"A": Mode("A", mode.shares, {**mode.backends, "ollama": ollama})})


def test_a_load_that_fits_is_granted_at_once_and_ends_its_lease() -> None:
    """While it lasts it is a memory event: nothing else starts on the device."""
    world = World(two_models()).up()
    answer = world.ask_load("llama3.2:1b", 2 * GIB)
    assert answer.verdict is LoadVerdict.GRANT
    assert world.state.leases
    other = world.ask_load("other", GIB)
    assert other.verdict is LoadVerdict.WAIT
    assert "loading" in other.reason
    world.asks.clear()
    world.dones.append(LoadDone(answer.id, "ollama"))
    world.tick()
    assert not world.state.leases
    assert world.told(EventName.LOAD_ADMITTED, "ollama") >= 2


def test_a_load_over_the_cap_is_refused_with_the_numbers() -> None:
    """It would never fit: no waiting."""
    world = World(settings()).up()
    answer = world.ask_load("llama3.1:70b", 40 * GIB)
    assert answer.verdict is LoadVerdict.REFUSE
    assert "40.00 GiB" in answer.reason
    assert "cap of ollama" in answer.reason


def test_resident_models_count_against_the_cap() -> None:
    """Two at a time: what stays resident has its bytes; one at a time: it makes room."""
    both = World(two_models()).up()
    assert both.ask_load("llama3.2:1b", 4 * GIB).verdict is LoadVerdict.REFUSE
    single = World(settings()).up()
    assert single.ask_load("llama3.2:1b", 4 * GIB).verdict is LoadVerdict.GRANT


@pytest.mark.parametrize(("ticks", "dt"), [(8, 0.25), (1, 2.5)], ids=["in time", "one late tick"])
def test_no_load_while_vllm_starts(ticks: int, dt: float) -> None:
    """vLLM profiles the card: a neighbour that allocates would shrink its cache. That it is held is told
    once, however late the tick comes.
    """
    world = World(two_models(), start_s=8.0).up()
    world.die("vllm", Exit(code=1))
    world.until("vllm", Phase.STARTING)
    answer = world.ask_load("llama3.2:1b", 2 * GIB)
    assert answer.verdict is LoadVerdict.WAIT
    assert "vllm is starting" in answer.reason
    world.tick(ticks, dt)
    assert world.told(EventName.LOAD_HELD) == 1
    world.until("vllm", Phase.READY)
    world.tick(2)
    assert [lease.model for lease in world.state.leases.values()] == ["llama3.2:1b"]


def test_the_bytes_of_a_dead_backend_stay_booked() -> None:
    """Failover must not load into the room that vLLM needs to come back."""
    world = World(two_models()).up()
    world.fail_starts["vllm"] = "no"
    world.die("vllm", Exit(code=1))
    world.tick(20)
    world.strangers[4242] = ("GPU-0", 2 * GIB)  # the headroom is gone, vLLM's bytes are free
    world.tick(4)
    answer = world.ask_load("llama3.2:1b", 2 * GIB)
    assert answer.verdict is LoadVerdict.WAIT
    assert "booked for others" in answer.reason


def test_blind_means_no_loads() -> None:
    """Nothing is started on numbers that cannot be read."""
    world = World(two_models()).up()
    world.blind = "hung for 5 s"
    world.tick()
    answer = world.ask_load("llama3.2:1b", GIB)
    assert answer.verdict is LoadVerdict.WAIT
    assert "cannot be read" in answer.reason


def test_a_lease_ends_with_its_backend_and_with_its_time() -> None:
    """A gate that died in the middle must not block the card for ever."""
    world = World(two_models()).up()
    world.ask_load("llama3.2:1b", 2 * GIB)
    world.tick(round(61 / 0.25))
    assert not world.state.leases
    world.ask_load("llama3.2:1b", 2 * GIB)
    world.die("ollama", Exit(code=1))
    world.tick(2)
    assert not world.state.leases


def test_a_model_never_competes_with_itself() -> None:
    """Its own bytes, under whatever name, are no neighbour's: its runner is replaced, not doubled."""
    world = World(two_models()).up()
    world.engines["ollama"].loaded = ("qwen2.5:3b", "llama3.2:1b")
    assert world.ask_load("other", 4 * GIB).verdict is LoadVerdict.REFUSE
    assert world.ask_load("QWEN2.5:3b", 2 * GIB).verdict is LoadVerdict.GRANT
    alias = World(settings()).up()
    alias.engines["ollama"].loaded = ("tuned:latest",)
    shared = alias.ask_load("qwen2.5:3b", 2 * GIB, shares=("tuned:latest",))
    assert shared.verdict is LoadVerdict.GRANT


def test_what_the_gate_has_just_seen_counts_more_than_an_old_list() -> None:
    """The daemon lists every 2 s: what has left since takes no place and no bytes any more."""
    world = World(two_models()).up()
    world.engines["ollama"].loaded = ("qwen2.5:3b", "llama3.2:1b")
    world.list_age_s = 2.0
    ask = LoadAsk("load-1", "ollama", "other", 3 * GIB, world.now, resident=())
    world.asks.append(ask)
    assert [one.verdict for one in world.tick().loads] == [LoadVerdict.GRANT]
    rows = (("qwen2.5:3b", 2 * GIB), ("llama3.2:1b", 2 * GIB))
    full = replace(ask, id="load-2", resident=rows, since=world.now)
    world.dones.append(LoadDone("load-1", "ollama"))
    world.asks.append(full)
    assert [one.verdict for one in world.tick().loads] == [LoadVerdict.REFUSE]


def test_the_door_is_open_while_the_warm_model_loads() -> None:
    """A request that needs a load waits in the gate as for any other load."""
    world = World(settings())
    world.until("ollama", Phase.READY)
    world.tick()
    assert world.state.backends["ollama"].warm.pending
    assert world.view("ollama").accepting


def test_a_client_that_unloads_the_warm_model_has_it_out_for_five_minutes() -> None:
    """The unload button is meant to last a while; in any spelling of the name."""
    world = World(settings()).up()
    world.undones.append(LoadUndone("ollama", "library/QWEN2.5:3b"))
    world.engines["ollama"].loaded = ()
    before = len(world.loads)
    world.tick(round(290 / 0.25))
    assert len(world.loads) == before
    assert world.told(EventName.LOAD_HELD, "ollama") == 1
    world.tick(round(15 / 0.25))
    assert len(world.loads) == before + 1


def test_a_warm_model_that_was_unloaded_is_wanted_again_once_it_is_asked_for() -> None:
    """Its place is its own again: when another's model has left, it comes back."""
    world = World(settings()).up()
    world.undones.append(LoadUndone("ollama", "qwen2.5:3b"))
    world.engines["ollama"].loaded = ()
    world.tick()
    answer = world.ask_load("qwen2.5:3b", 2 * GIB)
    assert answer.verdict is LoadVerdict.GRANT
    world.dones.append(LoadDone(answer.id, "ollama"))
    before = len(world.loads)
    world.tick(round(40 / 0.25))
    assert len(world.loads) == before + 1


def test_the_warm_model_is_resident_under_another_name_of_its_file() -> None:
    """A runner has one name in the list: nothing is loaded for the other one, not every 30 s either."""
    world = World(two_models()).up()
    world.engines["ollama"].loaded, world.engines["ollama"].also = (
        ("tuned:latest",),
        ("qwen2.5:3b",),
    )
    before = len(world.loads)
    world.tick(round(70 / 0.25))
    assert len(world.loads) == before
    world.engines["ollama"].also = ()
    world.tick(2)
    assert len(world.loads) == before + 1


def test_another_models_unload_does_not_touch_the_warm_one() -> None:
    """Only the first of the list is kept warm."""
    world = World(two_models()).up()
    world.undones.append(LoadUndone("ollama", "llama3.2:1b"))
    world.engines["ollama"].loaded = ()
    before = len(world.loads)
    world.tick(round(40 / 0.25))
    assert len(world.loads) == before + 1


def test_the_warm_model_never_evicts_what_a_client_has_just_loaded() -> None:
    """Not within 30 s of a client's load, and not by a list that is older than a load's end."""
    world = World(two_models()).up()
    answer = world.ask_load("llama3.2:1b", 2 * GIB)
    world.engines["ollama"].loaded = ("llama3.2:1b",)
    world.dones.append(LoadDone(answer.id, "ollama"))
    before = len(world.loads)
    world.tick(round(29 / 0.25))
    assert len(world.loads) == before
    world.list_age_s = 60.0
    world.tick(round(30 / 0.25))
    assert len(world.loads) == before
    world.list_age_s = 0.0
    world.tick(2)
    assert len(world.loads) == before + 1


def test_no_canary_goes_out_while_a_model_loads() -> None:
    """What is resident changes then, and the canary could be a load itself."""
    world = World(two_models()).up()
    world.ask_load("llama3.2:1b", 2 * GIB)
    for _ in range(round(40 / 0.25)):
        decision = world.tick()
        assert not any(one.canary_due for one in decision.probes if one.backend == "ollama")


def test_the_warm_model_waits_until_a_clients_model_has_left() -> None:
    """One place, two models: no tug-of-war."""
    made = settings()
    world = World(made).up()
    world.engines["ollama"].loaded = ("llama3.2:1b",)
    before = len(world.loads)
    world.tick(200)
    assert len(world.loads) == before
    world.engines["ollama"].loaded = ()
    world.tick(200)
    assert len(world.loads) == before + 1


def test_a_load_that_failed_is_told_and_ends_its_lease() -> None:
    """With the load gate's reason; one that nobody was granted is not told."""
    world = World(two_models()).up()
    answer = world.ask_load("llama3.2:1b", 2 * GIB)
    world.asks.clear()
    admitted = world.told(EventName.LOAD_ADMITTED)
    world.dones += [
        LoadDone(answer.id, "ollama", "HTTP 500"),
        LoadDone("load-x", "ollama", "HTTP 500"),
    ]
    decision = world.tick()
    assert not world.state.leases
    told = [one for one in decision.events if one.name is EventName.LOAD_REFUSED]
    assert ["HTTP 500" in one.message for one in told] == [True]
    assert world.told(EventName.LOAD_ADMITTED) == admitted


def test_a_load_for_a_backend_that_is_not_there_is_refused() -> None:
    """And one for a backend that is not ready waits or is refused, but never granted."""
    world = World(two_models()).up()
    assert world.ask_load("m", GIB, "nobody").verdict is LoadVerdict.REFUSE
    world.asks.clear()
    world.die("ollama", Exit(code=1))
    assert world.ask_load("llama3.2:1b", GIB).verdict is not LoadVerdict.GRANT


def test_a_warm_model_that_cannot_be_loaded_leaves_the_engine_to_serve_cold() -> None:
    """It is tried again every 30 s, each failure is told, and it loads once it can."""
    world = World(only("ollama"), load_fails="HTTP 500")
    world.until("ollama", Phase.READY)
    world.tick(2)
    for failures in (1, 2, 3, 4):
        assert world.told(EventName.LOAD_REFUSED, "ollama") == failures
        assert world.view("ollama").accepting
        world.tick(round(30.0 / TICK_S) - 2)
        assert world.told(EventName.LOAD_REFUSED, "ollama") == failures
        world.tick(3)
    assert world.state.backends["ollama"].warm.failures == 5
    world.load_fails = ""
    world.tick(round(31.0 / TICK_S))
    assert world.loads == ["qwen2.5:3b"]
    assert world.state.backends["ollama"].warm.failures == 0
