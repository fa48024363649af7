"""NVML as the loop sees it: the newest sample, its age, and why there is none.

The loop never waits for NVML: it orders a sample (``request``) and takes what is there (``latest``).
After LATE_S without an answer it is late, after BLIND_S memory is unknown; after KILL_S the worker is
killed and a new one started, with back-off. A worker that will not die is left behind, at most
MAX_STUCK of them.

With several GPUs a hang at one is that one's: the worker that is late there is set aside, another one
reads the rest without it. The one set aside has until KILL_S; afterwards a worker of its own tries the
hung card again, with back-off.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arbiterd.linux import procfs
from arbiterd.model.devices import Device, DeviceObservation, GpuState, XidEvent
from arbiterd.model.events import Event, EventName, Severity
from arbiterd.model.reading import Known, Unknown
from arbiterd.sense.kernel_log import KernelLog
from arbiterd.sense.numbering import Numbering
from arbiterd.sense.nvml_child import Child, Order
from arbiterd.sense.nvml_rows import Picture
from arbiterd.sense.xids import XidFeed

LATE_S = 1.0  # worth saying
BLIND_S = 3.0  # readings older than this decide nothing
KILL_S = 5.0
BACKOFF_S, BACKOFF_MAX_S = 1.0, 60.0
MAX_STUCK = 3  # workers in D state that not even SIGKILL ends
LOST_REINIT_S = 10.0  # a lost GPU comes back only to a new NVML session; twice as late each time
_INIT_S = 30.0  # without persistence mode nvmlInit takes 1-3 s per GPU (facts/nvml.md)


@dataclass(frozen=True, slots=True)
class NvmlSnapshot:
    """Every device ever listed, by uuid. ``nvml``: "" while NVML answers, else why not."""

    devices: Mapping[str, DeviceObservation] = field(default_factory=dict)
    nvml: str = ""


@dataclass(slots=True)
class _Hang:
    """A device whose calls hang: since when, and the worker that waits there or will try again."""

    since: float
    child: Child | None
    retry_at: float = 0.0
    backoff_s: float = BACKOFF_S


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why readings are missing, "" for not at all. ``hung``: a call into the driver does not come back."""

    text: str = ""
    hung: bool = False


_FINE = _Trouble()


