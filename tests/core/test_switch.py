"""Switching, as tables on an imaginary host: what is equal stays, the rest goes to the new layout or,
when that does not come up, back to the old one - also when the daemon dies at any tick of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import pytest
from pydantic import TypeAdapter

from arbiterd.core.backend.carry import pack
from arbiterd.core.decide import decide
from arbiterd.core.mode import config_state
from arbiterd.core.mode.config_state import Changed, ConfigState, Disk, File, Kept, Write
from arbiterd.core.mode.diff import plan
from arbiterd.core.mode.intent import intent
from arbiterd.core.state import Carry, State
from arbiterd.model.actions import Verb
from arbiterd.model.backend import Phase
from arbiterd.model.decision import Decision
from arbiterd.model.events import EventName, Severity
from arbiterd.model.gateway import Traffic
from arbiterd.model.launch import Exit
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Mode, Settings, Source
from arbiterd.model.switch import Change, Ended
from tests.core.world import OLLAMA, TF, TICK_S, VLLM, World, settings, share

# A: all on card 0. B: vLLM moves, TensorFlow goes, Ollama stays. C: vLLM on card 1, Ollama smaller.
MODES = {
    "A": Mode(
        "A",
        {
            "tensorflow": share("tensorflow", 0.2),
            "vllm": share("vllm", 0.55),
            "ollama": share("ollama", 0.2),
        },
        {"tensorflow": TF, "vllm": VLLM, "ollama": OLLAMA},
    ),
    "B": Mode(
        "B",
        {"vllm": share("vllm", 0.75, gpu=1), "ollama": share("ollama", 0.2)},
        {"vllm": VLLM, "ollama": OLLAMA},
    ),
    "C": Mode(
        "C",
        {"vllm": share("vllm", 0.75, gpu=1), "ollama": share("ollama", 0.1)},
        {"vllm": VLLM, "ollama": OLLAMA},
    ),
    "D": Mode(
        "D",
        {
            "tensorflow": share("tensorflow", 0.3, gpu=1),
            "vllm": share("vllm", 0.4, gpu=1),
            "ollama": share("ollama", 0.1, gpu=1),
        },
        {"tensorflow": TF, "vllm": VLLM, "ollama": OLLAMA},
    ),
}
_loads = iter(range(1, 1_000_000))


def file(mode: str) -> Settings:
    """The file with this mode line, as it would be loaded: a digest of its own, a new load each time."""
    made = settings(MODES, mode)
    return replace(made, source=Source("/etc/gpu-arbiter.toml", f"sha-{mode}", float(next(_loads))))


def written(disk: Disk, writes: Iterable[Write]) -> Disk:
    """The files after these writes."""
    for file_, text in writes:
        kept = Kept(text, text) if text else Kept()
        match file_:
            case File.LAST_GOOD:
                disk = replace(disk, good=kept)
            case File.PREVIOUS:
                disk = replace(disk, previous=kept)
            case File.ROLLED_BACK:
                row = json.loads(text) if text else {"sha256": "", "reason": ""}
                disk = replace(disk, refused_sha=row["sha256"], reason=row["reason"])
    return disk


@dataclass
class Host(World):
    """The imaginary host, its configuration file and what the daemon keeps of it. A digest stands for a text."""

    config: ConfigState | None = None
    on_disk: Settings | None = None
    disk: Disk = Disk()
    writes: list[Write] = field(default_factory=list)
    files: dict[str, Settings] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)

    def tick(self, count: int = 1, dt: float = TICK_S) -> Decision:
        """As the loop does it: settings are taken before, a switch's end is written down after."""
        made: Decision | None = None
        for _ in range(count):
            self.config = config_state.take(self._config())
            self.settings = self.config.in_force
            made = super().tick(1, dt)
            if made.switch is not None:
                self.begun.append(made.switch.to_mode)
            ended = config_state.switch_ended(
                self.config,
                self.state.good,
                self.state.rollback,
                under_way=made.switch is not None,
                back=made.back_to,
            )
            self._keep(ended)
        assert made is not None
        return made

    def _config(self) -> ConfigState:
        if self.config is None:
            self.on_disk = self.settings
            text = self.settings.source.sha256
            self.files[text] = self.settings
            begun = ConfigState(self.settings, self.settings, text)
            self._keep(config_state.started(begun, alive=False))
        assert self.config is not None
        return self.config

    def _keep(self, changed: Changed) -> None:
        """As the daemon does: the writes one by one, in their order."""
        self.config, writes = changed
        self.writes = list(writes)
        self.disk = written(self.disk, writes)
        assert self.disk == self.config.disk

    @property
    def previous(self) -> str:
        """The text to go back to, "" for none."""
        return self.disk.previous.text

    @property
    def refused(self) -> tuple[str, str]:
        """The text that was rolled back, and why."""
        return self.disk.refused_sha, self.disk.reason

    def observation(self) -> Observation:
        """With what waits in the queue."""
        queued = self._config().queued
        mode = queued.mode if queued else ""
        return replace(super().observation(), settings_queued=queued is not None, queued_mode=mode)

    def reload(self, mode: str) -> Settings:
        """The mode line was edited and the daemon told; returns what was accepted."""
        made = self.edit(mode)
        self._keep(config_state.accept(self._config(), made, made.source.sha256))
        return made

    def edit(self, mode: str) -> Settings:
        """The mode line was edited."""
        self._config()
        made = self.on_disk = file(mode)
        self.files[made.source.sha256] = made
        return made

    def restart(self, *, carry: Carry | None) -> None:
        """The daemon is killed and starts again, with what its predecessor had written down."""
        assert self.on_disk is not None
        kept = self.disk.instead(self.on_disk.source.sha256)
        start = self.files[kept.sha] if kept.sha else self.on_disk
        why = self.disk.reason if kept.sha else ""
        start = replace(start, source=replace(start.source, loaded_at=float(next(_loads))))
        stored = None
        if carry is not None:
            stored = TypeAdapter(Carry).validate_python(asdict(carry))
        self.outcomes, self.requests = [], []
        self.settings = start
        begun = ConfigState(start, start, start.source.sha256, disk=self.disk)
        guards, starts = config_state.guarding, config_state.started
        self._keep(guards(begun) if kept.sha else starts(begun, alive=True))
        good = self.files.get(self.disk.previous.sha)
        self.config = replace(self._config(), switching=good is not None)
        self.state = State(
            run="u",
            incidents=self.state.incidents,
            carried=stored,
            good=good,
            rollback=why if good else "",
        )
        self.decision = None

    def settle(self, ticks: int = 600) -> None:
        """Until nothing is under way any more."""
        for _ in range(ticks):
            decision = self.tick()
            if (
                decision.switch is None
                and self._config().queued is None
                and decision.back_to is None
            ):
                return
        msg = f"still switching: {decision.switch}"
        raise AssertionError(msg)

    def fork(self) -> Host:
        """The same moment once more, to go on from here in another way."""
        made = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict | set):
                setattr(made, name, copy.copy(value))
        made.engines = {name: copy.copy(one) for name, one in self.engines.items()}
        return made

    def break_b(self, *, broken: bool) -> None:
        """VLLM does not start in B, and starts again once A comes back."""
        self.fail_starts = {"vllm": "no"} if broken and not self.disk.refused_sha else {}

    def layout(self) -> str:
        """The mode whose backends run, all of them and no other, with its intents; "" for none."""
        running = {n: e.intent for n, e in self.engines.items() if e.alive}
        for name, mode in MODES.items():
            wanted = {n: intent(mode.backends[n], s) for n, s in mode.shares.items()}
            if running == wanted:
                return name
        return ""


