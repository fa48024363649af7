"""The transient unit that makes NVIDIA's device nodes: nvidia-modprobe as root, by the driver's rules.

Its own switches (nvidia-modprobe.c): with ``-u`` the numbers of ``-c`` are nodes of the unified memory
driver, so that one call cannot make nvidia0 and nvidia-uvm; ``-c 255`` is nvidiactl.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from arbiterd.errors import LaunchError
from arbiterd.files import owned
from arbiterd.linux.sandbox import CAPABILITIES
from arbiterd.linux.systemd_bus import Bus, BusError, Property

MODPROBE = "/usr/bin/nvidia-modprobe"
NODES_UNIT = "gpu-arbiter-nodes.service"
_GPU = re.compile(r"/dev/nvidia(\d+)")
_CAP = re.compile(r"/dev/nvidia-caps/nvidia-cap(\d+)")
_CONTROL_MINOR = 255
_TIMEOUT_US = 20_000_000
_NEEDS = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SYS_MODULE")


def commands(nodes: Sequence[str], capability_of: dict[int, str]) -> list[list[str]]:
    """The calls that make these nodes. ``capability_of``: file in /proc of each capability's number."""
    minors = [match[1] for node in nodes if (match := _GPU.fullmatch(node))]
    if "/dev/nvidiactl" in nodes:
        minors.append(str(_CONTROL_MINOR))
    numbers = [int(match[1]) for node in nodes if (match := _CAP.fullmatch(node))]
    files = [capability_of[one] for one in numbers if one in capability_of]
    out = []
    if minors or files:
        words = [word for minor in minors for word in ("-c", minor)]
        out.append([MODPROBE, *words, *(word for file in files for word in ("-f", file))])
    if any(node.startswith("/dev/nvidia-uvm") for node in nodes):
        out.append([MODPROBE, "-u", "-c", "0"])
    return out


def capabilities() -> dict[int, str]:
    """The file in /proc that describes each MIG capability, by the number of its node."""
    out: dict[int, str] = {}
    for path in glob.glob("/proc/driver/nvidia/capabilities/**/*", recursive=True):
        with suppress(OSError, ValueError):
            for line in Path(path).read_text(encoding="ascii").splitlines():
                if line.startswith("DeviceFileMinor:"):
                    out[int(line.partition(":")[2])] = path
    return out


def make(bus: Bus, wait: Callable[[str], str], nodes: Sequence[str]) -> None:
    """Run the unit. ``wait``: the result of a job by its path.

    Raises:
        LaunchError: it cannot be started, or nvidia-modprobe fails.

    """
    try:
        job = bus.start_transient(NODES_UNIT, nodes_unit(nodes))
    except BusError as error:
        if error.name.endswith("UnitExists"):
            return  # at work for another backend
        raise
    result = wait(job)
    if result != "done":
        bus.reset_failed(NODES_UNIT)
        msg = f"{MODPROBE} failed; journalctl -u {NODES_UNIT} has its words"
        raise LaunchError(msg)


def nodes_unit(nodes: Sequence[str]) -> list[Property]:
    """Properties of the unit.

    Raises:
        LaunchError: nvidia-modprobe is not there, or another user could have written it.

    """
    _trust(MODPROBE)
    lines = commands(nodes, capabilities())
    if not lines:
        msg = f"{MODPROBE} makes none of {', '.join(nodes)}"
        raise LaunchError(msg)
    mask = sum(1 << CAPABILITIES[name] for name in _NEEDS)
    return [
        ("Description", ("s", "NVIDIA device nodes for gpu-arbiter")),
        ("Type", ("s", "oneshot")),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("TimeoutStartUSec", ("t", _TIMEOUT_US)),
        ("ExecStart", ("a(sasb)", [(line[0], line, False) for line in lines])),
        ("CapabilityBoundingSet", ("t", mask)),
        ("NoNewPrivileges", ("b", True)),
        ("ProtectSystem", ("s", "strict")),
        ("ProtectHome", ("s", "yes")),
        ("PrivateTmp", ("b", True)),
        ("PrivateNetwork", ("b", True)),
    ]


def _trust(program: str) -> None:
    """Root runs it: neither it nor a folder above it may be another user's to write."""
    real = os.path.realpath(program)
    for path in (real, *(str(one) for one in Path(real).parents)):
        try:
            why = owned.why_not(os.stat(path))
        except OSError as error:
            msg = f"cannot run {program}: {path}: {error.strerror}; install nvidia-modprobe"
            raise LaunchError(msg) from None
        if why:
            msg = f"not running {program} as root: {path}: {why}"
            raise LaunchError(msg)
