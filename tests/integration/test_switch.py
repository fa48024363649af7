"""Switching on the simulated host: real engines' processes, real reloads, faults in the middle of it.

Mode A has all three on card 0; mode B moves vLLM to card 1, where it reads faults of its own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support import PATIENCE_S, wait_until
from tests.support.host import MODEL, Host
from tests.support.lending import Lender

NOBODY = 65534
DEAD = {"exit_on_start": 2, "last_words": "vllm: error: unrecognized arguments: --nonsense"}


def write(host: Host, mode: str = "A", only: tuple[str, ...] = ("vllm", "ollama")) -> None:
    """Modes A and B; C is B with a smaller vLLM."""
    env = host.env_line("vllm-b")
    tf = 'tensorflow = { gpu = 0, memory = "20%" }\n' if "tensorflow" in only else ""
    ollama = 'ollama = { gpu = 0, memory = "20%" }\n'
    host.write(
        f'[modes.A]\n{tf}{ollama}vllm = {{ gpu = 0, memory = "55%" }}\n\n'
        f'[modes.B]\n{tf}{ollama}vllm = {{ gpu = 1, memory = "75%", {env} }}\n\n'
        f'[modes.C]\n{tf}{ollama}vllm = {{ gpu = 1, memory = "60%", {env} }}\n',
        only=only,
        mode=mode,
    )


def start(host: Host, only: tuple[str, ...] = ("vllm", "ollama")) -> dict[str, int]:
    """Up in mode A; the main pid of every backend."""
    write(host, only=only)
    host.start()
    host.wait_ready()
    return mains(host)


@pytest.fixture(scope="module")
def lender(sim_lib: Path) -> Iterator[Lender]:
    """Two cards, vLLM and Ollama in mode A."""

    def written() -> Host:
        home = Path(tempfile.mkdtemp(prefix="gpua-sw-", dir="/tmp"))
        host = Host(home, sim_lib, ("rtx4090-24g", "rtx4090-24g"))
        write(host)
        return host

    one = Lender(written)
    yield one
    one.close()


@pytest.fixture
def switched(lender: Lender, request: pytest.FixtureRequest) -> Iterator[Host]:
    """The module's host, in mode A; it goes back to A after the test."""
    with lender.lend(request.node) as one:
        yield one


def mains(host: Host) -> dict[str, int]:
    """Main pids, by the records."""
    found = {}
    for path in (host.home / "run" / "backends").glob("*.json"):
        found[path.stem] = int(json.loads(path.read_text())["pid"])
    return found


def set_mode(host: Host, mode: str) -> None:
    """Edit the line as a person would."""
    text = re.sub(
        r'^mode = ".*"', f'mode = "{mode}"', host.config.read_text(), count=1, flags=re.MULTILINE
    )
    temporary = host.config.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(host.config)


def whole(host: Host, mode: str, kept: dict[str, int], *moved: str) -> None:
    """This mode is in force and whole; who is kept has its pid; nothing is orphaned."""

    def arrived() -> bool:
        found = host.status()
        return bool(
            found["mode"] == mode
            and found["switch"] is None
            and all(b["accepting"] for b in found["backends"])
        )

    host.wait(arrived, f"mode {mode} to be whole")
    vllm = 0 if mode == "A" else 1
    card = next(g["uuid"] for g in host.status()["gpus"] if g["index"] == vllm)
    assert host.backend("vllm")["gpu"] == [card]
    now = mains(host)
    for name, pid in kept.items():
        if name not in moved:
            assert now[name] == pid, f"{name} was restarted"

    def owned() -> bool:
        ours = {pid for b in host.status()["backends"] for pid in b["pids"]}
        return set(host.tagged()) <= ours

    host.wait(owned, "every process to belong to a backend", 10)


