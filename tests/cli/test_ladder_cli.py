"""arbiterctl over a live daemon on the simulated card: learned caps, pressure in words, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiterd.linux import procfs
from arbiterd.model.pressure import LearnedCap
from arbiterd.quantities import GIB, MIB
from arbiterd.store.learned_caps import LearnedStore
from tests.support.host import MODEL, Host

ONLY_VLLM = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\n'
FULL_BOOKS = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\nollama = { gpu = 0, memory = "40%" }\n'
VERSION = {"vllm": 'version = "0.11.0"'}


@pytest.fixture
def host(tmp_path: Path, sim_lib: Path) -> Iterator[Host]:
    """One simulated RTX 4090, nothing started yet."""
    one = Host(tmp_path, sim_lib)
    yield one
    one.close()


def _teach(host: Host) -> None:
    """Two OOMs have lowered vllm's cap by 1.10 GiB."""
    cap = LearnedCap(
        mode="A",
        backend="vllm",
        gpu=host.gpu.uuids()[0],
        model=MODEL,
        version="0.11.0",
        lowered_bytes=1126 * MIB,
        step_bytes=662 * MIB,
        ooms=2,
        at=1.8e9,
        reason="the card was full by its own growth: 118 MiB were free",
    )
    store = LearnedStore(host.home / "state")
    store.save({cap.key: cap})
    store.close()


def test_a_learned_cap_outlives_the_daemon_and_one_command_undoes_it(host: Host) -> None:
    """plan, caps, status and the engine's own flag agree; reset holds over a restart too."""
    host.write(ONLY_VLLM, only=("vllm",), keys=VERSION)
    _teach(host)
    planned = host.ctl("plan")
    assert planned.returncode == 0, planned.stderr
    assert "cap 11.84 GiB: 55 % = 12.93 GiB, 1.10 GiB less after 2 OOMs" in planned.stdout
    argv = json.loads(host.ctl("plan", "--json").stdout)["backends"][0]["argv"]
    share = argv[argv.index("--gpu-memory-utilization") + 1]
    host.start()
    host.wait_ready()
    backend = host.backend("vllm")
    assert backend["learned_bytes"] == 1126 * MIB
    running = [procfs.command(pid) for pid in backend["pids"]]
    assert any(f"--gpu-memory-utilization {share}" in one for one in running)
    listed = host.ctl("caps")
    assert listed.returncode == 0
    for cell in ("vllm", "12.93 GiB", "1.10 GiB", "11.84 GiB", "0.11.0", "118 MiB were free"):
        assert cell in listed.stdout, listed.stdout
    assert "cap lowered by 1.10 GiB: arbiterctl caps" in host.ctl("status").stdout
    host.kill()
    host.start()
    host.wait_ready()
    (cap,) = json.loads(host.ctl("caps", "--json").stdout)["caps"]
    assert (cap["cap_bytes"], cap["ooms"], cap["applies"]) == (backend["cap_bytes"], 2, True)

    done = host.ctl("caps", "reset", "vllm")
    assert (done.returncode, done.stdout) == (
        0,
        "vllm: forgotten; its configured cap is in force from its next start\n",
    )
    host.wait_event("cap_restored", "vllm")
    host.wait(lambda: (host.home / "state/learned.json").read_text() == "[]", "the file")
    again = host.ctl("caps", "reset", "vllm")
    assert again.returncode == 1
    assert again.stderr == (
        "arbiterctl: nothing is learned about vllm: its configured cap is in force\n"
    )
    assert host.ctl("caps").stdout == "nothing learned: every configured cap is in force\n"
    host.kill()
    host.start()
    host.wait_ready()
    assert host.get("/v1/caps").json() == {"caps": []}


def test_an_unreadable_file_of_learned_caps_is_said_and_kept_aside(host: Host) -> None:
    """The daemon starts on the configured caps."""
    host.write(ONLY_VLLM, only=("vllm",), keys=VERSION)
    path = host.home / "state/learned.json"
    path.write_text("{half")
    planned = host.ctl("plan")
    assert planned.returncode == 0
    assert f"warning: cannot read {path}" in planned.stderr
    assert path.read_text() == "{half"
    host.start()
    said = host.wait_event("state_unreadable")
    assert f"cannot read {path}" in said["MESSAGE"]
    assert "kept as learned.broken" in said["MESSAGE"]
    assert (host.home / "state/learned.broken").read_text() == "{half"