def host(mode: str = "A") -> Host:
    """Everything ready in this mode."""
    one = Host(file(mode), gpus=2)
    one.up()
    return one


def pid(world: Host, name: str) -> int:
    """Of the engine."""
    return world.engines[name].pid


def last(world: Host) -> tuple[str, Ended]:
    """What came of the last reload."""
    assert world.decision is not None
    assert world.decision.last_switch is not None
    return world.decision.last_switch.to_mode, world.decision.last_switch.outcome


# -- the diff ------------------------------------------------------------------------------------
def test_what_is_equal_is_kept_and_the_rest_goes_through_in_order() -> None:
    """Ollama keeps its pid and is never stopped; TensorFlow goes; vLLM moves."""
    world = host()
    kept, moved = pid(world, "ollama"), pid(world, "vllm")
    assert plan(file("B"), dict(world.state.backends)) == {
        "vllm": Change.RESTART,
        "ollama": Change.KEEP,
        "tensorflow": Change.STOP,
    }
    loaded = world.reload("B")
    seen = world.tick().switch
    assert seen is not None
    assert (seen.from_mode, seen.to_mode, seen.rolling_back) == ("A", "B", "")
    assert {s.backend: s.change for s in seen.steps if s.change is not Change.KEEP} == {
        "vllm": Change.RESTART,
        "tensorflow": Change.STOP,
    }
    world.settle()
    assert world.layout() == "B"
    assert pid(world, "ollama") == kept
    assert pid(world, "vllm") != moved
    assert sorted(world.stopped) == ["tensorflow", "vllm"]
    assert last(world) == ("B", Ended.IN_FORCE)
    assert world.decision is not None
    assert world.decision.last_switch is not None
    assert world.decision.last_switch.loaded_at == loaded.source.loaded_at
    assert not world.previous


