"""One host for the tests of a module, each of which finds it as the first one did.

Put back after each: faults, the card, a killed daemon, the configuration's text, what was drained or stopped, and
the failures that the restart breaker has counted. A host that does not get calm again is ended, and its test
fails; the next test has a new one. So it has after a test that failed.
"""

from __future__ import annotations

import datetime as dt
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import requests

from arbiterd.linux import procfs
from tests.support import PATIENCE_S
from tests.support.host import Host, Json
from tests.support.outcome import FAILED

WARM = "qwen2.5:3b"  # Ollama's first model
DWELL_S = 45.0  # longer than calm usually takes
LOAD_S = 15.0  # where nothing holds it; what is held is asked for by a client


class Lender:
    """Starts the host when it is first asked for."""

    def __init__(self, make: Callable[[], Host]) -> None:
        self._make = make
        self._host: Host | None = None
        self._text = ""

    @contextmanager
    def lend(self, test: pytest.Item) -> Iterator[Host]:
        """To one test; ``events`` are those of its time. A test that fails may leave anything."""
        host = self.ready()
        host.since = host.mark()
        restarts = {one["name"]: one["restarts"] for one in host.status()["backends"]}
        try:
            yield host
            if test.stash.get(FAILED, False):
                self.close()
                return
            _put_back(host, self._text, restarts)
        except BaseException:
            self.close()
            raise

    def ready(self) -> Host:
        """The host, for a test that changes nothing."""
        if self._host is None:
            self._host = host = self._make()  # with its configuration written
            self._text = host.config.read_text()
            try:
                host.start()
                host.wait_ready()
            except BaseException:
                self.close()
                raise
        return self._host

    def close(self) -> None:
        """End it."""
        if self._host is not None:
            self._host.close()
            shutil.rmtree(self._host.home, ignore_errors=True)
            self._host = None


def _put_back(host: Host, text: str, restarts: dict[str, int]) -> None:
    for path in (host.home / "faults").glob("*.json"):
        host.fault(path.stem)
    host.gpu.clear_faults()
    host.gpu.set_release_lag(0)
    for index in range(len(host.gpu.uuids())):
        if host.gpu.lost(index):
            host.gpu.restore(index)
    if host.process is None or host.process.poll() is not None:
        host.start()
    _resume(host, restarts)  # a reload waits until all are ready
    if host.config.read_text() != text or host.status()["config_refused"]:
        host.config.unlink()  # a link, or of other rights
        host.config.write_text(text)
        done = host.ctl("reload", "--wait=done", "--timeout=120")
        assert done.returncode == 0, done.stderr
        _resume(host, restarts)
    host.wait_ready()
    _settle(host)
    if host.gateway:  # a substitute answers for some time after its original is well
        live = host.home / "run/gateway/live.map"
        doors = {f"st:{name} up" for name in restarts}
        host.wait(
            lambda: doors <= set(live.read_text().splitlines()), "doors of their own", every_s=0.1
        )
    if "ollama" in restarts:
        host.wait(lambda: _is_warm(host), "the model that is kept warm", every_s=0.2)


def _is_warm(host: Host) -> bool:
    try:
        return _warm(host)
    except requests.ConnectionError:  # an engine that a test has restarted as its last act
        return False


def _warm(host: Host) -> bool:
    """Whether Ollama has the model that is kept warm and no other, and the daemon's own load of it is over."""
    if _loading(host):
        return False
    engine = f"http://127.0.0.1:{host.ports['ollama'] + 10000 * host.gateway}/api"
    tags = host.session.get(f"{engine}/tags", timeout=PATIENCE_S).json()["models"]
    wanted = [one["digest"] for one in tags if one["name"] == WARM]
    loaded = host.session.get(f"{engine}/ps", timeout=PATIENCE_S).json()["models"]
    if {one["digest"] for one in loaded} == set(wanted):  # under whichever of its names
        return len(host.backend("ollama")["pids"]) == 2
    ask = {"model": WARM, "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    host.session.post(host.door("ollama", "/api/generate"), json=ask, timeout=PATIENCE_S)
    return False


def _loading(host: Host) -> bool:
    """Whether Ollama has lately become ready and its first load is not told yet; one that was adopted has its
    model.
    """
    ready = 0.0
    for one in reversed(host.events("", "ollama", 0)):
        event = one.get("ARBITER_EVENT")
        if " is loaded after" in one["MESSAGE"] or event == "adopted":
            return False
        if event in ("start", "restart"):
            break
        if event == "ready":
            ready = dt.datetime.fromisoformat(one["timestamp"]).timestamp()
    return time.time() - ready < LOAD_S


def _resume(host: Host, restarts: dict[str, int]) -> None:
    """Forget what was asked of backends, and their failures."""
    for one in host.status()["backends"]:
        if one["phase"] != "ready" or one["restarts"] != restarts.get(one["name"]):
            assert host.ctl("resume", one["name"]).returncode == 0


def _settle(host: Host) -> None:
    """Calm, without an incident. What has come back several times within half an hour dwells for minutes
    (core/incidents.dwell_s): a daemon without that history need not wait.
    """
    until = time.monotonic() + DWELL_S
    while not _calm(host.status()):
        if time.monotonic() >= until:
            host.kill()
            (host.home / "state" / "incidents.json").unlink(missing_ok=True)
            host.start()
            host.wait_ready()
            break
        time.sleep(0.1)
    host.wait(lambda: _calm(host.status()), "the host to be as it was", every_s=0.1)


def _calm(status: Json) -> bool:
    return (
        all(_idle(one) for one in status["backends"])
        and all(gpu["pressure"] == "calm" and gpu["state"] == "ok" for gpu in status["gpus"])
        and not any(status[key] for key in ("switch", "config_refused", "config_pending"))
        and not status["incidents_open"]
        and not status["loop"]["blind"]
    )


def _idle(backend: Json) -> bool:
    """Accepting, without a request; its processes are those that live."""
    return (
        backend["accepting"]
        and not backend["in_flight"]
        and not backend["queued"]
        and all(procfs.ref(pid) for pid in backend["pids"])
    )
