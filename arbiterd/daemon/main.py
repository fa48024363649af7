"""The running daemon: wiring, signals, sd_notify, the end.

READY=1 means: file accepted, adoption done, API open. It waits for neither NVML nor engines. The
watchdog is fed by finished ticks only.
"""

from __future__ import annotations

import queue
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from arbiterd import __version__
from arbiterd.act.executor import Executor
from arbiterd.act.launch.base import Launcher
from arbiterd.act.load_probe import LoadProbes
from arbiterd.aside import aside
from arbiterd.config import Loaded, check_devices
from arbiterd.core.backend.asking import refusal
from arbiterd.core.mode.config_state import ConfigState
from arbiterd.core.state import State
from arbiterd.daemon import startup
from arbiterd.daemon.cadence import rest_s
from arbiterd.daemon.engine_ports import EnginePorts
from arbiterd.daemon.lock import Lock
from arbiterd.daemon.loop import GatewayParts, Inbox, Loop, Parts
from arbiterd.daemon.signals import Signals
from arbiterd.daemon.waker import Waker
from arbiterd.errors import EX_CONFIG, EX_REFUSED, ArbiterError, ConfigRefused
from arbiterd.files import unwritten
from arbiterd.fit.from_ollama_api import weigh
from arbiterd.linux import procfs
from arbiterd.linux.heap import Trimmer
from arbiterd.linux.init_system import use_systemd
from arbiterd.model.actions import OperatorRequest, Refusal
from arbiterd.model.devices import Device
from arbiterd.model.events import Event, EventName, Severity
from arbiterd.model.published import Published
from arbiterd.report.journal import Journal, catch_all, resolve_mode
from arbiterd.report.notify import Notifier
from arbiterd.report.status_line import status_line
from arbiterd.secrets.keyring import Keyring
from arbiterd.secrets.values import Secrets
from arbiterd.sense.health import Prober
from arbiterd.sense.host import HostFactsSource
from arbiterd.sense.kernel_log import command as kernel_log_command
from arbiterd.sense.nvml import NvmlSource
from arbiterd.settings.history import ConfigFiles
from arbiterd.settings.owner import FileChanged, Posted, Refused, SettingsOwner, drained
from arbiterd.settings.reload import Reloader
from arbiterd.store.state_files import Stores
from arbiterd.trace.recorder import Tap
from arbiterd.web.admin import Admin
from arbiterd.web.server import WebServer
from arbiterd.web.snapshot import Holder

NVML_FIRST_S = 1.2  # how long a start waits for the first inventory, to refuse a mistyped GPU
STATUS_EVERY_S = 1.0
LISTEN_RETRY_S = 5.0
EXTEND_S = 30
# Sockets and records are gone with it, and nothing keeps a second daemon away.
HOMELESS = "{} was removed: the daemon ends, engines run on; its next start adopts them"


