"""``make bench-policies``: three policies in the same worlds, side by side; healthy load; steepest slopes.

Every figure comes from the closed-loop simulator (tests/world), seeded: the same seed, the same
figures. SCENARIOS, DAYS and JOBS in the environment change how much is run.

Avoidable: without an arbiter (Plain) somebody runs out of memory, and an oracle that knows the truth
and ends the guilty one at the first sample in which the card is critical prevents it.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from arbiterd.model.actions import SleepBackend, StopBackend, Verb
from arbiterd.model.events import EventName
from arbiterd.quantities import MIB
from tests.world.engine import Nature
from tests.world.generate import LAYOUTS, MODELS, Layout, overload, settings
from tests.world.policies import Ours
from tests.world.rivals import Oracle, Plain, Threshold
from tests.world.scenario import NATURES, Happening, Scenario, play
from tests.world.script import Script
from tests.world.world import Policy, World

SCENARIOS = int(os.environ.get("SCENARIOS", "500"))
DAYS = float(os.environ.get("DAYS", "7"))
JOBS = int(os.environ.get("JOBS", "2"))
RIVALS: dict[str, Callable[[], Policy]] = {
    "ours": Ours,
    "none": Plain,
    "threshold": Threshold,
    "oracle": Oracle,
}
A = TypeVar("A")
B = TypeVar("B")


def row(*cells: object) -> None:
    """One line of a table."""
    print("| " + " | ".join(str(one) for one in cells) + " |", flush=True)


def spread(work: Callable[[A], B], over: Sequence[A]) -> Iterator[B]:
    """In processes, results in order."""
    if JOBS == 1:
        yield from map(work, over)
        return
    with ProcessPoolExecutor(JOBS) as pool:
        yield from pool.map(work, over, chunksize=4)


# -- overloads -----------------------------------------------------------------------------------------
@dataclass(slots=True)
class Result:
    """One policy in one world, from the moment that everything was up."""

    ooms: int = 0
    guilty: bool = False
    start_ooms: int = 0
    innocent_ooms: int = 0
    innocents: int = 0
    disruptions: int = 0
    foreign: int = 0
    lost: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    ticks: int = 0
    seconds: float = 0.0


def guilty_of(scenario: Scenario) -> set[str]:
    """Who takes more than was granted in it."""
    verbs = ("leak", "sawtooth")
    return {str(one.given["backend"]) for one in scenario.events if one.what in verbs}


def run_one(scenario: Scenario, name: str) -> Result:
    """Play it under one policy."""
    policy = RIVALS[name]()
    began = time.process_time()

    def each(world: World) -> None:
        if isinstance(policy, Oracle):
            policy.world = world

    world = play(scenario, policy, each)
    monitor = world.monitor
    ooms = [one for one in monitor.ooms if one.at >= monitor.began]
    hits = [one for one in monitor.disruptions if one.at >= monitor.began]
    return Result(
        ooms=len(ooms),
        guilty=bool(ooms) and ooms[0].guilty,
        start_ooms=sum(1 for one in ooms if one.what == "start"),
        innocent_ooms=sum(1 for one in ooms if not one.over),
        innocents=sum(1 for one in hits if not one.over),
        disruptions=len(hits),
        foreign=monitor.foreign_signals,
        lost={backend: flow.lost_s for backend, flow in world.flows.items() if flow.wanted_s},
        broken=dict(monitor.broken) if name == "ours" else {},
        ticks=world.ticks,
        seconds=time.process_time() - began,
    )


def run_all(seed: int) -> tuple[int, dict[str, Result]]:
    """One world under every policy."""
    scenario = overload(seed)
    return seed, {name: run_one(scenario, name) for name in RIVALS}


def overloads() -> bool:
    """The table of the overload scenarios; whether the goals are met."""
    results: dict[int, dict[str, Result]] = dict(spread(run_all, range(SCENARIOS)))
    avoidable = [s for s, r in results.items() if r["none"].ooms and not r["oracle"].ooms]
    hopeless = [s for s, r in results.items() if r["none"].ooms and r["oracle"].ooms]
    print(f"\n{SCENARIOS} overload scenarios, {len(avoidable)} with an avoidable OOM, "
          f"{len(hopeless)} with one that the oracle does not avoid, "
          f"{SCENARIOS - len(avoidable) - len(hopeless)} without\n")  # fmt: skip
    row("", "ours", "none", "threshold killer", "oracle")
    row("---", "---", "---", "---", "---")
    names = list(RIVALS)
    free = {n: len([s for s in avoidable if not results[s][n].ooms]) for n in names}
    share = {n: 100 * free[n] / max(1, len(avoidable)) for n in names}
    row(
        "avoidable OOMs avoided",
        *(f"{free[n]} of {len(avoidable)} ({share[n]:.1f} %)" for n in names),
    )
    clear = [s for s in avoidable if results[s]["none"].guilty]
    row(
        "of those with somebody over by more than max(256 MiB, 3 %)",
        *(_part([not results[s][n].ooms for s in clear]) for n in names),
    )
    row(
        "of the others avoided",
        *(len([s for s in hopeless if not results[s][n].ooms]) for n in names),
    )
    total: dict[str, Counter[str]] = {n: Counter() for n in names}
    for one in results.values():
        for n in names:
            got = one[n]
            total[n].update(
                ooms=got.ooms,
                start_ooms=got.start_ooms,
                innocent_ooms=got.innocent_ooms,
                innocents=got.innocents,
                disruptions=got.disruptions,
                foreign=got.foreign,
            )
    row("OOMs in all", *(total[n]["ooms"] for n in names))
    row("of them at a start", *(total[n]["start_ooms"] for n in names))
    row("of them in a backend within its cap", *(total[n]["innocent_ooms"] for n in names))
    row("backends ended or put to sleep", *(total[n]["disruptions"] for n in names))
    row("of them within their cap (innocents)", *(total[n]["innocents"] for n in names))
    row("signals to foreign processes", *(total[n]["foreign"] for n in names))
    _lost(results)
    speed(results)
    missed = [s for s in avoidable if results[s]["ours"].ooms]
    broken = {s: r["ours"].broken for s, r in results.items() if r["ours"].broken}
    if missed:
        print(f"\nmissed: {[(s, overload(s).name) for s in missed]}")
    if broken:
        print(f"\nrules broken: {broken}")
    ok = share["ours"] >= 99.0 and not total["ours"]["innocents"] and not total["ours"]["foreign"]
    return ok and not broken


def _part(good: Sequence[bool]) -> str:
    return f"{sum(good)} of {len(good)} ({100 * sum(good) / max(1, len(good)):.1f} %)"


def _lost(results: dict[int, dict[str, Result]]) -> None:
    """Seconds of service lost per backend and scenario, the guilty and the others apart."""
    names = list(RIVALS)
    guilty = {seed: guilty_of(overload(seed)) for seed in results}
    kinds = sorted({b for one in results.values() for b in one["ours"].lost})
    for of_guilty in (True, False):
        for backend in kinds:
            seeds = [
                s for s, r in results.items()
                if backend in r["ours"].lost and (backend in guilty[s]) is of_guilty
            ]  # fmt: skip
            if not seeds:
                continue
            means = [
                sum(results[s][n].lost.get(backend, 0.0) for s in seeds) / len(seeds) for n in names
            ]
            who = "guilty" if of_guilty else "not guilty"
            row(
                f"seconds of service lost, {backend}, {who} ({len(seeds)})",
                *(f"{m:.1f}" for m in means),
            )


def speed(results: dict[int, dict[str, Result]]) -> None:
    """How fast the worlds ran with core in them."""
    ticks = sum(r["ours"].ticks for r in results.values())
    took = sum(r["ours"].seconds for r in results.values())
    real = ticks * 0.25
    print(f"\nours: {ticks} ticks in {took:.0f} s of CPU, {took / ticks * 1e6:.0f} us a tick, "
          f"about {real / took:.0f} times real time\n")  # fmt: skip


# -- healthy load --------------------------------------------------------------------------------------
@dataclass(slots=True)
class Healthy:
    """What was done in so many days of healthy load, and for nothing."""

    days: float
    ticks: int = 0
    seconds: float = 0.0
    disruptions: int = 0
    brakes: int = 0
    unloads: int = 0
    freezes: int = 0
    ooms: int = 0
    loads: int = 0
    restarts: int = 0
    told: Counter[str] = field(default_factory=Counter)
    rises: int = 0
    broken: dict[str, str] = field(default_factory=dict)


def healthy_days(days: float, seed: int = 1) -> Healthy:
    """Day and night, loads and unloads within the caps, strangers within the allowance, restarts by
    operators: nothing of it is a reason to act.
    """
    rng = random.Random(f"healthy {seed}")
    layout = LAYOUTS[1]
    natures = {
        name: replace(one, models=MODELS if name == "ollama" else one.models)
        for name, one in NATURES.items()
    }
    scenario = Scenario("healthy", "healthy", settings(layout), 1.0, natures=natures, seed=seed)
    world = play(scenario)
    monitor, script = world.monitor, Script(world)
    out = Healthy(days)
    began, cpu = world.now, time.process_time()
    end = began + days * 86400
    while world.now < end:
        hour = (world.now - began) / 3600 % 24
        busy = 0.15 + 0.85 * max(0.0, 1 - abs(hour - 14) / 9)
        for name, most in (("tensorflow", 10), ("vllm", 8), ("ollama", 1)):
            script.load(name, round(most * busy * rng.uniform(0.5, 1.2)))
        dice = rng.random()
        if dice < 0.30:
            script.want("ollama", rng.choice(tuple(MODELS)))
            out.loads += 1
        elif dice < 0.45:
            script.stranger("Xorg", f"{rng.randint(50, 400)}MiB", last="7min")
        elif dice < 0.55:
            script.sawtooth("ollama", f"{rng.randint(50, 700)}MiB", "20s", 10)
        elif dice < 0.57:
            script.ask(Verb.RESTART.value, rng.choice(layout.names))
            out.restarts += 1
        elif dice < 0.572:
            world.restart_daemon(2.0)
        world.run(600.0)
    _count(out, world)
    out.seconds = time.process_time() - cpu
    out.disruptions = len(monitor.disruptions)
    out.unloads, out.freezes, out.ooms = (
        len(monitor.unloads),
        len(monitor.freezes),
        len(monitor.ooms),
    )
    out.broken = dict(monitor.broken)
    return out


def _count(out: Healthy, world: World) -> None:
    out.ticks = world.ticks
    for _, event in world.monitor.events:
        out.told[event.name.value] += 1
    out.brakes = sum(
        out.told[name.value] for name in (EventName.THROTTLE, EventName.FREEZE, EventName.RECLAIM)
    )
    out.rises = out.told[EventName.PRESSURE_RISE.value]


def healthy() -> bool:
    """The healthy week."""
    found = healthy_days(DAYS)
    print(f"\n{DAYS:g} simulated days of healthy load: {found.ticks} ticks in {found.seconds:.0f} s of CPU "
          f"({found.days * 86400 / found.seconds:.0f} times real time), {found.loads} loads by clients, "
          f"{found.restarts} restarts by operators\n")  # fmt: skip
    row("healthy load, ours", "count")
    row("---", "---")
    row("disruptive actions (sleep, restart, stop)", found.disruptions)
    row("trims", found.unloads)
    row("freezes", found.freezes)
    row("throttles, freezes and reclaims told", found.brakes)
    row("pressure rises told", found.rises)
    row("OOMs", found.ooms)
    if found.broken:
        print(f"rules broken: {found.broken}")
    return not found.disruptions and not found.broken


# -- steepest slopes -----------------------------------------------------------------------------------
ONE = Layout((("tensorflow", 20), ("vllm", 55), ("ollama", 20)))
SLEEPY = replace(ONE, sleep=True)
SERVED = Layout((("vllm", 55), ("server", 35)))


def _scene(
    layout: Layout, events: Sequence[Happening], seed: int, span_s: float = 120.0
) -> Scenario:
    natures = {
        **NATURES,
        "server": Nature(weights=2048 * MIB),
        "ollama": replace(NATURES["ollama"], models=MODELS),
    }
    return Scenario(
        "slope", "slope", settings(layout), span_s, tuple(events), natures=natures, seed=seed
    )


def _event(at: float, what: str, **given: object) -> Happening:
    return Happening(at, what, given)


def _hold(rate: int, offset: float, seed: int) -> bool:
    """Requests make a server grow within its cap, on a card that a stranger has filled."""
    events = [
        _event(0.5, "load", backend="server", in_flight=8),
        _event(3.0, "stranger", name="job", size="4500MiB"),
        _event(
            8.0 + offset, "leak", backend="server", rate=f"{rate}MiB", total="5500MiB", by_load=True
        ),
    ]
    world = play(_scene(SERVED, events, seed, 60.0))
    return not world.monitor.ooms and not world.monitor.disruptions


def _throttle(rate: int, offset: float, seed: int) -> bool:
    """Requests make vLLM grow beyond its cap for half a minute, then the load falls: no restart."""
    events = [
        _event(0.5, "load", backend="vllm", in_flight=8),
        _event(5.0 + offset, "leak", backend="vllm", rate=f"{rate}MiB", by_load=True),
        _event(35.0, "load", backend="vllm", in_flight=0),
    ]
    world = play(_scene(ONE, events, seed, 70.0))
    return not world.monitor.ooms and not world.monitor.disruptions


def _trim(rate: int, offset: float, seed: int) -> bool:
    """TensorFlow takes 5 GiB too much, 4 are free, an idle model holds the rest: trimmed, no restart."""
    events = [
        _event(5.0 + offset, "leak", backend="tensorflow", rate=f"{rate}MiB", total="5000MiB")
    ]
    world = play(_scene(ONE, events, seed))
    return not world.monitor.ooms and not world.monitor.disruptions


def _sleep(rate: int, offset: float, seed: int) -> bool:
    """vLLM leaks without end; it may sleep: the sleep alone keeps the card from overflowing."""
    events = [_event(5.0 + offset, "leak", backend="vllm", rate=f"{rate}MiB")]
    first: list[str] = []

    def each(world: World) -> None:
        if world.monitor.disruptions and not first:
            first.append(world.monitor.disruptions[0].action)

    world = play(_scene(SLEEPY, events, seed, 20.0 + 9000 / rate), each=each)
    return not world.monitor.ooms and first[:1] == [SleepBackend.__name__]


def _restart(rate: int, offset: float, seed: int) -> bool:
    """TensorFlow leaks without end: it is ended before anybody's allocation fails."""
    events = [_event(5.0 + offset, "leak", backend="tensorflow", rate=f"{rate}MiB")]
    world = play(_scene(ONE, events, seed, 20.0 + 9000 / rate))
    hits = [one.action for one in world.monitor.disruptions]
    return not world.monitor.ooms and StopBackend.__name__ in hits


