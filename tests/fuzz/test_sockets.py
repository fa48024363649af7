"""How a run at the doors reads what a door does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.fuzz.sockets import send


@contextmanager
def _door(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listener whose one connection is treated like this; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            one, _ = listening.accept()
            with one:
                answer(one)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(10)


def test_an_answer_and_an_end_without_one() -> None:
    """The status, and 0."""
    with _door(lambda one: one.sendall(b"HTTP/1.1 413 x\r\n\r\n")) as port:
        assert send(port, b"x") == 413
    with _door(lambda one: None) as port:
        assert send(port, b"x" * 1_000_000) == 0


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_door_that_hangs_is_a_defect(before: bytes) -> None:
    """Neither an answer nor an end, and an answer without an end: never taken for a closed connection."""
    done = threading.Event()

    def hang(one: socket.socket) -> None:
        one.sendall(before)
        done.wait(30)

    with _door(hang) as port:
        try:
            with pytest.raises(AssertionError, match="the door hangs"):
                send(port, b"GET / HTTP/1.1\r\n\r\n", timeout_s=0.2)
        finally:
            done.set()


def test_a_door_that_is_shut_is_a_defect() -> None:
    """The process behind it has ended."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    with pytest.raises(AssertionError, match="nobody listens"):
        send(port, b"x")
