"""Play a case's steps on a server and collect what differs from what it expects."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.conformance.cases import Case, Step
from tests.conformance.compare import differences, seen_answer
from tests.conformance.engine import Engine, Server, SlowLoad, lines_matching
from tests.conformance.wire import Answer, Exchange
from tests.support import free_port, wait_until

PATIENCE_S = 60.0  # for answers that do come: a busy machine is no difference


@dataclass(slots=True)
class _Going:
    """A request that was started in the background."""

    exchange: Exchange
    thread: threading.Thread
    answer: Answer | None = None
    ended: float = float("inf")


@dataclass(slots=True)
class Player:
    """Plays one case. ``server`` is None where the case brings its own processes."""

    case: Case
    engine: Engine
    server: Server | None
    home: Path
    _going: dict[str, _Going] = field(default_factory=dict)
    _workers: dict[str, set[int]] = field(default_factory=dict)
    _slow: SlowLoad | None = None
    _log_start: int = 0
    _spare_port: int = 0

    def play(self) -> list[str]:
        """All steps in order; one line per difference."""
        if self.server is not None:
            self._log_start = self.server.log.stat().st_size
        found: list[str] = []
        try:
            for number, step in enumerate(self.case.steps):
                expected, left_out = self._expected(step)
                seen: Any = self._step({**step, "expect": expected})
                if "expect" not in step:
                    continue
                for path in left_out:
                    expected, seen = _without(expected, path), _without(seen, path)
                where = f"step {number} ({_title(step)})"
                found += [f"{where}{line}" for line in differences(expected, seen)]
        finally:
            self._end()
        return found

    def _expected(self, step: Step) -> tuple[Any, list[list[str]]]:
        """What the step expects of this engine, and the paths that are not compared."""
        expected = step.get("expect") or {}
        deviation = step.get("deviation")
        if deviation is None or self.engine.real:
            return expected, []
        return {**expected, **deviation.get("instead", {})}, deviation.get("left_out", [])

    def _end(self) -> None:
        if self._slow is not None:
            self._slow.end()
        for one in self._going.values():
            one.exchange.close()
            one.thread.join(PATIENCE_S)
        if self.server is not None:
            for pid in self._worker_pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # -- steps ----------------------------------------------------------------------------------
    def _step(self, step: Step) -> dict[str, Any]:
        do: Callable[[Step], dict[str, Any]] = getattr(self, f"_do_{step.get('do', 'http')}")
        return do(step)

    @property
    def _here(self) -> Server:
        assert self.server is not None, "this step needs a server"
        return self.server

    def _ask(self, exchange: Exchange, step: Step) -> Answer:
        expected = step["expect"]
        silent = str(expected.get("end", "")).startswith("no answer")
        patience = step.get("timeout", 10) * self.engine.patience if silent else PATIENCE_S
        return exchange.ask(step, patience)

    def _do_http(self, step: Step) -> dict[str, Any]:
        exchange = Exchange(self._here.port)
        answer = self._ask(exchange, step)
        exchange.close()
        return seen_answer(answer, step["expect"])

    def _do_same_connection(self, step: Step) -> dict[str, Any]:
        exchange = Exchange(self._here.port)
        each = []
        for one in step["requests"]:
            answer = exchange.ask(one, PATIENCE_S)
            connection = answer.headers.get("connection")
            each.append({"status": answer.status, "end": answer.end, "connection": connection})
        exchange.close()
        return {"each": each}

    def _do_start(self, step: Step) -> dict[str, Any]:
        exchange = Exchange(self._here.port)

        def run() -> None:
            answer = exchange.ask(step, PATIENCE_S)
            one.answer, one.ended = answer, time.monotonic()

        one = _Going(exchange, threading.Thread(target=run, daemon=True))
        self._going[step["id"]] = one
        one.thread.start()
        return {"started": step["id"]}

    def _do_wait(self, step: Step) -> dict[str, Any]:
        one = self._going[step["id"]]
        one.thread.join(PATIENCE_S)
        assert one.answer is not None, f"{step['id']} did not end"
        return seen_answer(one.answer, step["expect"])

    def _do_give_up(self, step: Step) -> dict[str, Any]:
        self._going[step["id"]].exchange.close()
        return {"closed": step["id"]}

    def _do_order(self, step: Step) -> dict[str, Any]:
        ids = sorted(step["of"], key=lambda one: self._going[one].ended)
        return {"ended_in_order": ids}

    def _do_sleep(self, step: Step) -> dict[str, Any]:
        time.sleep(step["s"])
        return {}

    def _do_ps(self, step: Step) -> dict[str, Any]:
        exchange = Exchange(self._here.port)
        listed = exchange.ask({"method": "GET", "path": "/api/ps"}, PATIENCE_S)
        exchange.close()
        rows = seen_answer(listed, {"body": {"json": 0}})["body"]["json"]["models"]
        wanted = step["expect"].get("ps", [])
        seen = []
        for number, row in enumerate(rows):
            about = wanted[number]["left_s"] if number < len(wanted) else None
            left = _left_s(row["expires_at"], about)
            kept = {name: row.get(name) for name in ("name", "size_vram", "context_length")}
            seen.append({**kept, "left_s": left})
        return {"ps": seen}

    def _do_runners(self, step: Step) -> dict[str, Any]:
        now: dict[str, Any] = {}
        pids: dict[str, set[int]] = {}
        for one in self._here.workers():
            pids.setdefault(one.model, set()).add(one.pid)
            now[one.model] = {"argv": list(one.argv)}
        for model, before in self._workers.items():
            if model not in pids and before:
                now[model] = {"process": "gone"}
        for model, there in pids.items():
            before = self._workers.get(model, set())
            state = "same as before" if there == before else "started anew"
            now[model].update(process=state if before else "started", count=len(there))
        self._workers = {model: pids.get(model, set()) for model in now}
        return {"runners": now}

    def _worker_pids(self) -> list[int]:
        return [one.pid for one in self._here.workers()]

    def _do_wait_runner(self, step: Step) -> dict[str, Any]:
        gone = bool(step.get("gone"))
        with suppress(AssertionError):
            wait_until(lambda: bool(self._here.workers()) is not gone, PATIENCE_S)
        return {"runner": "there" if self._here.workers() else "gone"}

    def _do_slow_load(self, _: Step) -> dict[str, Any]:
        self._slow = SlowLoad(self._here)
        return {}

    def _do_signal(self, step: Step) -> dict[str, Any]:
        number = signal.Signals[step["sig"]]
        self._here.orphans = self._worker_pids()
        if step["who"] == "server":
            self._here.process.send_signal(number)
            return {"signalled": "server"}
        pids = self._worker_pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return {"signalled": f"{len(pids)} runner(s)"}

    def _do_server_end(self, _: Step) -> dict[str, Any]:
        try:
            return {"server_exit": self._here.process.wait(PATIENCE_S)}
        except subprocess.TimeoutExpired:
            return {"server_exit": "still running"}

    def _do_alive(self, _: Step) -> dict[str, Any]:
        """Whether the server's process is there, and whether its port is open."""
        with socket.socket() as one:
            listens = one.connect_ex(("127.0.0.1", self._here.port)) == 0
        return {"alive": self._here.alive, "listens": listens}

    def _do_orphans(self, step: Step) -> dict[str, Any]:
        """What the server left behind; where none is expected they get a moment to end."""
        living = [pid for pid in self._here.orphans if _alive(pid)]
        if step["expect"].get("runners_left") == 0:
            with suppress(AssertionError):
                wait_until(lambda: not any(map(_alive, living)), 10)
            living = [pid for pid in living if _alive(pid)]
        return {"runners_left": len(living)}

    def _do_log(self, step: Step) -> dict[str, Any]:
        return self._lines(step, self._log_start)

    def _do_startlog(self, step: Step) -> dict[str, Any]:
        return self._lines(step, 0)

    def _lines(self, step: Step, since: int) -> dict[str, Any]:
        wanted = len(step["expect"].get("log", ()))

        def found() -> list[str]:
            return lines_matching(self._here.logged(since), step["grep"], step["most"])

        with suppress(AssertionError):
            wait_until(lambda: len(found()) >= wanted, 10)  # the log may be a moment behind
        return {"log": found()}

    def _do_cli(self, step: Step) -> dict[str, Any]:
        port = self.server.port if self.server else self._port()
        given = {k: v and v.replace("<port>", str(port)) for k, v in step.get("env", {}).items()}
        given = {k: v and v.replace("<dir>", str(self.home)) for k, v in given.items()}
        wanted = {**self.case.env, **given}
        env = self.engine.environ(wanted, port, self.server.home if self.server else self.home)
        limit = step.get("timeout", 10)
        # The one that is expected to stay is given as long as the case says, any other its time.
        stays = "still running" in str(step["expect"].get("exit"))
        command = self.engine.cli(tuple(step["argv"]))
        words = step["expect"].get("stderr")
        due = len(words) if isinstance(words, list) else int("last_words" in step["expect"])
        said, told = self.home / "cli.stdout", self.home / "cli.stderr"
        with said.open("w") as out_to, told.open("w") as err_to:
            process = subprocess.Popen(command, env=env, stdout=out_to, stderr=err_to)
            try:
                status: int | str = process.wait(limit if stays else max(limit, PATIENCE_S))
            except subprocess.TimeoutExpired:
                # On a busy machine an interpreter may need longer than that to begin.
                with suppress(AssertionError):
                    wait_until(lambda: len(told.read_text().splitlines()) >= due)
                process.terminate()
                process.wait()
                status = f"still running after {limit}s"
        out, lines = said.read_text(), told.read_text().splitlines()
        if "last_words" in step["expect"]:
            return {"exit": status, "stdout": out.splitlines(), "last_words": lines[-1:]}
        most = step.get("most", 40)
        return {"exit": status, "stdout": out.splitlines(), "stderr": lines[:most]}

    def _port(self) -> int:
        self._spare_port = self._spare_port or free_port()
        return self._spare_port


