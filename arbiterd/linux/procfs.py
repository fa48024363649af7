"""Reading /proc: identity, cgroup, environment and cost of processes. Reads only, signals nothing.

Every function answers None (or an empty value) for a process that is gone; that is never an error.
Where no file descriptor is left, not even a spare one, nobody can tell: OSError with one of SHORT.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from arbiterd.model.devices import ProcessRef

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DEAD_STATES = ("Z", "X", "x")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat we use. ``cpu_s``: user + system seconds so far."""

    pid: int
    state: str
    parent: int
    session: int
    start_time: int
    cpu_s: float

    @property
    def alive(self) -> bool:
        """A zombie has released everything already: it counts as dead."""
        return self.state not in _DEAD_STATES


SHORT = (errno.EMFILE, errno.ENFILE)  # no descriptor is left: this tells nothing of a process
_FLAGS = os.O_RDONLY | os.O_CLOEXEC
_SPARES = 8
_spares: list[int] = []
_spares_lock = threading.Lock()
_kept = threading.Event()  # somebody asked for spares: they are taken again after each use


def keep_spares() -> None:
    """Hold descriptors back, so that /proc can be read when everything else has taken the rest."""
    _kept.set()
    with _spares_lock, suppress(OSError):
        while len(_spares) < _SPARES:
            _spares.append(os.open(os.devnull, _FLAGS))


def by_spare(take: Callable[[], _T]) -> _T:
    """What ``take`` opens, in the place of a spare descriptor where no other is left.

    Raises:
        OSError: as ``take`` does; one of SHORT when the spares are used up, too.

    """
    try:
        return take()
    except OSError as error:
        if error.errno not in SHORT:
            raise
    with _spares_lock:
        given = _spares.pop() if _spares else -1
        if given >= 0:
            os.close(given)
        try:
            return take()
        except OSError:
            with suppress(OSError):
                if given >= 0:
                    _spares.append(os.open(os.devnull, _FLAGS))
            raise


def read(path: str) -> bytes:
    """A file of the kernel, whole.

    Raises:
        OSError: it is not there, or none of the spare descriptors is left (SHORT).

    """
    fd = by_spare(lambda: os.open(path, _FLAGS))
    try:
        out = b""
        while part := os.read(fd, 65536):
            out += part
        return out
    finally:
        os.close(fd)
        if _kept.is_set() and len(_spares) < _SPARES:
            keep_spares()


def pidfd(pid: int) -> int:
    """A descriptor of this process.

    Raises:
        OSError: ProcessLookupError where it is gone; one of SHORT tells nothing of it.

    """
    return by_spare(lambda: os.pidfd_open(pid))


def _read(pid: int, name: str) -> bytes | None:
    """The bare calls: this is read some hundred times a second, and pathlib takes half of it."""
    try:
        return read(f"/proc/{pid}/{name}")
    except OSError as error:
        if error.errno in SHORT:
            raise  # nobody is gone for it
        return None


def stat(pid: int) -> Stat | None:
    """One process, None when it does not exist."""
    raw = _read(pid, "stat")
    if raw is None:
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        start_time=int(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / CLOCK_TICKS,
    )


def ref(pid: int) -> ProcessRef | None:
    """Identity of a living process, None for a dead one or a zombie."""
    found = stat(pid)
    return ProcessRef(pid, found.start_time) if found is not None and found.alive else None


def alive(one: ProcessRef) -> bool:
    """Whether exactly this process (not another with its pid) lives."""
    try:
        return ref(one.pid) == one
    except OSError:  # no descriptor is left: it is there as long as nothing says otherwise
        return os.path.exists(f"/proc/{one.pid}")


def io_bytes(pid: int) -> int:
    """Bytes that it has read and written so far, page faults from disk included; 0 when not readable."""
    counted = (b"rchar", b"wchar", b"read_bytes")
    rows = (line.split(b": ") for line in (_read(pid, "io") or b"").splitlines())
    return sum(int(row[1]) for row in rows if row[0] in counted)


def resident_bytes(pid: int) -> int:
    """Bytes of its resident set; 0 when not readable."""
    fields = (_read(pid, "statm") or b"").split()
    return int(fields[1]) * PAGE_BYTES if len(fields) > 1 else 0


def environ(pid: int) -> dict[str, str]:
    """Its environment; empty when it may not be read."""
    raw = _read(pid, "environ") or b""
    pairs = (item.split(b"=", 1) for item in raw.split(b"\0") if b"=" in item)
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs}


def argv(pid: int) -> list[str]:
    """Its arguments; empty when it is gone, or a kernel thread."""
    raw = _read(pid, "cmdline") or b""
    return [word.decode(errors="replace") for word in raw.split(b"\0")[:-1]]


def command(pid: int) -> str:
    """Its command line with spaces, or its name in brackets (a kernel thread, a zombie)."""
    raw = _read(pid, "cmdline") or b""
    text = raw.replace(b"\0", b" ").decode(errors="replace").strip()
    if text:
        return text
    comm = _read(pid, "comm")
    return f"[{comm.decode(errors='replace').strip()}]" if comm else ""


def cgroup(pid: int) -> str:
    """Its cgroup path: of v2, else of v1's name=systemd hierarchy; "" when unknown."""
    raw = (_read(pid, "cgroup") or b"").decode(errors="replace")
    paths = {}
    for line in raw.splitlines():
        number, controllers, path = line.split(":", 2)
        paths[controllers or number] = path
    return paths.get("0") or paths.get("name=systemd") or ""


def unit_of(pid: int) -> str:
    """The systemd unit whose cgroup it lives in, "" for none."""
    for part in reversed(cgroup(pid).split("/")):
        if part.endswith((".service", ".scope")):
            return part
    return ""


def uid(pid: int) -> int | None:
    """Real uid."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def groups(pid: int) -> tuple[int, ...]:
    """Its supplementary groups, () when it is gone."""
    for line in (_read(pid, "status") or b"").splitlines():
        if line.startswith(b"Groups:"):
            return tuple(int(one) for one in line.split()[1:])
    return ()


@lru_cache(maxsize=256)
def user_name(uid_: int) -> str:
    """Login name of a uid, the number itself when it has none."""
    import pwd  # noqa: PLC0415 - nss may load libraries; only those who ask pay

    try:
        return pwd.getpwuid(uid_).pw_name
    except KeyError:
        return str(uid_)


def pids() -> Iterator[int]:
    """All process ids."""
    for name in by_spare(lambda: os.listdir("/proc")):
        if name.isdigit():
            yield int(name)


def boot_id() -> str:
    """This boot's id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
