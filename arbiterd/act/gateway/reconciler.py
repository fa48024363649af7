"""Keeps HAProxy and the load gate as core wants them: files first, then the Runtime API, then a look
at what is really so. Whoever restarts, reloads or edits anything there: the next look repairs it.

A thread of its own does the waiting; ``order`` wakes it, so that a decision to shed is at the doors
within milliseconds. What it reads back (``latest``) is the evidence from traffic.
"""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from arbiterd import aside
from arbiterd.act.gateway.door_keys import DoorKeys
from arbiterd.act.gateway.files import check, holds, put
from arbiterd.act.gateway.gate_keeper import GateKeeper, replaced
from arbiterd.act.gateway.services import GATE, GATEWAY, Services
from arbiterd.act.gateway.silence import Silence, door_answers
from arbiterd.act.gateway.workers import family, open_doors
from arbiterd.errors import LaunchError
from arbiterd.files.owned import NotTrusted
from arbiterd.files.placing import make_folder
from arbiterd.gateway import live_map, render, runtime
from arbiterd.gateway.layout import FILES, Door, Layout, doors_of, layout
from arbiterd.gateway.paths import GROUP, Paths
from arbiterd.gateway.traffic import states, traffic_of, wanted_limits
from arbiterd.linux import ports, procfs
from arbiterd.linux.hostnames import HostNames
from arbiterd.loadgate.config import gate_config
from arbiterd.model.devices import ProcessRef
from arbiterd.model.gateway import GatewayObservation, GatewayWish, Traffic
from arbiterd.model.reading import Known, Unknown
from arbiterd.model.settings import Settings
from arbiterd.model.strangers import masked
from arbiterd.secrets.keyring import Keyring
from arbiterd.secrets.redact import Redactor

STALE_S = 2.0
LOOK_S = 1.0  # counters are read so often, however seldom the loop orders
START_EVERY_S = 1.0
DOORS_EVERY_S = 2.0
RELOAD_S = 30.0  # as long one reload may take before the next is asked for
HAPROXY_SILENT_S = 10.0  # neither its socket nor a door answers
_DOOR_S = 1.0
_CHECK_S = 10.0


@dataclass(slots=True)
class _Seen:
    """What the thread remembers between two looks."""

    pid: int = 0
    layout: Layout | None = None
    settings: Settings | None = None
    config: str = ""
    gated: Layout | None = None
    rendered: Layout | None = None
    live: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    old: tuple[int, ...] = ()
    start_at: float = 0.0
    haproxy: tuple[ProcessRef, ...] = ()  # worker and master
    doors_at: float = 0.0
    taken: dict[str, str] = field(default_factory=dict)
    here: tuple[str, ...] = ()
    bound: frozenset[str] = frozenset()
    behind: bool = False  # the map on disk is older than what HAProxy was told
    reload_due: bool = False
    reload_at: float = 0.0
    reload_from: int = 0  # the worker that the last reload is to replace; 0: it has been