class NvmlSource:
    """Owns the workers. Methods are for the loop's thread; a reader thread per worker feeds it.

    ``known``: GPUs of earlier runs, which keep their numbers. ``kernel_log``: the command that
    follows the kernel's log, () for none.
    """

    def __init__(
        self,
        *,
        on_change: Callable[[], None] = lambda: None,
        known: Iterable[Device] = (),
        kernel_log: Sequence[str] = (),
    ) -> None:
        self._on_change = on_change
        self._lock = threading.RLock()
        self._answered = threading.Condition(self._lock)
        self._picture = Picture(Numbering(known), BLIND_S)
        self._xids = XidFeed(self._resolve, on_change)
        self._kernel_argv = kernel_log
        self._kernel: KernelLog | None = None
        self._child: Child | None = None
        self._hangs: dict[int, _Hang] = {}
        self._events_of: Child | None = None
        self._stuck: list[Child] = []
        self._seq = 0
        self._sample_at: float | None = None
        self._began = time.monotonic()
        self._why = _FINE
        self._backoff_s = BACKOFF_S
        self._next_start = 0.0
        self._want_processes = True
        self._want_utilisation = False
        self._watch: dict[str, int] = {}
        self._watch_told: dict[str, int] | None = None
        self._reinit_at = 0.0
        self._reinit_s = 0.0
        self._closed = False
        self._awake_at = -1e9

    def start(self) -> None:
        """Start the first worker, and the follower of the kernel's log."""
        self._began = time.monotonic()
        with self._lock:
            self._spawn(self._began)
        if self._kernel_argv:
            self._kernel = KernelLog(self._kernel_argv, self._xids.from_kernel, self._heard)

    def watch(self, limits: Mapping[str, int]) -> None:
        """Free bytes per device below which a sample is read again at once, and the loop woken."""
        self._watch = dict(limits)

    def request(self, now: float, *, processes: bool, utilisation: bool = False) -> None:
        """Order a sample. While one is out, only its deadline is looked at. ``utilisation``: with
        the SM utilisation of every listed process.
        """
        with self._lock:
            self._want_processes |= processes or utilisation
            self._want_utilisation |= utilisation
            self._tend_hangs(now)
            child = self._child
            if child is None:
                if now >= self._next_start and not self._closed:
                    self._spawn(now)
            elif child.asked_at is not None:
                self._look_at_deadline(child, now - max(child.asked_at, self._awake_at), now)
            elif self._reinit_due(now):
                self._retire(child)
                self._spawn(now)
            else:
                self._ask(child, now)

    def wait(self, within_s: float) -> None:
        """Until the order that is out is answered, no longer than so many seconds."""
        with self._answered:
            self._answered.wait_for(self._idle, within_s)

    def _idle(self) -> bool:
        return self._child is None or self._child.asked_at is None

    def excuse(self, now: float) -> None:
        """The loop was held up until ``now``: nobody is late before that. Old readings stay unknown."""
        with self._lock:
            self._awake_at = now

    def latest(self, now: float) -> NvmlSnapshot:
        """The newest sample with its age judged, device by device."""
        with self._lock:
            trouble = self._trouble(now)
            text = trouble.text
            devices = {
                uuid: self._judged(uuid, one, trouble, now)
                for uuid, one in self._picture.devices.items()
            }
            if not text and not devices and self._hangs:
                text = self._hung_text(next(iter(self._hangs.values())), now)
        return NvmlSnapshot(devices, text)

    def xids(self, now: float) -> tuple[XidEvent, ...]:
        """XIDs that came since the last call, each once."""
        return self._xids.take(now)

    def said(self) -> tuple[Event, ...]:
        """What people should know of numbers and readings, since the last call."""
        with self._lock:
            numbers, self._picture.numbering.said = self._picture.numbering.said, []
            readings, self._picture.said = self._picture.said, []
        kinds = ((EventName.GPU_RENUMBERED, numbers), (EventName.READING_DROPPED, readings))
        return tuple(Event(kind, Severity.WARNING, text) for kind, said in kinds for text in said)

    def close(self) -> None:
        """End the workers; one that hangs is left to its parent-death signal."""
        with self._lock:
            self._closed = True
            children = [hang.child for hang in self._hangs.values() if hang.child is not None]
            if self._child is not None:
                children.append(self._child)
            self._child = None
            self._hangs.clear()
            for child in children:
                self._retire(child)
        if self._kernel is not None:
            self._kernel.close()
        for child in children:
            child.reader.join(timeout=1.0)

    # -- judging -------------------------------------------------------------------------------
    def _trouble(self, now: float) -> _Trouble:
        """Why NVML as a whole does not answer."""
        at, why = self._sample_at, self._why
        age = now - max(self._began if at is None else at, self._awake_at)
        if why.text:
            return why
        if age > BLIND_S:
            return _Trouble(f"hung for {age:.1f} s", hung=True)
        late = at is not None and age > LATE_S
        return _Trouble(f"late: no answer for {age:.1f} s") if late else _FINE

    def _judged(
        self, uuid: str, one: DeviceObservation, trouble: _Trouble, now: float
    ) -> DeviceObservation:
        """What is too old is unknown, not wrong: nothing may be decided on it."""
        if one.state is not GpuState.OK or not isinstance(one.memory, Known):
            return one
        at = one.memory.at
        if now - at <= BLIND_S:
            return one
        hang = self._hangs.get(self._picture.nvml_index(uuid))
        if hang is None and not trouble.text and now - max(at, self._awake_at) <= BLIND_S:
            unknown = Unknown("not read while the daemon itself was held up", at)
            return replace(one, memory=unknown, processes=unknown, detail=unknown.reason)
        fallback = one.detail or f"no reading for {now - at:.1f} s"
        why = self._hung_text(hang, now) if hang is not None else trouble.text or fallback
        state = GpuState.HUNG if hang is not None or trouble.hung else GpuState.UNKNOWN
        unknown = Unknown(why, at)
        return replace(one, state=state, memory=unknown, processes=unknown, detail=why)

    @staticmethod
    def _hung_text(hang: _Hang, now: float) -> str:
        return f"hung for {now - hang.since:.1f} s"

    # -- the worker ----------------------------------------------------------------------------
    def _spawn(self, now: float) -> None:
        """The worker that reads every device but the hung ones."""
        self._bury()
        if len(self._stuck) >= MAX_STUCK:
            text = f"hung: {MAX_STUCK} readers cannot be killed; the driver needs a reboot"
            self._why = _Trouble(text, hung=True)
            self._next_start = now + BACKOFF_MAX_S
            return
        try:
            self._child = Child(self._take, self._ended)
        except OSError as error:
            self._why = _Trouble(f"its reader cannot be started: {error.strerror}")
            self._next_start = now + self._backoff_s
            self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2)
            return
        self._want_processes = True
        self._watch_told = None
        self._picture.new_session()
        self._reinit_s = min(BACKOFF_MAX_S, max(LOST_REINIT_S, self._reinit_s * 2))
        self._reinit_at = now + self._reinit_s
        self._ask(self._child, now)

    def _ask(self, child: Child, now: float) -> None:
        self._seq += 1
        order = Order(
            self._seq,
            processes=self._want_processes,
            utilisation=self._want_utilisation,
            skip=frozenset(self._hangs),
            watch=self._watch if self._watch != self._watch_told else None,
        )
        self._want_processes = self._want_utilisation = False
        self._watch_told = self._watch
        if not child.ask(order, now):
            self._give_up(child, now, _Trouble("its reader ended"))

    def _look_at_deadline(self, child: Child, waited: float, now: float) -> None:
        if waited > LATE_S and self._set_aside(child, waited, now):
            return
        if waited > (KILL_S if child.answered else _INIT_S):
            self._give_up(child, now, _Trouble(f"hung for {waited:.1f} s", hung=True))

    def _give_up(self, child: Child, now: float, why: _Trouble) -> None:
        """This worker answers no more: kill it, start another after the back-off."""
        if self._child is not child:
            return
        self._child = None
        self._why = self._why if self._why.text else why
        self._next_start = now + self._backoff_s
        self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2)
        self._retire(child)

    def _retire(self, child: Child) -> None:
        if self._events_of is child:
            self._events_of = None
        child.kill()
        self._stuck.append(child)
        self._bury()

    def _bury(self) -> None:
        """Forget what has died; never wait for what has not."""
        self._stuck = [
            one for one in self._stuck if one.process.poll() is None and procfs.ref(one.process.pid)
        ]

    def _reinit_due(self, now: float) -> bool:
        if all(one.state is GpuState.OK for one in self._picture.devices.values()):
            self._reinit_s = 0.0
            return False
        return now >= self._reinit_at

    # -- one hung device among several ---------------------------------------------------------
    def _set_aside(self, child: Child, waited: float, now: float) -> bool:
        """The worker sits in one device's calls and there are others: let another read those.
        Before the first sample nobody knows whether there are; it has more time, then it is tried.
        """
        index = child.where()
        others = self._picture.indices() - self._hangs.keys() - {index}
        first = not self._picture.devices and waited > KILL_S
        if index < 0 or not (others or first) or len(self._stuck) >= MAX_STUCK:
            return False
        self._hangs[index] = _Hang(child.asked_at or now, child)
        self._child = None
        self._spawn(now)
        return True

    def _tend_hangs(self, now: float) -> None:
        """Give up on what is set aside for too long; try hung devices again when it is time."""
        for index, hang in self._hangs.items():
            child = hang.child
            if child is None:
                self._bury()
                # One place is kept for the worker of the healthy devices.
                if now >= hang.retry_at and len(self._stuck) < MAX_STUCK - 1:
                    try:
                        hang.child = Child(self._take, self._ended)
                    except OSError:
                        self._try_later(hang, now)
                        continue
                    self._seq += 1
                    only = Order(self._seq, processes=True, only=(index,), events=False)
                    hang.child.ask(only, now)
            elif child.asked_at is not None and now - max(child.asked_at, self._awake_at) > KILL_S:
                self._retire(child)
                self._try_later(hang, now)

    @staticmethod
    def _try_later(hang: _Hang, now: float) -> None:
        hang.child = None
        hang.retry_at = now + hang.backoff_s
        hang.backoff_s = min(BACKOFF_MAX_S, hang.backoff_s * 2)

    def _hang_of(self, child: Child) -> int | None:
        return next((i for i, hang in self._hangs.items() if hang.child is child), None)

    # -- reader threads ------------------------------------------------------------------------
    def _take(self, child: Child, answer: dict[str, Any]) -> None:
        """One line of a worker."""
        if "xid" in answer:
            if self._events_of in (None, child):
                self._xids.from_nvml(answer["uuid"], answer["gpu"], answer["xid"], answer["at"])
            return
        with self._lock:
            wake = self._taken(child, answer, time.monotonic())
        if wake:
            self._on_change()

    def _taken(self, child: Child, answer: dict[str, Any], now: float) -> bool:
        """Whether the loop is to be woken."""
        if "events" in answer:
            if answer["events"] and child is self._child:
                self._events_of = child
            return False
        index = self._hang_of(child)
        if index is not None:
            return self._hang_over(child, answer, index, now)
        if child is not self._child:
            return False
        if "fatal" in answer:
            self._why = _Trouble(f"NVML says: {answer['fatal']}")
            return False
        if answer["seq"] == child.asked_seq:
            child.asked_at = None
            self._answered.notify_all()
        first, child.answered = not child.answered, True
        self._why = _FINE
        self._sample_at = now
        self._backoff_s = BACKOFF_S
        self._picture.merge(answer["devices"], now, frozenset(self._hangs))
        return first or answer["wake"]

    def _hang_over(self, child: Child, answer: dict[str, Any], index: int, now: float) -> bool:
        if "fatal" in answer:
            return False  # it ends now: _ended sees to the next try
        del self._hangs[index]
        self._picture.merge_one(answer["devices"], now, index)
        self._retire(child)
        return True

    def _ended(self, child: Child, code: int) -> None:
        """A worker is gone, for whatever reason."""
        now = time.monotonic()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        with self._lock:
            if self._closed:
                return
            index = self._hang_of(child)
            if index is not None:
                self._try_later(self._hangs[index], now)
            self._give_up(child, now, _Trouble(f"its reader ended with {how}"))
            self._answered.notify_all()
        self._on_change()

    # -- XIDs ----------------------------------------------------------------------------------
    def _resolve(self, bus: tuple[int, int, int], instance: int | None) -> str:
        with self._lock:
            return self._picture.resolve(bus, instance)

    def _heard(self) -> None:
        self._xids.kernel_heard = True