def _oracle(rate: int, offset: float, seed: int) -> bool:
    """The same under the oracle."""
    policy = Oracle()
    scenario = _scene(
        ONE,
        [_event(5.0 + offset, "leak", backend="tensorflow", rate=f"{rate}MiB")],
        seed,
        20.0 + 9000 / rate,
    )

    def each(world: World) -> None:
        policy.world = world

    return not play(scenario, policy, each).monitor.ooms


def _freeze(rate: int, offset: float, seed: int, *, can: bool = True) -> bool:
    """vLLM, over its cap already, runs away while the bytes of an ended TensorFlow take 4 s to come back."""
    events = [
        _event(1.0, "slow_release", backend="tensorflow", last="4s"),
        _event(2.0, "leak", backend="vllm", rate="200MiB", total="1000MiB"),
        _event(4.0, "leak", backend="tensorflow", rate="200MiB"),
        _event(16.0 + offset, "leak", backend="vllm", rate=f"{rate}MiB", total="2500MiB"),
    ]
    scene = _scene(ONE, events, seed, 60.0)
    world = play(replace(scene, host=replace(scene.host, can_freeze=can)))
    return not world.monitor.ooms


def _no_freezer(rate: int, offset: float, seed: int) -> bool:
    """The same with a launcher that cannot freeze."""
    return _freeze(rate, offset, seed, can=False)


