"""The stand-in vLLM's development routes: pause, resume, sleep, wake (facts/engines.md, 3.3 and 3.4).

Paused: new requests get 503. Asleep and not paused: they hang until it wakes, as with the real one.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from arbiterd.sim.engines.common import Handler, say

if TYPE_CHECKING:
    from arbiterd.sim.engines.vllm import State

_STATES = ("awake", "weights_offloaded", "discard_all")
_MODES = ("abort", "wait", "keep")
PAUSED = "Generation is paused. Please retry after it resumes."


class Pausing:
    """Whether requests go on: ``level`` None while awake, else the level of its sleep."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.paused = False
        self.level: int | None = None
        self.active = self.hanging = 0

    def enter(self) -> bool:
        """A request begins: False when paused. Hangs while asleep."""
        with self.changed:
            self.hanging += 1
            self.changed.wait_for(lambda: self.paused or self.level is None)
            self.hanging -= 1
            self.active += not self.paused
            return not self.paused

    def leave(self) -> None:
        """A request has ended."""
        with self.changed:
            self.active -= 1
            self.changed.notify_all()

    def tell(self, *, paused: bool | None = None, awake: bool = False, level: int = 0) -> None:
        """Pause or resume, fall asleep or wake."""
        with self.changed:
            if paused is not None:
                self.paused = paused
            if awake:
                self.level = None
            elif level:
                self.level = level
            self.changed.notify_all()

    def drained(self) -> None:
        """Wait until no request runs."""
        with self.changed:
            self.changed.wait_for(lambda: not self.active)

    def rows(self, model: str) -> list[tuple[str, str, int]]:
        """vllm:engine_sleep_state, one row per state."""
        now = _STATES[self.level or 0]
        return [
            (
                "engine_sleep_state",
                f'{{model_name="{model}",engine="0",sleep_state="{one}"}}',
                int(one == now),
            )
            for one in _STATES
        ]


class SleepRoutes(Handler):
    """Only with VLLM_SERVER_DEV_MODE=1, those of sleep only with --enable-sleep-mode; else 404."""

    state: State

    def _dev(self, *, sleeps: bool) -> bool:
        on = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
        on = on and (self.state.options.enable_sleep_mode or not sleeps)
        if not on:
            self.reply(404, {"detail": "Not Found"})
        return bool(on)

    def _quiet(self) -> bool:
        """End or await what runs, by ``mode``; False when there is no such mode."""
        mode = self.query.get("mode", ["abort"])[0]
        if mode not in _MODES:
            self.reply(422, {"detail": f"mode: Input should be 'abort', 'wait' or 'keep': {mode}"})
            return False
        if mode == "abort":
            self.state.abort()
        if mode != "keep":
            self.state.pausing.drained()
        return True

    def pause(self) -> None:
        """New requests are refused; those that run are aborted, awaited or left."""
        if self._dev(sleeps=False):
            self.state.pausing.tell(paused=True)
            if self._quiet():
                self.reply(200, {"status": "paused"})

    def resume(self) -> None:
        if self._dev(sleeps=False):
            self.state.pausing.tell(paused=False)
            self.reply(200, {"status": "resumed"})

    def sleep(self) -> None:
        """Level 0 pauses the scheduler only. A failure leaves it not marked asleep."""
        if not self._dev(sleeps=True) or not self._quiet():
            return
        level = int(self.query.get("level", ["1"])[0])
        if level:
            number, out = self.state.ask(op="sleep", level=level)
            found = out.get()
            self.state.end(number)
            if "dead" in found or "error" in found:
                self._failed("sleep", str(found.get("error", "EngineDeadError")))
                return
            self.state.pausing.tell(level=level)
        else:
            self.state.pausing.tell(paused=True)
        self.reply(200)

    def wake(self) -> None:
        """Resumes what was paused, too. What is not asleep stays as it is."""
        if not self._dev(sleeps=True):
            return
        number, out = self.state.ask(op="wake", tags=self.query.get("tags", []))
        found = out.get()
        self.state.end(number)
        if "dead" in found or "error" in found:
            self._failed("wake_up", str(found.get("error", "EngineDeadError")))
            return
        if found["awake"]:
            self.state.pausing.tell(paused=False, awake=True)
        self.reply(200, {"status": "awake" if found["awake"] else "sleeping"})

    def _failed(self, method: str, why: str) -> None:
        text = f"Call to {method} method failed: {why}"
        say(f"ERROR {text}")
        self._error(500, text, "InternalServerError")

    def _error(self, status: int, message: str, kind: str) -> None:
        """In OpenAI's shape."""
        error = {"message": message, "type": kind, "param": None, "code": status}
        self.reply(status, {"error": error})

    def is_sleeping(self) -> None:
        if self._dev(sleeps=True):
            self.reply(200, {"is_sleeping": self.state.pausing.level is not None})