# -- arbiterctl mode -----------------------------------------------------------------------------
def test_mode_edits_one_line_and_follows_to_the_end(switched: Host) -> None:
    """Comments, permissions and the link stay; progress is told line by line; Ollama is not touched."""
    pids = mains(switched)
    real = switched.home / "real.toml"
    text = switched.config.read_text().replace(
        'mode = "A"', "mode =  'A'   # the line people edit", 1
    )
    real.write_text(text)
    real.chmod(0o640)
    switched.config.unlink()
    switched.config.symlink_to(real)
    dry = switched.ctl("mode", "B", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "keep     ollama" in dry.stdout
    assert "gpu 0 → 1, memory 55% → 75%, env.GPU_SIM_FAULTS" in dry.stdout
    assert "mode A → B: about" in dry.stdout
    assert real.read_text() == text
    done = switched.ctl("mode", "B")
    assert done.returncode == 0, done.stderr
    assert "mode B is in force after" in done.stdout
    assert re.search(r"switching A → B: vllm \w+ \(0 of 1 done\)", done.stderr), done.stderr
    assert real.read_text() == text.replace("mode =  'A'   #", 'mode =  "B"   #', 1)
    assert switched.config.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert list(switched.home.glob(".*.new")) == []
    whole(switched, "B", pids, "vllm")
    again = switched.ctl("mode", "B", "--json")
    assert json.loads(again.stdout) == {
        "mode": "B",
        "outcome": "in_force",
        "reason": "",
        "took_s": 0.0,
        "file_mode": "B",
    }
    last = switched.status()["last_switch"]
    assert (last["from"], last["to"], last["outcome"]) == ("A", "B", "in_force")


def test_plan_and_mode_agree_with_what_the_daemon_does(switched: Host) -> None:
    """One implementation: plan's change column, the dry run, and the published steps."""
    switched.fault("vllm-b", start_delay_s=600)
    planned = json.loads(switched.ctl("plan", "--mode", "B", "--json").stdout)
    dry = json.loads(switched.ctl("mode", "B", "--dry-run", "--json").stdout)
    expected = {"vllm": "restart", "ollama": "keep"}
    assert {b["name"]: b["change"] for b in planned["backends"]} == expected
    assert {b["name"]: b["change"] for b in dry["backends"]} == expected
    assert dry["estimated_s"] == planned["estimated_s"] > 0
    assert switched.ctl("mode", "B", "--no-wait").stdout.startswith("accepted: mode B")
    seen = wait_until(lambda: switched.status()["switch"], 5, "the switch")
    assert {s["backend"]: s["change"] for s in seen["steps"]} == expected
    assert "gpu_arbiter_switching 1.0" in switched.get("/metrics").text
    assert "switching A → B" in switched.ctl("status").stdout
    switched.fault("vllm-b")
    switched.wait(lambda: switched.status()["switch"] is None, "its end")
    assert "gpu_arbiter_switching 0.0" in switched.get("/metrics").text


def test_mode_refuses_with_a_sentence(pair: Host) -> None:
    """Unknown mode, a bad file, no daemon, and an environment that decides: nothing is edited."""
    write(pair)
    text = pair.config.read_text()
    away = pair.ctl("mode", "B")
    assert away.returncode == 69
    assert "nothing was changed" in away.stderr
    pair.start(GPU_ARBITER_MODE="A")
    pair.wait_ready()
    done = pair.ctl("mode", "B")
    assert done.returncode == 1
    assert "GPU_ARBITER_MODE" in done.stderr
    unknown = pair.ctl("mode", "Z")
    assert unknown.returncode == 1
    assert "there is no mode 'Z'" in unknown.stderr
    assert "has A, B, C" in unknown.stderr
    assert pair.config.read_text() == text
    bad = text.replace('memory = "55%"', "memory = 55").replace("stuck_after", "stuck_afterr")
    pair.config.write_text(bad)
    done = pair.ctl("mode", "B")
    assert done.returncode == 78
    assert "modes.A.vllm.memory: 55 has no unit" in done.stderr
    assert "stuck_afterr" in done.stderr
    assert pair.config.read_text() == bad
    assert "Traceback" not in done.stderr + away.stderr + unknown.stderr


def test_what_only_the_daemon_can_refuse_is_put_back(switched: Host) -> None:
    """A GPU that is not there: the daemon says no, the old line is back, the old mode goes on."""
    pids = mains(switched)
    text = switched.config.read_text().replace(
        "[modes.C]", '[modes.D]\nvllm = { gpu = 7, memory = "9GiB" }\n\n[modes.C]'
    )
    switched.config.write_text(text)
    done = switched.ctl("mode", "D")
    assert done.returncode == 78
    assert "there is no GPU 7" in done.stderr
    assert 'says mode = "A" again' in done.stderr
    assert switched.config.read_text() == text
    assert mains(switched) == pids


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_who_may_not_write_changes_nothing() -> None:
    """A member of the group may ask the daemon, but the file is root's (the line to run: tests/system)."""
    from arbiterd.cli.edit import NoRight
    from arbiterd.cli.edit import set_mode as edit_mode

    folder = Path(tempfile.mkdtemp(prefix="gpua-", dir="/tmp"))
    folder.chmod(0o755)
    config = folder / "gpu-arbiter.toml"
    text = 'mode = "A"  # kept\n[modes.A]\n[modes.B]\n'
    config.write_text(text)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            edit_mode(config, "B")
        except NoRight:
            code = 0
        except BaseException:
            code = 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert config.read_text() == text
    assert [path.name for path in folder.iterdir()] == ["gpu-arbiter.toml"]
    shutil.rmtree(folder)


# -- the way back --------------------------------------------------------------------------------
def test_a_layout_that_does_not_come_up_goes_and_so_does_its_line(switched: Host) -> None:
    """The new engine fails to start: the old layout is back, the file says A, the reason is printed."""
    pids, restarts = mains(switched), switched.backend("ollama")["restarts"]
    text = switched.config.read_text()
    switched.fault("vllm-b", **DEAD)
    done = switched.ctl("mode", "B")
    assert done.returncode == 1
    assert "rolled back to mode A: vllm cannot run in it" in done.stderr
    assert "it does not know the arguments --nonsense" in done.stderr
    assert 'says mode = "A" again' in done.stderr
    assert switched.config.read_text() == text
    whole(switched, "A", pids, "vllm")
    switched.wait(lambda: not switched.status()["config_refused"], "the refusal to be forgotten", 5)
    assert not switched.status()["config_pending"]
    told = {one.get("ARBITER_INCIDENT") for one in switched.events("rollback")}
    found = switched.incidents()
    mine = [i for i in found if i["id"] in told and "did not come up" in i["summary"]]
    assert [i["event"] for i in mine] == ["rollback"]
    assert not [i for i in found if i["closed_at"] is None]
    assert switched.backend("ollama")["restarts"] == restarts


def test_reload_wait_done_fails_with_the_reason_and_a_restart_does_not_try_again(
    switched: Host,
) -> None:
    """The file keeps the bad line; the daemon says so, and stays on A over a restart."""
    pids = mains(switched)
    switched.fault("vllm-b", **DEAD)
    set_mode(switched, "B")
    done = switched.ctl("reload", "--wait=done")
    assert done.returncode == 1
    assert "mode B is not in force, mode A is: vllm cannot run in it" in done.stderr
    whole(switched, "A", pids, "vllm")
    pids = mains(switched)
    assert "was rolled back" in switched.status()["config_refused"][0]
    switched.kill()
    switched.start()
    whole(switched, "A", pids)
    assert "was rolled back" in switched.status()["config_refused"][0]
    switched.fault("vllm-b")
    assert switched.ctl("reload", "--wait=done").returncode == 0
    whole(switched, "B", pids, "vllm")


# -- a second reload, a stop ---------------------------------------------------------------------
def _queued(host: Host, mode: str) -> bool:
    return bool((host.status()["switch"] or {}).get("queued") == mode)


def test_a_second_reload_is_queued_and_the_latest_wins(switched: Host) -> None:
    """B is on its way; C and then A are accepted: published as queued, C never begins."""
    pids = mains(switched)
    switched.fault("vllm-b", start_delay_s=600)
    set_mode(switched, "B")
    assert switched.ctl("reload").returncode == 0
    wait_until(lambda: switched.status()["switch"], 5, "the switch")
    for mode in ("C", "A"):
        set_mode(switched, mode)
        assert switched.ctl("reload").returncode == 0
        wait_until(partial(_queued, switched, mode), 5, mode)
    switched.fault("vllm-b")
    whole(switched, "A", pids, "vllm")
    begun = [
        e["MESSAGE"] for e in switched.events("mode_switch") if "kept untouched" in e["MESSAGE"]
    ]
    assert [text.split(":")[0] for text in begun] == ["mode A → B", "mode B → A"]


def test_sigterm_in_the_middle_is_obeyed_and_the_next_start_ends_the_switch(switched: Host) -> None:
    """Exit 0, nothing left; then mode B comes up, without a rollback."""
    switched.fault("vllm-b", start_delay_s=600)
    set_mode(switched, "B")
    assert switched.ctl("reload").returncode == 0
    switched.wait_event("start", "vllm")
    assert switched.stop() == 0
    assert switched.tagged() == []
    switched.fault("vllm-b")
    switched.start()
    whole(switched, "B", {})
    assert switched.events("rollback") == []


# -- fault drills --------------------------------------------------------------------------------
def _step(host: Host, event: str, text: str) -> Callable[[], bool]:
    seen = len(host.events(event))
    return lambda: any(text in e["MESSAGE"] for e in host.events(event)[seen:])


STEPS = [
    ("mode_switch", "kept untouched"),
    ("stop", "vllm: stopping"),
    ("released", "vllm: gone"),
    ("start", "vllm: starting"),
    ("ready", "vllm: ready"),
]


def _killed_at(host: Host, to: str, event: str, text: str) -> None:
    """A reload to this mode; the daemon is killed at this step of it and started again."""
    reached = _step(host, event, text)
    set_mode(host, to)
    assert host.ctl("reload").returncode == 0
    host.wait(reached, text)
    host.kill()
    host.start()


def _settled(host: Host) -> None:
    assert not [i for i in host.incidents() if i["closed_at"] is None]
    assert not (host.home / "run" / "previous.toml").exists()


def test_kill_9_of_the_daemon_at_each_step(switched: Host) -> None:
    """Each step is waited for in the journal, then SIGKILL, there and back in turn: the next daemon ends
    in the new layout, never between, nothing orphaned.
    """
    pids = mains(switched)
    for index, (event, text) in enumerate(STEPS):
        to = "A" if index % 2 else "B"
        _killed_at(switched, to, event, text)
        whole(switched, to, pids, "vllm")
        _settled(switched)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param((STEPS[1], STEPS[3], ("rollback", "comes back")), id="before, in, back"),
        pytest.param((STEPS[0], STEPS[2]), id="the others", marks=pytest.mark.every),
    ],
)
def test_kill_9_of_the_daemon_at_each_step_of_a_layout_that_does_not_come_up(
    switched: Host, steps: tuple[tuple[str, str], ...]
) -> None:
    """With an engine that does not start in B, each daemon ends in A, whole."""
    pids = mains(switched)
    switched.fault("vllm-b", exit_on_start=1, last_words="no")
    for event, text in steps:
        _killed_at(switched, "B", event, text)
        whole(switched, "A", pids, "vllm")
        _settled(switched)


