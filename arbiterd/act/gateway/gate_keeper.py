"""Keeps the load gate: started when it is gone, replaced when it hangs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from arbiterd.act.gateway.gate_question import LIMIT_S, GateQuestion
from arbiterd.act.gateway.services import GATE, Services
from arbiterd.act.gateway.silence import Silence
from arbiterd.errors import LaunchError
from arbiterd.gateway.runtime import GatewayGone

EVERY_S: Final = 1.0
SILENT_S: Final = 4.0  # three questions of 1.5 s: it is hung, and its streams stand still already


class GateKeeper:
    """``keep`` is called each turn of the gateway's thread and waits for nothing."""

    def __init__(self, socket: Path, services: Services) -> None:
        self._services = services
        self._question = GateQuestion(socket)
        self._silence = Silence(LIMIT_S)
        self._at = 0.0
        self._problem = ""

    def keep(self, now: float, *, wanted: bool) -> str:
        """What is wrong with it, "" when nothing is. ``wanted``: some backend stands behind it."""
        if not wanted:
            self._silence.heard()
            self._problem = ""
        elif now - self._at >= EVERY_S or self._question.out or self._silence.since is not None:
            self._at = now
            said = self._question.asked()
            if said is not None:  # None: hung, perhaps; known when the question's time is over
                self._problem = self._judge(said)
        return self._problem

    def _judge(self, said: str | GatewayGone) -> str:
        if isinstance(said, GatewayGone) and said.ours:
            return self._problem
        silent, for_s = isinstance(said, GatewayGone) and said.silent, 0.0
        if silent:
            for_s = self._silence.missed(self._question.began, self._question.ended)
        if not silent or for_s >= SILENT_S:
            self._silence.heard()
        if isinstance(said, str):
            return "" if " 200 " in said[:20] else f"the load gate says {said[:40]!r}"
        if silent and for_s < SILENT_S:
            return f"{said}; the load gate does not answer"
        if silent:
            return replaced(
                self._services, GATE, f"the load gate has not answered for {for_s:.0f} s"
            )
        try:
            self._services.start(GATE)
        except LaunchError as error:
            return str(error)
        return f"{said}; being started"


def replaced(services: Services, name: str, why: str) -> str:
    """Kill a hung service and start it anew; returns what is to be told."""
    try:
        services.replace(name)
    except LaunchError as error:
        return f"{why}; {error}"
    return f"{why}; being replaced"
