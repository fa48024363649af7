"""The sandbox of a backend's unit: which directives, with which values, and why. Pure.

What a host has for it (folders, device nodes) is found by ``linux/sandbox_host.py``;
``act/launch/systemd_unit.py`` writes the result into the transient unit. Every row stands in
docs/security.md as well.

Left out for every engine: MemoryDenyWriteExecute= (CUDA's PTX compiler, Triton and XLA write code and
run it), PrivateDevices= (it hides /dev/nvidia*), ProcSubset=pid (the driver's libraries read
/proc/driver/nvidia, /proc/devices and /proc/meminfo), PrivateUsers= and PrivateIPC= (unverified with
MPS and CUDA IPC), RemoveIPC= (it would remove a person's own objects where ``user`` is a person's).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from arbiterd.model.sandbox import ALL, SandboxSettings

Property = tuple[str, tuple[str, Any]]  # name, (D-Bus signature, value)
READ_ONLY = ("/usr", "/etc", "/boot", "/efi", "/home", "/root", "/run/user")
SHARED_TMP = ("/tmp", "/var/tmp")  # nosec B108 # compared with

# Beside @system-service: all else that docker's default profile leaves to a GPU container and that
# sandboxes itself or only reads; pidfd_getfd: PyTorch passes CUDA memory between its processes by it.
SYSCALLS = (
    "@system-service",
    "@pkey",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "mincore",
    "pidfd_getfd",
    "seccomp",
)
FAMILIES = ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX")
# What is left to an engine that runs as root: files and users, as a container's root has them.
ROOT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
)
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
CAPABILITIES: Mapping[str, int] = {
    f"CAP_{name}": number for number, name in enumerate(_CAPABILITIES.split())
}
_EPERM = 1


@dataclass(frozen=True, slots=True)
class Place:
    """What the host gives to a sandbox.

    ``write``: folders and files of the engine below READ_ONLY. ``shared_tmp``: it names something in
    SHARED_TMP that is not there yet. ``tmp``: what it names there and is. ``nodes``: device nodes.
    """

    root: bool = False
    write: tuple[str, ...] = ()
    tmp: tuple[str, ...] = ()
    shared_tmp: bool = False
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Directive:
    """One line of the unit: ``value`` as a unit file has it, ``dbus`` (signature, value) as the bus."""

    name: str
    value: str
    dbus: tuple[str, Any]
    reason: str

    def __str__(self) -> str:
        """As a unit file has it."""
        return f"{self.name}={self.value}"


def _yes(name: str, reason: str) -> Directive:
    return Directive(name, "yes", ("b", True), reason)


def _word(name: str, value: str, reason: str) -> Directive:
    return Directive(name, value, ("s", value), reason)


_FIXED = (
    _yes("NoNewPrivileges", "no program gains rights by set-uid or file capabilities"),
    _word("ProtectSystem", "full", "/usr, /boot and /etc are read-only, whoever owns a file there"),
    _word("ProtectHome", "read-only", "virtual environments and models in homes stay readable"),
    _yes("ProtectControlGroups", "an engine never moves itself out of its cgroup"),
    _yes("ProtectKernelTunables", "/proc/sys and /sys are read-only"),
    _yes("ProtectKernelModules", "no module is loaded; nodes are made before the start"),
    _yes("ProtectKernelLogs", "kernel messages name addresses and other users' processes"),
    _yes("ProtectClock", "no engine sets the clock"),
    _yes("ProtectHostname", "no engine sets the host's name"),
    _word("ProtectProc", "invisible", "command lines and environments of other users are hidden"),
    _yes("RestrictRealtime", "a real-time thread would starve the daemon and its neighbours"),
    _yes("RestrictSUIDSGID", "no set-uid file is left behind"),
    _yes("LockPersonality", "no switch to an old execution domain"),
    _word("KeyringMode", "private", "no kernel keys are shared with the user's other programs"),
    Directive("RestrictNamespaces", "yes", ("t", 0), "user namespaces open most of the kernel"),
    Directive(
        "SystemCallArchitectures", "native", ("as", ["native"]), "32-bit calls pass the filter by"
    ),
    Directive("LimitCORE", "0", ("t", 0), "a core file holds prompts, keys and weights"),
)
# systemd sets it by itself for a user other than root where one of these is there.
_BRING_NO_NEW_PRIVILEGES = frozenset(
    {
        "SystemCallFilter",
        "SystemCallArchitectures",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectClock",
        "ProtectHostname",
    }
)


def directives(settings: SandboxSettings, place: Place) -> tuple[Directive, ...]:
    """The directives of one backend, in the order of the documentation."""
    if ALL in settings.without:
        return ()
    out = (
        *_FIXED,
        _filter(settings),
        Directive("SystemCallErrorNumber", "EPERM", ("i", _EPERM), "a library takes another way"),
        _families(settings),
        *_capabilities(settings, place),
        *_tmp(place),
        *_devices(place),
        *_write(settings, place),
    )
    left_out = _left_out(settings)
    return tuple(one for one in out if one.name not in left_out)


def names() -> tuple[str, ...]:
    """Every directive that ``without`` can name."""
    most = Place(write=("/",), tmp=("/",), nodes=("/",))
    everything = directives(SandboxSettings(capabilities=("CAP_SYS_NICE",)), most)
    return tuple(dict.fromkeys(one.name for one in everything))


def properties(found: Iterable[Directive]) -> list[Property]:
    """As StartTransientUnit takes them."""
    return [(one.name, one.dbus) for one in found]


def _left_out(settings: SandboxSettings) -> frozenset[str]:
    left_out = frozenset(settings.without)
    if "NoNewPrivileges" in left_out:
        left_out |= _BRING_NO_NEW_PRIVILEGES
    if "SystemCallFilter" in left_out:
        left_out |= {"SystemCallErrorNumber"}
    return left_out


def _filter(settings: SandboxSettings) -> Directive:
    calls = list(dict.fromkeys((*SYSCALLS, *settings.syscalls)))
    reason = "mount, ptrace, bpf, module and clock calls are refused"
    return Directive("SystemCallFilter", " ".join(calls), ("(bas)", (True, calls)), reason)


def _families(settings: SandboxSettings) -> Directive:
    families = sorted({*FAMILIES, *settings.families})
    reason = (
        "NCCL and gloo list the interfaces by netlink; packet and bluetooth sockets are refused"
    )
    value = ("(bas)", (True, families))
    return Directive("RestrictAddressFamilies", " ".join(families), value, reason)


def _capabilities(settings: SandboxSettings, place: Place) -> Iterable[Directive]:
    given = settings.capabilities
    bound = sorted({*given, *(ROOT_CAPABILITIES if place.root else ())})
    reason = "no engine needs any: memory is pinned by LimitMEMLOCK"
    yield Directive("CapabilityBoundingSet", " ".join(bound), ("t", _mask(bound)), reason)
    if given and not place.root:
        reason = "what the file gives by name, also without a set-uid program"
        yield Directive("AmbientCapabilities", " ".join(given), ("t", _mask(given)), reason)


def _mask(capabilities: Iterable[str]) -> int:
    return sum(1 << CAPABILITIES[name] for name in set(capabilities))


def _tmp(place: Place) -> Iterable[Directive]:
    if place.shared_tmp:
        return
    yield _yes("PrivateTmp", "files in /tmp are found by nobody else, and go with the unit")
    if place.tmp:
        rows = [(path, path, True, 0x4000) for path in place.tmp]  # recursive; missing: ignored
        text = " ".join(f"-{path}" for path in place.tmp)
        reason = "what the engine names in /tmp; the pipe of MPS"
        yield Directive("BindPaths", text, ("a(ssbt)", rows), reason)


def _devices(place: Place) -> Iterable[Directive]:
    reason = "disks, input devices and other vendors' cards are refused"
    yield _word("DevicePolicy", "closed", reason)
    if place.nodes:
        rows = [(node, "rw") for node in place.nodes]
        text = " ".join(f"{node} rw" for node in place.nodes)
        yield Directive("DeviceAllow", text, ("a(ss)", rows), "the GPUs, and what the file names")


def _write(settings: SandboxSettings, place: Place) -> Iterable[Directive]:
    paths = list(dict.fromkeys((*place.write, *settings.write)))
    if paths:
        text = [f"-{path}" for path in paths]
        reason = "home, models and caches stay writable"
        yield Directive("ReadWritePaths", " ".join(text), ("as", text), reason)