def test_a_gpu_lost_in_the_middle_brings_the_old_layout_back(switched: Host) -> None:
    """Card 1 falls off the bus while vLLM starts there."""
    pids = mains(switched)
    switched.fault("vllm-b", start_delay_s=600)
    set_mode(switched, "B")
    assert switched.ctl("reload").returncode == 0
    switched.wait_event("start", "vllm")
    switched.gpu.lose(1)
    wait_until(lambda: mains(switched).get("vllm", pids["vllm"]) != pids["vllm"], 5)
    os.kill(
        mains(switched)["vllm"], signal.SIGKILL
    )  # as CUDA ends whoever is on a card that is gone

    def back() -> bool:
        found = switched.status()
        return bool(found["mode"] == "A" and found["switch"] is None)

    switched.wait(back, "mode A", 60)
    whole(switched, "A", pids, "vllm")
    assert "GPU 1 is lost" in switched.status()["last_switch"]["reason"]


def _fill(path: Path) -> int | None:
    """Write until it goes no further; the errno."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            return error.errno


@contextmanager
def _full(folder: Path) -> Iterator[None]:
    """A tmpfs without a byte left over this folder, holding what was in it."""
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "full", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    try:
        for name, text in kept.items():
            (folder / name).write_bytes(text)
        assert _fill(folder / "filler") == errno.ENOSPC
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_in_the_middle_costs_no_layout(switched: Host) -> None:
    """state_dir takes no byte from the middle of the switch on; the daemon is killed besides."""
    pids = mains(switched)
    switched.fault("vllm-b", start_delay_s=600)
    set_mode(switched, "B")
    assert switched.ctl("reload").returncode == 0
    switched.wait_event("stop", "vllm")
    with _full(switched.home / "state"):
        switched.wait_event("start", "vllm")
        switched.kill()
        switched.fault("vllm-b")
        switched.start()
        whole(switched, "B", pids, "vllm")
        pids = mains(switched)
        assert switched.ctl("mode", "A").returncode == 0
        whole(switched, "A", pids, "vllm")


# -- under load ----------------------------------------------------------------------------------
LOAD = """
import asyncio, collections, json, sys, time
import aiohttp
urls = json.loads(sys.argv[1])
stop = False
async def work(via, name, url, body, out):
    while not stop:
        try:
            async with via.post(url, json=body) as reply:
                text = await reply.read()
                wait = reply.headers.get("Retry-After", "")
                good = reply.status == 200 or (reply.status == 503 and wait.isdigit() and int(wait) >= 1)
                key = str(reply.status) if good else f"{reply.status} {text[:120]!r}"
        except Exception as error:
            key = f"{type(error).__name__} {error}"
        out[name][key] += 1
        if key != "200":
            await asyncio.sleep(0.05)