def test_a_switch_that_moves_every_engine_is_no_outage() -> None:
    """It was asked for and is followed: no incident of its own. That its layout cannot be had is one."""
    world = host()
    world.reload("D")
    world.settle()
    assert world.layout() == "D"
    assert sorted(world.stopped) == ["ollama", "tensorflow", "vllm"]
    assert world.told(EventName.ALL_UNAVAILABLE) == 0
    world.reload("A")
    world.tick()
    world.fail_starts = dict.fromkeys(("tensorflow", "vllm", "ollama"), "no")
    while world.tick().back_to is None:
        assert world.now < 1200, "no rollback"
    world.tick(120)
    assert world.told(EventName.ALL_UNAVAILABLE) == 1


def test_there_and_back_again() -> None:
    """A → B → A: the untouched one was never touched, and A is whole."""
    world = host()
    kept = pid(world, "ollama")
    for mode in ("B", "A"):
        world.reload(mode)
        world.settle()
        assert world.layout() == mode
    assert pid(world, "ollama") == kept
    assert world.view("ollama").restarts == 0
    assert "ollama" not in world.stopped


def test_running_requests_end_before_their_engine_is_stopped() -> None:
    """Drained first: the switch waits for them, up to drain_timeout."""
    world = host()
    world.traffic["vllm"] = Traffic(in_flight=2, limit=8, engine_up=True)
    world.reload("B")
    world.tick(40)
    assert world.phase("vllm") is Phase.DRAINING
    assert "vllm" not in world.stopped
    world.traffic["vllm"] = Traffic(in_flight=0, limit=8, engine_up=True)
    world.settle()
    assert world.layout() == "B"


def test_the_same_file_again_is_in_force_at_once() -> None:
    """A reload without a change is told as done, and touches nobody."""
    world = host()
    pids = {n: e.pid for n, e in world.engines.items()}
    world.reload("A")
    world.tick()
    assert last(world) == ("A", Ended.IN_FORCE)
    assert {n: e.pid for n, e in world.engines.items()} == pids


def test_the_estimate_adds_up_what_the_engines_took() -> None:
    """By device one after the other; from their own last stops and starts."""
    world = host()
    world.reload("B")
    world.settle()
    world.reload("A")
    seen = world.tick().switch
    assert seen is not None
    backends = world.state.backends
    tf, vllm = backends["tensorflow"], backends["vllm"]
    times = (tf.history.start_took_s, vllm.history.stop_took_s, vllm.history.start_took_s)
    assert None not in times
    assert seen.estimated_s == pytest.approx(sum(t or 0.0 for t in times))


