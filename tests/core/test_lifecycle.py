"""The life of a backend, as facts about an imaginary host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.decide import decide
from arbiterd.core.limits import DRAINED_GRACE_S, HEALTHY_S
from arbiterd.core.state import State
from arbiterd.model.actions import StopBackend, Verb
from arbiterd.model.backend import Phase
from arbiterd.model.devices import Pressure
from arbiterd.model.events import EventName
from arbiterd.model.gateway import Traffic
from arbiterd.model.launch import Exit
from arbiterd.model.observation import HostFacts
from arbiterd.model.settings import Mode
from arbiterd.quantities import GIB, MIB
from tests.core.world import OLLAMA, TF, VLLM, Engine, World, only, settings, share


def test_engines_start_in_order_each_to_readiness() -> None:
    """TensorFlow, vLLM, Ollama; never two at a time."""
    world = World(settings())
    order = []
    for _ in range(60):
        world.tick()
        starting = [n for n in world.settings.active.shares if world.phase(n) is Phase.STARTING]
        assert len(starting) <= 1
        order += [n for n in starting if n not in order]
    assert order == ["tensorflow", "vllm", "ollama"]
    assert all(world.view(n).accepting for n in order)


def test_nothing_starts_on_fewer_than_three_samples() -> None:
    """Judge nothing on stale or single readings."""
    world = World(only("vllm"))
    world.tick(2)
    assert world.phase("vllm") is Phase.WAITING
    world.until("vllm", Phase.STARTING, ticks=5)


def test_the_first_model_is_loaded_and_until_then_nothing_is_accepted() -> None:
    """Ollama's warm model; a second look does not load it again."""
    world = World(only("ollama")).up()
    assert world.loads == ["qwen2.5:3b"]
    assert world.view("ollama").accepting
    world.tick(200)
    assert world.loads == ["qwen2.5:3b"]


def test_a_start_without_room_waits_and_names_the_holder_after_ten_seconds() -> None:
    """The stranger is named with pid, user and unit; it is never stopped."""
    world = World(only("vllm"))
    world.strangers[7] = ("GPU-0", 20 * GIB)
    world.tick(30)
    assert world.phase("vllm") is Phase.WAITING
    assert world.told(EventName.BLOCKED_START) == 0
    world.tick(20)
    assert world.told(EventName.BLOCKED_START) == 1
    assert "pid 7 (python of bob, x.service) 20.00 GiB" in world.view("vllm").reason
    del world.strangers[7]
    world.up()
    assert world.told(EventName.RECOVERED, "vllm") == 1


def test_one_that_waits_for_room_does_not_hold_up_the_next() -> None:
    """vLLM cannot fit beside the stranger, Ollama can: it starts."""
    world = World(only("vllm", "ollama"))
    world.strangers[7] = ("GPU-0", 12 * GIB)
    world.until("ollama", Phase.READY)
    assert world.phase("vllm") is Phase.WAITING


def test_a_missing_command_blocks_that_backend_only() -> None:
    """The reason is the host's sentence."""
    world = World(
        only("vllm", "ollama"), host=HostFacts(missing_commands={"vllm": "vllm is not there"})
    )
    world.until("ollama", Phase.READY)
    assert world.view("vllm").reason == "vllm is not there"


def test_death_is_examined_cleaned_up_and_restarted_after_back_off() -> None:
    """stopping → backoff → waiting → starting → ready, with one incident from first to last."""
    world = World(only("vllm")).up()
    world.die("vllm", Exit(signal=9), orphan=True)
    phases: list[Phase] = []
    for _ in range(60):
        world.tick()
        if not phases or phases[-1] is not world.phase("vllm"):
            phases.append(world.phase("vllm"))
    assert phases[:3] == [Phase.STOPPING, Phase.BACKOFF, Phase.WAITING]
    assert phases[-1] is Phase.READY
    assert world.stopped == ["vllm"]
    assert world.decision is not None
    mine = [i for i in world.decision.incidents if i.backend == "vllm"]
    assert len(mine) == 1
    assert mine[0].closed_at is not None
    assert world.view("vllm").restarts == 1


