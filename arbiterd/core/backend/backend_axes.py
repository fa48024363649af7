"""What core remembers of one backend, by what it is about: each axis tells its own, none needs another.

An axis changes by its own methods, or in the one file that judges it: ``Vitals`` in judge.py, ``Sleep`` in
sleeping.py, ``Canaries`` in trying.py, ``Effort`` in progress.py (tests/test_repository.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from arbiterd.core.limits import LONG_AGO
from arbiterd.core.records import later, updated
from arbiterd.engines.base import Cause


@dataclass(frozen=True, slots=True)
class Wish:
    """What operators want of it. ``drained``: no new work until resume. ``parked``: stopped until resume,
    by a request or by a person's hand. ``restart``: stopped and started once.
    """

    drained: bool = False
    parked: bool = False
    restart: bool = False

    def drain(self) -> Wish:
        """Drained."""
        return updated(self, drained=True)

    def park(self) -> Wish:
        """Parked."""
        return updated(self, parked=True)

    def resume(self) -> Wish:
        """Neither any more."""
        return updated(self, drained=False, parked=False)

    def start_anew(self, *, running: bool) -> Wish:
        """Restarted; parked no more. ``running``: there is something to stop."""
        return updated(self, restart=running, parked=False)

    def started(self) -> Wish:
        """A restart is done with the start."""
        return updated(self, restart=False)


@dataclass(frozen=True, slots=True)
class Run:
    """Its process. ``intent``: what it was started with. ``adopted``: taken over from an earlier run, not
    heard from yet. ``cap``: bytes on each device as it was started. ``held``: what it held, per device,
    when last seen alive; ``spare_then``: the device's unattributed bytes at that moment. ``missed``: what
    it held on devices that are lost, or back and not looked at yet. ``gone_at``: its last process was gone;
    from then on its bytes must come back. ``slow_told``: that they are late. ``line``: bytes per
    device that are its footprint (core/lines.py), none before it is known. ``unkillable``: SIGKILL has not
    ended it.
    """

    invocation: str = ""
    intent: str = ""
    adopted: bool = False
    cap: int = 0
    ready_at: float | None = None
    held: Mapping[str, int] = field(default_factory=dict)
    spare_then: Mapping[str, int] = field(default_factory=dict)
    missed: Mapping[str, int] = field(default_factory=dict)
    line: Mapping[str, int] = field(default_factory=dict)
    gone_at: float | None = None
    slow_told: bool = False
    unkillable: bool = False

    def start(self, intent: str, cap: int) -> Run:
        """A start is ordered."""
        return replace(
            self, invocation="", intent=intent, cap=cap, ready_at=None, missed={}, gone_at=None,
            slow_told=False, line={}, unkillable=False,
        )  # fmt: skip

    def found(self, intent: str, invocation: str = "", *, adopted: bool = False) -> Run:
        """A living unit from before our start."""
        return replace(self, intent=intent, invocation=invocation, adopted=adopted)

    def seen(self, invocation: str, held: Mapping[str, int], spare: Mapping[str, int]) -> Run:
        """Its main process runs, and holds this."""
        return updated(self, invocation=invocation, held=held, spare_then=spare)

    def holding(self, held: Mapping[str, int], spare: Mapping[str, int]) -> Run:
        """What it holds now."""
        return updated(self, held=held, spare_then=spare)

    def missing(self, missed: Mapping[str, int]) -> Run:
        """What is to be looked for on cards that come back."""
        return updated(self, missed=missed)

    def ready(self, at: float) -> Run:
        """It serves since then; heard from."""
        return replace(self, ready_at=at, adopted=False)

    def unknown(self) -> Run:
        """It was started with nothing that is known."""
        return updated(self, intent="")

    def unseen(self) -> Run:
        """Its unit is gone by a person's hand."""
        return updated(self, invocation="")

    def stopping(self) -> Run:
        """It is told to end, or has ended."""
        return updated(self, gone_at=None)

    def outlines(self, line: Mapping[str, int]) -> Run:
        """What it holds is its footprint."""
        return replace(self, line=line)

    def hangs(self) -> Run:
        """In the kernel: SIGKILL does not end it."""
        return replace(self, unkillable=True)

    def ended(self) -> Run:
        """At last."""
        return updated(self, unkillable=False)

    def gone(self, at: float) -> Run:
        """Its last process."""
        return updated(self, gone_at=at)

    def late(self) -> Run:
        """Its bytes, and that is told."""
        return updated(self, slow_told=True)

    def released(self) -> Run:
        """Its bytes are back."""
        return replace(self, invocation="", held={}, spare_then={}, gone_at=None, slow_told=False)

    def later(self, seconds: float) -> Run:
        """As if so much time had not passed."""
        return later(self, seconds, "gone_at")

    # -- from daemon to daemon ---------------------------------------------------------------------
    def handed_over(self, *, moving: bool) -> Run:
        """What the next daemon cannot find out. ``moving``: its bytes are awaited."""
        return Run(
            invocation=self.invocation,
            intent=self.intent,
            cap=self.cap,
            ready_at=self.ready_at,
            held=self.held if moving else {},
            spare_then=self.spare_then if moving else {},
            gone_at=self.gone_at,
        )

    def asleep(self, now: float) -> Run:
        """Of an earlier daemon's, whose engine sleeps: it serves, as far as we know, since now."""
        return replace(self, ready_at=now, spare_then={}, gone_at=None)

    def taken_over(self, *, intent: bool, held: bool) -> Run:
        """Of an earlier daemon's: its cap, and what else still stands."""
        return Run(
            cap=self.cap,
            intent=self.intent if intent else "",
            held=self.held if held else {},
            spare_then=self.spare_then if held else {},
        )


