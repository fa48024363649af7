"""TensorFlow's progress and canary: what the door counts, and one body that was tried before ready."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.backend.carry import pack
from arbiterd.core.state import State
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.gateway import Traffic
from arbiterd.quantities import MIB
from tests.core.world import TICK_S, World, only

STUCK = round(60 / TICK_S)  # ticks of stuck_after


def up(**over: object) -> World:
    """TensorFlow alone, ready."""
    world = World(only("tensorflow"), **over)  # type: ignore[arg-type]
    world.until("tensorflow", Phase.READY)
    return world


def asked(world: World, ticks: int) -> int:
    """Canaries ordered within so many ticks."""
    count = 0
    for _ in range(ticks):
        count += sum(one.canary_due for one in world.tick().probes)
    return count


def test_a_canary_is_tried_once_before_ready_and_kept() -> None:
    """Within the start gate: it is starting until the trial is over."""
    world = World(only("tensorflow"))
    phases = []
    for _ in range(40):
        orders = world.tick().probes
        if any(one.trial for one in orders):
            phases.append(world.phase("tensorflow"))
    assert set(phases) == {Phase.STARTING}
    assert world.phase("tensorflow") is Phase.READY
    assert world.view("tensorflow").canaries == {"m": ""}


def test_a_canary_that_moves_memory_or_is_refused_is_none_and_says_why() -> None:
    """64 MiB on the card, an error, a time-out: this model has none; it is ready all the same."""
    moves = up(canary_moves=64 * MIB)
    assert moves.view("tensorflow").canaries == {"m": "it moved 64 MiB on the card"}
    less = up(canary_moves=64 * MIB - 1)
    assert less.view("tensorflow").canaries == {"m": ""}
    refused = up(no_canary={"m": "HTTP 400: expects serialized examples"})
    assert refused.view("tensorflow").canaries == {"m": "HTTP 400: expects serialized examples"}


def test_a_trial_without_a_result_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for ever in the start gate."""
    monkeypatch.setattr(World, "_trial", lambda _world, _model: None)
    assert "not tried within" in up().view("tensorflow").canaries["m"]


def test_absence_of_traffic_is_never_evidence() -> None:
    """An idle quarter of an hour: no canary, whatever it would have answered."""
    world = up()
    world.engines["tensorflow"].canary_ok = False
    world.traffic["tensorflow"] = Traffic(requests=7, responses={"2": 7})
    assert asked(world, round(900 / TICK_S)) == 0
    assert world.view("tensorflow").accepting


def test_nothing_counted_is_no_evidence_either() -> None:
    """Without a gateway nobody counts; its own counter of status URLs proves nothing."""
    world = up()
    world.engines["tensorflow"].canary_ok = False
    assert asked(world, 4 * STUCK) == 0


def test_requests_let_in_without_an_answer_are_a_suspicion_and_two_time_outs_the_proof() -> None:
    """After stuck_after, not before; then it is restarted."""
    world = up()
    world.engines["tensorflow"].canary_ok = False
    world.traffic["tensorflow"] = Traffic(in_flight=3, requests=10, responses={"2": 7})
    world.tick()
    assert asked(world, STUCK - 4) == 0
    assert asked(world, 12) >= 1
    world.tick(12)
    assert world.told(EventName.STUCK, "tensorflow") == 1
    assert "tensorflow" in world.stopped


def test_requests_whose_clients_gave_up_count_as_let_in() -> None:
    """HAProxy's 504 after request_timeout (30 s) leaves nobody in flight; no answer came all the same."""
    world = up()
    world.engines["tensorflow"].canary_ok = False
    world.traffic["tensorflow"] = Traffic(requests=7, responses={"2": 7})
    world.tick(4)
    world.traffic["tensorflow"] = Traffic(requests=8, responses={"2": 7})
    assert asked(world, STUCK + 12) >= 1
    world.tick(12)
    assert "tensorflow" in world.stopped


def test_a_slow_model_is_asked_and_left_alone() -> None:
    """Its canary comes back: the next suspicion is another stuck_after away."""
    world = up()
    world.traffic["tensorflow"] = Traffic(in_flight=1, requests=8, responses={"2": 7})
    assert 1 <= asked(world, 4 * STUCK) <= 4
    assert world.stopped == []
    assert world.view("tensorflow").accepting


@pytest.mark.parametrize("code", ["2", "4", "5"])
def test_any_answer_ends_a_suspicion(code: str) -> None:
    """Also a 429 or a 500 is an answer of the engine's."""
    world = up()
    world.engines["tensorflow"].canary_ok = False
    for step in range(4 * STUCK):
        count = step // 40
        responses = {"3": 7, code: 7 + count}
        world.traffic["tensorflow"] = Traffic(2, requests=20 + count, responses=responses)
        assert not any(one.canary_due for one in world.tick().probes)
    assert world.stopped == []


def test_without_a_canary_a_silence_is_told_once_and_nothing_is_done() -> None:
    """A slow model looks the same."""
    world = up(no_canary={"m": "no answer within 5 s"})
    world.traffic["tensorflow"] = Traffic(in_flight=1, requests=8, responses={"2": 7})
    assert asked(world, 4 * STUCK) == 0
    assert world.told(EventName.STUCK, "tensorflow") == 1
    assert world.stopped == []
    assert world.view("tensorflow").accepting


def test_what_was_found_outlives_the_daemon() -> None:
    """An adopted server is not tried again: its start gate is past."""
    world = up()
    world.state = State(run="next", carried=pack(world.state))
    world.until("tensorflow", Phase.READY)
    assert world.view("tensorflow").canaries == {"m": ""}
    world.state = State(run="third")
    world.until("tensorflow", Phase.READY)
    assert "not tried" in world.view("tensorflow").canaries["m"]


def test_each_model_is_tried_alone() -> None:
    """One after the other, so that the bytes are those of one."""
    made = only("tensorflow")
    two = replace(made.active.backends["tensorflow"], models=("m", "n"))
    mode = replace(made.active, backends={"tensorflow": two})
    world = World(replace(made, modes={"A": mode}), no_canary={"n": "HTTP 400"})
    world.until("tensorflow", Phase.READY)
    assert world.view("tensorflow").canaries == {"m": "", "n": "HTTP 400"}
