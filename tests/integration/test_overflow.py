"""Before the card overflows: the real daemon, HAProxy and stand-ins. Who grows past his cap is named,
reined in at his door and ended; nobody else notices. Strangers are never touched.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import requests

from arbiterd.linux import procfs
from arbiterd.quantities import GIB, MIB
from tests.support import PATIENCE_S, wait_until
from tests.support.host import NAMES, SHARED, Host
from tests.support.lending import WARM, Lender
from tests.support.overflow import Doors, LowWater, Stream, said_oom, stranger

LIMITS = "max_in_flight = 8\nmax_queue = 8\n"
AT_ONCE = 1_000_000  # MiB/s


@pytest.fixture(scope="module")
def lender(sim_lib: Path) -> Iterator[Lender]:
    """Three engines behind doors."""

    def written() -> Host:
        one = Host(Path(tempfile.mkdtemp(prefix="gpua-of-", dir="/tmp")), sim_lib, gateway=True)
        one.write(SHARED, keys=dict.fromkeys(NAMES, LIMITS))
        text = one.config.read_text()
        one.config.write_text(text.replace('["qwen2.5:3b"]', '["qwen2.5:3b", "llama3.2:1b"]'))
        return one

    lender = Lender(written)
    yield lender
    lender.close()


@pytest.fixture
def host(lender: Lender, request: pytest.FixtureRequest) -> Iterator[Host]:
    """The module's, up and calm; so it is again after the test."""
    with lender.lend(request.node) as one:
        one.wait(lambda: _resident(one) == [WARM] or not _ask(one, WARM), "the warm model alone")
        doors = Doors(one)
        one.wait(lambda: all(doors.limit(name) == 8 for name in NAMES), "no door to be throttled")
        _ooms_before.clear()
        _ooms_before.update(said_oom(one, *NAMES))
        yield one
        for capped in {row["backend"] for row in one.get("/v1/caps").json()["caps"]}:
            assert one.ctl("caps", "reset", capped).returncode == 0
            old = one.mains()[capped]
            assert one.ctl("restart", capped).returncode == 0
            one.wait(lambda old=old, capped=capped: one.mains()[capped] not in (0, old), "another")  # type: ignore[misc]


_ooms_before: Counter[str] = Counter()


def _new_ooms(host: Host) -> list[str]:
    """Lines of engines' logs, of this test's time, that tell of memory that was refused."""
    return list((Counter(said_oom(host, *NAMES)) - _ooms_before).elements())


def _resident(host: Host) -> list[str]:
    """Models that Ollama says are loaded."""
    url = f"http://127.0.0.1:{host.ports['ollama'] + 10000}/api/ps"
    found = host.session.get(url, timeout=PATIENCE_S).json()["models"]
    return [one["name"] for one in found]


def _pids(host: Host, *names: str) -> dict[str, list[int]]:
    """Processes by backend; Ollama's runner comes and goes by itself."""
    main = host.mains()
    of_all = {name: sorted(host.backend(name)["pids"]) for name in names if name != "ollama"}
    return {name: of_all.get(name, [main[name]]) for name in names}


def _used(host: Host, holder: str) -> int:
    row = next(one for one in host.gpu_row()["ledger"] if one["holder"] == holder)
    return int(row["used"] or 0)


def _most_mib(host: Host) -> float:
    """MiB that leave 150 MiB free, under the critical line: a machine that is busy with other things
    does not let a stand-in fill the card while nobody looks. How fast the daemon is, benchmarks tell.
    """
    return host.gpu.memory(0)[3] / MIB - 150


def _short(host: Host) -> int:
    """Bytes that leave 100 MiB free: under the critical line of 256 MiB."""
    return host.gpu.memory(0)[3] - 100 * MIB


def _ask(host: Host, model: str, **more: object) -> requests.Response:
    """A short answer through Ollama's door."""
    body = {"model": model, "prompt": "x", "stream": False, "options": {"num_predict": 2}, **more}
    return host.session.post(host.door("ollama", "/api/generate"), json=body, timeout=PATIENCE_S)