class Daemon:
    """One run. ``run`` returns the exit status."""

    def __init__(self, start: startup.Start, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._start = start
        settings = start.loaded.settings
        self._arbiter = settings.arbiter
        self.waker = Waker()
        self._lock = Lock(Path(self._arbiter.runtime_dir))
        self._secrets = Secrets(environ)
        self._secrets.read(path)  # it may be refused, and its problems are told
        self._secrets.accept(start.loaded.text)
        self._hide = self._secrets.redactor
        self._journal = Journal(resolve_mode(self._arbiter.log), self._hide)
        self._notify = Notifier()
        self._holder = Holder()
        self._requests: queue.SimpleQueue[OperatorRequest] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        unit = use_systemd(settings) and bool(environ.get("NOTIFY_SOCKET"))
        self._signals = Signals(self.waker.wake, unit=unit)
        self._status_at = 0.0
        self._stores = Stores(self._arbiter, self._hide)
        self._files = ConfigFiles(Path(self._arbiter.runtime_dir))
        self._distrusted = [self._lock.problem, *startup.distrusted(self._arbiter, self._files)]
        self._notes: tuple[str, ...] = ()
        self._listening = False
        self._gateway: GatewayParts | None = None
        self._tap = Tap()
        self._ports = EnginePorts(settings, self.waker.wake, self._journal.say)
        config = ConfigState(
            settings,
            settings,
            start.loaded.text,
            refused=tuple(str(one) for one in start.refused),
            rolled_back=bool(start.rolled_back),
        )
        self._owner = SettingsOwner(config, self._files, self._ports.granted)

    # -- wiring --------------------------------------------------------------------------------
    def run(self) -> int:
        """Until the end.

        Raises:
            ConfigRefused: the active mode names a GPU that was never on this host.
            ArbiterError: something the daemon cannot run without.

        """
        self._signals.catch()
        settings = self._ports.begin(self._owner.state.in_force)
        self._owner.state = replace(self._owner.state, in_force=settings, newest=settings)
        catch_all(self._journal)
        procfs.keep_spares()
        launcher = startup.make_launcher(settings, self.waker.wake)
        nvml = NvmlSource(
            on_change=self.waker.wake,
            known=self._stores.gpus.known(),
            kernel_log=kernel_log_command(),
        )
        nvml.start()
        host = HostFactsSource(launcher.owner_of, units=launcher.name == "systemd")
        host.refresh(settings)
        keys = Keyring(self._stores.keyed.load(), self._stores.keyed.save)
        self._gateway = startup.make_gateway(settings, self.waker.wake, keys, self._hide)
        door = self._gateway.paths.probe if self._gateway else None
        prober = Prober(self.waker.wake, door, keys, self._hide, weigh)
        executor = Executor(
            launcher,
            LoadProbes(lambda: self._owner.state.in_force, self._hide.text).of,
            self.waker.wake,
            dry_run=settings.arbiter.dry_run,
            secrets=self._secrets,
        )
        try:
            self._first_inventory(nvml)
            launcher.adopt()
            self._greet(launcher)
            parts = Parts(
                launcher,
                executor,
                nvml,
                prober,
                host,
                self._publish,
                gateway=self._gateway,
                keep=self._stores.carry.save,
                tap=self._tap,
                secrets=self._secrets,
            )
            state = self._first_state()
            self._say_problems(launcher)
            if self._gateway is not None and not settings.arbiter.dry_run:
                self._gateway.keeper.start()
            loop = Loop(parts, self._owner, state, self.waker.wake)
            return self._serve(loop, nvml, host)
        finally:
            # who asks and who acts before what they write to; the lock last: the next daemon may come
            own = (self._ports, self._stores, self._journal, self._lock)
            for one in (prober, self._gateway, nvml, host, executor, launcher, *own):
                if one is not None:
                    one.close()

    def _first_state(self) -> State:
        """What core begins with: that of the daemon before us, as far as it is believed."""
        good = self._files.before(self._path, self._environ)
        good = good and self._ports.granted(good)
        # until the first tick has looked: what the daemon before us had begun is to be ended
        self._owner.state = replace(self._owner.state, switching=good is not None)
        return State(
            run=uuid.uuid4().hex[:6],  # random: ids of different runs never meet in one journal
            incidents=self._stores.incidents.load(),
            learned=self._stores.learned.load(),
            carried=self._stores.carry.load(),
            good=good,
            rollback=self._start.rolled_back if good is not None else "",
        )

    def _serve(self, loop: Loop, nvml: NvmlSource, host: HostFactsSource) -> int:
        reloader = Reloader(
            self._path,
            self._environ,
            lambda: self._owner.state.newest,
            self._all_devices,
            self._hear,
        )
        admin = Admin(submit=self._submit, reload=reloader.reload)
        web = WebServer(
            self._holder,
            host=self._arbiter.listen_host,
            port=self._arbiter.listen_port,
            socket_path=Path(self._arbiter.runtime_dir) / "admin.sock",
            admin=admin,
            loads=(self._gateway.loads, self._gateway.paths.loads) if self._gateway else None,
            tap=self._tap,
            redactor=self._hide,
        )
        try:
            loop.tick(self._inbox(reloader))
            self._listen(web)
            self._notify.ready()
            return self._turn(loop, reloader, nvml, host, web)
        finally:
            web.close()

    def _turn(
        self,
        loop: Loop,
        reloader: Reloader,
        nvml: NvmlSource,
        host: HostFactsSource,
        web: WebServer,
    ) -> int:
        retry_at = time.monotonic() + LISTEN_RETRY_S
        next_at = time.monotonic()
        trimmer = Trimmer()
        woken = False
        while True:
            self._signals.obey(partial(_reload_aside, reloader), self._leave)
            before = self._owner.state.newest
            inbox = self._inbox(reloader)
            if self._owner.state.newest is not before:
                host.refresh(self._owner.state.newest)
            looked = not woken or loop.is_look_due(time.monotonic())
            if looked:
                loop.look(time.monotonic())
            decided = loop.decision
            published = loop.tick(inbox)
            if not looked:
                loop.order(time.monotonic())  # what woke the loop may have moved memory
            self._learn(nvml)
            self._report(published)
            self._ports.order(published.settings, switching=published.decision.switch is not None)
            now = time.monotonic()
            trimmer.look(now)
            if self._lock.lost() and not self._signals.how:
                self._leave(HOMELESS.format(self._arbiter.runtime_dir), Severity.CRITICAL)
                return EX_REFUSED
            if not self._listening and now >= retry_at:
                retry_at = now + LISTEN_RETRY_S
                self._listen(web)
            if self._signals.how == "leave":
                return 0
            if self._signals.how == "stop" and published.decision.settled:
                if self._gateway is not None:
                    self._gateway.keeper.stop()
                self._ports.stop()
                return 0
            poll_s = loop.settings.arbiter.poll_s
            # A tick out of turn (an exit, an answer) moves the next one up, it never puts it off.
            rest = rest_s(decided, published.decision, poll_s)
            next_at = min(max(next_at + poll_s, now), now + rest)
            woken = self.waker.wait(next_at - time.monotonic())

    def _listen(self, web: WebServer) -> None:
        """Open API and socket. A taken address is no reason to leave engines unguarded."""
        try:
            web.start()
        except ArbiterError as error:
            if self._notes != (str(error),):
                self._events.put(Event(EventName.PORT_TAKEN, Severity.ERROR, str(error)))
            self._notes = (str(error),)
            return
        self._listening = True
        self._notes = ()

    def _first_inventory(self, nvml: NvmlSource) -> None:
        """Wait shortly for NVML; refuse a GPU that an answering NVML and state_dir do not know."""
        deadline = time.monotonic() + NVML_FIRST_S
        while time.monotonic() < deadline:
            now = time.monotonic()
            snapshot = nvml.latest(now)
            if snapshot.devices or snapshot.nvml:
                break
            nvml.request(now, processes=True)
            self.waker.wait(0.05)
        snapshot = nvml.latest(time.monotonic())
        if not snapshot.devices or snapshot.nvml:
            return
        self._learn(nvml)
        problems = check_devices(self._start.loaded, self._stores.gpus.known())
        errors = tuple(one for one in problems if one.severity == "error")
        if not errors:
            return
        runtime = Path(self._arbiter.runtime_dir)
        if not startup.engines_alive(runtime):
            raise ConfigRefused(errors)
        self._owner.post(Refused(tuple(str(one) for one in errors), ()))

    def _greet(self, launcher: Launcher) -> None:
        mode, where = self._owner.state.in_force.mode, self._owner.state.in_force.source.path
        text = f"gpu-arbiter {__version__} starts: mode {mode} of {where}, launcher {launcher.name}"
        self._journal.say(Severity.INFO, text)
        for warning in self._start.loaded.warnings:
            self._journal.say(Severity.WARNING, str(warning))
        if launcher.name == "direct":
            for note in startup.DIRECT_NOTES:
                self._journal.say(Severity.NOTICE, note)
        for problem in self._start.refused:
            event = Event(EventName.CONFIG_REFUSED, Severity.ERROR, str(problem))
            self._journal.write(event, mode)
        self._owner.started(alive=startup.engines_alive(Path(self._arbiter.runtime_dir)))

    def _say_problems(self, launcher: Launcher) -> None:
        """Unreadable state is kept aside and said, never fatal."""
        found = [*self._distrusted, *self._stores.problems]
        found += getattr(launcher, "problems", [])
        for text in filter(None, found):
            self._events.put(Event(EventName.STATE_UNREADABLE, Severity.WARNING, text))

    # -- in ------------------------------------------------------------------------------------
    def _submit(self, request: OperatorRequest) -> Refusal | None:
        """Take an operator's request, or say why not."""
        published = self._holder.get()
        decision = published.decision if published else None
        refused = refusal(request, self._owner.state.in_force, decision)
        if refused is None:
            self._requests.put(request)
            self.waker.wake()
        return refused

    def _hear(self, what: Posted) -> None:
        """From any thread. Nothing of a file is said before its secrets are known."""
        if isinstance(what, Loaded):
            self._secrets.accept(what.text)
            for warning in what.warnings:
                self._journal.say(Severity.WARNING, str(warning))
        elif isinstance(what, Refused):
            self._secrets.read(self._path)
        self._owner.post(what)
        if not isinstance(what, FileChanged):
            self.waker.wake()

    def _inbox(self, reloader: Reloader) -> Inbox:
        reloader.look(time.monotonic())
        taken = self._owner.take()
        return Inbox(
            requests=tuple(drained(self._requests)),
            events=(*drained(self._events), *self._holder.said(), *taken),
            stopping=self._signals.how == "stop",
            notes=self._notes,
            unwritten=unwritten.told(),
            ports=self._ports.latest(),
        )

    def _all_devices(self) -> Sequence[Device]:
        return self._stores.gpus.known()

    def _learn(self, nvml: NvmlSource) -> None:
        snapshot = nvml.latest(time.monotonic())
        self._stores.gpus.learn(seen.device for seen in snapshot.devices.values())
        for event in (*nvml.said(), *self._ports.said()):
            self._events.put(event)

    def _leave(self, text: str, severity: Severity = Severity.NOTICE) -> None:
        self._journal.say(severity, text)
        self._notify.stopping()

    # -- out -----------------------------------------------------------------------------------
    def _publish(self, published: Published, events: Sequence[Event]) -> None:
        self._holder.put(published)
        mode = published.settings.mode
        for event in events:
            self._journal.write(event, mode)
        self._stores.save(published)

    def _report(self, published: Published) -> None:
        """Feed the watchdog; STATUS= once a second."""
        self._notify.watchdog()
        now = time.monotonic()
        if now - self._status_at < STATUS_EVERY_S:
            return
        self._status_at = now
        if unwritten.told():
            aside(unwritten.catch_up, name="catch-up")
        self._notify.status(self._hide.text(status_line(published)))
        if self._signals.how == "stop":
            self._notify.extend(EXTEND_S)


def _reload_aside(reloader: Reloader) -> None:
    aside(reloader.reload, name="reload")


def run(path: Path, environ: Mapping[str, str]) -> int:
    """Run the daemon on this file; returns the exit status. Errors are said, never raised."""
    hide = Secrets(environ).of(path).text
    try:
        return Daemon(startup.choose(path, environ), path, environ).run()
    except ConfigRefused as refused:
        for problem in refused.problems:
            sys.stderr.write(f"{hide(str(problem))}\n")
        return EX_CONFIG
    except (ArbiterError, OSError) as error:
        sys.stderr.write(f"arbiterd: {hide(str(error))}\n")
        return EX_REFUSED
