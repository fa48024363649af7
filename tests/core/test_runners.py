"""Deaths of Ollama's runners: the words of the real one, the reader, the event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import pytest

from arbiterd.act.launch.base import Launcher
from arbiterd.daemon.runner_deaths import RunnerDeaths
from arbiterd.engines.ollama_deaths import Deaths
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.health import RunnerDeath
from arbiterd.model.launch import UnitObservation, UnitState
from tests.core.world import World, only
from tests.support import wait_until

START = 'time=T level=INFO source=llama_server.go:433 msg="starting llama-server" cmd="x --port 1"'
GONE = (
    "time=T level=WARN source=llama_server.go:1196 "
    'msg="llama-server process no longer running" sys=9 string="signal: killed"'
)
ABORT = GONE.replace("sys=9", "sys=6").replace("killed", "aborted (core dumped)")
LOADING = (
    'time=T level=INFO source=sched.go:641 msg="Load failed" model=/b '
    'error="llama-server process has terminated: signal: killed"'
)
OOM = "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory"
RUNTIME = "CUDA error: out of memory"
POISON = "CUDA error: an illegal memory access was encountered"
EXIT = LOADING.replace("signal: killed", "exit status 1")
GIN = '[GIN] time | 200 | 2ms | 127.0.0.1 | POST "/api/generate"'


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([START, GONE, GONE, START], [("signal: killed", "killed")]),
        ([START, GIN, GONE, GONE, START, GONE], [("signal: killed", "killed")] * 2),
        ([START, LOADING, LOADING], [("signal: killed", "killed")]),
        ([START, OOM, EXIT], [("exit status 1", "oom_runtime")]),
        ([START, RUNTIME], [("aborted", "oom_runtime")]),
        ([START, RUNTIME, ABORT, ABORT], [("aborted", "oom_runtime")]),
        (
            [START, POISON, ABORT, START, GONE],
            [("aborted", "context_poisoned"), ("signal: killed", "killed")],
        ),
        ([START, ABORT], [("signal: aborted (core dumped)", "engine_dead")]),
        ([START, OOM, START, GONE], [("signal: killed", "killed")]),
        ([START, GIN, GIN], []),
        ([], []),
    ],
)
def test_each_death_is_one_with_its_cause(lines: list[str], found: list[tuple[str, str]]) -> None:
    """All lines up to the next start are one death, in whatever portions they are read."""
    assert [(one.how, one.cause) for one in Deaths().feed(lines)] == found
    apart = Deaths()
    assert [(o.how, o.cause) for line in lines for o in apart.feed([line])] == found


class _Output:
    """A launcher of which only the output is asked."""

    def __init__(self) -> None:
        self.lines: tuple[str, ...] = ()
        self.asked = 0

    def tail(self, _backend: str, _lines: int) -> tuple[str, ...]:
        """What was said."""
        self.asked += 1
        return self.lines


def unit(pids: Sequence[int], started: float) -> UnitObservation:
    """A running Ollama."""
    return UnitObservation(
        "ollama", UnitState.RUNNING, 0.0, None, tuple(pids), "inv", started_wall=started
    )


def test_output_is_read_only_when_processes_have_changed_and_told_once() -> None:
    """And what was said before an adoption was told by the daemon before."""
    output, settings = _Output(), only("ollama")
    reader = RunnerDeaths(cast("Launcher", output), lambda: None)
    started = time.time() + 1
    now = 100.0

    def look(*pids: int) -> list[RunnerDeath]:
        found = reader.of({"ollama": unit(pids, started)}, settings, now)
        return [death for _, death in found]

    assert look(1) == []
    wait_until(lambda: output.asked == 1)
    for _ in range(20):
        now += 0.25
        assert look(1) == []
    assert output.asked == 1, "nothing has changed"
    output.lines = (START, GONE, GONE, START)
    found = wait_until(lambda: look(1, 2), what="the death")
    assert [one.how for one in found] == ["signal: killed"]
    for _ in range(40):
        now += 0.25
        assert look(1, 2) == []
    older = RunnerDeaths(cast("Launcher", output), lambda: None)
    old = {"ollama": unit([1], time.time() - 3600)}
    asked = output.asked
    assert older.of(old, settings, now) == ()
    wait_until(lambda: output.asked > asked)
    assert older.of(old, settings, now) == ()


def test_a_death_is_an_event_with_its_cause_and_no_incident() -> None:
    """Ollama goes on: nothing is restarted."""
    world = World(only("ollama")).up()
    world.deaths.append(("ollama", RunnerDeath("signal: killed", "killed", GONE)))
    told = [e for e in world.tick().events if e.name is EventName.RUNNER_DIED]
    assert [(e.backend, e.kind, e.reason) for e in told] == [("ollama", "killed", GONE)]
    assert "signal: killed" in told[0].message
    world.tick(8)
    assert world.told(EventName.RUNNER_DIED) == 1
    assert world.phase("ollama") is Phase.READY
    assert world.stopped == []