def _title(step: Step) -> str:
    words = [step.get("do", ""), step.get("id", ""), step.get("method", ""), step.get("path", "")]
    return " ".join([word for word in words if word] + list(step.get("argv", ())))


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _left_s(expires_at: str, about: Any) -> Any:
    """Seconds left, as ``about`` says when that is near: from 2 s less (the list came late) to 1 s
    more. Beyond 200 years it is for ever.
    """
    whole = re.sub(r"\.(\d{1,6})\d*", lambda found: f".{found[1]:<06}", expires_at)
    left = (datetime.fromisoformat(whole) - datetime.now(UTC)).total_seconds()
    if left > 200 * 365 * 86400:
        return "about 292 years"
    near = isinstance(about, int) and about - 2 <= left <= about + 1
    return about if near else round(left, 1)


def _without(value: Any, path: list[str]) -> Any:
    """``value`` without what ``path`` names; ``*`` is every element of a list or mapping."""
    name, rest = path[0], path[1:]
    if isinstance(value, list):
        return [_without(one, rest if name == "*" else path) for one in value]
    if not isinstance(value, Mapping):
        return value
    if name == "*":
        return {key: _without(one, rest) for key, one in value.items()} if rest else {}
    if name not in value:
        return value
    if not rest:
        return {key: one for key, one in value.items() if key != name}
    return {**value, name: _without(value[name], rest)}