# -- the guilty -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "fault", "bystander"),
    [
        ("tensorflow", {"leak_mib_per_s": 192}, "vllm"),
        ("vllm", {"leak_mib_per_s": 192}, "ollama"),
    ],
)
def test_who_grows_past_his_cap_goes_before_the_card_is_full(
    host: Host, name: str, fault: dict[str, float], bystander: str
) -> None:
    """Named, held at its door, ended, its bytes back, ready again; the others' pids and a
    stream of theirs are untouched, and the card refuses nobody a byte.
    """
    others = [one for one in NAMES if one != name]
    pids, doors = _pids(host, *others), Doors(host)
    assert doors.limit(name) == 8
    with LowWater(host.gpu) as card:
        stream = Stream(host, bystander, 1200)
        host.fault(name, **fault, leak_max_mib=_most_mib(host))
        main = procfs.ref(host.mains()[name])
        # Without a look at the journal between: the next process would leak by the same order.
        assert main is not None
        wait_until(lambda: not procfs.alive(main), 60, "its end", 0.01)
        host.fault(name)
        host.wait_event("leak", name)
        reclaim = host.wait_event("reclaim", name)
        host.wait_event("shed", name)
        host.wait_event("released", name)
        host.wait(lambda: len(host.events("ready", name)) == 1, "it to be back")
    assert "over its cap" in reclaim["MESSAGE"]
    assert "growing" in reclaim["MESSAGE"]
    assert card.free > 64 * MIB, "it came too close"
    assert _new_ooms(host) == []
    assert not host.events("oom")
    assert stream.whole()
    host.wait_ready()
    assert _pids(host, *others) == pids
    assert _used(host, name) <= host.backend(name)["cap_bytes"]
    incident = next(one for one in host.incidents(name) if one["event"] == "leak")
    assert incident["closed_at"]


def test_an_idle_runner_that_grows_is_trimmed_and_ollama_lives_on(host: Host) -> None:
    """Over its cap and named; then towards the end of the card: its own idle model goes, which is
    milder than a restart, and comes again when it is calm.
    """
    pids, serve = _pids(host, "tensorflow", "vllm"), _serve(host)
    room = (host.backend("ollama")["cap_bytes"] - _used(host, "ollama")) / MIB
    with LowWater(host.gpu) as card:
        stream = Stream(host, "vllm", 1200)
        # At one stroke, which is no growth: growth by the clock comes in bursts on a busy machine, and
        # what is then forecast is short of the card.
        host.fault("ollama", grow_mib_per_s=AT_ONCE, grow_max_mib=room)
        host.wait(lambda: _used(host, "ollama") > (room - 1) * MIB, "its cap to be used", 10)
        host.fault("ollama", grow_mib_per_s=AT_ONCE, grow_max_mib=room + 500)
        leak = host.wait_event("leak", "ollama")
        assert _resident(host), "over its cap and not growing: named only"
        host.fault("ollama", grow_mib_per_s=AT_ONCE, grow_max_mib=room + 1200)
        host.wait_event("reclaim", "ollama")
        host.fault("ollama")
        host.wait(lambda: _used(host, "ollama") == 0, "its bytes to be back", 10)
    assert "more than its cap" in leak["MESSAGE"]
    assert card.free > 64 * MIB, "it came too close"
    assert _new_ooms(host) == []
    assert stream.whole()
    assert _pids(host, "tensorflow", "vllm") == pids
    host.wait(lambda: _resident(host), "the model again when it is calm", 60)
    host.wait_ready()
    assert _serve(host) == serve
    assert _ask(host, "qwen2.5:3b").status_code == 200
    assert next(i for i in host.incidents("ollama") if i["event"] == "leak")["closed_at"]


# -- strangers ------------------------------------------------------------------------------------
def test_a_notebook_is_named_and_never_signalled(host: Host) -> None:
    """Brakes, a trim of the idle model, an incident with pid, user, command and unit; loads wait and
    are taken again when it is calm.
    """
    pids, doors = _pids(host, "tensorflow", "vllm"), Doors(host)
    serve = _serve(host)
    with stranger(host) as notebook:
        pid = notebook.process.pid
        began = time.monotonic()
        notebook.grab(_short(host))
        event = host.wait_event("foreign_memory")
        assert time.monotonic() - began < 10.0  # usually 0.3 s
        user, unit = procfs.user_name(os.getuid()), procfs.unit_of(pid) or "no unit"
        assert f"pid {pid} (" in event["MESSAGE"]
        assert f" of {user}, {unit})" in event["MESSAGE"]
        host.wait(lambda: _resident(host) == [], "the idle model to be trimmed", 10)
        reclaim = host.wait_event("reclaim", "ollama", 2)
        assert "done" in reclaim["MESSAGE"]
        refused = _ask(host, "llama3.2:1b")
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["Retry-After"]) <= 120
        assert not doors.shut("vllm"), "its pool is fixed: holding it would free nothing"
        assert notebook.unharmed()
        notebook.leave()
        host.wait(lambda: host.gpu_row()["pressure"] == "calm", "calm", 40)
        assert _ask(host, "llama3.2:1b").status_code == 200
        assert notebook.unharmed()
    assert _pids(host, "tensorflow", "vllm") == pids
    assert _serve(host) == serve
    assert _new_ooms(host) == []
    host.wait(lambda: all(one["closed_at"] for one in host.incidents()), "all to be over", 40)


