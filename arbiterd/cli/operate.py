"""Commands that change something: reload, drain, resume, restart, sleep, wake, stop-all, stop-post."""

from __future__ import annotations

import sys
import time

import typer

from arbiterd.act.launch.freezer import thaw_all
from arbiterd.act.launch.systemd_job import own_job, stop_slice
from arbiterd.cli.client import Client, Json, Refused, segment
from arbiterd.cli.common import globals_of, polite, print_json
from arbiterd.cli.follow import follow
from arbiterd.cli.show import as_row, rows
from arbiterd.errors import EX_REFUSED, ArbiterError

SETTLED = ("ready", "failed", "stopped", "sleeping")


def reload(
    context: typer.Context,
    wait: str = typer.Option("accepted", help="accepted: the file is checked; done: all is ready"),
    timeout: float = typer.Option(1200.0, help="seconds, with --wait=done"),
) -> None:
    """Read the configuration again; a bad file changes nothing.

    Examples: arbiterctl reload · arbiterctl reload --wait=done
    """
    own = globals_of(context)
    if wait not in ("accepted", "done"):
        msg = f"--wait={wait}: write --wait=accepted or --wait=done"
        raise typer.BadParameter(msg)
    with polite():
        client = own.client()
        try:
            body = as_row(client.post("/v1/admin/reload", timeout_s=60.0))
        except Refused as refused:
            for problem in problems_of(refused.body):
                print(problem, file=sys.stderr)
            raise
        if wait == "done":
            end = follow(client, body, timeout, json=own.json)
            if end.outcome != "in_force":
                text = f"mode {body.get('mode')} is not in force, mode {end.mode} is: {end.reason}"
                raise ArbiterError(text)
            _wait_done(client, timeout)
    if own.json:
        print_json(body)
    else:
        print(f"accepted: mode {body.get('mode')}")


def problems_of(body: Json) -> list[str]:
    """The problems in a refused reload's answer."""
    found = as_row(body).get("problems")
    if not isinstance(found, list):
        return []
    return [str(one) if not isinstance(one, dict) else str(one.get("text", one)) for one in found]


def _wait_done(client: Client, timeout: float) -> None:
    """Until every backend rests in a phase that does not move by itself."""
    deadline = time.monotonic() + timeout
    said = ""
    while time.monotonic() < deadline:
        found = rows(as_row(client.get("/v1/status")).get("backends"))
        moving = [
            f"{b.get('name')} {b.get('phase')}"
            for b in found
            if b.get("phase") not in SETTLED and not b.get("drained")
        ]
        if not moving:
            failed = [str(b.get("name")) for b in found if b.get("phase") == "failed"]
            if failed:
                msg = f"{', '.join(failed)} failed: arbiterctl why {failed[0]}"
                raise ArbiterError(msg)
            return
        if (text := ", ".join(moving)) != said:
            said = text
            print(text, file=sys.stderr)
        time.sleep(0.25)
    msg = f"not done within {timeout:g} s: {said}"
    raise ArbiterError(msg)


def _verb(context: typer.Context, name: str, verb: str, done: str) -> None:
    own = globals_of(context)
    with polite():
        body = own.client().post(f"/v1/admin/backends/{segment(name)}/{verb}")
    if own.json:
        print_json(body)
    else:
        print(f"{name}: {done}")


def drain(context: typer.Context, name: str = typer.Argument(help="the backend")) -> None:
    """Let nothing new in; what runs goes on. Undo: resume.

    Example: arbiterctl drain vllm
    """
    _verb(context, name, "drain", "takes no new work until: arbiterctl resume " + name)


def resume(context: typer.Context, name: str = typer.Argument(help="the backend")) -> None:
    """Take work again; also brings back what was stopped by hand or has failed for good.

    Example: arbiterctl resume vllm
    """
    _verb(context, name, "resume", "resumed")


def restart(context: typer.Context, name: str = typer.Argument(help="the backend")) -> None:
    """Drain, stop, wait for the memory, start.

    Example: arbiterctl restart ollama
    """
    _verb(context, name, "restart", "restart asked; follow it: arbiterctl status")


def sleep(context: typer.Context, name: str = typer.Argument(help="the backend")) -> None:
    """Drain, then give its GPU memory back without ending it (vLLM with sleep = true). Undo: wake.

    Example: arbiterctl sleep vllm
    """
    _verb(context, name, "sleep", "is drained, then sleeps until: arbiterctl wake " + name)


def wake(context: typer.Context, name: str = typer.Argument(help="the backend")) -> None:
    """Bring a sleeping backend back: it waits for room, wakes, and takes work once it has answered.

    Example: arbiterctl wake vllm
    """
    _verb(context, name, "wake", "wakes when there is room; follow it: arbiterctl why " + name)


def stop_all(
    context: typer.Context,
    timeout: float = typer.Option(120.0, help="seconds to wait until all is stopped"),
) -> None:
    """Stop every backend; each stays stopped until it is resumed.

    Example: arbiterctl stop-all
    """
    own = globals_of(context)
    with polite():
        client = own.client()
        client.post("/v1/admin/stop-all")
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = rows(as_row(client.get("/v1/status")).get("backends"))
            left = [str(b.get("name")) for b in found if b.get("phase") != "stopped"]
            if not left:
                if own.json:
                    print_json({"stopped": [str(b.get("name")) for b in found]})
                else:
                    print("all backends are stopped")
                return
            time.sleep(0.2)
    print(f"arbiterctl: still not stopped: {', '.join(left)}", file=sys.stderr)
    raise SystemExit(EX_REFUSED)


def stop_post() -> None:
    """For the unit's ExecStopPost=: on a `stop` job, stop the slice, should the daemon have died.

    On a restart, a crash or an upgrade the engines go on; what a dead daemon left frozen is thawed.
    """
    with polite():
        for problem in thaw_all():
            print(f"arbiterctl: {problem}", file=sys.stderr)
        if own_job() == "stop":
            stop_slice()