@dataclass(frozen=True, slots=True)
class History:
    """Its failures. ``failures``: when, within the breaker's window; ``count``: of all times; ``attempt``:
    starts that failed in a row. ``not_before``: the next start. ``ooms``: when the device was full by its
    own growth. ``start_took_s``, ``stop_took_s``: the last ones.
    """

    failures: tuple[float, ...] = ()
    count: int = 0
    attempt: int = 0
    restarts: int = 0
    not_before: float = 0.0
    cause: Cause | None = None
    ooms: tuple[float, ...] = ()
    start_took_s: float | None = None
    stop_took_s: float | None = None

    def started(self, *, again: bool) -> History:
        """A start is ordered. ``again``: it counts as a restart."""
        return updated(self, restarts=self.restarts + again)

    def ready(self, took_s: float | None) -> History:
        """It serves; None: how long that took is not known."""
        return self if took_s is None else updated(self, start_took_s=took_s)

    def gone(self, took_s: float | None) -> History:
        """Its bytes are back; None: how long that took is not known."""
        return updated(self, stop_took_s=took_s)

    def ended(self, cause: Cause | None) -> History:
        """By this cause; None: it is still to be found out."""
        return updated(self, cause=cause)

    def failed(self, failures: tuple[float, ...], attempt: int, not_before: float) -> History:
        """One failure more."""
        return replace(
            self, failures=failures, attempt=attempt, count=self.count + 1, not_before=not_before
        )

    def waits(self, until: float) -> History:
        """The next start does."""
        return updated(self, not_before=until)

    def called_off(self) -> History:
        """The last failure was none."""
        return updated(self, failures=self.failures[:-1])

    def stable(self) -> History:
        """It has served for long enough: the breaker is closed."""
        return updated(self, failures=(), attempt=0)

    def forgiven(self) -> History:
        """It may start at once, as if nothing had been."""
        return updated(self, failures=(), attempt=0, not_before=0.0)

    def put_away(self) -> History:
        """It does not run, and that is wanted."""
        return updated(self, failures=(), attempt=0, cause=None)

    def out_of_memory(self, ooms: tuple[float, ...]) -> History:
        """When it was, this time among them."""
        return updated(self, ooms=ooms)