def _serve(host: Host) -> int:
    """Pid of `ollama serve`."""
    pids: list[int] = host.backend("ollama")["pids"]
    return next(pid for pid in pids if "ollama serve" in procfs.command(pid))


def test_an_ignored_unload_costs_the_runner_alone(host: Host) -> None:
    """It is told, waits for six seconds, and kills that one child; the model comes again when calm."""
    serve = _serve(host)
    host.fault("ollama", unload_ignored=True)
    with stranger(host) as notebook:
        notebook.grab(_short(host))
        kill = host.wait_event("kill", "ollama")
        assert "is killed alone" in kill["MESSAGE"]
        host.wait(lambda: _used(host, "ollama") == 0, "its bytes to be back", 10)
        host.fault("ollama")
        assert _serve(host) == serve
        assert not host.events("ready", "ollama")
        notebook.leave()
        assert notebook.unharmed()
    host.wait(lambda: host.gpu_row()["pressure"] == "calm", "calm", 40)
    assert _ask(host, "qwen2.5:3b").status_code == 200
    assert _serve(host) == serve
    assert procfs.command(serve)


# -- a daemon that is killed in the middle ------------------------------------------------------------
def test_the_next_daemon_carries_on_a_trim(host: Host) -> None:
    """Killed while the runner still takes its time: the reclaim goes on, its bytes come back, and it
    is not asked a second time.
    """
    pids, serve = _pids(host, "tensorflow", "vllm"), _serve(host)
    host.fault("ollama", unload_delay_s=4)
    with stranger(host) as notebook:
        notebook.grab(_short(host))
        host.wait_event("reclaim", "ollama")
        assert _resident(host), "it is asked, and takes its time"
        host.kill()
        host.start()
        host.wait(lambda: _used(host, "ollama") == 0, "its bytes to be back", 15)
        host.wait(lambda: _said(host, "trim of qwen2.5:3b: done"), "the reclaim to be over", 10)
        assert len([e for e in host.events("reclaim") if "expected:" in e["MESSAGE"]]) == 1
        assert notebook.unharmed()
    assert _pids(host, "tensorflow", "vllm") == pids
    assert _serve(host) == serve
    host.wait(lambda: _strays(host) == set(), "nothing to be left over")


def _said(host: Host, text: str) -> bool:
    return any(text in one["MESSAGE"] for one in host.events("reclaim"))


def _strays(host: Host) -> set[int]:
    """Processes of this host that no backend counts as its own."""
    known = {pid for one in host.status()["backends"] for pid in one["pids"]}
    known |= {host.process.pid} if host.process else set()
    return set(host.tagged()) - known


def test_the_next_daemon_carries_on_a_restart(host: Host) -> None:
    """Killed while the bytes of the guilty one are on their way back: one restart, not two."""
    pids = _pids(host, "vllm")
    host.gpu.set_release_lag(1500)
    host.fault("tensorflow", leak_mib_per_s=512)
    host.wait_phase("tensorflow", "stopping")
    host.fault("tensorflow")
    host.kill()
    host.start()
    host.wait(lambda: len(host.events("ready", "tensorflow")) == 1, "tensorflow to be back")
    host.wait_ready()
    assert not host.events("start", "tensorflow"), "the start after is the restart's"
    assert len(host.events("restart", "tensorflow")) == 1
    assert not host.events("foreign_memory"), "what its dead process still holds is nobody else's"
    assert _pids(host, "vllm") == pids
    host.wait(lambda: _strays(host) == set(), "nothing to be left over", 5)
    assert _used(host, "tensorflow") <= host.backend("tensorflow")["cap_bytes"]
    assert _used(host, "foreign") == 0
    assert _new_ooms(host) == []


# -- classes of OOM -----------------------------------------------------------------------------------
def test_a_full_pool_means_fewer_requests_and_no_lower_cap(host: Host) -> None:
    """TensorFlow's 429 with room on the device."""
    doors, before = Doors(host), host.backend("tensorflow")
    host.fault("tensorflow", oom_next_request=True)
    url = host.door("tensorflow", "/v1/models/resnet50:predict")
    reply = host.session.post(url, json={"instances": [[1.0]]}, timeout=PATIENCE_S)
    assert reply.status_code == 429
    assert reply.headers["Retry-After"]
    event = host.wait_event("throttle", "tensorflow")
    assert "its own pool is full" in event["MESSAGE"]
    wait_until(lambda: doors.limit("tensorflow") == 4, 5, "HAProxy to let fewer in")
    host.wait_event("unthrottle", "tensorflow")
    wait_until(lambda: doors.limit("tensorflow") == 8, 5, "HAProxy to let all in again")
    assert not host.events("cap_lowered")
    now = host.backend("tensorflow")
    assert (now["cap_bytes"], now["restarts"]) == (before["cap_bytes"], before["restarts"])


