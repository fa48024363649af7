"""Faults of the driver: it hangs, errs, talks nonsense, loses its card; strangers on the card."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from arbiterd.quantities import GIB, MIB
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, Flag
from tests.faults.by_hand import STOP, both, hit, serves, ticks_go_on, told
from tests.faults.row import Fault
from tests.faults.stage import Stage, stays, until

KIND = "driver"
MEMORY, LISTED = "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses"
UTILISATION, COUNT = "nvmlDeviceGetProcessUtilization", "nvmlDeviceGetCount"
_BLIND = (
    "blind, not dead: engines serve on, nothing is started or stopped on a guess, it sees again"
)

# What nvml.h can answer, and NVML's own word for it.
ERRORS = {
    1: "uninitialized", 2: "invalid argument", 3: "not supported", 4: "no permission", 6: "not found",
    7: "insufficient size", 8: "insufficient power", 9: "driver not loaded", 10: "timeout", 11: "irq issue",
    12: "library not found", 13: "function not found", 14: "corrupted inforom", 15: "gpu is lost",
    16: "reset required", 17: "operating system", 18: "lib rm version mismatch", 19: "in use", 20: "memory",
    21: "no data", 25: "argument version mismatch", 999: "unknown",
}  # fmt: skip
_SEEN = "driver_hung|gpu_lost|gpu_fault"


def _row(name: str, inject: Any, promise: str = _BLIND, **more: Any) -> Fault:
    more.setdefault("undo", _clear)
    return Fault(f"driver-{name}", KIND, "direct", inject, promise, **more)


def _clear(stage: Stage, _: Any) -> None:
    stage.gpu.clear_faults()


def _fault(function: str, **more: Any) -> Any:
    return lambda stage: stage.gpu.fault(function, **more)


def _blind(stage: Stage, _: Any) -> None:
    until(lambda: stage.status()["loop"]["blind"], "blindness", 40)


def _sees(stage: Stage, _: Any) -> None:
    until(lambda: not stage.status()["loop"]["blind"], "sight", 75)


def _state(index: int, *states: str) -> Any:
    def look(stage: Stage, _: Any) -> None:
        until(lambda: stage.gpu_row(index)["state"] in states, f"GPU {index} in {states}", 40)

    return look


def _misread(total: int, reserved: int, used: int, free: int, count: int = 8) -> Any:
    return lambda stage: stage.gpu.misread(0, total, reserved, used, free, count=count)


def _read_right(stage: Stage, _: Any) -> None:
    stage.gpu.misread(0, 0, 0, 0, 0, count=0)


def _lose(index: int, *, gone: bool = False) -> Any:
    return lambda stage: stage.gpu.lose(index, gone=gone)


def _restore(index: int) -> Any:
    """The card is back, empty: what ran on it has lost its memory, and says so at its next request."""

    def undo(stage: Stage, _: Any) -> None:
        stage.gpu.restore(index)
        until(lambda: stage.gpu_row(index)["state"] == "ok", f"GPU {index} to be back", 75)
        names = [
            row["name"]
            for row in stage.status()["backends"]
            if row["gpu"] == [stage.gpu.uuids()[index]]
        ]
        for name in names:
            stage.order(name, "restart")

    return undo


class _Stranger:
    """A process that is none of ours and holds memory of a GPU."""

    def __init__(self, stage: Stage, index: int, size: str) -> None:
        env = {
            STATE_ENV: str(stage.gpu.path),
            LIB_ENV: str(stage.gpu.lib_dir),
            "PATH": "/usr/bin:/bin",
        }
        line = [sys.executable, "-m", "arbiterd.sim.gpuctl", "hold", str(index), size]
        self.process = subprocess.Popen(
            line, env=env, cwd=stage.faults.parent, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert "holds" in self.process.stdout.readline()

    def close(self) -> None:
        """It ends."""
        self.process.kill()
        self.process.communicate()


def _stranger(index: int, size: str) -> Any:
    return lambda stage: _Stranger(stage, index, size)


def _leaves(stage: Stage, made: _Stranger) -> None:
    made.close()


def _held(flags: Flag, size: int) -> Any:
    return lambda stage: stage.gpu.alloc(1, size, flags=flags)


def _released(stage: Stage, handle: int) -> None:
    stage.gpu.free(handle)


def _xid(code: int, *, named: str = "") -> Any:
    def inject(stage: Stage) -> None:
        stage.gpu.xid(0, code, pid=stage.main_pid(named) if named else 0)

    return inject


def _resume(*names: str) -> Any:
    """An operator's resume says that the card is well."""

    def undo(stage: Stage, _: Any) -> None:
        for name in names:
            stage.order(name, "resume")

    return undo