def test_what_the_daemon_will_not_do_is_exit_1_with_its_sentence(host: Host) -> None:
    """sleep of who cannot, wake of who is awake, why of nobody."""
    host.write(ONLY_VLLM, only=("vllm",), keys=VERSION)
    host.start()
    host.wait_ready()
    for argv, words in (
        (("sleep", "vllm"), "vllm cannot sleep: only vLLM does, with sleep = true in"),
        (("wake", "vllm"), "vllm is not asleep: it is ready"),
        (("wake", "nobody"), "mode A has no backend 'nobody'; it has vllm"),
        (("why", "gpu7"), "there is no backend, GPU or incident 'gpu7'; there is vllm, gpu0;"),
    ):
        done = host.ctl(*argv)
        assert done.returncode == 1, argv
        assert done.stderr.startswith(f"arbiterctl: {words}"), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_tight_card_is_told_with_its_arithmetic(host: Host) -> None:
    """By status at once, by why of the GPU and of a backend that lives on it."""
    host.write(FULL_BOOKS, only=("vllm", "ollama"), keys=VERSION)
    host.start()
    host.wait_ready()
    handle = host.gpu.alloc(0, 1400 * MIB)  # this test is the stranger
    host.wait(lambda: host.gpu_row()["pressure"] == "tight", "the card to be tight")
    shown = host.ctl("status").stdout
    assert "pressure tight: solvency " in shown
    assert "the whole story: arbiterctl why gpu0" in shown
    for what in ("gpu0", host.gpu.uuids()[0], "ollama"):
        told = host.ctl("why", what).stdout
        assert "foreign beyond its allowance; tight below 482 MiB, calm above 867 MiB" in told
        assert "considered: restart of vllm" in told
        assert "never touched for a neighbour" in told
        assert "foreign_memory" in told, told
    found = json.loads(host.ctl("why", "ollama", "--json").stdout)
    assert found["backend"]["name"] == "ollama"
    assert [gpu["index"] for gpu in found["gpus"]] == [0]
    assert found["gpus"][0]["ladder"]["foreign_over_bytes"] == 888 * MIB
    host.gpu.free(handle)


def test_a_leak_is_restarted_and_its_incident_tells_expected_and_freed_bytes(host: Host) -> None:
    """why INCIDENT: what was done to whom, why, what came back; /metrics has counted it."""
    host.write(ONLY_VLLM, only=("vllm",), keys=VERSION)
    host.start()
    host.wait_ready()
    host.fault("vllm", leak_bytes_per_s=GIB)
    host.wait(lambda: len(host.events("reclaim", "vllm")) >= 1, "the reclaim")
    host.fault("vllm")
    host.wait(lambda: len(host.events("reclaim", "vllm")) >= 2, "its end")
    incident = host.events("reclaim", "vllm")[0]["ARBITER_INCIDENT"]
    told = host.ctl("why", incident).stdout
    line = next(one for one in told.splitlines() if "Reclaim restart vllm" in one)
    assert "over its cap of 12.93 GiB" in line
    assert " expected, " in line
    assert line.endswith(" freed")
    metrics = host.get("/metrics").text
    uuid = host.gpu.uuids()[0]
    worked = f'reclaims_total{{gpu="{uuid}",index="0",outcome="worked",rung="restart"}} 1.0'
    assert worked in metrics, [m for m in metrics.splitlines() if "reclaim" in m]


def test_an_operator_puts_vllm_to_sleep_and_wakes_it(host: Host) -> None:
    """Its bytes go and come back; nobody else wakes it, and it takes work once it has answered."""
    keys = {"vllm": 'version = "0.11.0"\nsleep = true'}
    host.write(ONLY_VLLM, only=("vllm",), keys=keys)
    host.start()
    host.wait_ready()
    pids, held = host.backend("vllm")["pids"], host.backend("vllm")["used_bytes"]
    done = host.ctl("sleep", "vllm")
    assert (done.returncode, done.stdout) == (
        0,
        "vllm: is drained, then sleeps until: arbiterctl wake vllm\n",
    )
    host.wait(lambda: host.backend("vllm")["used_bytes"] < held / 2, "its bytes to be back")
    host.wait(lambda: "asleep" in host.backend("vllm")["reason"], "it to be asleep")
    again = host.ctl("sleep", "vllm")
    assert again.returncode == 1
    assert "only a ready backend can be put to sleep; vllm: it is sleeping" in again.stderr
    assert host.ctl("wake", "vllm").returncode == 0
    host.wait_ready("vllm")
    back = host.backend("vllm")
    assert back["pids"] == pids
    assert back["used_bytes"] > held / 2
    told = [one["MESSAGE"] for one in host.events("wake", "vllm")]
    assert told[0].startswith("vllm: wake asked by uid ")
    assert told[-1].startswith("vllm: awake and answering after ")
