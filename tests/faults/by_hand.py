"""Injectors that several tables use. Each takes the stage, and returns what its undo needs."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.faults.row import Inject, Look
from tests.faults.stage import Missing, Stage, dead, stays, until

STOP, CONT, KILL = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL


def hit(pid: Callable[[Stage], int], number: signal.Signals = KILL) -> Inject:
    """A signal to one process."""
    return lambda stage: stage.kill(pid(stage), number)


def main_of(name: str) -> Callable[[Stage], int]:
    """An engine's own server."""
    return lambda stage: stage.main_pid(name)


def part_of(name: str, part: str) -> Callable[[Stage], int]:
    """Another process of an engine."""
    return lambda stage: stage.pid_of(name, part)


def switch(name: str, *then: Inject, **values: object) -> Inject:
    """A stand-in's faults, then something that makes it meet them."""

    def inject(stage: Stage) -> Any:
        stage.fault(name, **values)
        made: Any = None
        for one in then:
            made = one(stage)
        return made

    return inject


def off(name: str) -> Look:
    """A stand-in's faults switched off."""
    return lambda stage, _: stage.fault(name)


def order(name: str, verb: str) -> Inject:
    """What an operator asks for."""
    return lambda stage: stage.order(name, verb)


def both(*steps: Callable[..., Any]) -> Look:
    """Looks, or undos, one after the other."""

    def run(stage: Stage, made: Any) -> None:
        for one in steps:
            one(stage, made)

    return run


def gone(stage: Stage, pid: int) -> None:
    """The process that was hit ends."""
    until(lambda: dead([pid]), f"pid {pid} to end")


def told(name: str, backend: str = "") -> Look:
    """An event comes while the fault lasts; "a|b": one of them."""
    names = name.split("|")

    def look(stage: Stage, _: Any) -> None:
        until(
            lambda: any(stage.events(stage.began, one, backend) for one in names),
            f"event {name} {backend}",
        )

    return look


def phase(name: str, *phases: str) -> Look:
    """A backend is in one of these phases."""

    def look(stage: Stage, _: Any) -> None:
        until(lambda: stage.backend(name)["phase"] in phases, f"{name} in {phases}")

    return look


def shut(name: str) -> Look:
    """A backend takes no work."""

    def look(stage: Stage, _: Any) -> None:
        until(lambda: not stage.backend(name)["accepting"], f"{name} to take no work")

    return look


def ticks_go_on(for_s: float = 2.0) -> Look:
    """The loop ends its ticks in time, and the API answers."""

    def look(stage: Stage, _: Any) -> None:
        first = stage.status()["loop"]["tick"]
        stays(lambda: stage.get("/livez", 5).status_code == 200, "/livez 200", for_s)
        until(lambda: stage.status()["loop"]["tick"] > first + for_s, "ticks to go on", 10)

    return look


def serves(*names: str, for_s: float = 1.5) -> Look:
    """These doors answer all the while."""

    def look(stage: Stage, _: Any) -> None:
        for name in names:
            stays(lambda n=name: stage.ask(n)[0] == 200, f"200 at the door of {name}", for_s)  # type: ignore[misc]

    return look


def no_false_death(stage: Stage, _: Any) -> None:
    """A lack that is the daemon's own is never told as somebody's end."""
    time.sleep(3.0)
    wrong = [
        e["MESSAGE"]
        for e in stage.events(stage.began)
        if e["ARBITER_EVENT"] in ("exit", "driver_hung", "gpu_lost", "stuck")
    ]
    if wrong:
        msg = f"a lack of the daemon's own is taken for {wrong}"
        raise Missing(msg)


class Crowd:
    """Connections that are opened and then do as little as possible."""

    def __init__(self) -> None:
        self.open: list[socket.socket] = []

    def fill(self, port: int, count: int, first: bytes = b"") -> Crowd:
        """Open so many; ``first`` is sent on each. What is refused is not counted."""
        for _ in range(count):
            one = socket.socket()
            one.settimeout(0.5)
            try:
                one.connect(("127.0.0.1", port))
                if first:
                    one.sendall(first)
            except OSError:
                one.close()
                continue
            one.setblocking(False)
            self.open.append(one)
        return self

    def close(self) -> None:
        """Let go."""
        for one in self.open:
            with suppress(OSError):
                one.close()
        self.open.clear()


def let_go(stage: Stage, made: Any) -> None:
    """Close what was made."""
    made.close()


def in_background(work: Callable[[], object]) -> threading.Thread:
    """A thread that must not hold up the harness."""
    one = threading.Thread(target=work, daemon=True)
    one.start()
    return one
