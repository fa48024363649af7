"""``sandbox`` and ``device_wall`` of a backend: a table of what its unit's sandbox leaves out or allows."""

from __future__ import annotations

import re
from dataclasses import replace

from pydantic import ValidationError

from arbiterd.config.parse import KeyPath, Report
from arbiterd.config.schema import FileSettings, key_names, settings_of, table_of
from arbiterd.linux.sandbox import CAPABILITIES, names
from arbiterd.model.sandbox import ALL, SandboxSettings
from arbiterd.model.settings import BackendSettings

_SYSCALL = re.compile(r"@?[a-z][a-z0-9_-]*")
_FAMILY = re.compile(r"AF_[A-Z0-9]+")
_DEVICE = re.compile(r"/dev/(?!.*\.\.).+|(char|block)-[A-Za-z0-9*_.-]+")


def read_sandbox(given: object, at: KeyPath, report: Report | None) -> SandboxSettings:
    """The table. ``report`` None: its problems are told already."""
    path = (*at, "sandbox")
    if given is None:
        return SandboxSettings()
    if not isinstance(given, dict):
        if report:
            right = (
                'write sandbox = { without = ["RestrictNamespaces"] }; ["all"] leaves out all of it'
            )
            report.bad(path, f"{given!r} is no table", right)
        return SandboxSettings()
    kind = table_of(SandboxSettings)
    try:
        table = kind.model_validate(given)
    except ValidationError as error:
        if report:
            report.invalid(error, path, key_names(kind))
        bad = {str(detail["loc"][0]) for detail in error.errors()}
        table = kind.model_validate({k: v for k, v in given.items() if k not in bad})
    made = settings_of(SandboxSettings, table)
    if report:
        _check(made, path, report)
    return replace(made, capabilities=tuple(o for o in made.capabilities if o in CAPABILITIES))


def _check(table: SandboxSettings, path: KeyPath, report: Report) -> None:
    known = (*names(), ALL)
    for name in table.without:
        if name not in known:
            report.nearest((*path, "without"), name, known, "directive")
    for name in table.capabilities:
        if name not in CAPABILITIES:
            report.nearest((*path, "capabilities"), name, tuple(CAPABILITIES), "capability")
    for key, pattern, what, right in (
        (
            "syscalls",
            _SYSCALL,
            "system call",
            'a name or a group, like "perf_event_open", "@debug"',
        ),
        ("families", _FAMILY, "address family", 'one like "AF_PACKET"'),
        ("devices", _DEVICE, "device", 'a node, a folder of nodes or a group: "/dev/infiniband"'),
    ):
        for text in getattr(table, key):
            if not pattern.fullmatch(text):
                report.add((*path, key), f"{text!r} is no {what}", f"write {right}")
    for text in table.write:
        if not text.startswith("/"):
            report.add((*path, "write"), f"{text!r} is no absolute path", "write it in full")


def check_launcher(settings: FileSettings, report: Report) -> None:
    """Without units there is no sandbox to change."""
    if settings.arbiter.launcher != "direct":
        return
    for name, table in settings.backends.items():
        for key in ("sandbox", "device_wall"):
            if table.get(key):
                right = f'write launcher = "systemd", or take {key} out'
                wrong = "does nothing under the direct launcher, which has no units"
                report.add(("backends", name, key), wrong, right, "warning")


def check_sandbox(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """What of it fits neither a container nor the way the devices are named."""
    for key, given in (
        ("sandbox", backend.sandbox != SandboxSettings()),
        ("device_wall", backend.device_wall),
    ):
        if given and backend.image:
            wrong = "is for plain commands: what an engine in a container may do, its client says"
            report.add((*at, key), wrong, f"take {key} out; docs/containers.md has the options")
    if not backend.device_wall or backend.image:
        return
    if backend.device_id == "index":
        wrong = "names GPUs by index: behind a wall the only GPU of an engine has another index"
        report.add((*at, "device_id"), wrong, 'take it out, or write device_id = "uuid"')
    off = {"DevicePolicy", "DeviceAllow", ALL} & set(backend.sandbox.without)
    if off:
        wrong = f"leaves out {min(off)}, of which device_wall is made"
        report.add((*at, "sandbox", "without"), wrong, "take one of the two out")
