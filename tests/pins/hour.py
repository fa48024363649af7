"""An hour of observations and what core decides on each: any change of the policy shows here, by its tick.

``hour.toml`` says what happens. ``observations.jsonl.gz`` is what the closed-loop world then showed, written as
traces are (arbiterd/trace/codec.py) but without any State; ``decisions.txt`` is what was decided, as the lines of
facts.py: ``+`` a fact begins, ``-`` it ends, ``!`` it belongs to this tick. Three things stand in the
observations by what they mean, as their values are core's own business: the action of an outcome is (type,
backend, n-th of these), a unit's intent is that of its n-th start, and a restart of the daemon is a mark.

Thinned: the world moves, samples and serves four times a second, as always. The loop is called each time
while something happens (for BUSY_S after any one-off fact, any change of a lasting one and anything that woke
it; in a critical band), every TIGHT-th time in a tight band and while memory grows without a plan, every
MOVING-th while an engine is on its way, every CALM-th otherwise. So the decisions are closed-loop ones, of a loop that is woken less often in calm.

    python -m tests.pins.hour            compares, prints every fact of the first tick that differs
    python -m tests.pins.hour decisions  writes decisions.txt anew from the observations that are there
    python -m tests.pins.hour record     plays hour.toml anew and writes both files

A change of behaviour that is meant: ``decisions`` where the world would not have gone another way, else
``record``; the commit says why, and git shows which facts have moved. A class or field of model/ that is
renamed is renamed in the observations, too (zcat, sed, gzip -n): ``record`` would hide what else has changed.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from arbiterd.model.actions import Action, Outcome, StartBackend
from arbiterd.model.backend import Phase
from arbiterd.model.decision import Decision
from arbiterd.model.devices import Pressure
from arbiterd.model.launch import UnitObservation
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings
from arbiterd.trace.codec import decode, difference, encode, patch
from tests.pins.facts import Names, lasting, once
from tests.world.policies import Ours
from tests.world.scenario import Scenario, read
from tests.world.script import Script
from tests.world.world import World

FOLDER = Path(__file__).parent
SCRIPT = FOLDER / "hour.toml"
OBSERVATIONS = FOLDER / "observations.jsonl.gz"
DECISIONS = FOLDER / "decisions.txt"
BUSY_S = 0.5
CALM = 16  # a tick in so many polls: each 4 s
MOVING = 8
TIGHT = 3
_PASSING = ("retry", "probe", "whole")  # change by themselves, and nobody acts on it
_RESTS = (Phase.READY, Phase.STOPPED, Phase.FAILED, Phase.BACKOFF)
_SAME = difference(0, 0)


class Layouts:
    """The settings of the hour by mode, one object each: core knows settings by identity."""

    def __init__(self, settings: Settings) -> None:
        self._made = {settings.mode: settings}
        self._first = settings

    def of(self, mode: str) -> Settings:
        """In this mode."""
        if mode not in self._made:
            self._made[mode] = replace(self._first, mode=mode)
        return self._made[mode]


class Ordered:
    """Actions by (type, backend, n-th), both ways."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._names: dict[str, list[Any]] = {}
        self._actions: dict[tuple[str, str, int], Action] = {}

    def add(self, actions: tuple[Action, ...]) -> None:
        """They were ordered in this tick."""
        for one in actions:
            assert one.id not in self._names, f"two actions are {one.id}"
            key = (type(one).__name__, one.backend)
            self._counts[key] += 1
            self._names[one.id] = [*key, self._counts[key]]
            self._actions[(*key, self._counts[key])] = one

    def name(self, action: Action) -> list[Any]:
        """What an outcome's action is called in the file."""
        return self._names[action.id]

    def action(self, name: list[Any]) -> Action:
        """The action of that name.

        Raises:
            KeyError: none such was ordered: the decisions differ already.

        """
        return self._actions[(name[0], name[1], name[2])]

    def start(self, backend: str, intent: str) -> str:
        """Which start this intent is of."""
        for number in range(self._counts["StartBackend", backend], 0, -1):
            if self.intent(backend, str(number)) == intent:
                return str(number)
        return ""

    def intent(self, backend: str, number: str) -> str:
        """The intent of that start."""
        found = self._actions.get(("StartBackend", backend, int(number or 0)))
        return found.spec.intent if isinstance(found, StartBackend) else ""


