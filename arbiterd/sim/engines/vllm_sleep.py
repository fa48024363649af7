"""The stand-in vLLM's development routes: pause, resume, sleep, wake (facts/engines.md, 3.3 and 3.4).

Paused: new requests hang until it goes on (0.32), or get 503 (0.33). Asleep and not paused they hang
until it wakes.
"""

from __future__ import annotations

from arbiterd.sim.engines.common import Handler, say
from arbiterd.sim.engines.vllm_answers import error
from arbiterd.sim.engines.vllm_state import State

_MODES = ("abort", "wait", "keep")


class SleepRoutes(Handler):
    """Only with VLLM_SERVER_DEV_MODE=1, whatever --enable-sleep-mode says (recorded on 0.32)."""

    state: State

    def _quiet(self) -> bool:
        """End or await what runs, by ``mode``; False when there is no such mode."""
        mode = self.query.get("mode", ["abort"])[0]
        if mode not in _MODES:
            said = f"1 validation error:\n  mode: Input should be 'abort', 'wait' or 'keep': {mode}"
            self.reply(400, error(said, "Bad Request", 400, "query.mode"))
            return False
        if mode == "abort":
            self.state.abort()
        if mode != "keep":
            self.state.pausing.drained()
        return True

    def pause(self) -> None:
        """New requests are refused; those that run are aborted, awaited or left."""
        self.state.pausing.tell(paused=True)
        if self._quiet():
            self.reply(200, {"status": "paused"})

    def resume(self) -> None:
        self.state.pausing.tell(paused=False)
        self.reply(200, {"status": "resumed"})

    def sleep(self) -> None:
        """Level 0 pauses the scheduler only. A failure leaves it not marked asleep."""
        if not self._quiet():
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
        self.reply(200, {"status": "sleeping", "level": level})

    def wake(self) -> None:
        """Resumes what was paused, too. What is not asleep stays as it is."""
        tags = self.query.get("tags")
        number, out = self.state.ask(op="wake", tags=tags or [])
        found = out.get()
        self.state.end(number)
        if "dead" in found or "error" in found:
            self._failed("wake_up", str(found.get("error", "EngineDeadError")))
            return
        if found["awake"]:
            self.state.pausing.tell(paused=False, awake=True)
        self.reply(200, {"status": "awake" if found["awake"] else "sleeping", "tags": tags})

    def _failed(self, method: str, why: str) -> None:
        text = f"Call to {method} method failed: {why}"
        say(f"ERROR {text}")
        self.reply(500, error(text, "InternalServerError", 500))

    def is_sleeping(self) -> None:
        self.reply(200, {"is_sleeping": self.state.pausing.level is not None})
