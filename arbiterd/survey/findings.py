"""Findings about what is already there: foreign units, containers, ports, the driver. Pure.

Each says what it is, why it matters and the command that mends it (for a root shell).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from arbiterd.survey.facts import Container, Finding, Survey, UnitFacts, engine_of_unit
from arbiterd.survey.listeners import mend, stop_container, who

_NVML = (
    (
        r"Driver/library version mismatch",
        "the driver was upgraded under the running kernel module; engines that run go on, none can start",
        "systemctl reboot",
    ),
    (
        r"Driver Not Loaded",
        "the kernel module is not loaded (after a kernel upgrade it may need to be built anew)",
        "modprobe nvidia",
    ),
    (
        r"Shared Library Not Found",
        "without the driver's libnvidia-ml.so.1 nothing is known of the GPU",
        "apt-get install nvidia-driver",
    ),
    (
        r"Insufficient Permissions",
        "the device files may not be opened",
        "ls -l /dev/nvidiactl /dev/nvidia0",
    ),
    (
        r"hung|does not answer",
        "a driver that hangs blocks every engine; the kernel's log names the Xid",
        "journalctl -k -g Xid -n 20",
    ),
)


def findings(survey: Survey) -> list[Finding]:
    """What stands in the way on this host, whatever the configuration says."""
    out = list(_nvml(survey))
    named: set[int] = set()
    for unit in survey.units:
        held = [
            one for one in survey.listeners if one.unit == unit.name and not one.of_user_manager
        ]
        named |= {one.port for one in held}
        out += _unit(unit, [f"port {one.port} as pid {one.pid}" for one in held])
    for box in survey.containers:
        if box.engine is not None:
            held_ports = [p for p in box.ports if any(one.port == p for one in survey.listeners)]
            named |= set(held_ports)
            out.append(_container(box))
    out += _listeners(survey, named)
    for own in survey.user_units:
        linger = "also without a login (linger)" if own.linger else "at the login"
        out.append(
            Finding(
                "user_unit",
                "blocks",
                f"{own.name} is enabled in the manager of user {own.user}, and starts {linger}",
                "it takes GPU memory that nobody has given to it",
                f"systemctl --user -M {own.user}@ disable --now {shlex.quote(own.name)}",
            )
        )
    return out


def _nvml(survey: Survey) -> Iterable[Finding]:
    if not survey.nvml:
        return
    for pattern, why, command in _NVML:
        if re.search(pattern, survey.nvml, re.IGNORECASE):
            yield Finding("nvml", "blocks", survey.nvml, why, command)
            return
    why = "GPU backends wait until NVML answers"
    yield Finding("nvml", "blocks", survey.nvml, why, "nvidia-smi")


def _unit(unit: UnitFacts, holds: list[str]) -> Iterable[Finding]:
    """A foreign unit that runs, or will at the next boot. One that does neither is in nobody's way."""
    if not unit.runs and not unit.starts_at_boot:
        return
    state = f"{unit.enabled or 'not enabled'}, {unit.active}"
    user = f", as {unit.user or 'root'}"
    port = f", on {' and '.join(holds)}" if holds else ""
    engine = engine_of_unit(unit)
    name = shlex.quote(unit.name)
    takeover = f"arbiterctl takeover ollama{'' if name == 'ollama.service' else f' --unit {name}'}"
    yield Finding(
        "foreign_unit",
        "blocks",
        f"{unit.name} is installed ({state}{user}{port})",
        f"two {engine} on one host: the unit takes the port and GPU memory beside the arbiter's",
        takeover if engine == "ollama" else f"systemctl disable --now {name}",
    )


def _container(box: Container) -> Finding:
    ports = f", on port {', '.join(str(p) for p in box.ports)}" if box.ports else ""
    return Finding(
        "container",
        "blocks",
        f"container {box.name} ({box.image}) runs under {box.client}{ports}",
        "its processes live outside the arbiter's units: their memory is nobody's to give back",
        stop_container(box),
    )


def _listeners(survey: Survey, named: set[int]) -> Iterable[Finding]:
    for one in survey.listeners:
        if one.ours or one.port in named:
            continue
        yield Finding(
            "port_taken",
            "blocks",
            f"port {one.port} is taken by {who(one)}",
            "the door or engine that belongs there stays shut until it is free",
            mend(one, survey.containers),
        )