@dataclass
class Row:
    """One line of the observations: a tick as it was seen, or a restart of the daemon."""

    seen: Observation | None = None
    outcomes: list[list[Any]] = field(default_factory=list)
    mode: str = ""


# -- recording -------------------------------------------------------------------------------------
class Recorder(Ours):
    """Ours, and what it saw."""

    def __init__(self, layouts: Layouts) -> None:
        super().__init__()
        self.layouts = layouts
        self.rows: list[dict[str, Any]] = []
        self.ordered = Ordered()
        self._last: Observation | None = None
        self._mode = ""

    def decide(self, observation: Observation, settings: Settings) -> Decision:
        """And note it, thinned of what takes room and tells nothing."""
        seen = replace(observation, jitter=round(observation.jitter, 2))
        decision = super().decide(seen, self.layouts.of(settings.mode))
        outcomes = [
            [self.ordered.name(o.action), o.ok, o.at, o.took_ms, o.detail] for o in seen.outcomes
        ]
        units = {
            name: replace(unit, intent=self.ordered.start(name, unit.intent))
            for name, unit in seen.units.items()
        }
        told = replace(seen, outcomes=(), units=units)
        change = encode(told) if self._last is None else difference(self._last, told)
        row: dict[str, Any] = {} if change is _SAME else {"o": change}
        if outcomes:
            row["out"] = outcomes
        if settings.mode != self._mode:
            row["mode"] = self._mode = settings.mode
        self.rows.append(row)
        self._last = told
        self.ordered.add(decision.actions)
        return decision

    def restart(self) -> None:
        """The daemon's."""
        super().restart()
        self.rows.append({"restart": True})


class Thinned(World):
    """A world whose loop is called less often while nothing happens."""

    def __init__(self, scenario: Scenario, policy: Recorder) -> None:
        super().__init__(
            scenario.settings,
            policy,
            host=scenario.host,
            natures=scenario.natures,
            seed=scenario.seed,
        )
        self._names = Names()
        self._facts: frozenset[str] = frozenset()
        self._busy_until = 0.0
        self._skipped = 0

    def tick(self, count: int = 1) -> Decision:
        """One poll of physics, and a tick of the loop where it is due."""
        assert count == 1
        if self.decision is not None and not self._due(self.decision):
            self._skipped += 1
            self.advance(self.now + self.settings.arbiter.poll_s)
            restarts = self.between and self.now >= self.between[0][0]
            if not self._woken and not restarts:
                self._flow()
                self.nvml.sample(self.decision)
                return self.decision
        self._skipped = 0
        decision = super().tick()
        facts = frozenset(
            one for one in lasting(decision, self._names) if one.split(" ", 1)[0] not in _PASSING
        )
        if facts != self._facts or once(decision, self._names):
            self._busy_until = self.now + BUSY_S
        self._facts = facts
        return decision

    def _due(self, decision: Decision) -> bool:
        bands = {one.pressure for one in decision.devices.values()}
        unplanned = any(not growth.planned for growth in self.growths)
        if self._woken or Pressure.CRITICAL in bands or self.now < self._busy_until:
            return True
        resting = all(view.phase in _RESTS for view in decision.backends.values())
        return self._skipped + 1 >= (
            TIGHT if unplanned or Pressure.TIGHT in bands else CALM if resting else MOVING
        )


def record() -> list[dict[str, Any]]:
    """Play the hour."""
    scenario = read(SCRIPT)
    policy = Recorder(Layouts(scenario.settings))
    world = Thinned(scenario, policy)
    script, began = Script(world), world.now
    for event in scenario.events:
        happen = partial(script.do, event.what, event.given)
        if event.what == "restart_daemon":  # the loop itself ends: not from within the physics
            world.between.append((began + event.at, happen))
        else:
            world.at(event.at, happen)
    while world.now < began + scenario.duration_s - 1e-9:
        world.tick()
    return policy.rows


# -- replaying -------------------------------------------------------------------------------------
def rows_of(lines: list[str]) -> Iterator[Row]:
    """The observations as they were written."""
    seen: Observation | None = None
    for text in lines:
        row = json.loads(text)
        if row.get("restart"):
            yield Row()
            continue
        if "o" in row:
            seen = patch(seen, row["o"]) if seen is not None else decode(row["o"])
        yield Row(seen, row.get("out", []), row.get("mode", ""))


