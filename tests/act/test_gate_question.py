"""The keeper's question to the load gate: a hung gate holds nothing up."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from arbiterd.act.gateway.gate_question import GateQuestion
from arbiterd.gateway.runtime import GatewayGone
from tests.support import wait_until


def test_a_hung_gate_is_not_waited_for(tmp_path: Path) -> None:
    """It accepts and says nothing: no answer yet, and no second question; then what became of it."""
    path = tmp_path / "gate.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gate:
        gate.bind(str(path))
        gate.listen()
        question = GateQuestion(path)
        assert question.asked() is None
        assert question.out
        assert question.asked() is None
        threads = [one.name for one in threading.enumerate()]
        assert threads.count("gate-question") == 1
        with gate.accept()[0] as asked:
            assert asked.recv(64).startswith(b"GET /livez")
            asked.sendall(b"HTTP/1.0 200 OK\r\n\r\nok")
    answer = wait_until(question.asked, 30, "the answer")
    assert isinstance(answer, str)
    assert " 200 " in answer
    assert not question.out


def test_no_gate_is_told_at_once_or_a_turn_later(tmp_path: Path) -> None:
    """Nobody listens."""
    question = GateQuestion(tmp_path / "gate.sock")
    assert isinstance(wait_until(question.asked, 30, "the answer"), GatewayGone)