def test_a_crash_is_told_as_a_crash_and_a_stop_as_a_stop() -> None:
    """`journalctl -x` explains by the event's name: nobody has asked a crashed backend to go, and
    nobody has killed it.
    """
    world = World(only("vllm")).up()
    world.die("vllm", Exit(signal=9), orphan=True)
    world.until("vllm", Phase.BACKOFF)
    assert world.told(EventName.EXIT, "vllm") == 1
    assert world.told(EventName.CLEANUP, "vllm") == 1
    assert world.told(EventName.RELEASED, "vllm") == 1
    assert world.told(EventName.STOP, "vllm") == 0
    assert world.told(EventName.KILL, "vllm") == 0
    world.until("vllm", Phase.READY)
    world.ask(Verb.RESTART, "vllm")
    world.until("vllm", Phase.STARTING)
    assert world.told(EventName.STOP, "vllm") == 1
    assert world.told(EventName.CLEANUP, "vllm") == 1
    assert world.told(EventName.RELEASED, "vllm") == 2


def test_exit_zero_unasked_is_a_failure() -> None:
    """vLLM ends with 0 when its engine core dies (vllm #48966)."""
    world = World(only("vllm")).up()
    world.die("vllm", Exit(code=0))
    world.tick(2)
    assert world.told(EventName.EXIT, "vllm") == 1
    world.until("vllm", Phase.READY)


@pytest.mark.parametrize("name", ["vllm", "tensorflow", "ollama"])
def test_the_innocent_are_never_touched(name: str) -> None:
    """Whoever dies, only it is stopped."""
    world = World(settings()).up()
    world.die(name, Exit(code=1), "boom")
    world.until(name, Phase.READY)
    assert set(world.stopped) == {name}


def test_five_failures_open_the_breaker_and_one_try_comes_every_five_minutes() -> None:
    """failed, one crash_loop event; a half-open start after 300 s; success closes the incident."""
    world = World(only("vllm"), crash_on_start={"vllm": (Exit(code=1), "boom")})
    world.until("vllm", Phase.FAILED, ticks=2000)
    assert world.told(EventName.CRASH_LOOP) == 1
    began = world.now
    world.crash_on_start = {}
    world.until("vllm", Phase.STARTING, ticks=2000)
    assert 290 <= world.now - began <= 310
    world.until("vllm", Phase.READY)


@pytest.mark.parametrize(("ready_s", "waits"), [(HEALTHY_S - 60.0, True), (HEALTHY_S + 1.0, False)])
def test_the_first_failure_after_an_hour_needs_no_back_off(ready_s: float, *, waits: bool) -> None:
    """It waits for its turn as soon as its bytes are back; the second failure rests as ever."""
    world = World(only("vllm")).up()
    world.now += ready_s
    world.unseen_s = 0.0
    world.tick(4)
    world.until("vllm", Phase.READY)
    world.die("vllm", Exit(signal=9), orphan=True)
    assert _path(world)[:2] == [Phase.STOPPING, Phase.BACKOFF if waits else Phase.WAITING]
    world.die("vllm", Exit(signal=9), orphan=True)
    assert _path(world)[:2] == [Phase.STOPPING, Phase.BACKOFF]


def _path(world: World) -> list[Phase]:
    """Phases until it is ready again."""
    phases: list[Phase] = []
    while not phases or phases[-1] is not Phase.READY:
        world.tick()
        if not phases or phases[-1] is not world.phase("vllm"):
            phases.append(world.phase("vllm"))
    return phases


def test_back_off_doubles_and_is_bounded() -> None:
    """1 s, 2 s, 4 s with up to 25 % jitter."""
    world = World(only("vllm"), crash_on_start={"vllm": (Exit(code=1), "boom")})
    waits = []
    for _ in range(4):
        world.until("vllm", Phase.BACKOFF, ticks=2000)
        began = world.now
        world.until("vllm", Phase.WAITING, ticks=2000)
        waits.append(world.now - began)
    for got, wanted in zip(waits, (1, 2, 4, 8), strict=True):
        assert wanted <= got + 0.25 <= wanted * 1.25 + 0.8


