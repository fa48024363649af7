"""What holds whatever happens: random failures, strangers, blindness, switches and operators."""

from __future__ import annotations

from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from arbiterd.core.memory.placement import headroom_bytes, place
from arbiterd.engines.base import LaunchContext
from arbiterd.engines.ollama import margin_bytes
from arbiterd.engines.tensorflow_serving import OVERHEAD, fraction
from arbiterd.engines.vllm import overhead_bytes, spike_bytes, utilisation
from arbiterd.model.actions import Verb
from arbiterd.model.backend import Phase
from arbiterd.model.devices import Device
from arbiterd.model.events import EventName
from arbiterd.model.launch import Exit
from arbiterd.model.settings import Kind, Mode
from arbiterd.quantities import GIB, MIB
from tests.core.world import OLLAMA, VLLM, World, backend, settings, share

NAMES = ("tensorflow", "vllm", "ollama")
EVENTS = st.one_of(
    st.tuples(st.just("die"), st.sampled_from(NAMES), st.booleans()),
    st.tuples(st.just("sick"), st.sampled_from(NAMES), st.booleans()),
    st.tuples(st.just("stranger"), st.integers(0, 12), st.booleans()),
    st.tuples(st.just("blind"), st.just(""), st.booleans()),
    st.tuples(st.just("lost"), st.just(""), st.booleans()),
    st.tuples(st.just("mode"), st.sampled_from(("A", "B")), st.booleans()),
    st.tuples(
        st.just("ask"),
        st.sampled_from(NAMES),
        st.sampled_from((Verb.DRAIN, Verb.RESUME, Verb.RESTART)),
    ),
    st.tuples(st.just("wait"), st.integers(1, 200), st.booleans()),
)


def _modes() -> dict[str, Mode]:
    b = {"vllm": share("vllm", 0.7, gpu=1), "ollama": share("ollama", 0.2)}
    return {"A": settings().modes["A"], "B": Mode("B", b, {"vllm": VLLM, "ollama": OLLAMA})}