class Replay:
    """The policy over the rows. ``ticks`` yields (seconds, one-off facts, lasting facts)."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._ordered = Ordered()
        self._units: dict[str, tuple[UnitObservation, UnitObservation]] = {}

    def ticks(self) -> Iterator[tuple[float, frozenset[str], frozenset[str]]]:
        """Each tick, up to an outcome of an action that is not ordered: an earlier tick differs then."""
        layouts, policy, names = Layouts(read(SCRIPT).settings), Ours(), Names()
        mode, began = "", None
        for row in self._rows:
            if row.seen is None:
                policy.restart()
                continue
            mode = row.mode or mode
            began = row.seen.now if began is None else began
            try:
                seen = self._whole(row.seen, row.outcomes)
            except KeyError:
                return
            decision = policy.decide(seen, layouts.of(mode))
            self._ordered.add(decision.actions)
            yield row.seen.now - began, once(decision, names), lasting(decision, names)

    def _whole(self, seen: Observation, outcomes: list[list[Any]]) -> Observation:
        made = tuple(
            Outcome(self._ordered.action(name), ok, at, took_ms, detail)
            for name, ok, at, took_ms, detail in outcomes
        )
        return replace(seen, outcomes=made, units=self._intents(seen.units))

    def _intents(self, units: Mapping[str, UnitObservation]) -> dict[str, UnitObservation]:
        """The same objects while nothing changes: a tick costs what it costs in the daemon."""
        for name, unit in units.items():
            if name not in self._units or self._units[name][0] is not unit:
                made = replace(unit, intent=self._ordered.intent(name, unit.intent))
                self._units[name] = (unit, made)
        return {name: self._units[name][1] for name in units}


def replayed() -> Iterator[tuple[float, frozenset[str], frozenset[str]]]:
    """The committed hour through today's core."""
    with gzip.open(OBSERVATIONS, "rt", encoding="utf-8") as file:
        return Replay(rows_of(file.readlines())).ticks()


# -- decisions as text -----------------------------------------------------------------------------
def written(ticks: Iterator[tuple[float, frozenset[str], frozenset[str]]]) -> list[str]:
    """Ticks in which something is to be said, each with what begins, ends and happens."""
    out: list[str] = []
    before: frozenset[str] = frozenset()
    number = 0
    for number, (at, single, now) in enumerate(ticks, 1):
        rows = [
            *sorted(f"- {one}" for one in before - now),
            *sorted(f"+ {one}" for one in now - before),
            *sorted(single),
        ]
        if rows:
            out += [f"tick {number} at {at:.3f} s", *rows]
        before = now
    return [*out, f"{number} ticks"]


def _grouped(lines: list[str]) -> list[tuple[str, list[str]]]:
    """(heading, facts) of each tick that has some."""
    out: list[tuple[str, list[str]]] = []
    for line in lines:
        if line[:2] in ("+ ", "- ", "! "):
            out[-1][1].append(line)
        else:
            out.append((line, []))
    return out


def compared(found: list[str]) -> str:
    """The first tick whose facts, as a set, are not the committed ones; "" where all are."""
    committed = DECISIONS.read_text(encoding="utf-8").splitlines()
    now = _grouped(found)
    for (at, then), (at_now, facts) in zip_longest(
        _grouped(committed), now, fillvalue=("the end", [])
    ):
        if at == at_now and set(then) == set(facts):
            continue
        rows = [f"expected: {at}, found: {at_now}"] if at != at_now else [at]
        rows += [f"  no longer: {one}" for one in then if at != at_now or one not in facts]
        rows += [f"  new:       {one}" for one in facts if at != at_now or one not in then]
        return "\n".join(rows)
    return ""


def main(words: list[str]) -> int:
    """See the module."""
    if words == ["record"]:
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in record())
        OBSERVATIONS.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    elif words not in ([], ["decisions"]):
        print(__doc__)
        return 2
    found = written(replayed())
    if words:
        DECISIONS.write_text("\n".join(found) + "\n", encoding="utf-8")
    print(compared(found) or found[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