def test_a_cause_that_retrying_cannot_cure_is_not_retried() -> None:
    """A bad flag: failed at once, until resume or another configuration."""
    world = World(
        only("vllm"),
        crash_on_start={"vllm": (Exit(code=2), "vllm: error: unrecognized arguments: --x")},
    )
    world.until("vllm", Phase.FAILED)
    world.tick(400, dt=10.0)
    assert world.phase("vllm") is Phase.FAILED
    assert "--x" in world.view("vllm").reason
    world.crash_on_start = {}
    world.ask(Verb.RESUME, "vllm")
    world.until("vllm", Phase.READY)


def test_the_next_start_waits_for_the_bytes() -> None:
    """Ten seconds of release lag: no start before; release_slow only after twenty."""
    world = World(only("vllm"), lag_s=10.0).up()
    world.ask(Verb.RESTART, "vllm")
    world.until("vllm", Phase.STOPPING)
    began = world.now
    world.until("vllm", Phase.STARTING)
    assert world.now - began >= 10
    assert world.told(EventName.RELEASE_SLOW) == 0


def test_a_release_that_takes_too_long_is_an_incident() -> None:
    """Thirty seconds: release_slow, then over."""
    world = World(only("vllm"), lag_s=30.0).up()
    world.ask(Verb.RESTART, "vllm")
    world.until("vllm", Phase.STARTING)
    assert world.told(EventName.RELEASE_SLOW) == 1


def test_memory_that_drops_before_the_list_does_is_no_baseline() -> None:
    """A container's client ends after its engine: for a moment less is used than the list says."""
    world = World(only("vllm")).up()
    held = world.engines["vllm"].held
    world.ghosts.append((world.now + 0.6, "GPU-0", -held))
    world.tick(2)
    world.die("vllm", Exit(signal=9))
    world.until("vllm", Phase.READY)
    assert world.told(EventName.RELEASE_SLOW) == 0


def test_a_sick_engine_stops_accepting_and_is_restarted_after_stuck_after() -> None:
    """Three bad probes; the restart comes when stuck_after has passed."""
    world = World(only("vllm")).up()
    world.engines["vllm"].ok = False
    world.tick(4)
    assert not world.view("vllm").accepting
    assert world.phase("vllm") is Phase.READY
    world.until("vllm", Phase.STOPPING)
    assert world.told(EventName.UNHEALTHY) == 1


def test_one_bad_probe_is_load_not_death() -> None:
    """Thresholds both ways."""
    world = World(only("tensorflow")).up()
    world.engines["tensorflow"].ok = False
    world.tick(2)
    world.engines["tensorflow"].ok = True
    world.tick(10)
    assert world.view("tensorflow").accepting
    assert world.told(EventName.UNHEALTHY) == 0


def test_a_canary_that_does_not_come_back_is_stuck() -> None:
    """Idle and /health says yes: two canaries fail, accepting ends, restart after stuck_after."""
    world = World(only("vllm")).up()
    world.engines["vllm"].canary_ok = False
    for _ in range(120):
        world.tick()
        if not world.view("vllm").accepting:
            break
    assert world.told(EventName.STUCK) == 1
    world.until("vllm", Phase.STOPPING)


def test_counters_that_stand_still_under_load_are_stuck() -> None:
    """Requests run, work does not move for a third of stuck_after."""
    world = World(only("vllm")).up()
    world.engines["vllm"].running = 4
    world.tick(20)
    assert world.view("vllm").accepting
    world.tick(40)
    assert not world.view("vllm").accepting
    assert "no counter moved" in world.view("vllm").reason


def test_counters_that_move_are_health_enough() -> None:
    """A busy engine is sent no canary and stays accepting."""
    world = World(only("vllm")).up()
    world.engines["vllm"].running = 4
    for _ in range(300):
        world.engines["vllm"].work += 1
        decision = world.tick()
        assert not any(p.canary_due for p in decision.probes)
    assert world.view("vllm").accepting


def test_blind_means_no_start_no_stop() -> None:
    """NVML hangs: what runs runs on, what waits waits, the incident is told once."""
    world = World(settings()).up()
    world.blind = "hung for 5.0 s"
    world.tick(40)
    assert all(world.view(n).accepting for n in world.settings.active.shares)
    assert world.stopped == []
    assert world.told(EventName.DRIVER_HUNG) == 1
    world.die("ollama", Exit(code=1), "boom")
    world.tick(100)
    assert world.phase("ollama") is not Phase.STARTING
    world.blind = ""
    world.until("ollama", Phase.READY)
    assert world.told(EventName.DRIVER_BACK) == 1


