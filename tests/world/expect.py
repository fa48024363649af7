"""What must have come of a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from arbiterd.errors import ArbiterError
from arbiterd.model.devices import Pressure
from arbiterd.model.gateway import Admit
from arbiterd.quantities import parse_duration

if TYPE_CHECKING:
    from tests.world.world import World


@dataclass(frozen=True, slots=True)
class Expect:
    """``ooms``: per backend, exactly. ``disrupted``: who was put to sleep, restarted or stopped for
    memory, exactly. ``braked``: who was, among others; ``untouched``: never braked, frozen, unloaded
    or disrupted. ``told``: events ('leak', 'leak:vllm'); ``silent``: events that were not;
    ``at_most``: how often one may be.
    ``phases``: at the end. ``calm``: at the end every door is open, every brake off, pressure calm,
    no incident open. ``brake_within``, ``reclaim_within``: seconds from the first event.
    """

    ooms: Mapping[str, int] = field(default_factory=dict)
    disrupted: tuple[str, ...] = ()
    braked: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    at_most: Mapping[str, int] = field(default_factory=dict)
    phases: Mapping[str, str] = field(default_factory=dict)
    calm: bool = True
    brake_within: float | None = None
    reclaim_within: float | None = None
    lost_at_most: Mapping[str, float] = field(default_factory=dict)
    granted: int | None = None
    refused: int | None = None

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Self:
        """From the file's table.

        Raises:
            ArbiterError: an unknown key.

        """
        known = set(cls.__dataclass_fields__)
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in known:
                msg = f"unknown expectation {key!r}; there are {', '.join(sorted(known))}"
                raise ArbiterError(msg)
            if key.endswith("_within"):
                values[key] = parse_duration(value)
            elif key == "lost_at_most":
                values[key] = {name: parse_duration(one) for name, one in value.items()}
            else:
                values[key] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def problems(self, world: World) -> list[str]:
        """Every expectation that does not hold; the rules of the monitor are always among them."""
        monitor = world.monitor
        out = [f"rule {name}: {text}" for name, text in monitor.broken.items()]
        if monitor.foreign_signals:
            out.append(f"{monitor.foreign_signals} signals to foreign processes")
        counts: dict[str, int] = {}
        for one in monitor.ooms:
            counts[one.backend] = counts.get(one.backend, 0) + 1
        if counts != dict(self.ooms):
            what = [(round(o.at - monitor.began, 2), o.backend, o.what) for o in monitor.ooms]
            out.append(f"OOMs {counts}, expected {dict(self.ooms)}: {what}")
        hit = {one.backend for one in monitor.disruptions}
        if hit != set(self.disrupted):
            why = [(one.backend, one.action, one.reason) for one in monitor.disruptions]
            out.append(f"disrupted {sorted(hit)}, expected {sorted(self.disrupted)}: {why}")
        braked = {name for name, at in monitor.braked_first.items() if at >= monitor.began}
        unloaded = {name for _, name in monitor.unloads}
        frozen = {name for _, name in monitor.freezes}
        if missing := set(self.braked) - braked - frozen:
            out.append(f"never braked: {sorted(missing)}")
        if set(self.unloaded) - unloaded:
            out.append(f"nothing was unloaded from {sorted(set(self.unloaded) - unloaded)}")
        if touched := set(self.untouched) & (braked | hit | frozen | unloaded):
            out.append(f"touched: {sorted(touched)}")
        out += self._told(world) + self._end(world) + self._times(world)
        return out

    def _told(self, world: World) -> list[str]:
        began = world.monitor.began
        names = [event.name.value for at, event in world.monitor.events if at >= began]
        told = set(names)
        told |= {f"{e.name.value}:{e.backend}" for at, e in world.monitor.events if at >= began}
        out = [f"not told: {one}" for one in self.told if one not in told]
        for one, most in self.at_most.items():
            if names.count(one) > most:
                out.append(f"{one} was told {names.count(one)} times")
        return out + [f"told: {one}" for one in self.silent if one in told]

    def _end(self, world: World) -> list[str]:
        decision, out = world.decision, []
        if decision is None:
            return ["it never ran"]
        for name, phase in self.phases.items():
            is_ = decision.backends[name].phase.value
            if is_ != phase:
                out.append(f"{name} is {is_}, expected {phase}: {decision.backends[name].reason}")
        if not self.calm:
            return out
        for name, view in decision.backends.items():
            wish = decision.gateway.backends.get(name)
            if name in self.phases:
                continue
            if not view.accepting or (wish and wish.admit is not Admit.UP):
                out.append(f"{name} does not take work: {view.phase.value}, {view.reason}")
            if name in world.monitor.braked:
                out.append(f"{name} is still braked")
        bands = {one.pressure for one in decision.devices.values()}
        out += [f"pressure is {b.value}" for b in bands - {Pressure.CALM, Pressure.UNKNOWN}]
        out += [f"open: {one.summary}" for one in decision.incidents if one.closed_at is None]
        return out

    def _times(self, world: World) -> list[str]:
        monitor, out = world.monitor, []
        began = monitor.began
        first = world.first_event
        if self.brake_within is not None:
            brakes = [at for at in monitor.braked_first.values() if at >= began]
            took = min(brakes, default=1e9) - first
            if took > self.brake_within:
                out.append(f"the first brake came after {took:.2f} s")
        if self.reclaim_within is not None:
            acts = [d.at for d in monitor.disruptions] + [at for at, _ in monitor.unloads]
            took = min((at for at in acts if at >= began), default=1e9) - first
            if took > self.reclaim_within:
                out.append(f"the first reclaim came after {took:.2f} s")
        for name, limit in self.lost_at_most.items():
            lost = world.flows[name].lost_s
            if lost > limit:
                out.append(f"{name}: {lost:.1f} s of service lost, at most {limit:g}")
        for what, expected, got in (
            ("granted", self.granted, world.loads.granted),
            ("refused", self.refused, world.loads.refused + world.loads.late),
        ):
            if expected is not None and got != expected:
                out.append(f"loads {what}: {got}, expected {expected}")
        return out