# -- the way back --------------------------------------------------------------------------------
def test_a_layout_that_does_not_come_up_is_rolled_back_with_the_reason() -> None:
    """Two failed starts: A is whole again, the untouched one keeps its pid, the reason is told."""
    world = host()
    kept = pid(world, "ollama")
    world.reload("B")
    world.tick()
    world.fail_starts["vllm"] = "cannot allocate"
    while world.tick().back_to is None:
        assert world.now < 1200, "no rollback"
    world.fail_starts.clear()
    assert world.refused == ("sha-B", "vllm failed 2 times in it: cannot allocate")
    seen = world.tick().switch
    assert seen is not None
    assert "cannot allocate" in seen.rolling_back
    world.settle()
    assert world.layout() == "A"
    assert pid(world, "ollama") == kept
    assert last(world) == ("B", Ended.ROLLED_BACK)
    assert not [i for i in world.state.incidents if i.closed_at is None]
    assert not world.previous


def test_a_cause_that_starting_again_cannot_cure_is_rolled_back_at_once() -> None:
    """An unknown flag: no second try."""
    world = host()
    world.reload("B")
    world.tick()
    words = "vllm: error: unrecognized arguments: --nonsense"
    world.crash_on_start["vllm"] = (Exit(code=2), words)
    while world.tick().back_to is None:
        assert world.now < 1200, "no rollback"
    assert world.state.backends["vllm"].history.count == 1
    world.crash_on_start.clear()
    world.settle()
    assert world.layout() == "A"


def test_who_is_still_draining_when_the_way_back_begins_simply_goes_on() -> None:
    """TensorFlow had requests for all that time: it keeps its pid."""
    world = host()
    kept = pid(world, "tensorflow")
    world.traffic["tensorflow"] = Traffic(in_flight=1, limit=8, engine_up=True)
    world.reload("B")
    world.tick()
    assert world.phase("tensorflow") is Phase.DRAINING
    world.fail_starts["vllm"] = "no"
    while world.tick().back_to is None:
        assert world.now < 1200, "no rollback"
    world.fail_starts.clear()
    assert world.phase("tensorflow") is Phase.DRAINING
    world.settle()
    assert world.layout() == "A"
    assert pid(world, "tensorflow") == kept


def test_a_gpu_lost_in_the_middle_brings_the_old_layout_back() -> None:
    """Card 1 falls off the bus before vLLM is up there."""
    world = host()
    world.start_s = 5.0
    world.reload("B")
    while "vllm" not in world.engines or world.phase("vllm") is not Phase.STARTING:
        world.tick()
        world.tick()
    world.lost.add(1)
    world.die("vllm", Exit(code=1), "CUDA error: no CUDA-capable device is detected")
    world.start_s = 1.0
    world.settle()
    assert world.layout() == "A"
    assert last(world)[1] is Ended.ROLLED_BACK


def test_a_rollback_has_no_rollback() -> None:
    """When the old layout does not come up either, that is said, and its backends are tried on."""
    world = host()
    world.reload("B")
    world.tick()
    world.fail_starts["vllm"] = "broken for good"
    world.settle()
    assert last(world) == ("B", Ended.FAILED)
    told = [i for i in world.state.incidents if i.event is EventName.ROLLBACK]
    assert [i.severity for i in told if i.closed_at is None] == [Severity.ERROR]
    world.fail_starts.clear()
    world.until("vllm", Phase.READY)
    assert world.layout() == "A"


# -- a second reload -----------------------------------------------------------------------------
def test_a_second_reload_waits_and_the_latest_wins() -> None:
    """B is on its way; C and then A come: C is never begun."""
    world = host()
    world.reload("B")
    world.tick(2)
    world.reload("C")
    seen = world.tick().switch
    assert seen is not None
    assert (seen.to_mode, seen.queued) == ("B", "C")
    world.reload("A")
    seen = world.tick().switch
    assert seen is not None
    assert seen.queued == "A"
    world.settle()
    assert world.layout() == "A"
    assert "C" not in world.begun