def test_a_lost_gpu_blocks_only_its_own() -> None:
    """GPU 1 is gone: vLLM there waits, Ollama on GPU 0 starts."""
    shares = {"ollama": share("ollama", 0.2), "vllm": share("vllm", 0.5, gpu=1)}
    modes = {"B": Mode("B", shares, {"ollama": OLLAMA, "vllm": VLLM})}
    world = World(settings(modes, "B"), gpus=2)
    world.lost = {1}
    world.until("ollama", Phase.READY)
    assert world.phase("vllm") is Phase.WAITING
    assert "GPU 1 is lost" in world.view("vllm").reason
    world.lost = set()
    world.until("vllm", Phase.READY)


def test_two_devices_start_side_by_side() -> None:
    """One memory event per device, not per host."""
    shares = {"ollama": share("ollama", 0.2), "vllm": share("vllm", 0.5, gpu=1)}
    world = World(settings({"B": Mode("B", shares, {"ollama": OLLAMA, "vllm": VLLM})}, "B"), gpus=2)
    world.until("vllm", Phase.STARTING)
    assert world.phase("ollama") is Phase.STARTING


def test_a_switch_restarts_what_differs_and_keeps_what_is_equal() -> None:
    """vLLM moves to GPU 1; Ollama is not stopped; TensorFlow, not named, is."""
    b = {"vllm": share("vllm", 0.7, gpu=1), "ollama": share("ollama", 0.2)}
    a = settings().modes["A"]
    world = World(
        settings({"A": a, "B": Mode("B", b, {"vllm": VLLM, "ollama": OLLAMA})}), gpus=2
    ).up()
    pid = world.engines["ollama"].pid
    world.switch("B")
    world.tick(120)
    assert sorted(world.stopped) == ["tensorflow", "vllm"]
    assert world.engines["ollama"].pid == pid
    assert world.view("vllm").devices == ("GPU-1",)
    assert world.phase("vllm") is Phase.READY
    assert "tensorflow" not in world.engines


def test_what_runs_at_start_is_adopted_not_restarted() -> None:
    """Same pid; the gate does not count it as new."""
    world = World(only("vllm")).up()
    again = World(only("vllm"), engines=world.engines, now=world.now)
    again.until("vllm", Phase.READY)
    assert again.stopped == []
    assert again.told(EventName.ADOPTED) == 1
    assert again.told(EventName.START) == 0


def test_an_adopted_stranger_of_the_mode_is_stopped() -> None:
    """A backend of ours that the mode does not name."""
    world = World(only("vllm"))
    world.engines["ollama"] = Engine("ollama", 50, "x", "", ("GPU-0",), GIB)
    world.until("vllm", Phase.READY)
    assert world.stopped == ["ollama"]


def test_a_unit_that_vanished_was_stopped_by_a_person() -> None:
    """It stays stopped until resume."""
    world = World(only("vllm")).up()
    del world.engines["vllm"]
    world.tick(100)
    assert world.phase("vllm") is Phase.STOPPED
    assert world.told(EventName.STOPPED_BY_OPERATOR) == 1
    world.ask(Verb.RESUME, "vllm")
    world.until("vllm", Phase.READY)


def test_stopping_stops_everything_and_settles() -> None:
    """On the way down nothing is started; settled when all is gone."""
    world = World(settings()).up()
    world.stopping = True
    for _ in range(60):
        decision = world.tick()
        if decision.settled:
            break
    assert decision.settled
    assert world.engines == {}


def test_stopping_does_not_wait_for_a_blind_card() -> None:
    """The bytes cannot be seen: the end comes all the same."""
    world = World(settings()).up()
    world.blind = "hung"
    world.stopping = True
    world.tick(60)
    assert world.decision is not None
    assert world.decision.settled


def test_a_start_that_never_gets_ready_fails_at_its_deadline() -> None:
    """start_timeout without progress."""
    world = World(only("vllm"), start_s=1e9)
    world.until("vllm", Phase.STARTING)
    began = world.now
    world.until("vllm", Phase.STOPPING, ticks=2000)
    assert 55 <= world.now - began <= 70


