"""The doors' log: few lines, exact counts."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from arbiterd.gateway.log_sample import SAMPLE
from arbiterd.gateway.paths import paths
from arbiterd.model import door_log
from arbiterd.model.gateway import Admit, Requests
from arbiterd.sense.gateway_log import GatewayLog
from tests.support import wait_until
from tests.support.doors import Doors, made

PATH = "/v1/models/m"
MANY = 100


@pytest.fixture
def wire() -> Iterator[Doors]:
    """Doors and engines."""
    one = Doors(made())
    try:
        one.start()
        yield one
    finally:
        one.close()


@pytest.fixture
def log(wire: Doors) -> Iterator[GatewayLog]:
    """The reader that the daemon has."""
    one = GatewayLog(paths(str(wire.home), systemd=False).log)
    yield one
    one.close()


def ask(wire: Doors, count: int, path: str = PATH) -> set[int]:
    """So many requests on one connection, as fast as they are answered; their statuses."""
    one = HTTPConnection("127.0.0.1", wire.ports["tensorflow"], timeout=60)
    found = set()
    for _ in range(count):
        one.request("GET", path)
        reply = one.getresponse()
        reply.read()
        found.add(reply.status)
    one.close()
    return found


def told(log: GatewayLog) -> Requests:
    """Of TensorFlow's door so far."""
    return log.latest().get("tensorflow", Requests())


def test_few_lines_stand_for_all_answers(
    wire: Doors, log: GatewayLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst is counted to the last sixteen answers, and to the last one when a later one is told."""
    seen: list[door_log.Line] = []
    parse = door_log.parse

    def kept(raw: bytes) -> door_log.Line | None:
        line = parse(raw)
        seen.extend([line] if line else [])
        return line

    monkeypatch.setattr(door_log, "parse", kept)
    assert ask(wire, MANY) == {200}
    wait_until(lambda: told(log).codes.get("200", 0) > MANY - SAMPLE, 20, "the burst")
    assert len(seen) < MANY
    assert max(line.count for line in seen) <= SAMPLE
    asked = MANY

    def exact() -> bool:
        nonlocal asked
        asked += 1
        ask(wire, 1)
        return told(log).codes.get("200") == asked

    wait_until(exact, 20, "each answer counted once")
    assert told(log).total[-1] == asked


@pytest.mark.parametrize("status", [429, 500, 404])
def test_each_answer_that_is_not_200_has_its_line(
    wire: Doors, log: GatewayLog, status: int
) -> None:
    """Decisions count 429s; an error rate is not guessed."""
    wire.engines["tensorflow"].statuses[PATH] = status
    assert ask(wire, 50) == {status}
    wait_until(lambda: told(log).codes.get(str(status)) == 50, 20, "fifty lines")


def test_each_refusal_has_its_line(wire: Doors, log: GatewayLog) -> None:
    """With its reason."""
    wire.say("tensorflow", Admit.SHED, "test")
    assert ask(wire, 20) == {503}
    wait_until(lambda: told(log).refused.get("shed") == 20, 20, "twenty lines")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b'{"be":"be-vllm","st":200}', b"1 2 3", b"x 200 0 1 1 be-a a - -", b"0 200 0 1 1 be-a a - -",
     b"- 200 0 1 " + b"9" * 400 + b" be-a a - -", b"- 99999 0 1 1 be-a a - -", b"- 200 0 1 1 be-\xff a - -"],
)  # fmt: skip
def test_what_is_no_line_tells_nothing(raw: bytes) -> None:
    """Garbage, and the JSON that an earlier daemon's HAProxy still writes until its reload."""
    assert door_log.parse(raw) is None


def test_a_line_is_read_by_position() -> None:
    """A dash is a variable that is not set; the last word is the client's and may hold spaces."""
    line = door_log.parse(b"- 503 -1 -1 4 no-vllm vllm shed odd host\0")
    assert line == door_log.Line(1, 503, -1, -1, 4, "no-vllm", "vllm", "shed", "odd host")
    line = door_log.parse(b"16 200 2 30 40 be-vllm vllm - -\n")
    assert line == door_log.Line(16, 200, 2, 30, 40, "be-vllm", "vllm", "", "")
