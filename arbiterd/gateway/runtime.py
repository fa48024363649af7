"""HAProxy's Runtime API and its master CLI: one line of commands, one answer."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arbiterd.errors import ArbiterError
from arbiterd.files.owned import connect
from arbiterd.linux import procfs

TIMEOUT_S = 2.0
_WORKER = re.compile(r"^(\d+)\s+worker\s")
_SPECIAL = re.compile(r"([ \\;])")


class GatewayGone(ArbiterError):
    """The socket is not there, or nobody answers. ``silent``: somebody holds it and does not answer.
    ``ours``: this process has no descriptor left to ask by, which tells nothing of anybody.
    """

    silent = False
    ours = False


class GatewayRefused(ArbiterError):
    """A command was answered with a complaint."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``show stat``: a frontend, a backend or a server."""

    proxy: str
    name: str
    values: Mapping[str, str]

    def number(self, key: str) -> int:
        """A counter; 0 when it is empty."""
        text = self.values.get(key, "")
        return int(text) if text.lstrip("-").isdigit() else 0


def ask(path: Path, command: str, timeout_s: float = TIMEOUT_S, *, last: bool = False) -> str:
    """Send one line (``;`` joins commands), read to the end. ``last``: say that no other follows; the
    master CLI waits for one, the Runtime API does not.

    Raises:
        GatewayGone: nobody is there, or does not answer in time.

    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.settimeout(timeout_s)
            connect(one, path)
            one.sendall(command.encode() + b"\n")
            if last:
                one.shutdown(socket.SHUT_WR)
            parts = []
            while chunk := one.recv(65536):
                parts.append(chunk)
    except OSError as error:
        msg = f"{path}: {error.strerror or type(error).__name__}"
        gone = GatewayGone(msg)
        # EAGAIN: the line of those who wait to be accepted is full
        gone.silent = isinstance(error, TimeoutError | BlockingIOError)
        gone.ours = error.errno in procfs.SHORT
        raise gone from None
    return b"".join(parts).decode(errors="replace")


def tell(path: Path, commands: Sequence[str]) -> None:
    """Commands that answer nothing when they succeed, in one line: all take effect together.

    Raises:
        GatewayGone: nobody is there.
        GatewayRefused: with HAProxy's own words.

    """
    for start in range(0, len(commands), 40):  # a line of the CLI is at most a buffer long
        said = ask(path, ";".join(commands[start : start + 40])).strip()
        if said:
            raise GatewayRefused(said.replace("\n", "; ")[:500])


def escape(value: str) -> str:
    """A value of several words as one word of the command line."""
    return _SPECIAL.sub(r"\\\1", value)


def stat_rows(text: str) -> list[Row]:
    """Rows of ``show stat``."""
    lines = [line for line in text.splitlines() if line]
    if not lines or not lines[0].startswith("# "):
        return []
    names = lines[0][2:].split(",")
    out = []
    for line in lines[1:]:
        fields = line.split(",")
        if len(fields) < 2:
            continue
        out.append(Row(fields[0], fields[1], dict(zip(names, fields, strict=False))))
    return out


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a worker: its pid, counters and map."""

    pid: int
    rows: tuple[Row, ...]
    live: str


def look(path: Path, live_map: Path) -> Look:
    """Pid, counters and the live map, in one round trip.

    Raises:
        GatewayGone: nobody is there, or it says nonsense.

    """
    said = ask(path, f"show info;show stat;show map {live_map}")
    info, _, rest = said.partition("\n\n")
    stats, _, live = rest.partition("\n\n")
    found = re.search(r"^Pid: (\d+)$", info, re.MULTILINE)
    rows = stat_rows(stats)
    if found is None or not rows:
        msg = f"{path}: no answer to be understood: {said[:100]!r}"
        raise GatewayGone(msg)
    return Look(int(found[1]), tuple(rows), live)


def workers(master: Path) -> tuple[int, ...]:
    """Pids of all workers, old ones with living streams included."""
    said = ask(master, "show proc", last=True)
    return tuple(int(found[1]) for line in said.splitlines() if (found := _WORKER.match(line)))


def in_flight_of(master: Path, pid: int) -> dict[str, int]:
    """Streams per backend/server of one (old) worker."""
    rows = stat_rows(ask(master, f"@!{pid} show stat", last=True))
    return {f"{r.proxy}/{r.name}": r.number("scur") for r in rows if r.name == "engine"}


def streams_of(master: Path, pids: Sequence[int]) -> dict[str, int]:
    """Streams per backend/server that these (old) workers still carry; one that is gone has none."""
    out: dict[str, int] = {}
    for pid in pids:
        try:
            found = in_flight_of(master, pid)
        except GatewayGone:
            continue
        for name, count in found.items():
            out[name] = out.get(name, 0) + count
    return out