def test_a_launcher_that_cannot_start_says_why() -> None:
    """Its sentence becomes the reason of the back-off."""
    world = World(only("vllm"), fail_starts={"vllm": "cannot start vllm: it is not executable"})
    world.until("vllm", Phase.BACKOFF)
    assert "it is not executable" in world.view("vllm").reason


def test_drain_and_resume() -> None:
    """Draining accepts nothing and stops nothing."""
    world = World(only("vllm")).up()
    world.ask(Verb.DRAIN, "vllm")
    world.tick(20)
    assert world.phase("vllm") is Phase.DRAINING
    assert world.stopped == []
    world.ask(Verb.RESUME, "vllm")
    world.tick(2)
    assert world.view("vllm").accepting


def _stopped_after(world: World, name: str) -> tuple[float, float]:
    """(seconds of draining, grace of the stop) once a restart has been asked for."""
    began = world.now
    world.ask(Verb.RESTART, name)
    for _ in range(400):
        world.tick()
        stops = [one for one in world.ordered if isinstance(one, StopBackend)]
        if stops:
            return world.now - began, stops[-1].grace_s
    raise AssertionError("it was never stopped")


def test_a_stream_that_outlasts_its_drain_at_the_door_ends_within_a_bound() -> None:
    """drain_timeout at the door, then 5 s from SIGTERM to SIGKILL of the cgroup: vLLM would drain
    once more and then wait for its client for ever.
    """
    world = World(only("vllm")).up()
    world.traffic["vllm"] = Traffic(in_flight=1, limit=8, engine_up=True)
    drained_s, grace_s = _stopped_after(world, "vllm")
    assert 30.0 <= drained_s < 32.0
    assert grace_s == DRAINED_GRACE_S


def test_a_door_that_was_not_looked_at_yet_says_nobody_idle() -> None:
    """The first ticks of a daemon that goes on with a drain: the requests under way are not cut."""
    world = World(only("vllm")).up()
    world.looked = False
    drained_s, _ = _stopped_after(world, "vllm")
    assert 30.0 <= drained_s < 32.0


def test_what_its_door_has_drained_does_not_drain_itself_once_more() -> None:
    """An idle vLLM stays for its whole --shutdown-timeout after a SIGTERM (0.32), and so do its bytes."""
    world = World(only("vllm")).up()
    world.traffic["vllm"] = Traffic(in_flight=0, limit=8, engine_up=True)
    drained_s, grace_s = _stopped_after(world, "vllm")
    assert drained_s < 5.0
    assert grace_s == DRAINED_GRACE_S


def test_without_a_door_the_engine_gets_its_own_drain() -> None:
    """New requests may still come: SIGTERM refuses them, what runs has drain_timeout."""
    world = World(only("vllm")).up()
    world.engines["vllm"].running = 1
    _, grace_s = _stopped_after(world, "vllm")
    assert grace_s == 45.0


def test_a_unit_that_a_person_stops_takes_no_new_work_until_it_is_gone() -> None:
    """vLLM answers 500 to new requests meanwhile and 200 on /health; it is not restarted for that."""
    world = World(only("vllm")).up()
    world.engines["vllm"].stopping_by_hand = True
    world.engines["vllm"].canary_ok = False
    world.tick(400)
    assert not world.view("vllm").accepting
    assert world.view("vllm").reason == "its unit is being stopped"
    assert world.told(EventName.STUCK) == world.told(EventName.EXIT) == 0
    del world.engines["vllm"]
    world.until("vllm", Phase.STOPPED)
    world.tick(100)
    assert world.phase("vllm") is Phase.STOPPED


def test_stop_all_holds_until_resume() -> None:
    """Each backend stays stopped until it is resumed."""
    world = World(settings()).up()
    world.ask(Verb.STOP_ALL)
    world.tick(100)
    assert world.engines == {}
    world.ask(Verb.RESUME, "ollama")
    world.until("ollama", Phase.READY)
    assert world.phase("vllm") is Phase.STOPPED


def test_retry_after_is_honest_about_a_start() -> None:
    """It counts down with the measured start-up time."""
    world = World(only("vllm"), start_s=20.0).up()
    world.ask(Verb.RESTART, "vllm")
    world.until("vllm", Phase.STARTING)
    world.tick(40)
    assert 8 <= world.view("vllm").retry_after_s <= 12


