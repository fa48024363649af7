"""One llama-server process of the stand-in Ollama, seen from the server."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from arbiterd.sim.engines.go_words import log
from arbiterd.sim.engines.llama_server import PLAN_ENV
from arbiterd.sim.engines.ollama_models import Model
from arbiterd.sim.engines.ollama_options import RunnerOptions

MODULE = "arbiterd.sim.engines.llama_server"
OOM_CODE = 134  # the runner aborts
_numbers = itertools.count(1)


class RunnerDied(Exception):
    """It ended in the middle of a request; ``began``: there was a first token."""

    def __init__(self, *, began: bool) -> None:
        super().__init__("runner died")
        self.began = began


@dataclass(eq=False, slots=True)
class Runner:
    """``keep_s``: how long it stays after its last request; ``expires_at`` is renewed only when the
    last of its requests ends, and 0 until the first did; ``users``: requests that use it now.
    """

    model: Model
    options: RunnerOptions
    size: int
    vram: int
    process: subprocess.Popen[bytes]
    link: socket.socket
    keep_s: float
    expires_at: float = 0.0
    users: int = 0
    stuck: bool = False  # its unload was tried and did not come about
    timer: asyncio.TimerHandle | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    dead: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Lock = field(default_factory=asyncio.Lock)
    _outputs: dict[int, asyncio.Queue[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def start(
        cls, model: Model, options: RunnerOptions, argv: list[str], plan: dict[str, Any]
    ) -> Runner:
        """Start the process; it is ready when ``ready`` is set, or ``dead``."""
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, *argv],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, PLAN_ENV: json.dumps({**plan, "socket": theirs.fileno()})},
        )
        theirs.close()
        ours.setblocking(False)
        return cls(model, options, plan["size"], plan["vram_bytes"], process, ours, 0.0)

    async def listen(self) -> None:
        """Hand its messages to those who wait for them, until it is gone by whatever hand."""
        reader, writer = await asyncio.open_connection(sock=self.link)
        with suppress(ConnectionError):
            while line := await reader.readline():
                message = json.loads(line)
                if "ready" in message:
                    self.ready.set()
                elif message["id"] in self._outputs:
                    self._outputs[message["id"]].put_nowait(message)
        writer.close()
        await asyncio.to_thread(self.process.wait)
        self.dead.set()
        for out in self._outputs.values():
            out.put_nowait({"dead": True})

    def how_it_ended(self) -> tuple[int, str]:
        """Signal number (0 for an exit) and the words of Go's os.ProcessState."""
        code = self.process.returncode
        if code is not None and code < 0:
            words = {signal.SIGKILL: "killed", signal.SIGTERM: "terminated"}
            number = signal.Signals(-code)
            return -code, f"signal: {words.get(number, number.name)}"
        return 0, f"exit status {code}"

    def _send(self, **message: Any) -> None:
        with suppress(OSError):
            self.link.send(json.dumps(message).encode() + b"\n")

    async def ping(self, timeout_s: float) -> bool:
        """Whether it answers, as GET /health of llama-server."""
        if self.dead.is_set() or self.process.poll() is not None:
            number, words = self.how_it_ended()
            msg = "llama-server process no longer running"
            log("WARN", "llama_server.go:1196", msg, sys=number, string=words)
            return False
        out, number = self._listener()
        self._send(id=number, ping=True)
        try:
            async with asyncio.timeout(timeout_s):
                return "pong" in await out.get()
        except TimeoutError:
            return False
        finally:
            del self._outputs[number]

    def _listener(self) -> tuple[asyncio.Queue[dict[str, Any]], int]:
        number = next(_numbers)
        out = self._outputs[number] = asyncio.Queue()
        if self.dead.is_set():
            out.put_nowait({"dead": True})
        return out, number

    async def tokens(self, most: int | None, style: str) -> AsyncIterator[str]:
        """Tokens, one by one; it stops when nobody asks for more of them.

        Raises:
            RunnerDied: it did.
        """
        out, number = self._listener()
        self._send(id=number, tokens=most, style=style)
        began = done = False
        try:
            while not done:
                message = await out.get()
                if "dead" in message:
                    raise RunnerDied(began=began)
                done = "done" in message
                if not done:
                    began = True
                    yield message["token"]
        finally:
            del self._outputs[number]
            if not done:
                self._send(id=number, cancel=True)

    def died_of(self) -> str:
        """What a request in the middle gets to hear."""
        return "CUDA error: out of memory" if self.full else "unexpected EOF"

    @property
    def full(self) -> bool:
        """Whether it ended because the card was full."""
        return self.process.returncode == OOM_CODE

    def kill(self) -> None:
        """SIGKILL."""
        with suppress(ProcessLookupError):
            self.process.kill()

    @property
    def left_until(self) -> float:
        """What /api/ps shows as expires_at."""
        return self.expires_at or time.time() + self.keep_s