def _utilisation(host: Host) -> float:
    """--gpu-memory-utilization of the running vLLM."""
    for pid in host.backend("vllm")["pids"]:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        for flag, value in pairwise(words):
            if flag == "--gpu-memory-utilization":
                return float(value)
    return 0.0


def test_a_card_full_by_its_own_growth_lowers_its_cap(host: Host) -> None:
    """By one step that is more than is free, so that no poll lies in between, however busy the machine:
    it ends by itself, and its next start has a lower cap in its command line.
    """
    before = wait_until(lambda: _utilisation(host), 60)
    host.fault("vllm", leak_mib_per_s=600_000)  # at least 6 GiB in a step of 10 ms
    event = host.wait_event("cap_lowered", "vllm")
    host.fault("vllm")
    assert "by its own growth" in event["MESSAGE"]
    host.wait(lambda: len(host.events("ready", "vllm")) == 1, "vllm to be back")
    after = wait_until(lambda: _utilisation(host), 60)
    assert 0 < after < before


def test_a_neighbours_doing_lowers_nobodys_cap(host: Host) -> None:
    """A stranger fills the card, vLLM dies of it: it comes back with the cap it had."""
    before, cap = wait_until(lambda: _utilisation(host), 5), host.backend("vllm")["cap_bytes"]
    with stranger(host) as notebook:
        notebook.grab(_short(host))
        host.wait_event("foreign_memory")
        host.fault("vllm", oom_next_request=True)
        url = f"http://127.0.0.1:{host.ports['vllm'] + 10000}/v1/completions"
        body = {"model": "Qwen/Qwen2.5-3B-Instruct", "prompt": "x", "max_tokens": 2}
        host.session.post(url, json=body, timeout=PATIENCE_S)
        oom = host.wait_event("oom", "vllm")
        assert "neighbour" in oom["MESSAGE"]
        assert "strangers held" in oom["MESSAGE"]
        notebook.leave()
        assert notebook.unharmed()
        host.wait(lambda: len(host.events("ready", "vllm")) == 1, "vllm to be back")
    assert not host.events("cap_lowered")
    assert host.backend("vllm")["cap_bytes"] == cap
    assert wait_until(lambda: _utilisation(host), 5) == before


# -- sleep ------------------------------------------------------------------------------------------
def test_an_engine_that_can_sleep_sleeps_instead_of_dying(sim_lib: Path) -> None:
    """Over its cap while a stranger takes the rest: it is put to sleep, keeps its processes, gives its
    bytes back, and wakes when it is calm.
    """
    if psutil.virtual_memory().available < 10 * GIB:
        pytest.skip("sleep copies the weights into host memory: less than 10 GiB are available")
    folder = Path(tempfile.mkdtemp(prefix="gpua-of-", dir="/tmp"))
    host = Host(folder, sim_lib, gateway=True)
    try:
        mode = '[modes.A]\nvllm = { gpu = 0, memory = "25%" }\n'
        host.write(mode, only=("vllm",), keys={"vllm": "sleep = true\n"})
        host.fault("vllm", weights_bytes=2 * GIB)
        host.start()
        host.wait_ready()
        pids, doors = _pids(host, "vllm"), Doors(host)
        host.fault("vllm", leak_mib_per_s=800, leak_max_mib=800)
        host.wait_event("leak", "vllm")
        with stranger(host) as notebook:
            notebook.grab(_short(host))
            asleep = host.wait_event("sleep", "vllm")
            host.wait(lambda: host.backend("vllm")["phase"] == "sleeping", "it to sleep", 20)
            host.wait(lambda: _used(host, "vllm") < 3 * GIB, "its bytes to be back", 20)
            wait_until(lambda: doors.shut("vllm"), 5, "no request to reach a sleeper")
            assert "pressure" in asleep["MESSAGE"]
            assert _pids(host, "vllm") == pids
            notebook.leave()
            host.wait_event("wake", "vllm")
            assert notebook.unharmed()
        host.wait_ready()
        assert _pids(host, "vllm") == pids
        assert not host.events("oom")
    finally:
        host.close()
        shutil.rmtree(folder, ignore_errors=True)
