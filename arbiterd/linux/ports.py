"""Who listens where. Whose a socket is takes a scan of every process's descriptors: ask seldom."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress

from arbiterd.linux import procfs
from arbiterd.model import strangers

_LISTEN = "0A"  # net/tcp_states.h


def can_bind(host: str, port: int) -> bool:
    """Whether this address is free. SO_REUSEADDR: connections in TIME_WAIT do not count."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
            one.listen(1)
        except OSError:
            return False
    return True


def listening() -> list[tuple[int, str]]:
    """(port, inode) of TCP listeners, IPv4 first. Row by row: a busy host has tens of thousands of
    connections, and a list of all of them is memory that the daemon keeps (docs/reliability.md).

    Raises:
        OSError: no descriptor is free.

    """
    found: list[tuple[int, str]] = []
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError), open(f"/proc/net/{name}", encoding="ascii") as rows:
            for row in rows:
                fields = row.split(maxsplit=10)
                if len(fields) > 9 and fields[3] == _LISTEN:
                    found.append((int(fields[1].rpartition(":")[2], 16), fields[9]))
    return found


def holders(wanted: Collection[int]) -> list[tuple[int, int | None]]:
    """(port, pid) of the listeners on these ports; None for a process that cannot be seen.

    Raises:
        OSError: no descriptor is free.

    """
    found = _holders(wanted)
    # A socket that was closed, or handed to another process, while the descriptors were read has no
    # holder either: an engine that had just been adopted was ended for it (test_switching, 1 of 5).
    return found if all(pid for _, pid in found) else _holders(wanted)


def _holders(wanted: Collection[int]) -> list[tuple[int, int | None]]:
    heard = [(port, inode) for port, inode in listening() if port in wanted]
    links = {f"socket:[{inode}]": inode for _, inode in heard}
    pids: dict[str, int] = {}
    for pid in procfs.pids() if heard else ():
        for target in _descriptors(pid):
            if target in links:
                pids.setdefault(links[target], pid)
    return [(port, pids.get(inode)) for port, inode in heard]


def _descriptors(pid: int) -> Iterator[str]:
    """What its open files link to; nothing of a process that has gone or may not be looked into."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError, ProcessLookupError):
                yield os.readlink(f"/proc/{pid}/fd/{name}")


def listener(port: int) -> int | None:
    """Pid of who listens on this port, None when it cannot be seen."""
    with suppress(OSError):
        return next((pid for _, pid in holders((port,)) if pid), None)
    return None


def describe(pid: int | None) -> str:
    """'pid 7 of ollama.service (ollama serve); systemctl disable --now ollama.service'."""
    if not pid:
        return "a process that cannot be seen"
    return strangers.listener(pid, procfs.command(pid), procfs.unit_of(pid))
