"""The simulated GPU behaves as docs/facts/nvml.md says of real ones; unmodified tools run on it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pynvml
import pytest

from arbiterd.quantities import GIB, MIB
from arbiterd.sim.gpu import DeviceLost, OutOfMemory, SimGpu
from tests.support import PATIENCE_S, wait_until

STRUCTS = [
    pynvml.c_nvmlMemory_t,
    pynvml.c_nvmlMemory_v2_t,
    pynvml.c_nvmlProcessInfo_v3_t,
    pynvml.nvmlPciInfo_t,
    pynvml.c_nvmlUtilization_t,
    pynvml.c_nvmlBAR1Memory_t,
    pynvml.c_nvmlDeviceAttributes,
]


def _nvml(env: dict[str, str], code: str) -> str:
    """Run code with pynvml in a process that meets the simulated library; returns its output."""
    done = subprocess.run(
        [sys.executable, "-c", "import pynvml as nv, json, time, os\nnv.nvmlInit()\n" + code],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MEMORY = (
    "h = nv.nvmlDeviceGetHandleByIndex(0)\n"
    "m = nv.nvmlDeviceGetMemoryInfo(h, version=nv.nvmlMemory_v2)\n"
    "print(json.dumps([m.total, m.reserved, m.used, m.free]))\n"
)
PROCESSES = (
    "h = nv.nvmlDeviceGetHandleByIndex(0)\n"
    "print(json.dumps([[p.pid, p.usedGpuMemory] for p in nv.nvmlDeviceGetComputeRunningProcesses(h)]))\n"
)


def test_structs_have_the_sizes_pynvml_expects(gpu: SimGpu) -> None:
    """Compiled C against ctypes, number by number."""
    for number, struct in enumerate(STRUCTS):
        assert gpu.sizeof(number) == ctypes.sizeof(struct), struct.__name__


def test_unmodified_pynvml_reads_it(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """Reserved + used + free = total; a process is listed with its bytes."""
    gpu.alloc(0, 3 * GIB, pid=os.getpid())
    total, reserved, used, free = json.loads(_nvml(sim_env, MEMORY))
    assert reserved + used + free == total
    assert used == 3 * GIB
    assert json.loads(_nvml(sim_env, PROCESSES)) == [[os.getpid(), 3 * GIB]]


@pytest.mark.parametrize("tool", [["nvitop", "-1"], ["gpustat"]])
def test_unmodified_tools_run_on_it(gpu: SimGpu, sim_env: dict[str, str], tool: list[str]) -> None:
    """nvitop -1 and gpustat show the card's name and no error."""
    script = Path(sys.executable).with_name(tool[0])
    env = {**sim_env, "TERM": "xterm", "LANG": "C.UTF-8", "COLUMNS": "100"}
    done = subprocess.run(
        [str(script), *tool[1:]],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4090" in done.stdout
    assert "Error" not in done.stdout + done.stderr


def test_memory_lives_with_its_process(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """SIGKILL gives the bytes back; a zombie has released its own already."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        gpu.alloc(0, 2 * GIB, pid=process.pid)
        assert gpu.memory(0)[2] == 2 * GIB
        process.send_signal(signal.SIGKILL)  # not waited for: a zombie until the block's end
        wait_until(lambda: gpu.memory(0)[2] == 0, 5, "the bytes of a zombie")
        process.wait()
    assert json.loads(_nvml(sim_env, PROCESSES)) == []


def test_release_may_lag_behind_the_death(gpu: SimGpu) -> None:
    """The process is gone from the list at once, its bytes are used a while longer."""
    gpu.set_release_lag(700)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        gpu.alloc(0, GIB, pid=process.pid)
        process.kill()
        process.wait()
    began = time.monotonic()
    assert gpu.memory(0)[2] == GIB
    assert gpu.processes(0) == []
    wait_until(lambda: gpu.memory(0)[2] == 0, 5)
    assert time.monotonic() - began >= 0.6


def test_two_processes_never_get_the_same_bytes(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """A race for the last bytes: the sum of what was granted fits the card."""
    code = (
        "import os, sys, time; from pathlib import Path; from arbiterd.sim.gpu import SimGpu, OutOfMemory\n"
        "g = SimGpu.attach(Path(os.environ['GPU_SIM_STATE']), Path(os.environ['GPU_SIM_LIB']))\n"
        "n = 0\n"
        "while True:\n"
        "    try: g.alloc(0, 64 << 20); n += 1\n"
        "    except OutOfMemory: break\n"
        "print(n, flush=True); sys.stdin.read()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=sim_env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        counts = [int(one.stdout.readline()) for one in racers if one.stdout]
        total, reserved, used, _free = gpu.memory(0)
        assert used == sum(counts) * 64 * MIB
        assert used + reserved <= total
        assert used + reserved > total - 64 * MIB
    finally:
        for one in racers:
            one.communicate()


def test_readers_never_see_a_torn_sum(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """While another process allocates and frees, every reading adds up."""
    handle = gpu.alloc(0, MIB, pid=os.getpid())
    code = (
        "import pynvml as nv\nnv.nvmlInit()\nh = nv.nvmlDeviceGetHandleByIndex(0)\n"
        "for _ in range(20000):\n"
        "    m = nv.nvmlDeviceGetMemoryInfo(h, version=nv.nvmlMemory_v2)\n"
        "    assert m.total == m.reserved + m.used + m.free, (m.total, m.used)\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], env=sim_env)
    size = 1
    while reader.poll() is None:
        size = size % 4000 + 7
        gpu.resize(handle, size * MIB)
    assert reader.returncode == 0


def test_too_much_is_refused_with_the_numbers(gpu: SimGpu) -> None:
    """What was asked, what is free, what there is."""
    with pytest.raises(OutOfMemory) as error:
        gpu.alloc(0, 99 * GIB)
    assert error.value.asked_bytes == 99 * GIB
    assert error.value.free_bytes == gpu.memory(0)[3]


def test_a_lost_gpu_says_so_and_comes_back_empty(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """GPU_IS_LOST from every call about it; allocations fail; restored, nothing is held."""
    gpu.alloc(0, GIB)
    gpu.lose(0)
    code = MEMORY.replace("print", "pass; print")
    said = _nvml(
        sim_env,
        "try:\n    "
        + code.replace("\n", "\n    ")
        + "\nexcept nv.NVMLError as e: print(e.value)\n",
    )
    assert said == str(pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(DeviceLost):
        gpu.alloc(0, GIB)
    gpu.restore(0)
    assert gpu.memory(0)[2] == 0


def test_a_call_can_hang_and_be_released(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """The hang is real: the process sits in the call until it is cleared."""
    gpu.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=60_000)
    code = "import pynvml as nv, json\nnv.nvmlInit()\nprint('in', flush=True)\n" + MEMORY
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, env=sim_env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "in"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        gpu.clear_faults()
        assert process.wait(10) == 0


def test_used_memory_may_be_not_available(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """N/A becomes None in pynvml: never sum without a check."""
    from arbiterd.sim.gpu import Flag

    gpu.alloc(0, GIB, pid=os.getpid(), flags=Flag.COMPUTE | Flag.MEM_NA)
    assert json.loads(_nvml(sim_env, PROCESSES)) == [[os.getpid(), None]]


def test_mig_slices_have_memory_of_their_own(
    sim_lib: Path, tmp_path: Path, sim_env: dict[str, str]
) -> None:
    """Slices by uuid, processes per slice; the parent's mode is on; taking it away removes them."""
    gpu = SimGpu.create(tmp_path / "gpu", sim_lib, ("a100-40g",))
    try:
        gpu.set_mig(0, ["3g.20gb", "1g.5gb"])
        first, second = gpu.mig_uuids(0)
        assert first != second
        gpu.alloc(0, 4 * GIB, pid=os.getpid(), mig=0)
        assert gpu.memory(0, 0)[2] == 4 * GIB
        assert gpu.memory(0, 1)[2] == 0
        assert gpu.memory(0, 1)[0] < gpu.memory(0, 0)[0] < gpu.memory(0)[0]
        with pytest.raises(OutOfMemory):
            gpu.alloc(0, 8 * GIB, pid=os.getpid(), mig=1)
        said = _nvml(
            sim_env,
            "p = nv.nvmlDeviceGetHandleByIndex(0)\n"
            "print(json.dumps([nv.nvmlDeviceGetMigMode(p)[0]] + [nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetMigDeviceHandleByIndex(p, i)) for i in range(2)]))\n",
        )
        assert json.loads(said) == [1, first, second]
    finally:
        gpu.close()


@pytest.mark.parametrize(
    ("profile", "least"),
    [("rtx4090-24g", 23 * GIB), ("a100-40g", 39 * GIB), ("h100-80g", 78 * GIB)],
)
def test_profiles_have_their_cards_memory(
    sim_lib: Path, tmp_path: Path, profile: str, least: int
) -> None:
    """Two of each side by side, each with its own uuid."""
    gpu = SimGpu.create(tmp_path / "gpu", sim_lib, (profile, profile))
    try:
        total, reserved, _, _ = gpu.memory(1)
        assert total - reserved >= least
        assert len(set(gpu.uuids())) == 2
    finally:
        gpu.close()


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [(None, 2), ("", 0), ("0", 1), ("1,0", 2), ("0,9,1", 1), ("-1", 0), ("9", 0)],
)
def test_visible_devices_follow_cudas_rules(
    sim_lib: Path, tmp_path: Path, listed: str | None, wanted: int
) -> None:
    """An invalid entry hides itself and all after it; empty hides all."""
    gpu = SimGpu.create(tmp_path / "gpu", sim_lib, ("rtx4090-24g", "rtx4090-24g"))
    try:
        assert len(gpu.visible(listed)) == wanted
        assert gpu.visible(gpu.uuids()[1]) == [(1, -1)]
    finally:
        gpu.close()