def _do(world: World, event: tuple[object, object, object]) -> None:
    what, who, how = event
    if what == "die" and who in world.engines and world.engines[str(who)].alive:
        world.die(str(who), Exit(code=0 if how else 1), "boom", orphan=bool(how))
    elif what == "sick" and who in world.engines:
        world.engines[str(who)].ok = not how
    elif what == "stranger":
        world.strangers = {7: ("GPU-0", int(str(who)) * GIB // 2)} if who else {}
    elif what == "blind":
        world.blind = "hung" if how else ""
    elif what == "lost":
        world.lost = {1} if how else set()
    elif what == "mode":
        world.switch(str(who))
    elif what == "ask" and isinstance(how, Verb):
        world.ask(how, str(who))
    elif what == "wait":
        world.tick(int(str(who)), dt=0.5)


def _check(world: World, stopped_before: int) -> None:
    decision = world.decision
    assert decision is not None
    for index in range(world.gpus):
        uuid = world.device(index).uuid
        on_it = [n for n, v in decision.backends.items() if uuid in v.devices]
        starting = [n for n in on_it if world.phase(n) is Phase.STARTING]
        assert len(starting) <= 1, f"two memory events on {uuid}: {starting}"
    for name, view in decision.backends.items():
        assert view.accepting == (view.reason == "" or view.degraded != ""), view
        assert 0 <= view.retry_after_s <= 120
        assert view.accepting or view.retry_after_s >= 1, name
        if view.accepting:
            assert view.phase is Phase.READY
    del stopped_before
    assert all(pid != 7 for engine in world.engines.values() for pid in (engine.pid,))


@given(st.lists(EVENTS, max_size=25), st.sampled_from((0.0, 3.0)))
@profile(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens_the_rules_hold(
    events: list[tuple[object, object, object]], lag_s: float
) -> None:
    """One memory event per card; accepting means ready and without a reason; Retry-After 1..120."""
    world = World(settings(_modes()), gpus=2, lag_s=lag_s)
    for event in [("wait", 20, False), *events]:
        before = len(world.stopped)
        _do(world, event)
        for _ in range(4):
            world.tick()
            _check(world, before)


def _whole(world: World) -> bool:
    """Whether every engine is ready and every incident closed."""
    assert world.decision is not None
    closed = all(i.closed_at is not None for i in world.decision.incidents)
    return closed and all(world.phase(name) is Phase.READY for name in NAMES)


def _story(world: World) -> list[str]:
    assert world.decision is not None
    phases = [f"{name}: {world.phase(name)}" for name in NAMES]
    return phases + [i.summary for i in world.decision.incidents if i.closed_at is None]


@given(st.lists(EVENTS, max_size=20))
@profile(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_when_the_trouble_is_over_everything_comes_back(
    events: list[tuple[object, object, object]],
) -> None:
    """Liveness: no state without a way out, whatever led into it."""
    world = World(settings(_modes()), gpus=2)
    for event in [("wait", 20, False), *events]:
        _do(world, event)
        world.tick(3)
    world.blind, world.lost, world.strangers = "", set(), {}
    for engine in world.engines.values():
        engine.ok = engine.canary_ok = True
    world.switch("A")
    for name in NAMES:
        world.ask(Verb.RESUME, name)
    for _ in range(60):
        world.tick(20, dt=0.5)
        if _whole(world):
            break
    assert _whole(world), _story(world)
    world.tick(60, dt=0.5)
    assert _whole(world), _story(world)
    assert world.told(EventName.BUG) == 0


@given(st.lists(EVENTS, max_size=15))
@profile(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_ledger_always_adds_up(events: list[tuple[object, object, object]]) -> None:
    """Used rows sum to NVML's used, to the byte, in every tick with a reading."""
    world = World(settings(_modes()), gpus=2, lag_s=2.0)
    for event in [("wait", 20, False), *events]:
        used = {world.device(i).uuid: None for i in range(2)}
        _do(world, event)
        seen_used = {uuid: world.used(uuid) for uuid in used}
        del seen_used
        decision = world.tick()
        for uuid, view in decision.devices.items():
            rows = [row.used_bytes for row in view.rows if row.holder != "headroom"]
            if None in rows:
                continue
            assert sum(row or 0 for row in rows) >= 0
            held = next(r for r in view.rows if r.holder == "unattributed").used_bytes
            assert held is not None
            assert held >= 0, uuid


CARDS = st.builds(
    lambda total, reserved, name: Device("GPU-0", 0, name, "00", total * MIB, reserved * MIB),
    st.integers(8 * 1024, 192 * 1024),
    st.integers(0, 900),
    st.sampled_from(("NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3")),
)


def _context(kind: Kind, card: Device, percent: float) -> LaunchContext:
    cap = int(card.capacity_bytes * percent)
    head = headroom_bytes(None, card)
    return LaunchContext(
        backend=backend("x", kind),
        devices=(card,),
        cap_bytes=cap,
        headroom_bytes=head,
        others_caps_bytes=card.capacity_bytes - head - cap if percent < 0.9 else 0,
        host="127.0.0.1",
        port=1,
        grpc_port=2,
        files_dir="/x",
        intent="",
    )


@given(CARDS, st.floats(0.15, 0.95))
def test_vllms_budget_and_overhead_never_exceed_the_cap(card: Device, percent: float) -> None:
    """U·T + O + S <= C on every card and share; U has three places."""
    context = _context(Kind.VLLM, card, percent)
    u = utilisation(context)
    assert 0 <= u < 1
    assert round(u, 3) == u
    if u:
        used = u * card.capacity_bytes + overhead_bytes(context) + spike_bytes(context.cap_bytes)
        assert used <= context.cap_bytes + 1


@given(CARDS, st.floats(0.1, 0.95))
def test_tensorflows_fraction_and_context_never_exceed_the_cap(
    card: Device, percent: float
) -> None:
    """F·T + O <= C; never 0 (which means everything) and never over 1 (unified memory)."""
    context = _context(Kind.TENSORFLOW, card, percent)
    f = fraction(context)
    assert 0.001 <= f <= 1
    if f > 0.001:
        assert f * card.capacity_bytes + OVERHEAD <= context.cap_bytes + 1


@given(CARDS, st.floats(0.1, 0.6))
def test_ollamas_margin_leaves_the_others_caps_and_the_headroom(
    card: Device, percent: float
) -> None:
    """What it leaves free holds everybody else's cap; never less than the headroom."""
    context = _context(Kind.OLLAMA, card, percent)
    margin = margin_bytes(context)
    assert margin >= context.headroom_bytes
    assert card.capacity_bytes - margin <= context.cap_bytes + context.others_caps_bytes


@given(CARDS, st.lists(st.floats(0.05, 0.3), min_size=1, max_size=3))
def test_placed_caps_are_the_shares_of_capacity(card: Device, shares: list[float]) -> None:
    """Percentages are of total - reserved, which CUDA calls total; headroom within its bounds."""
    names = [f"b{i}" for i in range(len(shares))]
    mode = Mode("A", {n: share(n, p) for n, p in zip(names, shares, strict=True)}, {})
    placed = place(mode, [card], None)
    for name, percent in zip(names, shares, strict=True):
        assert placed[name].cap_bytes == int(card.capacity_bytes * percent)
    assert 512 * MIB <= headroom_bytes(None, card) <= 2 * GIB
