"""The simulated GPU from Python: building the library, creating a table, driving it.

The table's layout exists once, in C; Python only calls functions of the same library. Memory is
tied to living processes: when an owner dies its bytes come back after the release lag.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from enum import IntFlag
from pathlib import Path
from typing import Self

from arbiterd.errors import ArbiterError
from arbiterd.files.owned import trusted_uids
from arbiterd.files.trust import weak
from arbiterd.quantities import MIB
from arbiterd.sim.cards import MIG_SIZES, PROFILES

STATE_ENV = "GPU_SIM_STATE"
LIB_ENV = "GPU_SIM_LIB"
SONAME = "libnvidia-ml.so.1"
_SOURCES = Path(__file__).parent / "nvml"
_MAX = 1024


class Flag(IntFlag):
    """How an allocation is listed. MEM_NA: its size is not available (WDDM, vGPU); PIN: it counts
    without a living owner (a ghost); HIDDEN: it counts and is not listed (unattributed).
    """

    COMPUTE = 1
    GRAPHICS = 2
    MPS = 4
    MEM_NA = 8
    PIN = 16
    HIDDEN = 32


class OutOfMemory(ArbiterError):
    """The device has not so much free."""

    def __init__(self, asked: int, free: int, total: int) -> None:
        self.asked_bytes = asked
        self.free_bytes = free
        self.total_bytes = total
        super().__init__(f"out of memory: {asked} bytes asked, {free} free")


class DeviceLost(ArbiterError):
    """The device is lost."""


def build(directory: Path | None = None) -> Path:
    """Compile the library into ``directory`` (None: this user's cache) when it is not there yet; returns
    the folder to put into LD_LIBRARY_PATH. Folders are named by the sources' digest, so versions never
    mix.

    Raises:
        ArbiterError: no compiler, it fails, or another user could write to the folder: what lies there
            is loaded into our processes.

    """
    directory = directory or cache_folder()
    sources = sorted(_SOURCES.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    target = directory / digest
    library = target / SONAME
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    _only_ours(target)
    if library.exists() and not weak(str(library), trusted_uids()):
        return target
    if shutil.which("gcc") is None:
        msg = "cannot build the simulated GPU: no C compiler; apt-get install gcc libc6-dev"
        raise ArbiterError(msg)
    temporary = target / f".{SONAME}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
    options = ["-shared", "-fPIC", "-O2", "-std=c11", "-Wall", "-Wextra", f"-Wl,-soname,{SONAME}"]
    files = [str(path) for path in sources if path.suffix == ".c"]
    done = subprocess.run(
        ["gcc", *options, "-o", str(temporary), *files, "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        msg = f"cannot build the simulated GPU: {done.stderr.strip()}"
        raise ArbiterError(msg)
    temporary.chmod(0o755)
    temporary.replace(library)
    return target


def cache_folder() -> Path:
    """A folder of this user alone that lasts: in its cache, else a new one in the temporary folder."""
    named = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(named) / "gpu-arbiter"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        folder = Path("/")
    usable = folder.is_absolute() and os.access(folder, os.W_OK) and folder != Path("/")
    if usable and not weak(str(folder), trusted_uids()):
        return folder
    made = Path(tempfile.mkdtemp(prefix="gpu-arbiter-sim-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _only_ours(path: Path) -> None:
    """Refuse to load what another user could have put there.

    Raises:
        ArbiterError: names who could.

    """
    found = weak(str(path), trusted_uids())
    if found:
        msg = (
            f"{path} is not trusted: {found[0].who} can change {found[0].path}; remove it, or name "
            "another folder by XDG_CACHE_HOME"
        )
        raise ArbiterError(msg)


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_int32),
        ("gi", ctypes.c_uint32),
        ("ci", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64),
    )


def _library(lib_dir: Path) -> ctypes.CDLL:
    _only_ours(lib_dir / SONAME)
    lib = ctypes.CDLL(str(lib_dir / SONAME))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    i32, u32, i64, u64 = ctypes.c_int, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64
    for name, result, arguments in (
        ("gsim_map", pointer, (text, i32)),
        ("gsim_unmap", None, (pointer,)),
        ("gsim_add_device", i32, (pointer, text, text, text, u64, u64, i32)),
        ("gsim_memory", i32, (pointer, i32, i32, ctypes.POINTER(u64))),
        ("gsim_processes", i32, (pointer, i32, i32, u32, ctypes.POINTER(_Process), i32)),
        ("gsim_alloc", i64, (pointer, i32, i32, i32, u64, u32)),
        ("gsim_resize", i32, (pointer, i64, u64)),
        ("gsim_free", i32, (pointer, i64)),
        ("gsim_lose", i32, (pointer, i32, u32, u32)),
        ("gsim_gone", u32, (pointer, i32)),
        ("gsim_pci", text, (pointer, i32)),
        ("gsim_xid", i32, (pointer, i32, i32, u64)),
        ("gsim_set_recovery", None, (pointer, i32, u32)),
        ("gsim_set_busy", i32, (pointer, i32, i32, u32)),
        ("gsim_set_odd", i32, (pointer, i32, i32, u64, u64, u64, u64)),
        ("gsim_add_fault", i32, (pointer, text, i32, i32, u32, i32)),
        ("gsim_clear_faults", None, (pointer,)),
        ("gsim_set_init_rc", None, (pointer, u32)),
        ("gsim_set_lag_ms", None, (pointer, u64)),
        ("gsim_deny_parent", None, (pointer, i32, u32)),
        ("gsim_set_slices", i32, (pointer, i32, i32, pointer, pointer, pointer)),
        ("gsim_device_count", i32, (pointer,)),
        ("gsim_slice_count", i32, (pointer, i32)),
        ("gsim_uuid", text, (pointer, i32, i32)),
        ("gsim_name", text, (pointer, i32)),
        ("gsim_lost_rc", u32, (pointer, i32)),
        ("gsim_sizeof", u32, (i32,)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class SimGpu:
    """One table of simulated GPUs; every process that attaches sees the same one."""

    def __init__(self, path: Path, lib_dir: Path, *, create: bool) -> None:
        self.path = path
        self.lib_dir = lib_dir
        self._lib = _library(lib_dir)
        self._table = self._lib.gsim_map(str(path).encode(), int(create))
        if not self._table:
            msg = f"cannot open the simulated GPU {path}: not there, or of another version"
            raise ArbiterError(msg)

    @classmethod
    def create(cls, path: Path, lib_dir: Path, profiles: Sequence[str]) -> Self:
        """A fresh table with these cards, in PCI bus order."""
        gpu = cls(path, lib_dir, create=True)
        for number, name in enumerate(profiles):
            profile = PROFILES[name]
            gpu._lib.gsim_add_device(
                gpu._table,
                profile.name.encode(),
                f"GPU-{uuid.uuid4()}".encode(),
                f"00000000:{0x10 + number:02X}:00.0".encode(),
                profile.total_bytes,
                profile.reserved_bytes,
                int(profile.mig),
            )
        return gpu

    @classmethod
    def attach(cls, path: Path, lib_dir: Path) -> Self:
        """An existing table."""
        return cls(path, lib_dir, create=False)

    def close(self) -> None:
        """Unmap; allocations stay as long as their owners live."""
        if self._table:
            self._lib.gsim_unmap(self._table)
            self._table = None

    # -- looking -------------------------------------------------------------------------------
    def uuids(self) -> list[str]:
        """UUIDs in index order."""
        count = self._lib.gsim_device_count(self._table)
        return [self._lib.gsim_uuid(self._table, i, -1).decode() for i in range(count)]

    def mig_uuids(self, device: int) -> list[str]:
        """UUIDs of the slices of a device."""
        count = self._lib.gsim_slice_count(self._table, device)
        return [self._lib.gsim_uuid(self._table, device, k).decode() for k in range(count)]

    def memory(self, device: int, mig: int = -1) -> tuple[int, int, int, int]:
        """(total, reserved, used, free) bytes."""
        out = (ctypes.c_uint64 * 4)()
        if self._lib.gsim_memory(self._table, device, mig, out):
            msg = f"no device {device}:{mig}"
            raise ArbiterError(msg)
        return out[0], out[1], out[2], out[3]

    def processes(self, device: int, mig: int = -1) -> list[tuple[int, int]]:
        """(pid, bytes) of every listed process, merged by pid."""
        out = (_Process * _MAX)()
        every = int(Flag.COMPUTE | Flag.GRAPHICS | Flag.MPS)
        count = self._lib.gsim_processes(self._table, device, mig, every, out, _MAX)
        return [(out[i].pid, out[i].bytes) for i in range(count)]

    def lost(self, device: int) -> bool:
        """Whether it is lost."""
        return bool(self._lib.gsim_lost_rc(self._table, device))

    def visible(self, listed: str | None) -> list[tuple[int, int]]:
        """(device, slice or -1) as CUDA resolves CUDA_VISIBLE_DEVICES: an entry that names nothing
        hides itself and all after it; UUID prefixes work; unset means every whole GPU.
        """
        uuids = self.uuids()
        if listed is None:
            return [(index, -1) for index in self._present()]
        out: list[tuple[int, int]] = []
        for entry in (word.strip() for word in listed.split(",")):
            found = self._resolve(entry, uuids)
            if found is None or found in out:
                return out
            out.append(found)
        return out

    def _present(self) -> list[int]:
        """The GPUs CUDA counts: one that has fallen off has no number, those after it move up."""
        count = self._lib.gsim_device_count(self._table)
        return [i for i in range(count) if not self._lib.gsim_gone(self._table, i)]

    def _resolve(self, entry: str, uuids: list[str]) -> tuple[int, int] | None:
        if entry.isdigit():
            present = self._present()
            return (present[int(entry)], -1) if int(entry) < len(present) else None
        matches: list[tuple[int, int]] = []
        for index, whole in enumerate(uuids):
            if entry.startswith("GPU-") and whole.startswith(entry):
                matches.append((index, -1))
            if entry.startswith("MIG-"):
                slices = enumerate(self.mig_uuids(index))
                matches += [(index, k) for k, one in slices if one.startswith(entry)]
        return matches[0] if len(matches) == 1 else None

    # -- allocating ----------------------------------------------------------------------------
    def alloc(
        self,
        device: int,
        size_bytes: int,
        *,
        pid: int | None = None,
        mig: int = -1,
        flags: Flag = Flag.COMPUTE,
    ) -> int:
        """Take memory for a process (default: this one); returns a handle.

        Raises:
            OutOfMemory: not so much is free.
            DeviceLost: the device is lost.

        """
        owner = os.getpid() if pid is None else pid
        answer = self._lib.gsim_alloc(self._table, device, mig, owner, size_bytes, int(flags))
        if answer > 0:
            return int(answer)
        raise self._error(int(answer), device, mig, size_bytes)

    def resize(self, handle: int, size_bytes: int, device: int = 0, mig: int = -1) -> None:
        """Grow or shrink an allocation. Raises as ``alloc``; ``device`` only words the error."""
        answer = self._lib.gsim_resize(self._table, handle, size_bytes)
        if answer:
            raise self._error(answer, device, mig, size_bytes)

    def free(self, handle: int) -> None:
        """Give an allocation back."""
        self._lib.gsim_free(self._table, handle)

    def _error(self, code: int, device: int, mig: int, asked: int) -> ArbiterError:
        if code == -2:
            total, reserved, _, free = self.memory(device, mig)
            return OutOfMemory(asked, free, total - reserved)
        if code == -3:
            return DeviceLost(f"device {device} is lost")
        if code == -4:
            return ArbiterError(f"device {device} is in MIG mode: allocate on a slice")
        return ArbiterError(f"cannot allocate on device {device}:{mig} (code {code})")

    # -- misbehaving ---------------------------------------------------------------------------
    def lose(self, device: int, rc: int = 15, *, gone: bool = False) -> None:
        """The card falls off the bus: every call about it answers ``rc``, its memory is gone.

        Sessions opened later meet a hole at its index, or, with ``gone``, do not count it at all:
        the cards after it move up.
        """
        self._lib.gsim_lose(self._table, device, rc, int(gone))

    def restore(self, device: int) -> None:
        """The card is back, empty."""
        self._lib.gsim_lose(self._table, device, 0, 0)

    def xid(self, device: int, code: int, *, pid: int = 0, mig: int = -1) -> None:
        """The driver reports an XID: an event to every waiter registered before, and a line in the
        kernel log (``kernel_log``), which alone names the pid.
        """
        if self._lib.gsim_xid(self._table, device, mig, code):
            msg = f"no device {device}:{mig}"
            raise ArbiterError(msg)
        pci = self._lib.gsim_pci(self._table, device).decode()
        who = f"pid={pid}, name=engine, Ch 0000000a" if pid else "pid='<unknown>', name=<unknown>"
        place = f"{int(pci[:8], 16):04x}:{pci[9:14].lower()}" + (
            f" GPU-I:{mig + 7:02d}" * (mig >= 0)
        )
        with self.kernel_log.open("a") as log:
            log.write(json.dumps({"MESSAGE": f"NVRM: Xid (PCI:{place}): {code}, {who}"}) + "\n")

    @property
    def kernel_log(self) -> Path:
        """What ``journalctl -k -f -o json`` would print of the simulated driver."""
        return self.path.with_name(f"{self.path.name}.kernel")

    def recovery_action(self, device: int, action: int) -> None:
        """Field 230: 0 none, 1 reset the GPU, 2 reboot the node, ... (docs/facts/nvml.md)."""
        self._lib.gsim_set_recovery(self._table, device, action)

    def busy(self, device: int, pid: int, sm_percent: int) -> None:
        """This process computes from now on; 0: it does not."""
        self._lib.gsim_set_busy(self._table, device, pid, sm_percent)

    def misread(
        self, device: int, total: int, reserved: int, used: int, free: int, *, count: int = 1
    ) -> None:
        """The next ``count`` memory readings through NVML tell these bytes (-1: all, 0: none)."""
        self._lib.gsim_set_odd(self._table, device, count, total, reserved, used, free)

    def fault(
        self, function: str, *, rc: int = 0, hang_ms: int = 0, device: int = -1, count: int = -1
    ) -> None:
        """Functions whose name starts with ``function`` ("*": all) hang, then answer ``rc``."""
        name = function.encode()
        self._lib.gsim_add_fault(self._table, name, device, rc, hang_ms, count)

    def clear_faults(self) -> None:
        """End every fault; calls that hang go on at once."""
        self._lib.gsim_clear_faults(self._table)

    def init_fails(self, rc: int) -> None:
        """NvmlInit answers ``rc`` from now on (9 no driver, 18 version mismatch; 0: works)."""
        self._lib.gsim_set_init_rc(self._table, rc)

    def set_release_lag(self, milliseconds: int) -> None:
        """How long the bytes of a dead process stay charged."""
        self._lib.gsim_set_lag_ms(self._table, milliseconds)

    def deny_parent(self, device: int, *, denied: bool = True) -> None:
        """Memory and processes of a MIG parent answer NO_PERMISSION."""
        self._lib.gsim_deny_parent(self._table, device, int(denied))

    def set_mig(self, device: int, profiles: Sequence[str]) -> None:
        """Cut the device into slices ('1g.5gb', ...); none: MIG off. Frees what was allocated."""
        count = len(profiles)
        names = (ctypes.c_char_p * max(1, count))(*(one.encode() for one in profiles))
        marks = (
            f"MIG-{uuid.uuid5(uuid.NAMESPACE_OID, f'{self.path}{device}{i}')}" for i in range(count)
        )
        uuids = (ctypes.c_char_p * max(1, count))(*(one.encode() for one in marks))
        sizes = (ctypes.c_uint64 * max(1, count))(*(MIG_SIZES[one] * MIB for one in profiles))
        if self._lib.gsim_set_slices(self._table, device, count, names, uuids, sizes):
            msg = f"device {device} knows no MIG"
            raise ArbiterError(msg)

    def sizeof(self, number: int) -> int:
        """Size of a C struct, for the test that compares them with pynvml's."""
        return int(self._lib.gsim_sizeof(number))
