"""What an XID means for us: the table of docs/facts/nvml.md, section 4, as data.

Names are those of open-gpu-kernel-modules' nverror.h; the classes follow NVIDIA's XID catalogue
(2025-10). What the table does not know counts as the GPU's: held and said, not shrugged off.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

UNKNOWN_XID = 999  # NVML's own word for: an XID, it could not be told which


class XidClass(StrEnum):
    """Who has to do something: ``APP`` the one backend is restarted; ``GPU`` the card needs a reset,
    nothing is started there; ``HOST`` a reboot or the operator; ``INFO`` nobody, it is logged.
    """

    APP = "app"
    GPU = "gpu"
    HOST = "host"
    INFO = "info"


_APP, _GPU, _HOST, _INFO = XidClass.APP, XidClass.GPU, XidClass.HOST, XidClass.INFO
_TABLE: Mapping[int, tuple[XidClass, str]] = {
    8: (_APP, "GPU stopped processing"),
    13: (_APP, "graphics engine exception"),
    31: (_APP, "GPU memory page fault (bad address)"),
    32: (_APP, "corrupted push buffer"),
    43: (_APP, "GPU stopped processing, channel reset"),
    44: (_INFO, "graphics fault during context switch"),
    45: (_INFO, "preemptive channel removal"),
    46: (_GPU, "GPU timeout"),
    48: (_GPU, "double-bit ECC error"),
    61: (_GPU, "internal microcontroller breakpoint"),
    62: (_GPU, "internal microcontroller halt"),
    63: (_INFO, "row remapping or page retirement recorded"),
    64: (_GPU, "row remapping or page retirement failed"),
    68: (_APP, "video decoder exception"),
    69: (_APP, "graphics engine class error"),
    74: (_GPU, "NVLink error"),
    79: (_HOST, "GPU has fallen off the bus"),
    92: (_INFO, "high single-bit ECC error rate"),
    93: (_INFO, "InfoROM wear limit reached"),
    94: (_APP, "contained memory error"),
    95: (_GPU, "uncontained memory error"),
    109: (_GPU, "context switch timeout"),
    110: (_GPU, "security fault"),
    119: (_GPU, "GSP RPC timeout"),
    120: (_GPU, "GSP error"),
    121: (_INFO, "C2C error"),
    136: (_GPU, "NVLink training failed"),
    137: (_INFO, "NVLink privilege error"),
    140: (_GPU, "unrecovered ECC error"),
    143: (_GPU, "GPU initialization error"),
    **dict.fromkeys(range(144, 151), (_GPU, "NVLink 5 error")),
    151: (_HOST, "key rotation error"),
    154: (_INFO, "GPU recovery action changed"),
    155: (_GPU, "NVLink software error"),
    156: (_GPU, "resource retirement"),
    158: (_GPU, "fatal GPU timeout"),
}


def xid_class(code: int) -> XidClass:
    """The class of an XID; an unknown one is the GPU's."""
    return _TABLE.get(code, (_GPU, ""))[0]


def describe(code: int) -> str:
    """'Xid 79 (GPU has fallen off the bus)'."""
    if code == UNKNOWN_XID:
        return "an Xid whose number NVML does not tell"
    name = _TABLE.get(code, (_GPU, "not in the table"))[1]
    return f"Xid {code} ({name})"
