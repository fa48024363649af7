"""Who listens on our ports, and the command that makes it stop."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from contextlib import suppress

from arbiterd.linux import procfs
from arbiterd.linux.ports import holders
from arbiterd.survey.facts import OURS, Container, Listener


def look(ports: Collection[int], runtime_dir: str) -> tuple[Listener, ...]:
    """One row per port that somebody listens on. ``runtime_dir`` tells our own processes."""
    out: dict[int, Listener] = {}
    with suppress(OSError):
        for port, pid in holders(ports):
            if port not in out or not out[port].pid:
                out[port] = listener(port, pid or 0, runtime_dir)
    return tuple(out[port] for port in sorted(out))


def listener(port: int, pid: int, runtime_dir: str) -> Listener:
    """Name the process."""
    if not pid:
        return Listener(port)
    uid = procfs.uid(pid)
    unit = procfs.unit_of(pid)
    command = procfs.command(pid)
    tag = procfs.environ(pid).get("GPU_ARBITER_BACKEND", "")
    ours = unit.startswith(OURS) or bool(tag) or f"{runtime_dir}/gateway/" in command
    return Listener(
        port=port,
        pid=pid,
        unit=unit,
        user="" if uid is None else procfs.user_name(uid),
        command=command[:120],
        of_user_manager="/user@" in procfs.cgroup(pid),
        ours=ours or "arbiterd --" in command or command.endswith("arbiterd"),
    )


def who(one: Listener) -> str:
    """'pid 7 of ollama.service (ollama serve), user ollama'."""
    if not one.pid:
        return "a process that only root can see"
    unit = f" of {one.unit}" if one.unit else ""
    user = f", user {one.user}" if one.user else ""
    return f"pid {one.pid}{unit} ({one.command}){user}"


def mend(one: Listener, containers: Collection[Container] = ()) -> str:
    """What frees the port: for a unit its end for good, for a container too; else the process."""
    for box in containers:
        if one.port in box.ports:
            return stop_container(box)
    if not one.pid:
        return f"sudo ss -ltnp 'sport = :{one.port}'"
    if one.unit == "ollama.service" and not one.of_user_manager:
        return "arbiterctl takeover ollama"
    if one.of_user_manager and one.unit.endswith(".service"):
        return f"systemctl --user -M {one.user}@ disable --now {shlex.quote(one.unit)}"
    if one.unit.endswith(".service") and not one.unit.startswith(("docker.", "containerd.")):
        return f"systemctl disable --now {shlex.quote(one.unit)}"
    return f"kill {one.pid}"


def stop_container(box: Container) -> str:
    """Stop it, and keep it from coming back with its restart policy."""
    name = shlex.quote(box.name)
    never = f"docker update --restart=no {name} && " if box.client == "docker" else ""
    return f"{never}{box.client} stop {name}"


def is_root() -> bool:
    """Whether other users' processes can be seen."""
    return os.geteuid() == 0