async def main():
    global stop
    out = collections.defaultdict(collections.Counter)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as via:
        tasks = [asyncio.create_task(work(via, n, u, b, out)) for n, u, b in urls for _ in range(2)]
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        stop = True
        await asyncio.gather(*tasks)
    print(json.dumps(out))
asyncio.run(main())
"""


@contextmanager
def _load(host: Host) -> Iterator[dict[str, dict[str, int]]]:
    """Two clients at each door, all the time; afterwards their answers by backend and status."""
    asks = [
        ["vllm", host.door("vllm", "/v1/completions"), {"model": MODEL, "prompt": "x", "max_tokens": 8}],
        ["ollama", host.door("ollama", "/api/generate"), {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 8}}],
        ["tensorflow", host.door("tensorflow", "/v1/models/resnet50:predict"), {"instances": [1]}],
    ]  # fmt: skip
    client = subprocess.Popen(
        [sys.executable, "-c", LOAD, json.dumps(asks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    out: dict[str, dict[str, int]] = {}
    with client:
        try:
            yield out
            said, _ = client.communicate("\n", timeout=PATIENCE_S)
            out.update(json.loads(said))
        finally:
            client.kill()


def test_there_and_back_under_load(sim_lib: Path) -> None:
    """A → B → A with clients at every door: the untouched fail no request and are not restarted; the
    touched one answers 200, or 503 with Retry-After; the whole takes at most 1.2 times what vLLM's own
    stop and start took, plus the ticks between its steps.
    """
    home = Path(tempfile.mkdtemp(prefix="gpua-sw-", dir="/tmp"))  # HAProxy's sockets: short paths
    host = Host(home, sim_lib, ("rtx4090-24g", "rtx4090-24g"), gateway=True)
    try:
        pids = start(host, only=("tensorflow", "vllm", "ollama"))
        with _load(host) as answers:
            for mode in ("B", "A"):
                done = host.ctl("mode", mode, "--json")
                assert done.returncode == 0, done.stderr
                took = json.loads(done.stdout)["took_s"]
                times = host.status()["times"]["vllm"]
                own = times["stop_s"] + times["start_s"]
                assert took <= 1.2 * own + 5.0, (took, own)
        for name in ("tensorflow", "ollama"):
            assert set(answers[name]) == {"200"}, answers[name]
            assert host.backend(name)["restarts"] == 0
        assert set(answers["vllm"]) <= {"200", "503"}, answers["vllm"]
        assert answers["vllm"]["200"] > 0
        now = mains(host)
        assert {n: now[n] for n in ("tensorflow", "ollama")} == {
            n: pids[n] for n in ("tensorflow", "ollama")
        }
    finally:
        host.close()
        shutil.rmtree(home, ignore_errors=True)


def test_the_status_line_tells_how_far_it_is(pair: Host) -> None:
    """As systemctl status shows it, and gone afterwards; the daemon's own socket receives it."""
    import socket

    write(pair)
    path = str(pair.home / "notify")
    lines: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(0.2)
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                try:
                    lines.append(sock.recv(4096).decode())
                except TimeoutError:
                    continue

        reader = threading.Thread(target=read)
        reader.start()
        try:
            pair.start(NOTIFY_SOCKET=path)
            pair.wait_ready()
            pair.fault("vllm-b", start_delay_s=1.5)
            assert pair.ctl("mode", "B").returncode == 0
            told = re.compile(r"STATUS=switching A → B: vllm \w+ \(0 of 1 done\)")
            assert wait_until(lambda: [line for line in lines if told.search(line)], 5)
            wait_until(lambda: lines[-1].startswith(("STATUS=mode B", "WATCHDOG")), 5)
            pair.signal(signal.SIGTERM)
            assert pair.process is not None
            assert pair.process.wait(30) == 0
        finally:
            ended.set()
            reader.join()