def test_pressure_follows_a_stranger_with_dwell() -> None:
    """Tight after two seconds of lost headroom, calm again after twenty."""
    world = World(settings()).up()

    def band() -> Pressure:
        return world.tick().devices["GPU-0"].pressure

    world.strangers[7] = ("GPU-0", 1500 * MIB)
    assert [band() for _ in range(4)] == [Pressure.CALM] * 4
    world.tick(6)
    assert band() is Pressure.TIGHT
    assert world.told(EventName.PRESSURE_RISE) == 1
    del world.strangers[7]
    assert {band() for _ in range(40)} == {Pressure.TIGHT}
    world.tick(60)
    assert band() is Pressure.CALM


def test_a_leftover_of_ours_without_a_unit_is_killed() -> None:
    """An EngineCore that outlived its unit; a stranger never is."""
    world = World(only("ollama")).up()
    world.engines["ghost"] = Engine("vllm", 77, "", "", ("GPU-0",), GIB, alive=False, orphans=(77,))
    units = world._units
    world._units = lambda: {n: u for n, u in units().items() if n != "ghost"}  # type: ignore[method-assign]
    world.strangers[9] = ("GPU-0", GIB)
    world.tick(12)
    assert world.told(EventName.ORPHAN_KILLED) >= 1
    assert 9 in world.strangers


def test_decide_is_pure() -> None:
    """The same observation and state give the same decision, and the old state is as it was."""
    world = World(settings()).up()
    before = world.state
    seen = world.observation()
    first = decide(seen, before, world.settings)
    second = decide(seen, before, world.settings)
    assert first == second
    assert world.state is before


def test_an_empty_host_is_no_error() -> None:
    """No devices, NVML missing: waiting, an incident, no crash."""
    world = World(only("vllm"), gpus=0)
    world.blind = "library missing"
    world.tick(60)
    assert world.phase("vllm") is Phase.WAITING
    assert "library missing" in world.view("vllm").reason


def test_state_starts_empty() -> None:
    """A fresh state knows nothing and says so."""
    assert State(run="x").first_tick
    assert replace(State(run="x"), tick=3).tick == 3
    assert TF.priority == 20


def test_whose_port_it_is_is_told_within_an_open_exit() -> None:
    """The port is stolen while its engine is dead: one port_taken in the incident of the exit, and the
    engine starts as soon as the port is free.
    """
    world = World(only("vllm")).up()
    taken = "port 18000 is taken by pid 7 (nc)"
    world.host = HostFacts(taken_ports={"vllm": taken})
    world.die("vllm", Exit(signal=9))
    world.until("vllm", Phase.WAITING, ticks=200)
    world.tick(100)
    assert world.phase("vllm") is Phase.WAITING
    assert taken in world.view("vllm").reason
    assert world.told(EventName.PORT_TAKEN, "vllm") == 1
    mine = [one for one in world.state.incidents if one.backend == "vllm"]
    open_ = [one for one in mine if one.closed_at is None]
    assert [one.event for one in open_] == [EventName.EXIT]
    assert taken in dict(open_[0].evidence)["port_taken"]
    world.host = HostFacts()
    world.until("vllm", Phase.READY)
    assert not [one for one in world.state.incidents if one.closed_at is None]


def test_an_engine_that_lives_on_without_its_port_waits_for_it() -> None:
    """TensorFlow Serving whose REST port is taken says so in its log and goes on: it is stopped long before
    its start_timeout, the thief is named, and it starts as soon as the port is free.
    """
    world = World(only("tensorflow")).up()
    world.start_s = 1e6
    world.die("tensorflow", Exit(signal=9))
    world.until("tensorflow", Phase.STARTING, ticks=200)
    world.host = HostFacts(taken_ports={"tensorflow": "port 18501 is taken by pid 7 (nc)"})
    world.until("tensorflow", Phase.WAITING, ticks=200)
    world.tick(40)
    assert world.phase("tensorflow") is Phase.WAITING
    assert world.told(EventName.PORT_TAKEN, "tensorflow") == 1
    world.host, world.start_s = HostFacts(), 1.0
    world.until("tensorflow", Phase.READY)
    assert not [one for one in world.state.incidents if one.closed_at is None]
