"""The check that follows every fault: service is back, nothing is left over, nothing is unguarded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import requests

from arbiterd.linux import procfs
from tests.faults.stage import Missing, Size, Stage

SETTLE_S = 30.0  # from service to calm: incidents close, foreign processes are off the list
MIB = 1 << 20
_MORE = Size(rss=96 * MIB, fds=40, threads=24)  # than when the stage was new
GATE_RSS = 384 * MIB  # promised in docs/security.md, through any bodies


@dataclass(slots=True)
class Before:
    """What the check compares with. ``mains``: start-time identity of each backend's processes."""

    mark: Any
    processes: dict[str, frozenset[tuple[int, int]]]
    daemon: int
    size: Size
    others: dict[str, int] = field(default_factory=dict)


def look(stage: Stage, size: Size | None = None) -> Before:
    """Before a fault. ``size``: of the daemon when the stage was new."""
    daemon = stage.daemon_pid()
    return Before(stage.mark(), processes(stage), daemon, size or stage.size(daemon))


def processes(stage: Stage) -> dict[str, frozenset[tuple[int, int]]]:
    """Identities by backend, Ollama's runners left out: they come and go with its models."""
    out: dict[str, frozenset[tuple[int, int]]] = {}
    for row in stage.status()["backends"]:
        refs = [procfs.ref(pid) for pid in row["pids"] if not _runner(pid)]
        out[row["name"]] = frozenset((one.pid, one.start_time) for one in refs if one)
    return out


def _runner(pid: int) -> bool:
    words = procfs.command(pid)
    return "llama_server" in words


def served(stage: Stage, names: Sequence[str] = ()) -> str:
    """The first door that its own backend does not answer at, and how; "" when all do."""
    for name in names or stage.names:
        status, by = stage.ask(name)
        if status != 200 or by != name:
            return f"door of {name}: {status} {by}"
    return ""


def service_back(stage: Stage, since: float, timeout_s: float) -> float:
    """Seconds from ``since`` (monotonic) to an answer of every door.

    Raises:
        Missing: not within ``timeout_s``.

    """
    while True:
        why = served(stage)
        if not why:
            return time.monotonic() - since
        if time.monotonic() - since > timeout_s:
            msg = f"no service after {timeout_s:g} s: {why}; {_phases(stage)}"
            raise Missing(msg)
        time.sleep(0.1)


def _phases(stage: Stage) -> str:
    with suppress(OSError, requests.RequestException, ValueError, LookupError):
        rows = stage.status()["backends"]
        return "; ".join(f"{row['name']} {row['phase']} {row['reason']}" for row in rows)
    return "the API does not answer"


def calm(
    stage: Stage,
    before: Before,
    moves: Sequence[str],
    tells: Sequence[str],
    settle_s: float = SETTLE_S,
) -> None:
    """Everything else that must hold now.

    Raises:
        Missing: what does not.

    """
    deadline = time.monotonic() + settle_s
    while True:
        try:
            why = _wrong(stage, before, moves, tells)
        except (OSError, requests.RequestException, ValueError, LookupError) as error:
            why = f"the API does not answer: {type(error).__name__}: {error}"
        if not why:
            return
        if time.monotonic() >= deadline:
            raise Missing(why)
        time.sleep(0.2)


def _wrong(stage: Stage, before: Before, moves: Sequence[str], tells: Sequence[str]) -> str:
    """The first thing that is not as it should be, "" for none."""
    status = stage.status()
    return (
        _lost(stage, status)
        or _moved(stage, before, moves)
        or _unguarded(status)
        or _orphans(stage, status)
        or _untold(stage, before, tells)
        or _grown(stage, before)
    )


def _lost(stage: Stage, status: dict[str, Any]) -> str:
    found = {row["name"]: row for row in status["backends"]}
    if sorted(found) != sorted(stage.names):
        return f"backends are {sorted(found)} instead of {sorted(stage.names)}"
    for name, row in found.items():
        if row["phase"] != "ready" or not row["accepting"]:
            return f"{name} is {row['phase']}: {row['reason']}"
    if status["incidents_open"]:
        return f"incidents are open: {[i['summary'][:120] for i in status['incidents_open']]}"
    return ""


def _moved(stage: Stage, before: Before, moves: Sequence[str]) -> str:
    now = processes(stage)
    for name, old in before.processes.items():
        if name not in moves and not old <= now.get(name, frozenset()):
            return f"{name} was touched: processes {sorted(old)} -> {sorted(now.get(name, ()))}"
    return ""


def _unguarded(status: dict[str, Any]) -> str:
    if status["loop"]["blind"]:
        return "a GPU cannot be read"
    for row in status["gpus"]:
        if row["state"] != "ok" or row["pressure"] not in ("calm", "tight"):
            return f"GPU {row['index']} is {row['state']}, {row['pressure']}"
        used = sum(one.get("used") or 0 for one in row["ledger"])
        if used != row["memory"]["used"]:
            return f"GPU {row['index']}: the ledger says {used}, the driver {row['memory']['used']}"
        for one in row["ledger"]:
            if one["holder"] in ("foreign", "unattributed") and one.get("used"):
                return f"GPU {row['index']}: {one['used']} bytes are {one['holder']}"
    return ""


def _orphans(stage: Stage, status: dict[str, Any]) -> str:
    owned = {pid for row in status["backends"] for pid in row["pids"]}
    holders = {pid for index in range(len(status["gpus"])) for pid, _ in stage.gpu.processes(index)}
    for pid in sorted(holders - owned):
        return f"pid {pid} holds GPU memory and is nobody's: {procfs.command(pid)[:120]}"
    for pid in stage.tagged():
        found = procfs.stat(pid)
        if pid not in owned and found is not None and found.alive:
            return f"orphan: pid {pid}, {procfs.command(pid)[:160]}"
    daemon = stage.daemon_pid()
    stats = [procfs.stat(pid) for pid in procfs.pids()]
    zombies = [one.pid for one in stats if one and one.parent == daemon and not one.alive]
    return f"zombies of the daemon: {zombies}" if len(zombies) > 2 else ""


def _untold(stage: Stage, before: Before, tells: Sequence[str]) -> str:
    names = {one["ARBITER_EVENT"] for one in stage.events(before.mark)}
    if "bug" in names:
        return f"a bug was told: {stage.events(before.mark, 'bug')[0]['MESSAGE'][:400]}"
    for wanted in tells:
        if not names & set(wanted.split("|")):
            return f"the journal does not tell {wanted}; it tells {sorted(names)}"
    text = stage.text(before.mark)
    if "Traceback (most recent call last)" in text:
        at = text.index("Traceback")
        return f"a traceback in the journal: {text[at : at + 1500]}"
    return ""


def _grown(stage: Stage, before: Before) -> str:
    now = stage.size(stage.daemon_pid())
    for name in ("rss", "fds", "threads"):
        old, new = getattr(before.size, name), getattr(now, name)
        if new > old + getattr(_MORE, name):
            return f"the daemon's {name} went from {old} to {new}"
    gate = stage.gate_pid()
    if not gate:
        return "there is no load gate"
    rss = stage.size(gate).rss
    return f"the load gate holds {rss // MIB} MiB" if rss > GATE_RSS else ""
