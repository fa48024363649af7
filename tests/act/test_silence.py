"""Silence is counted only while we were on time, and a door answers when anything comes back."""

from __future__ import annotations

import socket
import threading

import pytest

from arbiterd.act.gateway.silence import Silence, door_answers
from tests.support import free_port


def test_unanswered_questions_add_up() -> None:
    """From the first one's asking."""
    one = Silence(2.0)
    assert [one.missed(at, at + 2) for at in (0.0, 2.1, 4.2, 6.3)] == [2.0, 4.1, 6.2, 8.3]
    one.heard()
    assert one.missed(9.0, 11.0) == 2.0


@pytest.mark.parametrize("asked", [(2.5, 30.0), (20.0, 22.0)])
def test_while_we_were_stopped_nothing_is_counted(asked: tuple[float, float]) -> None:
    """In the middle of a question, or between two: the count begins anew."""
    one = Silence(2.0)
    assert one.missed(0.0, 2.0) == 2.0
    assert one.missed(*asked) <= 2.0
    assert one.missed(asked[1] + 0.1, asked[1] + 2.1) <= 4.1


def test_what_a_door_does_when_it_lives() -> None:
    """An answer, the end, a reset; a listener that nobody serves is silent, a shut port as well."""
    assert not door_answers("127.0.0.1", free_port(), 0.2)
    for reply in (b"HTTP/1.0 400\r\n\r\n", b""):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]

            def serve(server: socket.socket = server, reply: bytes = reply) -> None:
                with server.accept()[0] as one:
                    one.recv(100)
                    one.sendall(reply)

            thread = threading.Thread(target=serve)
            thread.start()
            assert door_answers("0.0.0.0", port, 30)
            thread.join()
            assert not door_answers("127.0.0.1", port, 0.2), "the kernel takes it, nobody answers"