def _untouched(stage: Stage, _: Any) -> None:
    stays(lambda: all(row["accepting"] for row in stage.status()["backends"]), "all accept", 2.0)


def rows() -> list[Fault]:
    """The table."""
    all_on = serves("vllm", "ollama")
    return [
        _row("hang-memory", _fault(MEMORY, hang_ms=600_000), seen=both(_blind, ticks_go_on(), all_on), tells=("driver_hung", "driver_back")),
        _row("hang-processes", _fault(LISTED, hang_ms=600_000), seen=both(_blind, ticks_go_on(), all_on), tells=("driver_hung", "driver_back")),
        _row("hang-one-card", _fault("nvmlDevice", hang_ms=600_000, device=1), seen=both(_state(1, "hung"), _state(0, "ok"), all_on), tells=("driver_hung", "driver_back")),
        _row("hang-all", _fault("*", hang_ms=600_000), seen=both(_blind, ticks_go_on(), all_on), tells=("driver_hung", "driver_back")),
        _row("hang-utilisation", _fault(UTILISATION, hang_ms=600_000), seen=both(ticks_go_on(), all_on), tells=()),
        _row("slow-2s", _fault(MEMORY, hang_ms=2000), seen=both(ticks_go_on(4.0), all_on), tells=()),
        _row("engine-dies-while-hung", _dies_while_hung, tells=("driver_hung", "exit", "driver_back"), moves=("vllm",),
             promise="a dead engine waits for sight, then starts"),
        *(
            _row(f"memory-error-{code}", _fault(MEMORY, rc=code), seen=both(_blind, ticks_go_on(1.0), serves("vllm", for_s=0.5)),
                 tells=(_SEEN, "driver_back"), promise=f"NVML answers '{word}' for memory: {_BLIND}")
            for code, word in ERRORS.items()
        ),
        *(
            _row(f"list-error-{code}", _fault(LISTED, rc=code), seen=both(ticks_go_on(3.0), serves("vllm", for_s=0.5)), tells=(),
                 promise=f"NVML answers '{word}' for processes: nothing is killed or started on a guess")
            for code, word in ERRORS.items() if code in (1, 2, 3, 4, 6, 7, 9, 15, 17, 999)
        ),
        _row("count-error", _fault(COUNT, rc=999), seen=ticks_go_on(), tells=()),
        *(
            _row(f"init-{code}", _init(code), seen=both(_blind, ticks_go_on(1.0), all_on), undo=_init_works, tells=(_SEEN, "driver_back"),
                 promise=f"nvmlInit answers '{ERRORS[code]}': {_BLIND}")
            for code in (9, 12, 18, 999)
        ),
        *(
            _row(f"garbage-{name}", _misread(*numbers), seen=both(ticks_go_on(1.0), _untouched), undo=_read_right, tells=(),  # told once a minute
                 promise="a reading that cannot be is dropped, the one before holds")
            for name, numbers in {
                "used-over-total": (24 * GIB, 0, 90 * GIB, 0), "sum": (24 * GIB, MIB, 4 * GIB, 3 * GIB),
                "zero": (0, 0, 0, 0), "total-shrinks": (8 * GIB, MIB, 4 * GIB, 4 * GIB - MIB),
                "all-ones": (2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1),
            }.items()
        ),
        _row("garbage-for-long", _misread(24 * GIB, 0, 90 * GIB, 0, -1), seen=both(_blind, all_on), undo=_read_right, tells=("driver_back",),
             promise="nonsense that lasts makes it blind, not rash"),
        _row("reader-killed", hit(_reader), undo=_sees, tells=(), promise="another reader is started"),
        _row("reader-stopped", hit(_reader, STOP), seen=_blind, undo=_sees, tells=("driver_hung", "driver_back"), promise="another reader is started"),
        _row("lost", _lose(1), seen=both(_state(1, "lost"), _state(0, "ok"), serves("vllm")), undo=_restore(1),
             tells=("gpu_lost", "driver_back"), moves=("ollama",), promise="no starts there; the other card goes on; back: it serves again"),
        _row("lost-first", _lose(0), seen=both(_state(0, "lost"), _state(1, "ok"), serves("ollama")), undo=_restore(0),
             tells=("gpu_lost", "driver_back"), moves=("vllm", "tensorflow"), promise="the same with two engines on it"),
        _row("gone", _lose(0, gone=True), seen=both(_state(0, "lost"), serves("ollama")), undo=_restore(0),
             tells=("gpu_lost", "driver_back"), moves=("vllm", "tensorflow"), promise="cards after it keep their numbers"),
        *(_row(f"xid-{code}", _xid(code, named="vllm"), seen=told("gpu_fault|xid"), undo=_none, tells=(), moves=("vllm",),
               promise="an application's XID restarts the backend that it names, or is noted") for code in (13, 31, 43)),
        *(_row(f"xid-{code}", _xid(code), seen=told("gpu_fault|xid"), undo=_resume("vllm", "tensorflow"), tells=(),
               promise="a card that wants a reset: what runs is left to run, nothing is started there") for code in (48, 79, 95, 119)),
        *(_row(f"xid-{code}", _xid(code), seen=both(told("xid"), _untouched), undo=_none, tells=("xid",), promise="noted") for code in (45, 63)),
        _row("xid-storm", lambda s: [s.gpu.xid(0, 63) for _ in range(300)], seen=both(told("xid"), ticks_go_on(1.0)), undo=_none, tells=("xid",),
             promise="three hundred at once are noted; no tick is late"),
        _row("stranger", _stranger(1, "2GiB"), seen=told("foreign_memory"), undo=_leaves, tells=("foreign_memory",), promise="named with pid and command; never killed"),
        _row("stranger-fills", _stranger(0, "5GiB"), seen=told("foreign_memory"), undo=_leaves, tells=("foreign_memory",), moves=("tensorflow", "vllm"),
             promise="pressure from outside: brakes at the doors, no endless restarts"),
        _row("ghost", _held(Flag.COMPUTE | Flag.PIN, 1 * GIB), seen=ticks_go_on(), undo=_released, tells=(), promise="memory whose owner is gone is accounted"),
        _row("hidden", _held(Flag.HIDDEN, 1 * GIB), seen=ticks_go_on(), undo=_released, tells=(), promise="memory that no list names is unattributed, and said"),
        _row("size-unknown", _held(Flag.COMPUTE | Flag.MEM_NA, 512 * MIB), seen=ticks_go_on(), undo=_released, tells=(), promise="a process whose size is not available ends nothing"),
    ]  # fmt: skip


def _none(stage: Stage, _: Any) -> None:
    """It is over by itself."""


def _reader(stage: Stage) -> int:
    return stage.reader_pids()[0]


def _init(code: int) -> Any:
    """A new session is needed before anybody meets it: the reader is killed."""

    def inject(stage: Stage) -> None:
        stage.gpu.init_fails(code)
        stage.kill(_reader(stage))

    return inject


def _init_works(stage: Stage, made: Any) -> None:
    stage.gpu.init_fails(0)
    _sees(stage, made)


def _dies_while_hung(stage: Stage) -> None:
    stage.gpu.fault(MEMORY, hang_ms=600_000)
    until(lambda: stage.events(stage.began, "driver_hung"), "the driver to be told hung")
    stage.kill(stage.main_pid("vllm"))
    until(lambda: stage.events(stage.began, "exit", "vllm"), "the exit")
