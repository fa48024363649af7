"""What an operator changes of a backend's sandbox: table ``sandbox`` of the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from arbiterd.model.keys import Key, Words

ALL = "all"  # in ``without``: the whole sandbox


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """``without``: directives left out, by systemd's names, or ("all",). The others are added to what
    the sandbox allows already: ``write`` (absolute paths), ``devices`` (device nodes, folders of them,
    or systemd's groups such as "char-drm"), ``syscalls`` (names or @groups), ``families``
    (AF_...), ``capabilities`` (CAP_...).
    """

    without: Annotated[Words, Key()] = ()
    write: Annotated[Words, Key()] = ()
    devices: Annotated[Words, Key()] = ()
    syscalls: Annotated[Words, Key()] = ()
    families: Annotated[Words, Key()] = ()
    capabilities: Annotated[Words, Key()] = ()