def test_a_newer_file_takes_the_place_of_the_way_back() -> None:
    """B fails while C waits: C follows from where things are."""
    world = host()
    world.reload("B")
    world.tick()
    world.fail_starts["vllm"] = "no"
    world.reload("C")
    while world.state.switch is not None and world.state.switch.to_mode == "B":
        world.tick()
    assert last(world) == ("B", Ended.SUPERSEDED)
    assert world.previous, "until C has come through, A is what there is to go back to"
    world.fail_starts.clear()
    world.settle()
    assert world.layout() == "C"


def test_the_old_file_again_in_the_middle_ends_in_the_old_layout() -> None:
    """A → B, and A is reloaded while vLLM is down: everything of A is up at the end."""
    for ticks in range(1, 14):
        world = host()
        world.reload("B")
        world.tick(ticks)
        world.reload("A")
        world.settle()
        assert world.layout() == "A", ticks
        assert last(world) == ("A", Ended.IN_FORCE)


def test_reloading_what_is_under_way_waits_for_its_end() -> None:
    """The second reload of the same file is told of the same end; a queued third file is forgotten."""
    world = host()
    world.reload("B")
    world.tick(2)
    world.reload("C")
    world.tick()
    again = world.reload("B")
    world.settle()
    assert world.layout() == "B"
    assert world.decision is not None
    assert world.decision.last_switch is not None
    assert world.decision.last_switch.loaded_at == again.source.loaded_at


# -- the end in the middle -----------------------------------------------------------------------
def test_a_stop_in_the_middle_is_obeyed() -> None:
    """SIGTERM at every tick of a switch: everything is stopped, nothing is started any more."""
    for ticks in range(1, 16):
        world = host()
        world.reload("B")
        world.tick(ticks)
        world.stopping = True
        starts = world.next_pid
        for _ in range(200):
            if world.tick().settled:
                break
        assert not world.engines, ticks
        assert world.next_pid == starts, ticks


def test_a_stop_in_the_middle_and_a_start_much_later_finish_the_switch() -> None:
    """The deadline counts from the start: an hour without a daemon is no failure of the layout."""
    world = host()
    world.reload("B")
    world.tick(3)
    world.stopping = True
    for _ in range(200):
        if world.tick().settled:
            break
    carried = pack(world.state)
    world.stopping = False
    world.now += 3600
    world.restart(carry=carried)
    world.settle()
    world.tick(4)
    assert world.layout() == "B"
    assert world.told(EventName.ROLLBACK) == 0


@pytest.mark.parametrize("switching", [False, True])
def test_an_engine_whose_record_is_lost_is_left_alone_until_a_switch(*, switching: bool) -> None:
    """Nobody knows what it was started with: no reason to end it, and no switch that ends with it."""
    world = host()
    kept = pid(world, "vllm")
    world.engines["vllm"].intent = ""
    if switching:
        world.reload("B")
    world.restart(carry=None)
    world.settle()
    world.tick(4)
    assert not switching or world.layout() == "B"
    assert world.phase("vllm") is Phase.READY
    assert (pid(world, "vllm") == kept) is not switching


def _carries(world: Host, older: Carry) -> tuple[Carry | None, ...]:
    """What may lie in runtime_dir at a kill: the newest, that of the tick before, nothing."""
    return (pack(world.state), older, None)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["written", "a tick late", "lost"])
@pytest.mark.parametrize("broken", [False, True], ids=["good", "broken"])
def test_the_daemon_dies_at_every_tick_of_a_switch(which: int, *, broken: bool) -> None:
    """Killed after each tick, through the stored form of what is carried: at the end there is the new
    layout or, when it does not come up, the old one; never between, and what is equal is untouched.
    """
    going = host()
    going.start_s = 2.0
    kept = pid(going, "ollama")
    going.reload("B")
    ticks = 0
    done = False
    while not done:
        ticks += 1
        older = pack(going.state)
        going.tick()
        going.break_b(broken=broken)
        done = going.state.switch is None and not going.state.rollback
        world = going.fork()
        world.restart(carry=_carries(world, older)[which])
        assert _ends(world, broken=broken) == ("A" if broken else "B"), ticks
        assert pid(world, "ollama") == kept, ticks
        assert not [i for i in world.state.incidents if i.closed_at is None], ticks
    assert ticks > 8, "a switch has steps"


