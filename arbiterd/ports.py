"""Who listens where. Whose a socket is takes a scan of every process's descriptors: ask seldom."""

from __future__ import annotations

import socket
from contextlib import suppress

import psutil

from arbiterd import procfs
from arbiterd.model import strangers


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


def listener(port: int) -> int | None:
    """Pid of who listens on this port, None when it cannot be seen."""
    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port:
                return one.pid
    return None


def describe(pid: int | None) -> str:
    """'pid 7 of ollama.service (ollama serve); systemctl disable --now ollama.service'."""
    if not pid:
        return "a process that cannot be seen"
    return strangers.listener(pid, procfs.command(pid), procfs.unit_of(pid))
