"""The desk where the load gate asks: what it keeps of a question ends with the question."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import pytest
from aiohttp import web

from arbiterd.model.gateway import LoadAnswer, LoadVerdict
from arbiterd.web.load_requests import LoadDesk

GRANT, REFUSE, WAIT = LoadVerdict.GRANT, LoadVerdict.REFUSE, LoadVerdict.WAIT


class _Asked:
    """As much of a request as the desk looks at."""

    def __init__(self, name: str, wait_s: float) -> None:
        body = {"id": name, "backend": "ollama", "model": "m", "predicted_bytes": 1}
        self._left = json.dumps({**body, "wait_s": wait_s}).encode()
        self.headers: dict[str, str] = {}

    @property
    def content(self) -> _Asked:
        return self

    async def read(self, _count: int) -> bytes:
        left, self._left = self._left, b""
        return left


def _ask(
    desk: LoadDesk, verdicts: Iterable[LoadVerdict], wait_s: float = 30.0
) -> dict[str, object]:
    """One question, answered with these verdicts in turn; what the gate is told."""

    async def run() -> dict[str, object]:
        asked = asyncio.ensure_future(desk.ask(_Asked("a1", wait_s)))  # type: ignore[arg-type]
        for _ in range(5):  # its body is read at once
            await asyncio.sleep(0)
        assert desk.asks()
        for one in verdicts:
            desk.answered([LoadAnswer("a1", one, "why", 3)])
            await asyncio.sleep(0)
        reply = await asked
        assert isinstance(reply, web.Response)
        assert isinstance(reply.body, bytes)
        told: dict[str, object] = json.loads(reply.body)
        return told

    return asyncio.run(run())


@pytest.mark.parametrize("verdicts", [(REFUSE,), (GRANT,), (WAIT, REFUSE), (WAIT, WAIT, GRANT)])
def test_nothing_is_kept_of_an_answered_question(verdicts: tuple[LoadVerdict, ...]) -> None:
    """Refused or granted, at once or after waiting."""
    desk = LoadDesk(lambda: None)
    assert _ask(desk, verdicts)["verdict"] == verdicts[-1].value
    assert (desk._asks, desk._waiting, desk._last) == ({}, {}, {})


def test_a_late_question_gets_the_last_word_and_leaves_nothing() -> None:
    """Its time is up while core says wait; core's next answer to it is kept nowhere."""
    desk = LoadDesk(lambda: None)
    told = _ask(desk, [WAIT], wait_s=0.2)
    assert (told["verdict"], told["reason"]) == (WAIT.value, "why")
    desk.answered([LoadAnswer("a1", WAIT, "late", 3), LoadAnswer("a1", REFUSE, "late", 3)])
    assert (desk._asks, desk._waiting, desk._last) == ({}, {}, {})
    assert desk.dones() == ()


def test_a_grant_that_nobody_waits_for_is_given_back() -> None:
    """Core books memory for it: it is told that the load will not come."""
    desk = LoadDesk(lambda: None)
    desk.answered([LoadAnswer("a1", GRANT, "room", 0)])
    assert [one.id for one in desk.dones()] == ["a1"]
    assert desk._last == {}