class GatewayKeeper:
    """``order`` says what is wanted, ``latest`` what is. Both are the loop's and never wait."""

    def __init__(
        self,
        where: Paths,
        services: Services,
        on_change: Callable[[], None],
        *,
        systemd: bool,
        keys: Keyring | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self._redactor = redactor or Redactor()
        self._keys = DoorKeys(where, keys or Keyring(), shared=systemd)
        self._paths = where
        self._services = services
        self._on_change = on_change
        self._systemd = systemd
        # a child of ours inherits our limit
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self._files = FILES if systemd or hard == resource.RLIM_INFINITY else hard
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._order: tuple[GatewayWish, Settings] | None = None
        self._latest = GatewayObservation(enabled=True, problem="not looked at yet", looked=False)
        self._seen = _Seen()
        self._names = HostNames()
        self._gate = GateKeeper(where.gate, services)
        self._haproxy_silence = Silence(runtime.TIMEOUT_S + _DOOR_S)
        self._thread = aside.thread(self._run, name="gateway")

    def start(self) -> None:
        """Begin."""
        make_folder(self._paths.files, 0o750, GROUP if self._systemd else "")
        self._thread.start()

    def order(self, wish: GatewayWish, settings: Settings) -> None:
        """What core wants now."""
        with self._lock:
            self._order = (wish, settings)
        self._wake.set()

    def latest(self, now: float) -> GatewayObservation:
        """The newest look; counters older than STALE_S are unknown."""
        seen = self._latest
        stale = [
            n for n, t in seen.traffic.items() if isinstance(t, Known) and now - t.at > STALE_S
        ]
        if not stale:
            return seen
        unknown = Unknown("no counters from the gateway", now)
        return replace(seen, traffic={**seen.traffic, **dict.fromkeys(stale, unknown)})

    def stop(self) -> None:
        """The end of a stop: doors close last."""
        self.close()
        self._services.stop(GATEWAY)
        self._services.stop(GATE)

    def close(self) -> None:
        """Let the thread end; HAProxy and gate go on."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_CHECK_S)

    # -- the thread ----------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(LOOK_S)
            self._wake.clear()
            with self._lock:
                order = self._order
            if order is None or self._closed:
                continue
            before = self._latest
            try:
                self._latest = self._turn(*order)
            except Exception as error:  # noqa: BLE001 - a thread root: the keeper must not die
                text = f"{type(error).__name__}: {error}"
                self._latest = replace(before, problem=text)
            after = self._latest
            if (before.problem, before.gate_problem) != (after.problem, after.gate_problem):
                self._on_change()

    def _turn(self, wish: GatewayWish, settings: Settings) -> GatewayObservation:
        now = time.monotonic()
        seen = self._seen
        self._doors(settings, now)
        here = self._names.names()
        keys = self._keys.of(settings, now)
        made = seen.layout
        if seen.settings is not settings or made is None or (here, keys) != (seen.here, made.keys):
            made = seen.layout = layout(settings, seen.taken, here, keys, self._files)
            seen.settings, seen.here = settings, here
        self._write_live(wish, made, settings)
        self._write_gate(settings, made)
        problem = self._write_config(made) or self._keys.problem
        gate_problem = self._gate.keep(now, wanted=any(one.inner for one in made.backends))
        try:
            traffic = self._reconcile(wish, made, now)
        except (runtime.GatewayGone, runtime.GatewayRefused) as error:
            if isinstance(error, runtime.GatewayGone) and error.ours:
                return self._latest  # counters grow too old by themselves
            gone = self._begin(error, settings)
            return GatewayObservation(True, gone, gate_problem, {}, dict(seen.taken))
        self._haproxy_silence.heard()
        opening = self._opening(made, now)
        serves = settings.source.sha256 if self._is_served(made) else ""
        return GatewayObservation(
            True, problem, gate_problem, traffic, dict(seen.taken), opening=opening, serves=serves
        )

    def _is_served(self, made: Layout) -> bool:
        """Whether HAProxy's worker has read what was written last: a reload is only asked for, and a busy
        machine takes seconds until the next worker is there (30 s of the old request_timeout were seen).
        """
        seen = self._seen
        waits = seen.reload_due or seen.reload_from or seen.refused
        return seen.rendered is made and not waits

    def _opening(self, made: Layout, now: float) -> frozenset[str]:
        """Doors that are still shut. A start that is ordered of a HAProxy that runs reads no file: what it
        was to open opens by a reload.
        """
        seen = self._seen
        shut = frozenset(d.name for d in made.doors if f"door-{d.name}" not in seen.bound)
        if shut and not seen.refused and now - seen.reload_at >= DOORS_EVERY_S:
            seen.reload_due, seen.reload_from = True, 0
        return shut

    # -- doors ---------------------------------------------------------------------------------
    def _doors(self, settings: Settings, now: float) -> None:
        """Leave out the doors whose port somebody else has; look again now and then."""
        seen = self._seen
        doors = doors_of(settings)
        due = bool(seen.taken) and now - seen.doors_at >= DOORS_EVERY_S
        if seen.settings is settings and not due:
            return
        seen.doors_at = now
        taken = {d.name: text for d in doors if (text := self._taken(d, settings.gateway.bind))}
        if taken.keys() != seen.taken.keys():
            seen.layout = None
        seen.taken = taken

    def _taken(self, door: Door, bind: str) -> str:
        if door.name in open_doors(self._paths) or ports.can_bind(bind, door.port):
            return ""
        pid = ports.listener(door.port)
        if pid and str(self._paths.config) in procfs.command(pid):
            return ""  # our own HAProxy, whose socket does not answer now
        return f"port {door.port} is taken by {ports.describe(pid)}"

    # -- files ---------------------------------------------------------------------------------
    def _put(self, path: Path, text: str) -> bool:
        """Whether it could be written; what could not is told (unwritten.py) and tried each turn."""
        try:
            put(path, text, shared=self._systemd)
        except NotTrusted:
            raise
        except OSError:
            return False
        return True

    def _write_live(self, wish: GatewayWish, made: Layout, settings: Settings) -> None:
        """The map file; what changed is told at once, state and maint in one line, also when the file
        cannot be written: a full disk must not keep a door open.
        """
        seen = self._seen
        entries = live_map.live(wish, made, settings, self._hide(settings))
        entries |= {k: v for k, v in seen.live.items() if k.startswith(("lim:", "pid:"))}
        if entries == seen.live and not seen.behind and self._paths.live.exists():
            return
        changed = [key for key, value in entries.items() if seen.live.get(key) != value]
        gone = [key for key in seen.live if key not in entries]
        known = seen.live
        self._put_live(entries)
        with suppress(runtime.GatewayGone, runtime.GatewayRefused):
            commands = [self._set(key, entries[key], known=key in known) for key in changed]
            commands += [f"del map {self._paths.live} {key}" for key in gone]
            commands += states(wish, made, {k: v for k, v in entries.items() if k in changed})
            if seen.pid:
                runtime.tell(self._paths.runtime, commands)

    def _hide(self, settings: Settings) -> Callable[[str], str]:
        """Clients of the doors read no secret, and nothing of other users' processes."""
        if settings.arbiter.expose == "full":
            return self._redactor.text
        return lambda text: masked(self._redactor.text(text))

    def _put_live(self, entries: dict[str, str]) -> None:
        """A reload makes HAProxy read the file: none while it is behind (``current`` is the unit's word
        for that, and removing a file works on a full disk).
        """
        seen, current = self._seen, self._paths.files / "current"
        seen.live = entries
        seen.behind = not self._put(self._paths.live, live_map.text(entries))
        with suppress(OSError):
            if seen.behind:
                current.unlink(missing_ok=True)
            elif not current.exists():
                current.touch()

    def _set(self, key: str, value: str, *, known: bool) -> str:
        verb = "set" if known else "add"
        return f"{verb} map {self._paths.live} {key} {runtime.escape(value)}"

    def _write_gate(self, settings: Settings, made: Layout) -> None:
        if self._seen.gated is not made:
            text = json.dumps(gate_config(settings, self._paths, made.keys.guarded), indent=1)
            if self._put(self._paths.gate_config, text):
                self._seen.gated = made

    def _write_config(self, made: Layout) -> str:
        """A new configuration needs a reload; one that HAProxy refuses changes nothing."""
        seen = self._seen
        if seen.rendered is not made:
            text = render.render(made, self._paths, systemd=self._systemd)
            try:
                if text != seen.config:
                    self._replace_config(text)
            except NotTrusted:
                raise
            except OSError:
                return seen.refused  # told as unwritten; tried again
            seen.rendered = made
        # While HAProxy starts nobody knows which of two files it has read: the reload waits for it.
        now = time.monotonic()
        under_way = seen.reload_from and now - seen.reload_at < RELOAD_S
        if seen.reload_due and not seen.behind and seen.pid and not under_way:
            seen.reload_due, seen.reload_at, seen.reload_from = False, now, seen.pid
            self._services.reload(GATEWAY)
        return seen.refused

    def _replace_config(self, text: str) -> None:
        """Write it and what it names; a reload is due, unless HAProxy refuses it or has it already.

        Raises:
            OSError: something cannot be written; the old configuration is untouched.

        """
        seen, where = self._seen, self._paths
        first = (
            not seen.config and holds(where.config, text) and holds(where.lua, render.lua(where))
        )
        self._keys.write()
        draft = where.config.with_suffix(".new")
        if not first:
            put(where.lua, render.lua(where), shared=self._systemd)
            put(where.files / "empty", "", shared=self._systemd)
            put(draft, text, shared=self._systemd)
        seen.config = text
        seen.refused = "" if first else check(draft)
        if not first and not seen.refused:
            draft.replace(where.config)
            seen.reload_due = True

    # -- processes -----------------------------------------------------------------------------
    def _begin(
        self, error: runtime.GatewayGone | runtime.GatewayRefused, settings: Settings
    ) -> str:
        """HAProxy is not there: start it, at most once a second."""
        seen, why, now = self._seen, str(error), time.monotonic()
        if any(procfs.alive(one) for one in seen.haproxy):
            # Doors and streams go on as they were told last; only a restart makes a new socket (a reload
            # inherits the old one). Streams may be cut only where none can be alive.
            if not isinstance(error, runtime.GatewayGone) or not self._is_silent(error, settings):
                text = f"HAProxy runs but does not obey: {why}"
                return f"{text}; systemctl restart gpu-arbiter-gateway"
            return replaced(
                self._services, GATEWAY, f"HAProxy has not answered for {HAPROXY_SILENT_S:g} s"
            )
        self._haproxy_silence.heard()
        seen.pid = seen.reload_from = 0
        if seen.refused:
            return seen.refused
        if now - seen.start_at < START_EVERY_S:
            return why
        seen.start_at = now
        seen.settings = None  # look at the ports anew: they may be what kept it from starting
        seen.config = ""  # and at its file: what somebody has scribbled into it is written anew
        seen.reload_due = False  # it reads what is there by now
        try:
            self._services.start(GATEWAY)
        except LaunchError as failed:
            return str(failed)
        said = self._services.words(GATEWAY)
        return f"{why}; being started" + (f"; it said: {said}" if "ALERT" in said else "")

    def _is_silent(self, error: runtime.GatewayGone, settings: Settings) -> bool:
        """Neither the Runtime API nor a door has answered for HAPROXY_SILENT_S, and we were not late."""
        asked = time.monotonic() - runtime.TIMEOUT_S
        doors = [d for d in doors_of(settings) if d.name not in self._seen.taken]
        bind = settings.gateway.bind
        if not error.silent or not doors or door_answers(bind, doors[0].port, _DOOR_S):
            self._haproxy_silence.heard()
            return False
        return self._haproxy_silence.missed(asked, time.monotonic()) >= HAPROXY_SILENT_S

    # -- what is, against what is wanted ------------------------------------------------------
    def _reconcile(
        self, wish: GatewayWish, made: Layout, now: float
    ) -> dict[str, Known[Traffic] | Unknown]:
        seen, where = self._seen, self._paths
        look = runtime.look(where.runtime, where.live)
        fresh = look.pid != seen.pid
        if fresh or seen.old:
            with suppress(runtime.GatewayGone):
                seen.old = tuple(pid for pid in runtime.workers(where.master) if pid != look.pid)
        seen.bound = frozenset(r.proxy for r in look.rows if r.name == "FRONTEND")
        old = runtime.streams_of(where.master, seen.old)
        rows = {f"{r.proxy}/{r.name}": r for r in look.rows}
        commands, limits = wanted_limits(wish, made, rows, old)
        entries = {k: v for k, v in seen.live.items() if not k.startswith("pid:")} | limits
        entries[f"pid:{look.pid}"] = "ok"
        if entries != seen.live:
            self._put_live(entries)
        said = live_map.parse(look.live)
        for key, value in entries.items():
            if said.get(key) != value:
                commands.append(self._set(key, value, known=key in said))
        commands += [f"del map {where.live} {key}" for key in said if key not in entries]
        if commands:
            runtime.tell(where.runtime, commands)
        seen.pid = look.pid
        if look.pid != seen.reload_from:
            seen.reload_from = 0
        if fresh:
            seen.haproxy = family(look.pid)
            self._on_change()
        return {
            one.name: Known(traffic_of(one.name, rows, old, limits), now) for one in made.backends
        }
