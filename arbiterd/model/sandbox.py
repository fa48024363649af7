"""What an operator changes of a backend's sandbox: table ``sandbox`` of the file."""

from __future__ import annotations

from dataclasses import dataclass

ALL = "all"  # in ``without``: the whole sandbox


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """``without``: directives left out, by systemd's names, or ("all",). The others are added to what
    the sandbox allows already: ``write`` (absolute paths), ``devices`` (device nodes, folders of them,
    or systemd's groups such as "char-drm"), ``syscalls`` (names or @groups), ``families``
    (AF_...), ``capabilities`` (CAP_...).
    """

    without: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    syscalls: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
