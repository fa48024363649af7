"""XIDs inside the NVML worker: a thread that waits for events and says each as a line of its own.

Standard library and pynvml only, as the worker. A wait that hangs in the driver holds up this thread
and nothing else: pynvml releases the GIL during a call.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pynvml as nv

from arbiterd import aside

WAIT_MS = 2000
LOST_PAUSE_S = 5.0  # while a registered GPU is lost the wait returns at once: do not spin
_EARLY_S = 0.05  # a time-out may come early (facts/nvml.md): then pause as well
_NO_INSTANCE = 0xFFFFFFFF
Slices = Mapping[tuple[str, int, int], str]


class EventWatch:
    """``want`` names the GPUs to watch; ``slices`` maps (GPU uuid, gi, ci) to a MIG uuid."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._wanted: dict[str, Any] = {}
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self.slices: Slices = {}
        self.came = False  # an event came since the flag was put down: read the recovery action

    def want(self, handles: dict[str, Any]) -> None:
        """Watch these GPUs, handles by uuid. Starts the thread; never waits for it."""
        if handles.keys() == self._wanted.keys():
            return
        self._wanted = handles
        self._changed.set()
        if self._thread is None:
            self._thread = aside.thread(self._run, name="events")
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._changed.clear()
            wanted = self._wanted
            try:
                events = nv.nvmlEventSetCreate()
            except nv.NVMLError as error:
                self._say({"events": False, "why": str(error)})
                self._changed.wait(60)
                continue
            names = self._register(events, wanted)
            if names:
                self._say({"events": True})
                self._watch(events, names, wanted)
            else:
                self._changed.wait(LOST_PAUSE_S)
            with suppress(nv.NVMLError):
                nv.nvmlEventSetFree(events)

    def _register(self, events: Any, wanted: dict[str, Any]) -> dict[int, str]:
        """Register what can be; returns the uuids by the address of their handle."""
        names: dict[int, str] = {}
        for uuid, handle in wanted.items():
            with suppress(nv.NVMLError):
                kinds = nv.nvmlDeviceGetSupportedEventTypes(handle)
                kinds &= nv.nvmlEventTypeXidCriticalError
                if kinds:
                    nv.nvmlDeviceRegisterEvents(handle, kinds, events)
                    names[_address(handle)] = uuid
        return names

    def _watch(self, events: Any, names: dict[int, str], wanted: dict[str, Any]) -> None:
        """Until other GPUs are wanted or the set is of no use any more."""
        while self._wanted is wanted:
            began = time.monotonic()
            try:
                data = nv.nvmlEventSetWait_v2(events, WAIT_MS)
            except nv.NVMLError as error:
                if error.value == nv.NVML_ERROR_TIMEOUT:
                    if time.monotonic() - began < _EARLY_S:
                        time.sleep(_EARLY_S)
                    continue
                self._say({"events": False, "why": str(error)})
                self._changed.wait(LOST_PAUSE_S)
                return
            if data.eventType & nv.nvmlEventTypeXidCriticalError:
                self._tell(names.get(_address(data.device), ""), data)

    def _tell(self, gpu: str, data: Any) -> None:
        gi, ci = int(data.gpuInstanceId), int(data.computeInstanceId)
        uuid = gpu
        if gi != _NO_INSTANCE:
            uuid = self.slices.get((gpu, gi, ci), gpu)
        self.came = True
        self._say({"xid": int(data.eventData), "uuid": uuid, "gpu": gpu, "at": time.monotonic()})


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
