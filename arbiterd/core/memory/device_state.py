"""What core remembers of one device from tick to tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack

from arbiterd.core.limits import LEAD_S
from arbiterd.core.memory.slope import Window
from arbiterd.core.records import updated
from arbiterd.model.devices import Pressure
from arbiterd.model.pressure import Candidate, Rung


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The one reclaim in flight on a device: from its order until its bytes are seen, or its deadline.

    ``stage``: what it waits for. ``action``: the id of the action under way, "" for none. ``used``:
    what its target held when it began. ``told``: the action's outcome came at this time. ``model``:
    trim's. ``runner``: the process that is killed alone when an unload is ignored.
    """

    rung: Rung
    backend: str
    reason: str
    began: float
    began_wall: float
    expected: int
    used: int
    deadline: float
    incident: str
    stage: str = "asked"
    action: str = ""
    told: float | None = None
    model: str = ""
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Braked:
    """Brakes on one backend. ``hold``: why its new requests are held, "" for not. ``limit``: requests
    in flight while throttled, None for all. ``freezing``: id of the freeze under way.
    """

    hold: str = ""
    limit: int | None = None
    moved_at: float = float("-inf")
    frozen_at: float = float("-inf")
    freezing: str = ""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What its samples say. ``count``: fresh ones since our start, or since it could be read again.
    ``band_since``: when the condition that would change the band began, None while it does not hold;
    ``band_broken``: not held since then, for too short a time to count.

    ``seen_at``: the last sample whose memory and process list belong together; ``windows`` holds
    those of the last seconds by holder, "excess" among them. ``releasing``: bytes that the dead have
    left and that are not free yet, until ``releasing_until``. ``over_since``: who is over its line,
    since when; ``grew_at``: when who is over its cap last grew. ``step``: the last step up of one of ours
    beyond its cap; ``stepped``: when somebody took so many bytes at one stroke that the same again would
    fill the card. ``alarms``: critical samples of late. ``moved_at``: excess last moved.
    ``foreign_calm_at``: since when foreign memory is within its allowance.
    """

    count: int = 0
    last_at: float = -1.0
    pressure: Pressure = Pressure.UNKNOWN
    band_since: float | None = None
    band_broken: float | None = None
    seen_at: float = -1.0
    solvency: int | None = None
    used: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, Window] = field(default_factory=dict)
    frees: Window = ()
    excess: int = 0
    slope: float | None = None
    time_to_full_s: float | None = None
    releasing: int = 0
    releasing_until: float = 0.0
    over_since: Mapping[str, float] = field(default_factory=dict)
    grew_at: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    stepped: tuple[tuple[float, int], ...] = ()
    alarms: int = 0
    alarm_at: float = float("-inf")
    moved_at: float = float("-inf")
    foreign_calm_at: float | None = None


@dataclass(frozen=True, slots=True)
class Ladder:
    """What is done there against pressure. ``lead_s``: how long a reclaim takes. ``loads_held``: why no
    model may be loaded. ``disruptive``: when somebody was disturbed, ``restarts``: by backend; ``done``:
    each rung's last use. ``flat``: bytes over its cap of a backend without growth that was ended for them.
    ``candidates``: who could give memory back, as last ranked.
    """

    lead_s: float = LEAD_S
    reclaim: Reclaim | None = None
    braked: Mapping[str, Braked] = field(default_factory=dict)
    loads_held: str = ""
    disruptive: tuple[float, ...] = ()
    restarts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    done: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    flat: Mapping[str, int] = field(default_factory=dict)

    def ranked(self, candidates: tuple[Candidate, ...]) -> Ladder:
        """They are the candidates now."""
        return updated(self, candidates=candidates)

    def brake(self, braked: Mapping[str, Braked]) -> Ladder:
        """These brakes are on."""
        return updated(self, braked=braked)

    def hold_loads(self, why: str) -> Ladder:
        """For this reason, "" for none."""
        return updated(self, loads_held=why)

    def begin(self, reclaim: Reclaim, key: str) -> Ladder:
        """A reclaim is ordered; ``key``: the rung and its target."""
        return replace(self, reclaim=reclaim, done={**self.done, key: reclaim.began})

    def goes_on(self, reclaim: Reclaim | None) -> Ladder:
        """The reclaim in flight is there."""
        return updated(self, reclaim=reclaim)

    def disturbed(self, times: tuple[float, ...]) -> Ladder:
        """When somebody was, this time among them."""
        return replace(self, disruptive=times)

    def ended_flat(self, backend: str, over: int) -> Ladder:
        """It is ended for so many bytes over its cap, though it does not grow."""
        return replace(self, flat={**self.flat, backend: over})

    def restarted(self, backend: str, times: tuple[float, ...]) -> Ladder:
        """When it was, this time among them."""
        return replace(self, restarts={**self.restarts, backend: times})

    def ended(self, lead_s: float, failed: Mapping[str, float]) -> Ladder:
        """The reclaim is over. ``failed``: its key and the moment, where it came to nothing."""
        done = {**self.done, **failed} if failed else self.done
        return replace(self, reclaim=None, lead_s=lead_s, done=done)


@dataclass(frozen=True, slots=True)
class Fault:
    """The Xid that needs a reset, "" for none. ``seen``: the driver's recovery field has confirmed it;
    ``cleared``: an operator says that the card is well.
    """

    text: str = ""
    code: int = 0
    seen: bool = False
    cleared: bool = False

    def confirm(self) -> Fault:
        """By the driver."""
        return updated(self, seen=True)

    def forgive(self) -> Fault:
        """By an operator."""
        return updated(self, cleared=True)

    def broken(self, text: str, code: int) -> Fault:
        """A newer Xid."""
        return replace(self, text=text, code=code)


class DeviceAxes(TypedDict, total=False):
    """Those of a device."""

    sampled: Sampled
    ladder: Ladder
    fault: Fault


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device, by what it is about. ``sampled`` changes in pressure.py, a ``Reclaim`` in reclaim.py, a
    ``Braked`` in brakes.py, the rest by the methods here.
    """

    sampled: Sampled = Sampled()
    ladder: Ladder = Ladder()
    fault: Fault = Fault()

    def having(self, **axes: Unpack[DeviceAxes]) -> DeviceState:
        """With these axes; the same object when nothing differs."""
        return updated(self, **axes)


UNSEEN = DeviceState()
WELL = Fault()