RUNGS: dict[str, Callable[[int, float, int], bool]] = {
    "hold": _hold,
    "throttle": _throttle,
    "freeze": _freeze,
    "(without freeze)": _no_freezer,
    "trim": _trim,
    "sleep": _sleep,
    "restart": _restart,
    "the oracle's kill, for comparison": _oracle,
}
OFFSETS = (0.0, 0.06, 0.12, 0.18)  # where between two polls the growth begins


def steepest(name: str) -> tuple[str, int]:
    """MiB a second: up to here, in steps of a fifth, every rate is survived, wherever between two polls
    the growth begins.
    """
    found = 0
    for number in range(60):
        rate = round(5 * 1.2**number)
        if not all(RUNGS[name](rate, offset, seed) for seed, offset in enumerate(OFFSETS)):
            break
        found = rate
    return name, found


def slopes() -> None:
    """The table of slopes."""
    print("\nsteepest growth survived, each rung in a world where it is what helps\n")
    row("rung", "world", "MiB/s")
    row("---", "---", "---")
    for name, rate in map(steepest, RUNGS):
        text = (RUNGS[name].__doc__ or "").strip().split("\n")[0]
        row(name, text, rate)


def main() -> int:
    """What is asked for on the command line, else all."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    asked = sys.argv[1:] or ["overloads", "slopes", "healthy"]
    good = True
    if "overloads" in asked:
        good &= overloads()
    if "slopes" in asked:
        slopes()
    if "healthy" in asked:
        good &= healthy()
    print("\ngoals met" if good else "\na goal is missed")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
