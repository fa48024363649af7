"""What takes sockets: the API of a running demo under schemathesis, doors and admin socket under raw bytes."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import shapes
from tests.fuzz.targets.doors import CHAT, EMBED, GENERATE
from tests.support import wait_until
from tests.support.doors import OLLAMA_ANSWERS, doors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fuzz.__main__ import Tally

RSS_MAX = 384 << 20  # of the load gate
ANSWER_S = 20.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``play`` for so many seconds from this seed; counts and defects go into the tally."""

    name: str
    play: Callable[[float, int, Tally], None]


# -- the API ---------------------------------------------------------------------------------------
@contextmanager
def demo() -> Iterator[str]:
    """The demo, ready; its URL."""
    with tempfile.TemporaryDirectory(prefix="gpua-fuzz-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "arbiterd.sim.run"], stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, "TMPDIR": folder},
            )  # fmt: skip
        try:
            wait_until(lambda: "all three engines are ready" in log.read_text(), 120, "the demo")
            yield re.findall(r"page +(http://127\.0\.0\.1:\d+)/", log.read_text())[0]
        finally:
            process.terminate()
            process.wait(60)


def api(seconds: float, number: int, tally: Tally) -> None:
    """Schemathesis: every operation of /openapi.json with valid and invalid parameters, answers held against
    the schema, again and again with other seeds until the time is used up. One of its checks is left out:
    that valid parameters are accepted, since "one of model and backend" is nothing a schema can say of a query.
    """
    end = time.monotonic() + seconds
    with demo() as url:
        while time.monotonic() < end and not tally.defects:
            number += 1
            with tempfile.TemporaryDirectory(prefix="gpua-fuzz-") as folder:
                report = Path(folder) / "report.ndjson"
                argv = [
                    sys.executable, "-c", "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())",
                    "run", f"{url}/openapi.json", "--url", url, "--checks", "all", "--exclude-checks", "positive_data_acceptance", "--seed", str(number), "--no-color",
                    "--max-examples", "60", "--phases", "examples,coverage,fuzzing", "--report", "ndjson",
                    "--report-ndjson-path", str(report),
                ]  # fmt: skip
                done = subprocess.run(
                    argv, capture_output=True, text=True, check=False, timeout=900, cwd=folder
                )
                found = re.findall(r"(\d+) generated", done.stdout)
                tally.inputs += int(found[-1]) if found else _cases(report)
                if done.returncode:
                    tally.defects[f"schemathesis {number}"] = (
                        done.stdout[-4000:] + done.stderr[-1000:],
                        b"",
                    )


def _cases(report: Path) -> int:
    with suppress(OSError):
        return report.read_text().count('"request":')
    return 0


# -- the doors -------------------------------------------------------------------------------------
_BODIES = shapes.documents(CHAT, GENERATE, EMBED)


def gate(seconds: float, number: int, tally: Tally) -> None:
    """Requests through a real HAProxy and load gate: an HTTP answer each time, 5xx only as documented, what
    reaches the engine is strict JSON, a plain request works after each 200, memory stays bounded. A door that
    neither answers nor closes is a defect.
    """
    with doors() as one:
        one.engines["ollama"].answers = dict(OLLAMA_ANSWERS)
        process = next(
            p for p in map(_process, one.processes) if p and "gate" in " ".join(p.cmdline())
        )
        chance = random.Random(number)
        end = time.monotonic() + seconds

        def play(body: bytes) -> None:
            tally.inputs += 1
            raw = _request(chance, body)
            status = send(one.ports[chance.choice(("ollama", "llm"))], raw)
            assert status in (
                0,
                200,
                400,
                401,
                403,
                404,
                405,
                408,
                411,
                413,
                415,
                422,
                429,
                431,
                501,
                503,
            ), (status, raw[:500])
            seen = one.engines["ollama"].seen
            while seen:
                asked = seen.pop().body
                if asked:
                    shapes.strict(asked)

        while time.monotonic() < end and not tally.defects:
            number += 1
            test = settings(
                max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )(given(_BODIES)(play))  # fmt: skip
            try:
                seed(number)(test)()
            except AssertionError as error:
                tally.defects[f"door {number}"] = str(error)[-3000:], b""
            tally.rss_kib = max(tally.rss_kib, process.memory_info().rss // 1024)
            if tally.rss_kib * 1024 > RSS_MAX:
                tally.defects["memory"] = f"the load gate has {tally.rss_kib} KiB", b""
            reply = one.post("ollama", "/api/generate", {"model": "qwen2.5:3b", "prompt": "x"})
            if reply.status != 200:
                tally.defects["afterwards"] = (
                    f"a plain request: {reply.status} {reply.body[:300]!r}",
                    b"",
                )


def _process(one: subprocess.Popen[bytes]) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(one.pid)
    return None


def _request(chance: random.Random, body: bytes) -> bytes:
    """Mostly a good head for this body; sometimes one that lies about it."""
    path = chance.choice(
        ("/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/messages")
    )
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        "Content-Type: application/json",
    ]
    how = chance.randrange(12)
    if how == 0:
        head.append("Transfer-Encoding: chunked")
        body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    elif how == 1:
        head += ["Content-Encoding: gzip", f"Content-Length: {len(body)}"]
    elif how == 2:
        head.append(
            f"Content-Length: {chance.choice(('-1', '+5', '1e3', '0x10', '9' * 30, '', '²'))}"
        )
    elif how == 3:
        head += [f"Content-Length: {len(body)}", "X-" + "a" * chance.choice((10, 9000)) + ": 1"]
    elif how == 4:
        head += [f"Content-Length: {len(body)}", "x-arbiter-want: ../etc", "x-arbiter-door: ollama"]
    else:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("utf-8") + body


def send(port: int, raw: bytes, timeout_s: float = ANSWER_S) -> int:
    """The status, 0 where the connection was closed without one.

    Raises:
        AssertionError: the door neither answers nor closes within ``timeout_s`` of its last byte, or is shut.

    """
    got = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as via:
            # a door that refuses early closes while the body is still on its way
            with _unless_closed():
                via.sendall(raw)
                via.shutdown(socket.SHUT_WR)
            with _unless_closed():
                while part := via.recv(65536):
                    got += part
    except TimeoutError:
        msg = f"the door hangs: no answer and no end for {timeout_s:g} s, {got[:200]!r} before that; {raw[:500]!r}"
        raise AssertionError(msg) from None
    except ConnectionRefusedError:
        msg = f"nobody listens on port {port} any more"
        raise AssertionError(msg) from None
    return int(got.split(b" ", 2)[1]) if got.startswith(b"HTTP/") else 0


@contextmanager
def _unless_closed() -> Iterator[None]:
    """Any error of a socket, except that nothing came in time."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError:
        return


ENDPOINTS = (
    Endpoint("API by schemathesis", api),
    Endpoint("doors, HAProxy and load gate", gate),
)