@dataclass(frozen=True, slots=True)
class Warm:
    """The model that is kept resident, and loads beside it. ``pending``: id of its load under way.
    ``away_until``: a client has sent it away. ``waits_since``: it lacks bytes since
    then. ``load_ended_at``, ``client_load_at``: any load; a client's.
    """

    done: bool = False
    failures: int = 0
    not_before: float = 0.0
    pending: str = ""
    away_until: float = 0.0
    waits_since: float | None = None
    load_ended_at: float = LONG_AGO
    client_load_at: float = LONG_AGO

    def load(self, action: str) -> Warm:
        """Its load is ordered."""
        return replace(self, pending=action, waits_since=None)

    def waits(self, since: float | None) -> Warm:
        """For bytes; None: not, or not any more."""
        return updated(self, waits_since=since)

    def loaded(self) -> Warm:
        """It is there."""
        return updated(self, done=True, failures=0)

    def none(self) -> Warm:
        """There is none to load."""
        return updated(self, done=True)

    def failed(self, failures: int, *, done: bool) -> Warm:
        """Its load has failed. ``done``: nobody waits for it any more."""
        return replace(self, failures=failures, done=done)

    def ended(self, now: float, not_before: float) -> Warm:
        """Its load has ended, whatever came of it."""
        return replace(self, pending="", not_before=not_before, load_ended_at=now)

    def sent_away(self, until: float) -> Warm:
        """A client has unloaded it."""
        return updated(self, away_until=until)

    def client_loads(self, now: float, *, this: bool) -> Warm:
        """A client's load has begun. ``this``: of the model that is kept."""
        return replace(self, client_load_at=now, away_until=0.0 if this else self.away_until)

    def client_loaded(self, now: float) -> Warm:
        """A client's load has ended: what is resident is to be seen anew, and is about to be used."""
        return replace(self, load_ended_at=now, client_load_at=now)

    def start(self) -> Warm:
        """A new process has nothing loaded, and nothing is on its way."""
        return updated(self, done=False, failures=0, pending="", waits_since=None)

    def stop(self) -> Warm:
        """What is on its way is lost."""
        return updated(self, pending="")

    def released(self) -> Warm:
        """The process is gone."""
        return updated(self, done=False, failures=0, not_before=0.0)

    def handed_over(self) -> Warm:
        """What the next daemon cannot find out."""
        return Warm(done=self.done, away_until=self.away_until, client_load_at=self.client_load_at)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Device nodes that it lacks. ``asked``: id of the last action that makes them; ``problem``: why that
    failed.
    """

    asked_at: float = LONG_AGO
    asked: str = ""
    problem: str = ""

    def ask(self, action: str, now: float) -> Nodes:
        """They are to be made."""
        return replace(self, asked=action, asked_at=now)

    def answered(self, problem: str) -> Nodes:
        """What came of it."""
        return replace(self, asked="", problem=problem)


class SleepStage(StrEnum):
    """How far a sleep, or the way back, has come."""

    AWAKE = "awake"
    FALLING = "falling"
    ASLEEP = "asleep"
    WAKING = "waking"
    CHECKING = "checking"


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep of one backend. ``by``: who asked ("" while awake; LADDER for the ladder). ``wake``:
    it is to come back. ``held``: bytes it held awake, ``freed``: what sleep gave back, per device.
    """

    stage: SleepStage = SleepStage.AWAKE
    by: str = ""
    wake: bool = False
    at: float = 0.0
    held: Mapping[str, int] = field(default_factory=dict)
    freed: Mapping[str, int] = field(default_factory=dict)
    canary_seq: int = 0


AWAKE = Sleep()


@dataclass(frozen=True, slots=True)
class Canaries:
    """What trying canaries before ready has found. ``loaded_at``: its models were there (when it first
    answered). ``asked``: the model on trial since ``asked_at``, ``before``: bytes it held then, per device,
    by a reading newer than ``loaded_at``. ``without``: why a model has none.
    """

    done: bool = False
    loaded_at: float | None = None
    asked: str = ""
    asked_at: float = 0.0
    before: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effort:
    """The last sample of a memory event's progress. ``moved_at``: when it last made some; ``hung``: too
    long ago. CPU in seconds; bytes of output and I/O so far, and held on the host and on devices.
    """

    at: float
    moved_at: float
    cpu_s: float
    log_bytes: int
    io_bytes: int
    memory_bytes: int
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Vitals:
    """Health evidence of the running invocation, counted once per result.

    ``door_why``: why a client's way to it is not open, "" while it is; ``door_since``: since when;
    ``door_good``: it has been open. ``unanswered_since``: its door has let in requests, ``let_in`` of
    them before, and has seen no answer since then; ``suspect``: for stuck_after, and no canary can tell.
    """

    seen_seq: int = 0
    bad: int = 0
    good: int = 0
    canary_seq: int = 0
    canary_bad: int = 0
    canary_asked_at: float = 0.0
    canary_due: bool = False
    work: float = 0.0
    work_at: float = 0.0
    proof_at: float = 0.0
    sick_since: float | None = None
    stuck: bool = False
    why: str = ""
    degraded: str = ""
    let_in: int = 0
    unanswered_since: float | None = None
    suspect: bool = False
    door_seq: int = 0
    door_bad: int = 0
    door_good: bool = False
    door_since: float | None = None
    door_why: str = ""