@pytest.mark.parametrize("broken", [False, True])
def test_the_daemon_dies_between_each_two_writes_of_its_files(*, broken: bool) -> None:
    """Of a reload, of a switch that comes through, of a rollback, and of a reload of what was rolled back:
    at the end the new layout is there or the old one, and nothing is left to go back to.
    """
    going = host()
    going.start_s = 2.0
    kinds = set()
    for again in (False, True) if broken else (False,):
        disk, ticks = going.disk, 0
        going.reload("B")
        while True:
            for count in range(len(going.writes)):
                kinds.add(tuple(one.file for one in going.writes))
                world = going.fork()
                world.disk = written(disk, going.writes[:count])
                world.restart(carry=pack(world.state))
                assert _ends(world, broken=broken) == ("A" if broken else "B"), going.writes[:count]
            if ticks and going.state.switch is None and not going.state.rollback:
                break
            disk = going.disk
            going.tick()
            ticks += 1
            going.break_b(broken=broken)
        assert again or going.layout() == ("A" if broken else "B")
    came = {(File.PREVIOUS, File.LAST_GOOD, File.ROLLED_BACK), (File.PREVIOUS,)}
    assert kinds == came | ({(File.ROLLED_BACK, File.LAST_GOOD)} if broken else set())


def _ends(world: Host, *, broken: bool) -> str:
    """The layout that a host comes to, with nothing left to go back to."""
    for _ in range(600):
        decision = world.tick()
        world.break_b(broken=broken)
        moving = [b for b in decision.backends.values() if b.phase is not Phase.READY]
        if not (decision.switch or decision.back_to or world.state.rollback or moving):
            break
    assert not world.previous
    return world.layout()


def test_a_drain_that_was_under_way_goes_on_to_its_deadline() -> None:
    """Killed while a backend that the new mode does not name drains: its streams are not cut."""
    world = host()
    world.traffic["tensorflow"] = Traffic(in_flight=1, limit=8, engine_up=True)
    world.reload("B")
    world.tick(4)
    deadline = world.state.backends["tensorflow"].deadline
    world.restart(carry=pack(world.state))
    world.tick(4)
    assert world.phase("tensorflow") is Phase.DRAINING
    assert world.state.backends["tensorflow"].deadline == deadline
    assert "tensorflow" not in world.stopped
    world.traffic.clear()
    world.settle()
    assert world.layout() == "B"


def test_a_restart_onto_an_edited_file_is_a_switch_with_a_way_back() -> None:
    """The mode line was edited and the daemon restarted instead of reloaded."""
    world = host()
    kept = pid(world, "ollama")
    world.edit("B")
    world.fail_starts["vllm"] = "no"
    world.restart(carry=pack(world.state))
    while world.tick().back_to is None:
        assert world.now < 1200, "no rollback"
    world.fail_starts.clear()
    world.settle()
    assert world.layout() == "A"
    assert pid(world, "ollama") == kept


def test_an_operators_drain_and_stop_are_no_failure_of_a_layout() -> None:
    """A backend that an operator keeps from taking work counts as done, drained or parked."""
    world = host()
    world.ask(Verb.DRAIN, "vllm")
    world.tick()
    world.reload("B")
    world.settle()
    assert world.layout() == "B"
    assert world.phase("vllm") is Phase.DRAINING
    assert last(world) == ("B", Ended.IN_FORCE)


def test_the_adopted_keep_what_is_known_of_their_starts() -> None:
    """A restart of the daemon must not make every later estimate (and Retry-After) a second."""
    world = Host(file("A"), gpus=2)
    world.start_s = 30.0
    world.up()
    took = world.view("vllm").start_took_s
    assert took is not None
    assert took > 29
    world.restart(carry=pack(world.state))
    world.tick(12)
    assert world.phase("vllm") is Phase.READY
    assert world.view("vllm").start_took_s == took


def test_decide_is_pure_in_a_switch() -> None:
    """The same observation, state and settings give the same decision."""
    world = host()
    world.reload("B")
    world.tick()
    seen = world.observation()
    assert decide(seen, world.state, world.settings) == decide(seen, world.state, world.settings)
