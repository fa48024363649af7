"""What core remembers of one device from tick to tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from arbiterd.core.limits import LEAD_S
from arbiterd.core.slope import Window
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
class DeviceState:
    """One device. ``samples``: fresh ones since our start. ``band_since``: when the condition that
    would change the pressure band began, None while it does not hold.

    ``seen_at``: the last sample whose memory and process list belong together; ``windows`` holds
    those of the last seconds by holder, "excess" among them. ``releasing``: bytes that the dead have
    left and that are not free yet, until ``releasing_until``. ``over_since``: who is over its cap,
    since when. ``alarms``: critical samples in a row. ``moved_at``: excess last moved.
    ``disruptive``, ``done``: when the ladder disturbed somebody, and each rung's last use.
    ``fault``: the Xid that needs a reset, "" for none; ``fault_seen``: the driver's recovery field has
    confirmed it; ``fault_cleared``: an operator says that the card is well.
    """

    samples: int = 0
    last_sample_at: float = -1.0
    pressure: Pressure = Pressure.UNKNOWN
    band_since: float | None = None
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
    alarms: int = 0
    alarm_at: float = float("-inf")
    moved_at: float = float("-inf")
    lead_s: float = LEAD_S
    reclaim: Reclaim | None = None
    braked: Mapping[str, Braked] = field(default_factory=dict)
    loads_held: str = ""
    disruptive: tuple[float, ...] = ()
    restarts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    done: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    foreign_calm_at: float | None = None
    fault: str = ""
    fault_code: int = 0
    fault_seen: bool = False
    fault_cleared: bool = False
