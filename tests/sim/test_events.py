"""Events, field values, utilisation and fallen cards of the simulated GPU, through unmodified pynvml."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest

from arbiterd.quantities import GIB
from arbiterd.sim import gpuctl
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, SimGpu

WAIT = """
import json, sys, time
import pynvml as nv
nv.nvmlInit()
handles = [nv.nvmlDeviceGetHandleByIndex(i) for i in range(nv.nvmlDeviceGetCount())]
events = nv.nvmlEventSetCreate()
for h in handles:
    mask = nv.nvmlEventTypeXidCriticalError & nv.nvmlDeviceGetSupportedEventTypes(h)
    nv.nvmlDeviceRegisterEvents(h, mask, events)
print("registered", flush=True)
for line in sys.stdin:
    began = time.monotonic()
    try:
        data = nv.nvmlEventSetWait_v2(events, int(line))
        uuid = nv.nvmlDeviceGetUUID(data.device)
        said = [uuid, data.eventType, data.eventData, data.gpuInstanceId, data.computeInstanceId]
    except nv.NVMLError as error:
        said = [error.value]
    print(json.dumps([said, time.monotonic() - began]), flush=True)
"""
NO_INSTANCE = 0xFFFFFFFF


class Waiter:
    """A process that waits for events when told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self.read() == "registered"

    def read(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def order(self, ms: int) -> None:
        """Let it wait so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{ms}\n")
        self._process.stdin.flush()

    def wait(self, ms: int = 20_000) -> tuple[list[object], float]:
        """What it met, and how long it took."""
        self.order(ms)
        said, took = json.loads(self.read())
        return said, took


@contextmanager
def waiting(env: dict[str, str]) -> Iterator[Waiter]:
    """A waiter that ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-c", WAIT],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Waiter(process)
        finally:
            process.kill()


def _pynvml(env: dict[str, str], code: str) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", "import pynvml as nv, json, os\nnv.nvmlInit()\n" + code],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: list[object] = json.loads(done.stdout)
    return said


def test_structs_have_the_sizes_pynvml_expects(gpu: SimGpu) -> None:
    """Compiled C against ctypes."""
    structs = (
        pynvml.c_nvmlEventData_t,
        pynvml.c_nvmlFieldValue_t,
        pynvml.c_nvmlProcessUtilizationSample_t,
    )
    for number, struct in enumerate(structs, start=7):
        assert gpu.sizeof(number) == ctypes.sizeof(struct), struct.__name__


def test_an_xid_reaches_every_waiter_registered_before(
    gpu: SimGpu, sim_env: dict[str, str]
) -> None:
    """What was posted before the registration is not delivered; each waiter gets each event once."""
    gpu.xid(0, 13)
    with waiting(sim_env) as first, waiting(sim_env) as second:
        for code in (31, 79):
            gpu.xid(0, code, pid=os.getpid())
        uuid = gpu.uuids()[0]
        for waiter in (first, second):
            for code in (31, 79):
                said, _ = waiter.wait()
                assert said == [
                    uuid,
                    pynvml.nvmlEventTypeXidCriticalError,
                    code,
                    NO_INSTANCE,
                    NO_INSTANCE,
                ]
            said, took = waiter.wait(50)
            assert said == [pynvml.NVML_ERROR_TIMEOUT]
            assert took >= 0.05, "a timeout is never early"


def test_a_wait_is_woken_by_an_event_and_by_a_loss(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """A sleeping waiter is woken at once; while a registered GPU is lost it does not sleep."""
    with waiting(sim_env) as waiter:
        waiter.order(20_000)
        gpu.xid(0, 94)
        said, took = json.loads(waiter.read())
        assert said[2] == 94
        assert took < 10
        waiter.order(20_000)
        gpu.lose(0)
        said, took = json.loads(waiter.read())
        assert said == [pynvml.NVML_ERROR_GPU_IS_LOST]
        assert took < 10
        assert waiter.wait()[0] == [pynvml.NVML_ERROR_GPU_IS_LOST]


def test_a_slices_event_names_its_instances(
    sim_lib: Path, tmp_path: Path, sim_env: dict[str, str]
) -> None:
    """Registered at the parent, told with gi and ci; a slice's own handle cannot be registered."""
    gpu = SimGpu.create(tmp_path / "gpu", sim_lib, ("a100-40g",))
    try:
        gpu.set_mig(0, ["3g.20gb", "1g.5gb"])
        with waiting(sim_env) as waiter:
            gpu.xid(0, 94, mig=1)
            said, _ = waiter.wait()
        code = (
            "m = nv.nvmlDeviceGetMigDeviceHandleByIndex(nv.nvmlDeviceGetHandleByIndex(0), 1)\n"
            "ids = [nv.nvmlDeviceGetGpuInstanceId(m), nv.nvmlDeviceGetComputeInstanceId(m)]\n"
            "try: nv.nvmlDeviceRegisterEvents(m, 8, nv.nvmlEventSetCreate())\n"
            "except nv.NVMLError as error: print(json.dumps([*ids, error.value]))\n"
        )
        gi, ci, refused = _pynvml(sim_env, code)
        assert said[2:] == [94, gi, ci]
        assert refused == pynvml.NVML_ERROR_NOT_SUPPORTED
    finally:
        gpu.close()


def test_the_kernel_log_names_the_pid(gpu: SimGpu) -> None:
    """One line an XID, as the driver writes it."""
    gpu.xid(0, 45, pid=1496200)
    gpu.xid(0, 79)
    first, second = [json.loads(x)["MESSAGE"] for x in gpu.kernel_log.read_text().splitlines()]
    assert first.startswith("NVRM: Xid (PCI:0000:10:00): 45, pid=1496200, name=")
    assert second.startswith("NVRM: Xid (PCI:0000:10:00): 79, pid='<unknown>'")


def test_recovery_action_and_utilisation(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """Field 230 by GetFieldValues; utilisation per pid, NotFound when nobody computes."""
    code = (
        "h = nv.nvmlDeviceGetHandleByIndex(0)\n"
        "f = nv.nvmlDeviceGetFieldValues(h, [nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 1])\n"
        "try: u = [[s.pid, s.smUtil] for s in nv.nvmlDeviceGetProcessUtilization(h, 0)]\n"
        "except nv.NVMLError as error: u = error.value\n"
        "print(json.dumps([f[0].nvmlReturn, f[0].value.uiVal, f[1].nvmlReturn, u]))\n"
    )
    unsupported = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert _pynvml(sim_env, code) == [0, 0, unsupported, pynvml.NVML_ERROR_NOT_FOUND]
    gpu.recovery_action(0, 1)
    gpu.busy(0, os.getpid(), 87)
    assert _pynvml(sim_env, code) == [0, 1, unsupported, [[os.getpid(), 87]]]


def test_a_fallen_card_moves_the_indices_of_new_sessions(
    sim_lib: Path, tmp_path: Path, sim_env: dict[str, str]
) -> None:
    """A new session counts one GPU, at index 0; CUDA's numbers move as well; a hole stays counted."""
    gpu = SimGpu.create(tmp_path / "gpu", sim_lib, ("rtx4090-24g", "rtx4090-24g"))
    first, second = gpu.uuids()
    code = (
        "out = []\n"
        "for i in range(nv.nvmlDeviceGetCount()):\n"
        "    try: out.append(nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetHandleByIndex(i)))\n"
        "    except nv.NVMLError as error: out.append(error.value)\n"
        "print(json.dumps(out))\n"
    )
    try:
        assert _pynvml(sim_env, code) == [first, second]
        gpu.lose(0, 999)
        assert _pynvml(sim_env, code) == [pynvml.NVML_ERROR_UNKNOWN, second]
        gpu.lose(0, gone=True)
        assert _pynvml(sim_env, code) == [second]
        assert gpu.visible("0") == [(1, -1)]
        assert gpu.visible("1") == []
        gpu.restore(0)
        assert _pynvml(sim_env, code) == [first, second]
    finally:
        gpu.close()


def test_a_reading_can_be_wrong(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """So many readings tell other numbers, then the truth again."""
    gpu.misread(0, 24 * GIB, 0, 25 * GIB, 0)
    code = (
        "h = nv.nvmlDeviceGetHandleByIndex(0)\n"
        "read = lambda: nv.nvmlDeviceGetMemoryInfo(h, version=nv.nvmlMemory_v2).used\n"
        "print(json.dumps([read(), read()]))\n"
    )
    assert _pynvml(sim_env, code) == [25 * GIB, 0]


def test_gpuctl_posts_an_xid(
    gpu: SimGpu, sim_lib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``gpuctl xid 0 79``, and a wrong card is refused with a sentence."""
    monkeypatch.setenv(STATE_ENV, str(tmp_path / "gpu"))
    monkeypatch.setenv(LIB_ENV, str(sim_lib))
    assert gpuctl.main(["xid", "0", "79"]) == 0
    assert "79" in gpu.kernel_log.read_text()
    assert gpuctl.main(["xid", "5", "79"]) != 0
